# SPDX-License-Identifier: Apache-2.0
"""Reads JSON that must mean the same to every reader."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def read_strict_json(text: str | bytes) -> Any:
    """Parse a JSON text; refuse what two readers may read differently.

    Raises
    ------
    ValueError
        It is not JSON, repeats a name, holds NaN or infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name is repeated")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
