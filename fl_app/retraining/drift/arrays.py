# SPDX-License-Identifier: Apache-2.0
"""How the arrays of the drift test are stored in JSON."""

from __future__ import annotations

import base64
from typing import Annotated

import numpy as np
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

_PACKED = TypeAdapter(tuple[tuple[int, ...], str])


def _pack(values: np.ndarray) -> tuple[tuple[int, ...], str]:
    return values.shape, base64.b64encode(values.astype("<f4").tobytes()).decode()


def _unpack(stored: object) -> np.ndarray:
    shape, text = _PACKED.validate_python(stored)
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    return values.astype(np.float64).reshape(shape)


# float32 in base64 takes a tenth of the characters of a list, and is precise enough for counts of
# rows and for evidence.
Array = Annotated[np.ndarray, PlainValidator(_unpack), PlainSerializer(_pack)]
