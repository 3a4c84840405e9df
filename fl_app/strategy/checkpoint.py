# SPDX-License-Identifier: Apache-2.0
"""A round on disk: the global arrays where a crash cannot take them, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord

from fl_app.strategy.payload import ArrayError, is_bytes, require_finite, view
from fl_app.strategy.reply_metrics import quoted
from models.weights import WeightsError, load_weights, save_weights

logger = logging.getLogger("flwr.fl_app")


class CheckpointError(RuntimeError):
    """A round's arrays could not be written to disk; the text says where, and why."""


Schema = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


def schema_of(arrays: ArrayRecord) -> Schema:
    """Name, dtype and shape of each array, in order."""
    return {name: (np.dtype(a.dtype), tuple(a.shape)) for name, a in arrays.items()}


def fits(arrays: ArrayRecord, schema: Schema) -> bool:
    """Whether arrays are of the same model; a document may be of any length."""
    return not difference(schema_of(arrays), schema)


def difference(found: Schema, expected: Schema) -> str:
    """Say how the arrays of one model differ from those of another; empty if they do not."""
    lacking = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    verbs = {"lacks": lacking, "has": foreign}
    if lacking or foreign:
        return "it " + " and ".join(f"{verb} {_some(n)}" for verb, n in verbs.items() if n)
    other = [name for name in expected if found[name] != expected[name]]
    if other and not (is_document(found) and is_document(expected)):
        rows = (f"{d} {list(shape)}" for d, shape in (found[other[0]], expected[other[0]]))
        more = f", and {len(other) - 1} more differ" if len(other) > 1 else ""
        return f"its {quoted(other[0])} is {' and not '.join(rows)}{more}"
    return "" if list(found) == list(expected) else "its arrays are in another order"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{quoted(names[0])}{more}"


def is_document(schema: Schema) -> bool:
    """Whether a model is one array of bytes that may be of any length: the trees of XGBoost."""
    (dtype, shape), *others = schema.values() or [(np.dtype("f4"), ())]
    return not others and dtype == np.uint8 and len(shape) == 1


def check_arrays(arrays: ArrayRecord, schema: Schema) -> str:
    """Say what is wrong with an aggregate, or nothing if it may become the model.

    A document may change its length; all else keeps its shape.
    """
    if list(arrays) != list(schema):
        foreign = sorted(set(arrays) ^ set(schema))[:3]
        return f"the aggregate has other arrays than the global model: {foreign}"
    document = is_document(schema)
    for name, array in arrays.items():
        dtype, shape = schema[name]
        try:
            values = view(array)
            if values.shape != shape and not (document and is_bytes(values)):
                raise ArrayError(f"has shape {values.shape}, expected {shape}")
            require_finite(values, dtype)
        except ArrayError as error:
            return f"the aggregate's {name!r} {error}"
    return ""


def restore_dtypes(arrays: ArrayRecord, schema: Schema) -> ArrayRecord:
    """Give averaged integer buffers (float64 by then) their own dtype back.

    Values are rounded to the nearest integer, as a truncated 11.999 would count one step less.
    """
    restored: dict[str, Array] = {}
    for name, array in arrays.items():
        dtype, _ = schema[name]
        if np.dtype(array.dtype) == dtype:
            restored[name] = array
            continue
        values = view(array)
        rounded = np.rint(values) if np.issubdtype(dtype, np.integer) else values
        restored[name] = Array(np.asarray(rounded, dtype=dtype))
    return ArrayRecord(restored)


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


def forget_rounds(folder: Path, *, before: int) -> None:
    """Delete the files of rounds that the registry holds by now; one that stays is only logged."""
    for path in folder.glob("round-[0-9]*.safetensors"):
        number = path.stem.removeprefix("round-")
        if number.isdecimal() and int(number) < before:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s could not be deleted: %s", path, error.strerror)
