# SPDX-License-Identifier: Apache-2.0
"""A module's weights as arrays, by name."""

from __future__ import annotations

import numpy as np
from torch import nn


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of all entries of the state dict, in its order, with their dtypes."""
    return {name: tensor.cpu().numpy().copy() for name, tensor in model.state_dict().items()}
