# SPDX-License-Identifier: Apache-2.0
"""Stored with each servable version as the code that MLflow runs; the registry never imports it.

It checks the weights against their digest, then leaves the rest to ``serving.py`` beside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.exceptions import MlflowException


class ServedVersion(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow is untyped to mypy
    """A version whose weights are whole."""

    def load_context(self, context: Any) -> None:
        """Check the weights, and build what predicts with them."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        spec = json.loads(files["spec"].read_text("utf-8"))
        with files["weights"].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != spec["sha256"]:
            raise MlflowException(
                f"The weights {files['weights']} have changed since they were saved; restore the "
                "file from a backup, or use another version."
            )
        code = _run(files["code"])
        self._predict = code.load(files["weights"], spec, dict(context.model_config or {}))

    # MLflow takes an array as the hint that the input is to be handed on as it is.
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> Any:
        """Predict as the version's own code does."""
        try:
            return self._predict(model_input, params or {})
        except ValueError as error:  # bad input: the server answers 400 and says why
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _run(path: Path) -> Any:
    """Run a file as a module of its own: versions in one process may have different code."""
    spec = importlib.util.spec_from_file_location(f"serving_{uuid.uuid4().hex}", path)
    if spec is None or spec.loader is None:
        raise MlflowException(f"The serving code {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(ServedVersion())
