# SPDX-License-Identifier: Apache-2.0
"""A version's weights as a download: the stored file, or an Ultralytics checkpoint made of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import IO, Literal

from flask import Response, send_file

from fl_app.api.endpoint import Context
from fl_app.api.parsing import ApiError, Query, Version

BINARY = "application/octet-stream"


Form = Literal["safetensors", "pt"]
"""As they are stored, or as a checkpoint for Ultralytics."""


class DownloadQuery(Query):
    """In which form."""

    format: Form = "safetensors"
    """As they are stored, or as a checkpoint for Ultralytics."""


class PageDownloadQuery(Query):
    """Which version, and in which form."""

    version: Version
    format: Form = "safetensors"


def download_weights(
    api: Context, query: DownloadQuery | PageDownloadQuery, version: str
) -> Response:
    """Download the weights of a version, as they are stored or as a checkpoint for Ultralytics."""
    with api.registry() as store:
        weights = store.weights_path(version)
        if query.format == "safetensors":
            # Sent in parts by Waitress itself, so that a slow client holds no thread and no memory.
            file: IO[bytes] = weights.open("rb")
            size = weights.stat().st_size
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is sent
            size = _write_checkpoint(api, weights, file)
    name = f"{api.manager.store.model}-{version}.{query.format}"
    response = send_file(
        file, BINARY, as_attachment=True, download_name=name, conditional=False, etag=False
    )
    response.content_length = size
    return response


def _write_checkpoint(api: Context, weights: Path, target: IO[bytes]) -> int:
    """Write a checkpoint to an open file and return its size in bytes."""
    if api.checkpoint is None:
        raise ApiError(409, "This server makes no checkpoints; download format=safetensors.")
    # One at a time: each takes twice the weights in memory.
    if not api.making.acquire(blocking=False):
        raise ApiError(503, "Another checkpoint is being made; try again.", Retry_After="2")
    try:
        with tempfile.TemporaryDirectory(prefix="fl-app-") as folder:
            made = Path(folder) / "best.pt"
            api.checkpoint(weights, made)
            with made.open("rb") as source:
                shutil.copyfileobj(source, target)
    finally:
        api.making.release()
    size = target.tell()
    target.seek(0)
    return size
