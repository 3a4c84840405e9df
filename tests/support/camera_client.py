# SPDX-License-Identifier: Apache-2.0
"""The shipped ClientApp on two nodes whose pictures change on disk in the third round.

Where the data folder holds a file `broken`, they come out blurred and dark; else as they were,
only saved anew.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from PIL import Image, ImageEnhance, ImageFilter

from fl_app.client import client_app as honest
from fl_app.client.data import load_node_data
from fl_app.config import ClientConfig


def change_pictures(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Rewrite the pictures of the first two nodes, once."""
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    order = message.content.config_records["config"]
    data = load_node_data(config, order["names"])  # type: ignore[arg-type]
    marker = data.spec.root / f"changed-{config.partition_id}"
    late = order["server-round"] == 3
    if late and config.partition_id in (0, 1) and not marker.exists():
        broken = (data.spec.root / "broken").exists()
        for path in (*data.spec.train, *data.spec.val):
            save_anew(path, broken=broken)
        marker.touch()
    return call_next(message, context)


def save_anew(path: Path, *, broken: bool) -> None:
    with Image.open(path) as file:
        picture = file.convert("RGB")
    if broken:
        picture = picture.filter(ImageFilter.GaussianBlur(4))
        picture = ImageEnhance.Brightness(picture).enhance(0.6)
    picture.save(path, quality=95)


app = ClientApp(mods=[change_pictures])
app.train()(honest.train)
app.evaluate()(honest.evaluate)
