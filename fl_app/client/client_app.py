# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ClientApp: trains and evaluates the global YOLO model on this node's pictures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from flwr.clientapp.typing import Mod
from flwr.common.constant import ErrorCode

from fl_app.client.data import DataError, DataSpec, NodeData, load_node_data
from fl_app.client.mods.compression import compress_updates
from fl_app.client.mods.packing import pack_arrays
from fl_app.client.summary.yolo import picture_summaries
from fl_app.client.training import TrainingError, torch_threads, train_locally
from fl_app.config import ClientConfig, ConfigError
from fl_models.file_cache import cached_while_unchanged
from fl_models.holdout import Holdout
from fl_models.pictures import read_pictures
from fl_models.yolo import ModelMismatchError, YoloModel, from_arrays, get_model, to_arrays
from fl_registry import RegistryError

logger = logging.getLogger(__name__)

Handler = Callable[[Message, Context], Message]

app = ClientApp()


def round_seed(config: ClientConfig, server_round: int, digest: str) -> int:
    """Return the seed of a local round; it differs between rounds and between nodes' data."""
    # The digest is included, since a node with data of its own has no partition id.
    key = f"{config.seed}/{server_round}/{config.partition_id}/{digest}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % (2**31 - 2)


def errors_as_replies(handler: Handler) -> Handler:
    """Answer with an error message if this node's data or settings cannot be used.

    The round continues without this node. Flower handles every other exception.
    """

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except (ConfigError, DataError, ModelMismatchError, RegistryError, TrainingError) as error:
            reason = str(error)
            logger.warning("this node does not take part in the round: %s", reason)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    return guarded


@app.train(mods=[pack_arrays])
@errors_as_replies
def train(message: Message, context: Context) -> Message:
    """Train the global weights on this node's pictures and send back all arrays.

    If the run config enables them, a summary of new pictures is added and the update compressed.
    """
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    data = load_node_data(config)

    def trained(message: Message, context: Context) -> Message:
        return _train(message, config, data)

    handler: Handler = trained
    # Compression comes last, so that it is the outermost mod: it compresses the final reply.
    if config.data_summaries:
        handler = _wrapped(picture_summaries(config, data), handler)
    if config.update_compression != "none":
        handler = _wrapped(compress_updates(config.update_compression, seed=config.seed), handler)
    return handler(message, context)


def _wrapped(mod: Mod, handler: Handler) -> Handler:
    return lambda message, context: mod(message, context, handler)


def _train(message: Message, config: ClientConfig, data: NodeData) -> Message:
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
@errors_as_replies
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global weights on pictures that this node never trains on."""
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    data = load_node_data(config)
    model = _loaded_model(message, config, data.spec.names)
    try:
        holdout = _holdout(data.holdout, data.spec, config.image_size, config.batch_size, _device())
    except ValueError as error:
        raise DataError(str(error)) from error
    with torch_threads(config.threads):
        scores = holdout(model)
    return _reply(message, {"num-examples": len(holdout), **scores}, data)


_pictures = cached_while_unchanged(read_pictures)


@cached_while_unchanged
def _holdout(
    paths: Sequence[Path], spec: DataSpec, image_size: int, batch_size: int, device: str
) -> Holdout:
    data = replace(spec, val=tuple(paths))
    return Holdout(data, image_size=image_size, batch_size=batch_size, device=device)


@lru_cache(maxsize=1)
def _model(size: str, names: tuple[str, ...]) -> YoloModel:
    # Reused in the next message: everything that a round changes is overwritten below.
    return get_model(size, len(names), names=names)


def _loaded_model(message: Message, config: ClientConfig, names: Sequence[str]) -> YoloModel:
    model = _model(config.model_size, tuple(names))
    model.criterion = None  # built again from the next round's settings
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
