# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ClientApp: trains and evaluates the global YOLO model on this node's pictures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl_app.client.data import (
    DataError,
    DataSpec,
    data_digest,
    node_pictures,
)
from fl_app.client.mods.compression import compress_updates
from fl_app.client.mods.packing import pack_arrays
from fl_app.client.summary.yolo import tell_of_pictures
from fl_app.client.training import TrainingError, torch_threads, train_locally
from fl_app.config import ClientConfig, ConfigError
from fl_models.file_cache import kept_while_unchanged
from fl_models.holdout import Holdout
from fl_models.pictures import read_pictures
from fl_models.yolo import ModelMismatchError, YoloModel, from_arrays, get_model, to_arrays
from fl_registry import RegistryError

logger = logging.getLogger(__name__)

Handler = Callable[[Message, Context], Message]

app = ClientApp()


@dataclass(frozen=True)
class NodeData:
    """The pictures of this node.

    Parameters
    ----------
    spec : DataSpec
        The data set they come from.
    train, holdout : tuple[Path, ...]
        Pictures to train on and pictures to evaluate on; no picture is in both.
    digest : str
        sha256 over all of them and their labels.
    """

    spec: DataSpec
    train: tuple[Path, ...]
    holdout: tuple[Path, ...]
    digest: str


def load_node_data(config: ClientConfig) -> NodeData:
    """Return this node's pictures: its partition, or all of its own data set.

    A simulated node has a partition and keeps every tenth picture of it for evaluation. A node
    with data of its own trains on the `train` split and evaluates on `val`.

    Raises
    ------
    DataError
        If the data can't be used.
    """
    spec, train, holdout = node_pictures(config)
    return NodeData(spec, tuple(train), tuple(holdout), _digest([*train, *holdout]))


def round_seed(config: ClientConfig, server_round: int, digest: str) -> int:
    """Return the seed of a local round: another for each round and each node's data."""
    key = f"{config.seed}/{server_round}/{config.partition_id}/{digest}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % (2**31 - 2)


def tells_errors(handler: Handler) -> Handler:
    """Answer with an error message where this node's data or settings can't be used.

    The other nodes' round goes on without it; anything unforeseen is left to Flower.
    """

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except (ConfigError, DataError, ModelMismatchError, RegistryError, TrainingError) as error:
            reason = str(error)
            logger.warning("this node sits out: %s", reason)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    return guarded


def compress_as_set(message: Message, context: Context, call_next: Handler) -> Message:
    """The mod that makes a reply smaller if the run's settings say so."""
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    if config.update_compression == "none":
        return reply
    mod = compress_updates(config.update_compression, seed=config.seed)
    return mod(message, context, lambda message, context: reply)


@app.train(mods=[pack_arrays, compress_as_set, tell_of_pictures])
@tells_errors
def train(message: Message, context: Context) -> Message:
    """Train the global weights on this node's pictures and send back all arrays."""
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    data = load_node_data(config)
    pictures = _pictures(data.train, data.spec.nc)
    if not pictures:
        raise DataError(f"none of the {len(data.train)} training pictures of this node is usable")
    order = message.content.config_records["config"]
    model = _loaded_model(message, config, data.spec.names)
    result = train_locally(
        model,
        pictures,
        names=data.spec.names,
        image_size=config.image_size,
        batch_size=config.batch_size,
        epochs=config.local_epochs,
        learning_rate=_number(order, "learning-rate"),
        seed=round_seed(config, int(_number(order, "server-round")), data.digest),
        threads=config.threads,
        device=_device(),
    )
    logger.info(
        "trained on %d pictures in %.1f s, loss %.3f",
        result.num_examples,
        result.seconds,
        result.loss,
    )
    metrics = {"num-examples": result.num_examples, "loss": result.loss}
    return _reply(message, metrics, data, arrays=to_arrays(model))


@app.evaluate(mods=[pack_arrays])
@tells_errors
def evaluate(message: Message, context: Context) -> Message:
    """Score the global weights on pictures that this node never trains on."""
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    data = load_node_data(config)
    model = _loaded_model(message, config, data.spec.names)
    try:
        holdout = _holdout(
            data.holdout, data.spec.names, config.image_size, config.batch_size, _device()
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    with torch_threads(config.threads):
        scores = holdout(model)
    return _reply(message, {"num-examples": len(holdout), **scores}, data)


_digest = kept_while_unchanged(data_digest)
_pictures = kept_while_unchanged(read_pictures)


@kept_while_unchanged
def _holdout(
    paths: Sequence[Path], names: tuple[str, ...], image_size: int, batch_size: int, device: str
) -> Holdout:
    data = _HeldOut(tuple(paths), names)
    return Holdout(data, image_size=image_size, batch_size=batch_size, device=device)


@dataclass(frozen=True)
class _HeldOut:
    val: tuple[Path, ...]
    names: tuple[str, ...]


@lru_cache(maxsize=1)
def _model(size: str, names: tuple[str, ...]) -> YoloModel:
    # Safe to use again in the next message: all that a round changes is overwritten below.
    return get_model(size, len(names), names=names)


def _loaded_model(message: Message, config: ClientConfig, names: Sequence[str]) -> YoloModel:
    model = _model(config.model_size, tuple(names))
    model.criterion = None  # built anew from the next round's settings
    arrays = message.content.array_records["arrays"]
    from_arrays(model, {name: array.numpy() for name, array in arrays.items()})
    return model


def _number(order: ConfigRecord, key: str) -> float:
    value = order.get(key)
    if not isinstance(value, int | float):
        raise TrainingError(
            f"the server sent {value!r} as {key}, expected a number in its train config"
        )
    return value


def _device() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _reply(
    message: Message,
    metrics: dict[str, float],
    data: NodeData,
    *,
    arrays: dict[str, np.ndarray] | None = None,
) -> Message:
    content = RecordDict(
        {
            "metrics": MetricRecord(dict(metrics)),
            "node": ConfigRecord({"data-digest": data.digest}),
        }
    )
    if arrays is not None:
        content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return Message(content, reply_to=message)
