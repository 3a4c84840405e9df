# SPDX-License-Identifier: Apache-2.0
"""compress_updates: a Flower mod that compresses a node's model updates.

The format is in `fl_app/wire/compressed_update.py`; `LifecycleStrategy` decodes it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message

from fl_app.flower_internals import ClientAppCallable, ErrorCode, Mod
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

    A reply to a train message carries the difference to the model in that message, in half
    precision or as whole multiples of a scale for each channel. Integers, booleans and arrays of
    less than two axes are sent unchanged. A node stores nothing between rounds: the rounding of
    ``int8`` is unbiased, so no error has to be carried into a next round, which may be far off.
    The server must be a `LifecycleStrategy`; any other strategy raises a TypeError. Nodes with and
    without the mod may take part in one round.

    As the first of the mods it is applied after those that clip a reply or add noise to it.
    ``int8`` may lengthen an update that a node has clipped: limit its norm on the server too, by
    ``Screening(max_update_norm=...)``.

    Parameters
    ----------
    encoding : str
        "float16" or "int8": about a half or a quarter of the bytes of float32.
    seed : int
        Seed of the rounding, combined with the node and the received model.

    Raises
    ------
    ValueError
        ``encoding`` is neither of these.
    """
    if encoding not in [*Encoding]:
        raise ValueError(f"encoding is {encoding!r}, expected 'float16' or 'int8'.")
    form = Encoding(encoding)

    # Noise and clipping on the node act before this mod, and those of the server after decoding, so
    # both stay as they are. Only an update that the node clipped may get longer: by 0.05 % with
    # float16, by more with int8.
    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        # Read before the app gets the message, which it may change.
        sent = {key: dict(arrays) for key, arrays in message.content.array_records.items()}
        reply = call_next(message, context)
        if not message.metadata.message_type.startswith("train") or reply.has_error():
            return reply
        try:
            # A simulated node's id is another one in each run.
            node = context.node_config.get("partition-id", context.node_id)
            _compress(reply, sent, form, seed=f"{seed} {node}")
        except UpdateError as error:
            reason = f"this node's update {error}; it does not take part in this round"
            logger.warning("%s", reason)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        return reply

    return mod


def _compress(
    reply: Message, sent: Mapping[str, Mapping[str, Array]], form: Encoding, *, seed: str
) -> None:
    """Replace the reply's arrays by compressed ones."""
    records = list(reply.content.array_records.items())
    base = _base(records[0][1], sent) if len(records) == 1 else None
    if base is None:
        logger.warning("an update is not compressed: the message had no model with these arrays")
        return
    (key, arrays), scales, made = records[0], dict[str, np.ndarray](), ArrayRecord()
    model = fingerprint({name: array.data for name, array in base.items()})
    # Equal rounds are rounded equally; two nodes, or two rounds, never are.
    digest = hashlib.sha256(f"{seed} {model}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
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
    sizes = [sum(len(array.data) for array in record.values()) / 1e6 for record in (made, arrays)]
    logger.info("sends %.3f MB instead of %.3f MB", *sizes)
    reply.content[key] = made
    reply.content[UPDATE_RECORD] = ConfigRecord(UpdateHeader(form, model, scales).to_record())


def _base(
    arrays: ArrayRecord, sent: Mapping[str, Mapping[str, Array]]
) -> Mapping[str, Array] | None:
    """Return the received arrays with the same names and shapes; None if there are none."""

    def shapes(record: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(array.shape) for name, array in record.items()}

    return next((model for model in sent.values() if shapes(model) == shapes(arrays)), None)
