# SPDX-License-Identifier: Apache-2.0
"""The ClientApp: it tells nothing but the model, since only that is clipped and made noisy."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dp_app.task import fit, partition

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Fit the global model on this node's digits."""
    data = partition(
        int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    )
    arrays = fit(message.content["arrays"], data, int(context.run_config["local-steps"]))
    metrics = MetricRecord({"num-examples": len(data[1])})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content=content, reply_to=message)
