# SPDX-License-Identifier: Apache-2.0
"""The global random generators, kept as the user's app has them."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Give Python's, NumPy's and torch's global generators their states back after the block.

    For rounds that Flower's own loop does not have: a strategy samples nodes with ``random``, so
    that one round more would change which nodes all later rounds sample. Use it in the thread that
    runs Flower's loop only, since another thread's draws in between would be undone as well.
    """
    torch = sys.modules.get("torch")  # whoever has not imported it has no state there
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])
