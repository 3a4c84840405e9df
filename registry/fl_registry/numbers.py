# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them, in the same form everywhere. Pure."""

from __future__ import annotations

import math


def number_text(value: float) -> str:
    """Return a number with four decimals, or in four digits where it is large or small."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    return f"{value:.4f}" if size == 0 or 1e-3 <= size < 1e4 else f"{value:.4g}"
