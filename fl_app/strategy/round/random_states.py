# SPDX-License-Identifier: Apache-2.0
"""The states of the global random generators, which belong to the user's app."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restore the states of Python's, NumPy's and torch's global generators after the block.

    For rounds that Flower's own loop does not have: strategies sample nodes with ``random``, so
    that an additional round would change the samples of all later ones. Use it only in the thread
    that runs Flower's loop, since draws of other threads in between would be undone as well.
    """
    torch = sys.modules.get("torch")  # if it is not imported, it has no state
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])
