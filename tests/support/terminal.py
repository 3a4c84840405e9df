# SPDX-License-Identifier: Apache-2.0
"""A terminal of any width, as the commands see it."""

from __future__ import annotations

import pytest


def as_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Let commands take their output for a terminal of that width, without colours."""
    size = {"COLUMNS": str(columns), "LINES": "50"}
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "dumb", **size}.items():
        monkeypatch.setenv(name, value)
