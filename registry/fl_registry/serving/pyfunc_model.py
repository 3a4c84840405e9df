# SPDX-License-Identifier: Apache-2.0
"""Code that MLflow runs for a servable version: a copy is stored with each, none is imported here.

It checks the weights against their digest, then runs ``serving.py`` beside it.
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
    """A version whose weights have been verified."""

    def load_context(self, context: Any) -> None:
        """Verify the weights and build the predicting function."""
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

    # With the type hint np.ndarray MLflow passes the input on unchanged.
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> Any:
        """Predict by the version's own code."""
        try:
            return self._predict(model_input, params or {})
        except ValueError as error:  # bad input: the server answers 400 with this text
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _run(path: Path) -> Any:
    """Run a file as a separate module: versions in one process may have different code."""
    spec = importlib.util.spec_from_file_location(f"serving_{uuid.uuid4().hex}", path)
    if spec is None or spec.loader is None:
        raise MlflowException(f"The serving code {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mlflow.models.set_model(ServedVersion())
