# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a node answers messages: it trains and evaluates the global YOLO model on its pictures."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
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

from fl_app.client.data import NodeData, load_node_data
from fl_app.client.data_yaml import DataError
from fl_app.client.file_memory import FileMemory, memory_of
from fl_app.client.hardware import Hardware
from fl_app.client.mods.compression import compress_updates
from fl_app.client.summary.pictures import picture_summaries
from fl_app.client.train_args import TrainArgs, TrainArgsError, read_train_args
from fl_app.client.training import TrainingError, torch_threads, train_locally
from fl_app.config import ClientConfig, ConfigError
from fl_app.devices import DeviceError, chosen_device, device_memory
from fl_app.flower_internals import ClientAppCallable, ErrorCode, Mod
from fl_models.decoding import picture_shape, read_pictures
from fl_models.pictures import (
    DataSpec,
    NoBoxesError,
    PictureError,
    Pictures,
    cached_while_unchanged,
)
from fl_models.yolo import ModelMismatchError, YoloModel, described_model, from_arrays
from fl_registry import RegistryError, app_home
from fl_registry.redaction import printable

if TYPE_CHECKING:
    from fl_models.holdout import Holdout

logger = logging.getLogger(__name__)

# Their text is a sentence for the person who runs the federation.
_REPORTED = (
    ConfigError,
    DeviceError,
    ModelMismatchError,
    PictureError,
    RegistryError,
    TrainArgsError,
    TrainingError,
)

OPTIMIZER = "fl-app-optimizer"
"""Key of the record in a node's state that holds the optimizer's, if it is kept."""

Handler = Callable[[Message, Context, ClientConfig, NodeData], Message]
NAMES_KEY = "names"
"""Key of a message's config: the names of the model's classes, in their order."""


def with_data(handler: Handler) -> ClientAppCallable:
    """Give a handler this node's settings and data; an error message if they cannot be used.

    The round continues without this node. Flower handles every other exception.
    """

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            config = ClientConfig.from_run_config(context.run_config, context.node_config)
            data = load_node_data(config, _class_names(message))
            return handler(message, context, config, data)
        except _REPORTED as err:
            reason = printable(str(err))  # names of files need not be UTF-8
            logger.warning("this node does not take part in the round: %s", reason)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    return guarded


@with_data
def train(message: Message, context: Context, config: ClientConfig, data: NodeData) -> Message:
    """Train the global weights on this node's pictures and send back all arrays.

    If the run config enables them, a summary of new pictures is added and the update compressed.
    """

    def trained(message: Message, context: Context) -> Message:
        return _train(message, config, data, context.state)

    handler: ClientAppCallable = trained
    # Compression comes last, so that it is the outermost mod: it compresses the final reply.
    if config.data_summaries:
        handler = _wrapped(picture_summaries(config, data.spec), handler)
    if config.update_compression != "none":
        handler = _wrapped(compress_updates(config.update_compression, seed=config.seed), handler)
    return handler(message, context)


def _wrapped(mod: Mod, handler: ClientAppCallable) -> ClientAppCallable:
    return lambda message, context: mod(message, context, handler)


def _train(message: Message, config: ClientConfig, data: NodeData, state: RecordDict) -> Message:
    pictures = _pictures(
        data.spec.train, data.spec.numbers, data.spec.keypoints, _shapes(config, data)
    )
    try:
        pictures.require_usable("training pictures", backgrounds=config.allow_backgrounds)
    except NoBoxesError as error:
        raise DataError(f"{error}, or set allow-backgrounds=true to train without") from None
    order = message.content.config_records["config"]
    # A node with data of its own has no partition id. Its digest would be another one if it named
    # the same classes in another order, which must not change the result.
    files = "/".join(path.name for path in data.spec.train)
    key = f"{config.seed}/{_number(order, 'server-round')}/{config.partition_id}/{files}"
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    device = chosen_device(config.device)
    model = _loaded_model(message, data.spec.names)
    server_round = int(_number(order, "server-round"))
    kept = _kept_optimizer(state, server_round) if config.keep_optimizer else None
    with device_memory(device, _too_much(config)):
        loss = train_locally(
            model,
            pictures,
            names=data.spec.names,
            image_size=config.image_size,
            batch_size=config.batch_size,
            epochs=config.local_epochs,
            args=_train_args(order, config),
            seed=int(digest[:8], 16) % (2**31 - 2),
            hardware=Hardware(
                device,
                amp=config.amp,
                threads=config.threads,
                workers=config.workers,
                cache=config.cache,
                cache_folder=app_home(config.home) / "decoded",
            ),
            kept=kept,
        )
    if kept is not None:
        state[OPTIMIZER] = ArrayRecord({name: Array(values) for name, values in kept.items()})
        state[f"{OPTIMIZER}-round"] = ConfigRecord({"server-round": server_round})
    metrics = {"num-examples": len(pictures), "loss": loss}
    reply = _reply(message, metrics, data, pictures.note)
    # All entries: BatchNorm's running statistics are averaged like weights. Without them the mAP of
    # the global model stays 0.
    reply.content["arrays"] = ArrayRecord(model.state_dict())
    return reply


