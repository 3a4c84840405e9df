# SPDX-License-Identifier: Apache-2.0
"""Turns a version's folder into a model that MLflow loads and serves, without a pickle.

No code of the model is imported or run here: it is stored as text, for MLflow to run later.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from symtable import symtable

from fl_registry.errors import ArtifactError, InvalidName
from fl_registry.files.artifacts import SPEC_FILE, WEIGHTS_FILE

CODE_FILE = "serving.py"
MODEL_FILE = "MLmodel"
_MODEL_FILE, _SOURCE = "mlflow_model.py", Path(__file__).with_name("pyfunc_model.py")
_TORCH = Path(__file__).with_name("torch_code.py")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_NAME_ONLY = re.compile(r"[A-Za-z0-9][\w.-]*")

Fields = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Serving:
    """How MLflow serves a version: a code file and its signature.

    The code file is copied beside the weights and run where the model is loaded. It defines
    ``load(weights: Path, spec: dict, config: dict)``, which returns a function
    ``predict(data, params: dict)``. `weights` is the version's safetensors file, its digest
    already checked; `spec` is the description in ``spec.json``. List other packages that it
    imports in `requirements`.

    Parameters
    ----------
    code : Path
        The Python file.
    inputs, outputs, params : Sequence[Mapping[str, object]]
        The signature in MLflow's own form, such as ``[{"type": "string", "name": "image"}]``.
        Without `inputs` MLflow checks nothing.
    requirements : Sequence[str]
        Packages for pip; names without a version are pinned to the installed version.
    config : Mapping[str, str]
        Passed to ``load``; ``mlflow.pyfunc.load_model(..., model_config=...)`` may change its
        values.

    Raises
    ------
    ArtifactError
        The code file is missing, is not Python, or defines no ``load``.
    """

    code: Path
    inputs: Fields = ()
    outputs: Fields = ()
    params: Fields = ()
    requirements: Sequence[str] = ()
    config: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            module = symtable(self.code.read_text("utf-8"), str(self.code), "exec")  # run by nobody
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ArtifactError(
                f"The serving code {self.code} cannot be used ({error}); give the path of a "
                "Python file."
            ) from error
        if "load" not in {name.get_name() for name in module.get_symbols() if name.is_local()}:
            raise ArtifactError(
                f"The serving code {self.code} defines no load(weights, spec, config); add it."
            )


def torch_serving(
    factory: str,
    *,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    requirements: Sequence[str] = (),
) -> Serving:
    """Return the `Serving` of a plain torch module: an array in, an array out.

    Parameters
    ----------
    factory : str
        ``"package.module:function"``, which makes the module without arguments. It must be
        importable where the model is served.
    shape : Sequence[int] | None
        Shape of the input, -1 for any length, e.g. ``(-1, 3, 96, 96)``; MLflow refuses others.
        None: the input is not checked.
    dtype : str
        The input's dtype, if `shape` is given.
    requirements : Sequence[str]
        Packages that the factory needs, besides torch, numpy and safetensors.

    Raises
    ------
    InvalidName
        `factory` is not of that form.
    """
    if not _FACTORY.fullmatch(factory):
        raise InvalidName(
            f"{factory!r} does not name a function; expected 'package.module:function'."
        )
    checked: Fields = ()
    if shape is not None:
        tensor = {"dtype": dtype, "shape": list(shape)}
        checked = ({"type": "tensor", "tensor-spec": tensor},)
    needed = ("numpy", "safetensors", "torch", *requirements)
    config = {"device": "cpu", "factory": factory}
    return Serving(_TORCH, checked, requirements=needed, config=config)


def write_serving(serving: Serving, folder: Path, *, model_id: str = "") -> None:
    """Add the small files to a folder with weights and description that make it an MLflow model.

    Parameters
    ----------
    serving : Serving
        How MLflow is to serve it.
    folder : Path
        The folder with ``weights.safetensors`` and ``spec.json``.
    model_id : str
        MLflow's id of the logged model, if there is one.

    Raises
    ------
    ArtifactError
        The code file is gone.
    """
    try:
        shutil.copyfile(serving.code, folder / CODE_FILE)
    except OSError as error:
        raise ArtifactError(
            f"The serving code {serving.code} cannot be read ({error.strerror}); restore it."
        ) from error
    shutil.copyfile(_SOURCE, folder / _MODEL_FILE)
    packages = [_pinned(name) for name in ("mlflow", *serving.requirements)]
    (folder / "requirements.txt").write_text("\n".join([*packages, ""]), encoding="utf-8")
    environment = {"python": _PYTHON, "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(json.dumps(environment), encoding="utf-8")
    described = json.dumps(_description(serving, model_id))  # JSON is YAML too
    (folder / MODEL_FILE).write_text(described, encoding="utf-8")


_PYTHON = ".".join(map(str, sys.version_info[:3]))


def _description(serving: Serving, model_id: str) -> dict[str, object]:
    files = {"weights": WEIGHTS_FILE, "spec": SPEC_FILE, "code": CODE_FILE}
    flavor = {
        "artifacts": {name: {"path": file, "uri": file} for name, file in files.items()},
        "config": dict(serving.config),
        "env": {"virtualenv": "python_env.yaml"},
        # Models from code: MLflow runs the file below, and nothing is unpickled.
        "loader_module": "mlflow.pyfunc.loaders.code_model",
        "model_code_path": _MODEL_FILE,
        "python_version": _PYTHON,
        "streamable": False,
    }
    described: dict[str, object] = {
        "flavors": {"python_function": flavor},
        "mlflow_version": _installed("mlflow"),
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }
    if serving.inputs:
        kinds = ("inputs", "outputs", "params")
        given = {kind: [dict(field) for field in getattr(serving, kind)] for kind in kinds}
        described["signature"] = {
            k: json.dumps(rows) if rows else None for k, rows in given.items()
        }
    if model_id:
        described |= {"model_id": model_id, "model_uuid": model_id}
    return described


def _pinned(package: str) -> str:
    if not _NAME_ONLY.fullmatch(package):
        return package  # it has a version, or more
    installed = _installed(package)
    return f"{package}=={installed}" if installed else package


@cache
def _installed(package: str) -> str:
    """Return a package's version without its local part, which package registries do not have."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""
