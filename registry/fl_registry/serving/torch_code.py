# SPDX-License-Identifier: Apache-2.0
"""Stored with each version of a plain torch module as its serving code: arrays in, arrays out.

It needs torch, numpy and safetensors, and the function that makes the module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


def load(
    weights: Path, spec: Mapping[str, Any], config: Mapping[str, str]
) -> Callable[[Any, Mapping[str, Any]], Any]:
    """Build the module that the factory makes, with these weights, and return what predicts."""
    name, _, function = config["factory"].partition(":")
    make: Any = importlib.import_module(name)
    for part in function.split("."):
        make = getattr(make, part)
    network = make()
    network.load_state_dict(load_file(weights), strict=True)
    network.to(config["device"]).eval()
    floats = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)

    def predict(data: Any, params: Mapping[str, Any]) -> Any:
        array = torch.from_numpy(np.array(data))
        dtype = floats if array.is_floating_point() else array.dtype
        with torch.inference_mode():
            return _plain(network(array.to(config["device"], dtype)))

    return predict


def _plain(found: Any) -> Any:
    """Return tensors as arrays, within tuples, lists and dictionaries too."""
    if isinstance(found, torch.Tensor):
        return found.cpu().numpy()
    if isinstance(found, Mapping):
        return {name: _plain(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_plain(value) for value in found]
    return found
