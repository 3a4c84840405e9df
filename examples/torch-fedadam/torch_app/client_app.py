# SPDX-License-Identifier: Apache-2.0
"""The ClientApp, as in any Flower app: it knows nothing of the lifecycle."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from torch_app.task import Split, accuracy, fit, network, partition

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this node's digits."""
    model, (data, _) = _model(message), _data(context)
    loss = fit(
        model,
        data,
        epochs=int(context.run_config["local-epochs"]),
        learning_rate=float(context.run_config["learning-rate"]),
    )
    metrics = MetricRecord({"loss": loss, "num-examples": len(data[1])})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the global model on digits that this node did not train on."""
    _, data = _data(context)
    found = {"accuracy": accuracy(_model(message), data), "num-examples": len(data[1])}
    return Message(content=RecordDict({"metrics": MetricRecord(found)}), reply_to=message)


def _model(message: Message) -> nn.Module:
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


def _data(context: Context) -> tuple[Split, Split]:
    return partition(
        int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    )
