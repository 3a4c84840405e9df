# SPDX-License-Identifier: Apache-2.0
"""Imports of large packages, which take seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the garbage collector, for a block or a function that imports large packages.

    What they make stays. The collector would look through it again and again, which takes a fifth
    of torch's import and a quarter of MLflow's.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