@with_data
def evaluate(message: Message, context: Context, config: ClientConfig, data: NodeData) -> Message:
    """Evaluate the global weights on pictures that this node never trains on."""
    device = chosen_device(config.device)
    model = _loaded_model(message, data.spec.names)
    sizes = config.image_size, config.batch_size
    holdout = _holdout(data.spec.val, data.spec, sizes, str(device), _shapes(config, data))
    with device_memory(device, _too_much(config)), torch_threads(config.threads):
        scores = holdout(model)
    return _reply(message, {"num-examples": len(holdout), **scores}, data, holdout.note)


@cached_while_unchanged
def _pictures(
    paths: Sequence[Path], numbers: tuple[int, ...], keypoints: int, store: Path
) -> Pictures:
    with FileMemory(store) as memory:
        return read_pictures(paths, numbers, keypoints, shape_of=partial(_shape, memory))


@cached_while_unchanged
def _holdout(
    paths: Sequence[Path], data: DataSpec, sizes: tuple[int, int], device: str, store: Path
) -> Holdout:
    from fl_models.holdout import Holdout  # with what training does not need: 0.3 s

    side, batch = sizes
    with FileMemory(store) as memory:
        shape_of = partial(_shape, memory)
        return Holdout(data, image_size=side, batch_size=batch, device=device, shape_of=shape_of)


def _shape(memory: FileMemory, path: Path) -> tuple[int, int]:
    height, width = memory.of(path, picture_shape)
    return height, width


def _shapes(config: ClientConfig, data: NodeData) -> Path:
    return memory_of(app_home(config.home), "shapes", data.spec.root)


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


def _kept_optimizer(state: RecordDict, server_round: int) -> dict[str, np.ndarray]:
    """Return the optimizer's state that the round before has left in this node's state."""
    arrays, about = state.get(OPTIMIZER), state.get(f"{OPTIMIZER}-round")
    if not isinstance(arrays, ArrayRecord) or not isinstance(about, ConfigRecord):
        return {}
    if server_round == 1 or about.get("server-round") != server_round - 1:
        return {}  # of another session, or of weights that others have changed since
    return {name: array.numpy() for name, array in arrays.items()}


def _train_args(order: ConfigRecord, config: ClientConfig) -> TrainArgs:
    """Return the training arguments of this round, which the server sends."""
    values, epochs = read_train_args(str(order.get("train-args", ""))), config.local_epochs
    before, rounds = _number(order, "server-round") - 1, _number(order, "num-rounds")
    return TrainArgs(values, epoch=int(before * epochs), epochs=int(rounds * epochs))


def _number(order: ConfigRecord, key: str) -> int | float:
    value = order.get(key)
    if not isinstance(value, int | float):
        raise TrainingError(
            f"the server sent {value!r} as {key}, expected a number in its train config"
        )
    return value


def _too_much(config: ClientConfig) -> str:
    return (
        f"lower batch-size (now {config.batch_size}, which a node config may set), or image-size "
        f"(now {config.image_size})"
    )


def _class_names(message: Message) -> tuple[str, ...]:
    names = message.content.config_records["config"].get(NAMES_KEY)
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise DataError(
            f"the server sent {names!r} as {NAMES_KEY}, expected the names of its classes in the "
            "train and the evaluate config"
        )
    return tuple(map(str, names))


def _reply(message: Message, metrics: dict[str, int | float], data: NodeData, note: str) -> Message:
    # A message takes UTF-8 only.
    notes = [printable(each) for each in (*data.notes, note) if each]
    about = ConfigRecord({"data-digest": data.digest, "notes": notes})
    content = RecordDict({"metrics": MetricRecord(dict(metrics)), "node": about})
    return Message(content, reply_to=message)
