# SPDX-License-Identifier: Apache-2.0
"""The ClientApp, as in any Flower app, but for the mod."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clinics_app.task import fit, model_of, scaled, table
from fl_app.client.mods.data_summary import data_summary_mod


def columns(message: Message, context: Context) -> dict[str, np.ndarray]:
    """The clinic's table as it is now."""
    return _table(message, context)[0]


app = ClientApp(mods=[data_summary_mod(columns)])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Fit the global model on this clinic's findings."""
    mine, diagnoses = _table(message, context)
    model = model_of(message.content["arrays"])
    fit(model, scaled(np.stack(list(mine.values()), axis=1)), diagnoses)
    content = RecordDict(
        {
            "arrays": ArrayRecord([model.coef_, model.intercept_]),
            "metrics": MetricRecord({"num-examples": len(diagnoses)}),
        }
    )
    return Message(content=content, reply_to=message)


def _table(message: Message, context: Context) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return table(
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
        int(message.content["config"]["server-round"]),
        int(context.run_config["new-scanner-in-round"]),
    )
