# SPDX-License-Identifier: Apache-2.0
"""Decoded pictures on disk: which file has which picture, and which files have none any more.

They are in a folder of their own, never beside the user's pictures.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from fl_models.pictures import settled_state

NOWHERE = Path(os.devnull) / "none.npy"
"""A file that never exists."""


def decoded_files(pictures: Iterable[Path], folder: Path) -> list[Path]:
    """Return the file for each decoded picture below a folder, and create their folders.

    The names hold the states of the pictures, so that no file is used for a picture that has
    changed. One that changed in the last two seconds gets `NOWHERE`.
    """
    files = [_decoded(picture, folder) for picture in pictures]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for parent in {file.parent for file in files if file != NOWHERE}:
        parent.mkdir(parents=True, exist_ok=True)
    return files


def remove_outdated(folder: Path) -> None:
    """Remove the files of pictures that have changed or are deleted."""
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent, name)
            picture = Path("/", file.relative_to(folder).parent, name.rsplit(".", 2)[0])
            if _decoded(picture, folder) != file:
                file.unlink(missing_ok=True)


def _decoded(picture: Path, folder: Path) -> Path:
    state = settled_state(picture)
    if state is None:
        return NOWHERE
    key = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    return folder / picture.parent.relative_to("/") / f"{picture.name}.{key}.npy"
