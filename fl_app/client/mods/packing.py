# SPDX-License-Identifier: Apache-2.0
"""pack_arrays: a Flower mod that sends and receives a model as one array.

The format is in `fl_app/wire/packing.py`; on the server use `LifecycleStrategy(pack_arrays=True)`.
"""

from __future__ import annotations

from flwr.app import Context, Error, Message

from fl_app.flower_internals import ClientAppCallable, ErrorCode
from fl_app.wire.packing import PackingError, is_packed, pack, unpack


def pack_arrays(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Unpack a packed message and pack its reply; other messages are not changed.

    Use it as the first of the mods: ``ClientApp(mods=[pack_arrays, ...])``. The app and the mods
    after it see plain arrays.
    """
    if not is_packed(message.content):
        return call_next(message, context)
    try:
        message.content = unpack(message.content)
    except PackingError as error:
        reason = f"what the server sent {error}"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = pack(reply.content)
    return reply
