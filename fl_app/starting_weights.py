# SPDX-License-Identifier: Apache-2.0
"""The setting ``weights``: arrays from a file or from a registered version, to start from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.config import ConfigError
from fl_registry import ArtifactError, ModelStore, UnknownVersion
from fl_registry.files.artifacts import prepared
from fl_registry.files.weights import read_description

_VERSION = re.compile(r"version:(\d+)")
_SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class StartingWeights:
    """Weights that a session starts from.

    Attributes
    ----------
    source : str
        What they are of, for people: a file's name, or a version.
    arrays : Mapping[str, Any]
        Tensors by state-dict name.
    description : Mapping[str, Any]
        What was saved about the model; empty if nothing was.
    version : str | None
        The version, if they are of one.
    """

    source: str
    arrays: Mapping[str, Any]
    description: Mapping[str, Any]
    version: str | None = None


def read_starting_weights(weights: str, store: ModelStore) -> StartingWeights:
    """Read what the setting ``weights`` names.

    Raises
    ------
    ConfigError
        It names neither a file nor a version that can be read.
    """
    from safetensors.torch import load_file

    version = _VERSION.fullmatch(weights)
    try:
        if version is not None:
            number = version[1]
            path = store.weights_path(number)
            arrays = load_file(path)
            return StartingWeights(f"version {number}", arrays, read_description(path), number)
        file = _file(weights)
        with prepared(file, store.backend.scratch) as artifact:
            path = next(artifact.folder.glob("*.safetensors"))
            return StartingWeights(file.name, load_file(path), read_description(path))
    except (ArtifactError, UnknownVersion) as error:
        raise ConfigError(f"weights={weights!r} can't be used: {error}") from error


def _file(weights: str) -> Path:
    path = Path(weights)
    if not path.is_absolute() or path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"weights={weights!r} is no absolute path of a {', '.join(_SUFFIXES)} file on the "
            "server, and no version such as 'version:8'; nothing is downloaded here."
        )
    return path
