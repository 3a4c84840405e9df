# SPDX-License-Identifier: Apache-2.0
"""Reads JSON of unknown origin: every fault is a `ValueError`."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def read_json(text: str | bytes, *, strict: bool = False) -> Any:
    """Parse a JSON text.

    Parameters
    ----------
    text : str | bytes
        The text.
    strict : bool
        Refuse what two readers may read differently: a repeated name, NaN, infinities.

    Raises
    ------
    ValueError
        It is not JSON, is nested too deeply, or is not strict.
    """
    try:
        if strict:
            return json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_constant)
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name is repeated")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
