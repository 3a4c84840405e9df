# SPDX-License-Identifier: Apache-2.0
"""The global arrays of a round as a file: written whole or not at all, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Array, ArrayRecord

from fl_app.strategy.errors import CheckpointError
from fl_app.wire.arrays import ArrayError, view
from fl_registry.files.weights import WeightsError, load_weights, save_weights


def save_round(
    arrays: ArrayRecord, folder: Path, server_round: int, model: Mapping[str, object]
) -> tuple[Path, str]:
    """Write the global arrays of a round, whole or not at all; return the file and its SHA-256.

    Raises
    ------
    CheckpointError
        They could not be written. Files of other rounds are as they were, and none is half there.
    """
    path = folder / f"round-{server_round:04d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: view(array) for name, array in arrays.items()}
        digest = save_weights(values, path, model=model)
    except (OSError, MemoryError, WeightsError, ArrayError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"the arrays of round {server_round} could not be written to {path} ({reason}); make "
            "room on that disk"
        ) from error
    return path, digest


def load_round(path: Path) -> ArrayRecord:
    """Arrays of a weights file as Flower sends them, in the model's own order."""
    return ArrayRecord({name: Array(values) for name, values in load_weights(path).items()})
