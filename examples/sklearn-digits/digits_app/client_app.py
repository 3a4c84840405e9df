# SPDX-License-Identifier: Apache-2.0
"""The ClientApp, as in any Flower app: it knows nothing of the lifecycle."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from digits_app.task import CLASSES, fit, model_of, partition

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Fit the global model on this node's digits."""
    data, _ = partition(**_node(context))
    model = model_of(message.content["arrays"], int(context.run_config["local-steps"]))
    fit(model, data)
    loss = log_loss(data[1], model.predict_proba(data[0]), labels=range(CLASSES))
    content = RecordDict(
        {
            "arrays": ArrayRecord([model.coef_, model.intercept_]),
            "metrics": MetricRecord({"loss": float(loss), "num-examples": len(data[1])}),
        }
    )
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the global model on digits that this node did not train on."""
    _, data = partition(**_node(context))
    accuracy = model_of(message.content["arrays"]).score(*data)
    metrics = MetricRecord({"accuracy": float(accuracy), "num-examples": len(data[1])})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def _node(context: Context) -> dict[str, int]:
    return {
        "partition_id": int(context.node_config["partition-id"]),
        "num_partitions": int(context.node_config["num-partitions"]),
    }
