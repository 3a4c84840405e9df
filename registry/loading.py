# SPDX-License-Identifier: Apache-2.0
"""Verified weights into a torch module, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.errors import ArtifactError


def load_into(module: Any, weights: Path, *, version: str) -> Any:
    """Load a safetensors file into `module` and return it.

    Raises
    ------
    ArtifactError
        The names or shapes of the file's arrays are not those of the module.
    """
    from safetensors.torch import load_file

    arrays, own = load_file(weights), module.state_dict()
    missing, extra = sorted(own.keys() - arrays.keys()), sorted(arrays.keys() - own.keys())
    wrong = sorted(n for n in own.keys() & arrays.keys() if own[n].shape != arrays[n].shape)
    problems = [
        f"{len(names)} {what} (first: {names[0]})"
        for names, what in ((missing, "missing"), (extra, "unexpected"), (wrong, "of other shape"))
        if names
    ]
    if problems:
        raise ArtifactError(
            f"Version {version} does not fit the model that was built: arrays "
            f"{', '.join(problems)}; build the model it was trained with."
        )
    module.load_state_dict(arrays, strict=True)
    return module
