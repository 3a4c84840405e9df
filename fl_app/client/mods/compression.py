# SPDX-License-Identifier: Apache-2.0
"""compress_updates: a Flower mod that sends what a node has learned in fewer bytes.

The form is in `fl_app/wire/compressed_update.py`; `LifecycleStrategy` reads it by itself.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.constant import ErrorCode

from fl_app.wire.compressed_update import (
    SERIALIZED_AS,
    UPDATE_RECORD,
    Encoding,
    UpdateError,
    UpdateHeader,
    encode,
    fingerprint,
)

logger = logging.getLogger("flwr.fl_app")


def compress_updates(encoding: str, *, seed: int = 0) -> Mod:
    """Make a mod: ``ClientApp(mods=[compress_updates("int8"), ...])``, before all others.

    A reply to a train message carries the difference to the model that the message brought, in
    half precision or in whole multiples of a scale for each channel. What is no float, and arrays
    of less than two axes, travel as they are. A node keeps nothing: the rounding of ``int8`` has
    the exact value for its mean, so that no error needs to be carried into the next round, which
    might be a long time off. The server must be a `LifecycleStrategy`, any other strategy raises a
    TypeError; nodes with and without the mod may take part in one round.

    As the first of the mods it comes after those that clip or add noise to a reply. ``int8`` may
    lengthen an update that a node has clipped: bound it again on the server by
    ``Screening(max_update_norm=...)``.

    Parameters
    ----------
    encoding : str
        "float16" or "int8": about a half or a quarter of the bytes of float32.
    seed : int
        With the node and the model that it was sent, it decides which values are rounded up.

    Raises
    ------
    ValueError
        If ``encoding`` is another word.
    """
    if encoding not in [*Encoding]:
        raise ValueError(f"encoding is {encoding!r}, expected 'float16' or 'int8'.")
    form = Encoding(encoding)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        # Taken before the app has the message, which may empty it.
        sent = {key: dict(arrays) for key, arrays in message.content.array_records.items()}
        reply = call_next(message, context)
        if not message.metadata.message_type.startswith("train") or reply.has_error():
            return reply
        try:
            _compress(reply, sent, form, seed=f"{seed} {_node(context)}")
        except UpdateError as error:
            reason = f"what this node has learned {error}; it sits out this round"
            logger.warning("%s", reason)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        return reply

    return mod


def _compress(
    reply: Message,
    sent: Mapping[str, Mapping[str, Array]],
    form: Encoding,
    *,
    seed: str,
) -> None:
    """Put the smaller arrays into the reply, in the place of its own."""
    found = list(reply.content.array_records.items())
    base = _base(found[0][1], sent) if len(found) == 1 else None
    if base is None:
        logger.warning("an update is sent as it is: the message brought no model of its arrays")
        return
    (key, arrays), scales, made = found[0], dict[str, np.ndarray](), ArrayRecord()
    model = fingerprint({name: array.data for name, array in base.items()})
    random = _random(f"{seed} {model}")
    for name, array in arrays.items():
        try:
            encoded = encode(array.numpy(), base[name].numpy(), form, random)
        except UpdateError as error:
            raise UpdateError(f"cannot be sent, as array {name!r} {error}") from None
        made[name] = array
        if encoded is not None:
            made[name], scales[name] = Array(encoded[0]), encoded[1]
            made[name].stype = SERIALIZED_AS
    if not scales:
        return
    logger.info("sends %.3f MB in place of %.3f MB", _megabytes(made), _megabytes(arrays))
    header = UpdateHeader(form, model, scales)
    reply.content[key] = made
    reply.content[UPDATE_RECORD] = ConfigRecord(header.to_record())


def _base(
    arrays: ArrayRecord, sent: Mapping[str, Mapping[str, Array]]
) -> Mapping[str, Array] | None:
    """The arrays that the node was sent under the same names and in the same shapes."""
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    for model in sent.values():
        if {name: tuple(array.shape) for name, array in model.items()} == shapes:
            return model
    return None


def _megabytes(arrays: ArrayRecord) -> float:
    return sum(len(array.data) for array in arrays.values()) / 1e6


def _node(context: Context) -> object:
    """What a node is called in each run; the id of a simulated one is another each time."""
    return context.node_config.get("partition-id", context.node_id)


def _random(key: str) -> np.random.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
