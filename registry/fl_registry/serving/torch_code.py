# SPDX-License-Identifier: Apache-2.0
"""Serving code of a plain torch module: a copy is stored with each version. Arrays in, arrays out.

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
    """Build the factory's module with these weights and return the predicting function."""
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


def _plain(output: Any) -> Any:
    """Return tensors as arrays, within tuples, lists and dictionaries too."""
    if isinstance(output, torch.Tensor):
        return output.cpu().numpy()
    if isinstance(output, Mapping):
        return {name: _plain(value) for name, value in output.items()}
    if isinstance(output, list | tuple):
        return [_plain(value) for value in output]
    return output
