# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ClientApp: trains and evaluates the global YOLO model on this node's pictures."""
# ruff: noqa: E402  (what is not installed is named before it is imported)

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path

from fl_registry.errors import require

require("The shipped model", "torch", "ultralytics")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_app.client.data import DataError, NodeData, load_node_data
from fl_app.client.mods.compression import compress_updates
from fl_app.client.mods.packing import pack_arrays
from fl_app.client.summary.pictures import picture_summaries
from fl_app.client.training import TrainingError, torch_threads, train_locally
from fl_app.config import ClientConfig, ConfigError
from fl_app.flower_internals import ClientAppCallable, ErrorCode, Mod
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec, PictureError, cached_while_unchanged, read_pictures
from fl_models.yolo import ModelMismatchError, YoloModel, described_model, from_arrays
from fl_registry import RegistryError

logger = logging.getLogger(__name__)

Handler = Callable[[Message, Context, ClientConfig, NodeData], Message]

app = ClientApp()


def with_data(handler: Handler) -> ClientAppCallable:
    """Give a handler this node's settings and data; an error message if they cannot be used.

    The round continues without this node. Flower handles every other exception.
    """

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            config = ClientConfig.from_run_config(context.run_config, context.node_config)
            return handler(message, context, config, load_node_data(config))
        except (ConfigError, ModelMismatchError, PictureError, RegistryError, TrainingError) as err:
            reason = str(err)
            logger.warning("this node does not take part in the round: %s", reason)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    return guarded


@app.train(mods=[pack_arrays])
@with_data
def train(message: Message, context: Context, config: ClientConfig, data: NodeData) -> Message:
    """Train the global weights on this node's pictures and send back all arrays.

    If the run config enables them, a summary of new pictures is added and the update compressed.
    """

    def trained(message: Message, context: Context) -> Message:
        return _train(message, config, data)

    handler: ClientAppCallable = trained
    # Compression comes last, so that it is the outermost mod: it compresses the final reply.
    if config.data_summaries:
        handler = _wrapped(picture_summaries(config, data.spec), handler)
    if config.update_compression != "none":
        handler = _wrapped(compress_updates(config.update_compression, seed=config.seed), handler)
    return handler(message, context)


def _wrapped(mod: Mod, handler: ClientAppCallable) -> ClientAppCallable:
    return lambda message, context: mod(message, context, handler)


def _train(message: Message, config: ClientConfig, data: NodeData) -> Message:
    pictures = _pictures(data.spec.train, data.spec.nc)
    if not pictures:
        raise DataError(
            f"none of the {len(data.spec.train)} training pictures of this node is usable"
        )
    order = message.content.config_records["config"]
    # The digest is included, since a node with data of its own has no partition id.
    key = f"{config.seed}/{_number(order, 'server-round')}/{config.partition_id}/{data.digest}"
    model = _loaded_model(message, data.spec.names)
    loss = train_locally(
        model,
        pictures,
        names=data.spec.names,
        image_size=config.image_size,
        batch_size=config.batch_size,
        epochs=config.local_epochs,
        learning_rate=_number(order, "learning-rate"),
        seed=int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % (2**31 - 2),
        threads=config.threads,
        device=_device(),
    )
    reply = _reply(message, {"num-examples": len(pictures), "loss": loss}, data)
    # All entries: BatchNorm's running statistics are averaged like weights. Without them the mAP of
    # the global model stays 0.
    reply.content["arrays"] = ArrayRecord(model.state_dict())
    return reply


@app.evaluate(mods=[pack_arrays])
@with_data
def evaluate(message: Message, context: Context, config: ClientConfig, data: NodeData) -> Message:
    """Evaluate the global weights on pictures that this node never trains on."""
    model = _loaded_model(message, data.spec.names)
    sizes = config.image_size, config.batch_size
    holdout = _holdout(data.spec.val, data.spec, *sizes, _device())
    with torch_threads(config.threads):
        scores = holdout(model)
    return _reply(message, {"num-examples": len(holdout), **scores}, data)


_pictures = cached_while_unchanged(read_pictures)


@cached_while_unchanged
def _holdout(
    paths: Sequence[Path], data: DataSpec, image_size: int, batch_size: int, device: str
) -> Holdout:
    return Holdout(data, image_size=image_size, batch_size=batch_size, device=device)


@lru_cache(maxsize=1)
def _model(described: str, names: tuple[str, ...]) -> YoloModel:
    # Reused in the next message: everything that a round changes is overwritten below.
    try:
        return described_model({**json.loads(described), "names": names})
    except (LookupError, TypeError, ValueError) as error:
        raise TrainingError(f"the server sent a model that can't be built here: {error}") from error


def _loaded_model(message: Message, names: Sequence[str]) -> YoloModel:
    described = str(message.content.config_records["config"].get("model", "{}"))
    model = _model(described, tuple(names))
    model.criterion = None  # built again from the next round's settings
    arrays = message.content.array_records["arrays"]
    from_arrays(model, {name: array.numpy() for name, array in arrays.items()})
    return model


def _number(order: ConfigRecord, key: str) -> int | float:
    value = order.get(key)
    if not isinstance(value, int | float):
        raise TrainingError(
            f"the server sent {value!r} as {key}, expected a number in its train config"
        )
    return value


def _device() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _reply(message: Message, metrics: dict[str, int | float], data: NodeData) -> Message:
    about = ConfigRecord({"data-digest": data.digest})
    content = RecordDict({"metrics": MetricRecord(dict(metrics)), "node": about})
    return Message(content, reply_to=message)
