# SPDX-License-Identifier: Apache-2.0
"""Files that want to be run, fetched, or to fill the memory: none of it happens.

And nothing in the packages could make it happen: what loads code from a file is not called.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
SOURCES = [p for d in ("fl_app", "registry", "models") for p in sorted((ROOT / d).rglob("*.py"))]
NIGHTLY = settings.get_current_profile_name() == "nightly"
# Stored as text with a version, for MLflow to run where the version is served; never imported here.
SERVED = {
    "registry/fl_registry/serving/pyfunc_model.py",
    "registry/fl_registry/serving/torch_code.py",
}
STARTS = {  # by names of its own, none of which comes from a file or a message
    "fl_app/deploy/fork_server.py": {"importlib.import_module"},
    "fl_app/deploy/fork_client.py": {"os.execv"},
    "fl_app/flower_internals.py": {"importlib.import_module"},
    "registry/fl_registry/errors.py": {"importlib.util.find_spec"},
    "fl_app/__init__.py": {"importlib.import_module"},
    "fl_app/cli/main.py": {"importlib.import_module"},
    # Its unpickler imports what rebuilds tensors, and no other name: see the test of hostile files.
    "registry/fl_registry/files/pt_import.py": {
        *("pickle", "pickle.Unpickler", "torch.load without weights_only=True")
    },
    # A file that `export` has made itself.
    "models/fl_models/export.py": {"YOLO", "importlib.util.find_spec", "ultralytics.YOLO"},
}
FORBIDDEN = (
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "skops",
    "torch.hub", "torch.jit", "torch.package", "pandas.read_pickle", "numpy.lib.npyio",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader",
    "yaml.UnsafeLoader", "yaml.FullLoader", "os.system", "os.popen", "os.execv", "os.execve",
    "os.spawnv", "subprocess.getoutput", "subprocess.getstatusoutput", "pty", "code", "runpy",
    "ultralytics.YOLO", "ultralytics.utils.downloads", "mlflow.pyfunc.load_model",
    "mlflow.pytorch", "importlib.import_module", "importlib.util", "imp", "zipimport", "ctypes",
)  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "YOLO"}
NEEDED = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


@pytest.mark.chaos
def test_nothing_of_a_hostile_file_is_run_fetched_or_grows_without_end(tmp_path: Path) -> None:
    from support.hostile_files import write_corpus

    corpus = write_corpus(tmp_path / "corpus")
    path = os.pathsep.join([str(HERE), str(ROOT)])
    done = subprocess.run(
        [sys.executable, str(HERE / "support" / "hostile_reader.py"), str(tmp_path / "corpus")]
        + ["all"] * NIGHTLY,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["problems"] == []
    assert not (tmp_path / "corpus" / "ran").exists()
    # Data within weights stay data; a name or a description may be odd. All else is refused.
    harmless = {
        "both.safetensors",
        "control.safetensors",
        "nested_a_little.safetensors",
    }
    assert {entry.split()[0] for entry in told["read"] if "save_model" in entry} == harmless
    assert {entry.split()[0] for entry in told["read"] if "load_weights" in entry} == {
        "nested_a_little.safetensors"
    }
    assert not [entry for entry in told["read"] if "load_reference" in entry or "spec" in entry]
    assert len(corpus) >= 70


def unsafe(source: str) -> Iterator[str]:
    """Yield what in a source could run code that comes from a file, or start a shell."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield from _forbidden(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield from _forbidden(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from _forbidden(_full_name(node, names))
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.id
        elif isinstance(node, ast.Call):
            yield from _unsafe_call(node, _full_name(node.func, names))


def _unsafe_call(call: ast.Call, name: str) -> Iterator[str]:
    given = {k.arg: k.value for k in call.keywords if k.arg}
    if name in NEEDED:
        keyword, value = NEEDED[name]
        found = given.get(keyword)
        if not (isinstance(found, ast.Constant) and found.value is value):
            yield f"{name} without {keyword}={value}"
    shell = given.get("shell")
    if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
        yield f"{name} with a shell"
    if any(k.arg is None for k in call.keywords) and name in NEEDED:
        yield f"{name} with keywords that cannot be seen"


def _forbidden(name: str) -> Iterator[str]:
    # An exception to be caught is no loader.
    if name != "pickle.UnpicklingError" and any(
        name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN
    ):
        yield name


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def test_no_file_of_the_packages_loads_code() -> None:
    found = {str(p.relative_to(ROOT)): set(unsafe(p.read_text("utf-8"))) for p in SOURCES}
    assert found.keys() >= SERVED
    assert {path: found.pop(path) for path in STARTS} == STARTS
    assert {p: names for p, names in found.items() if names and p not in SERVED} == {}


def test_what_is_stored_to_be_served_is_imported_by_nobody() -> None:
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert "import serving_model" not in text
        assert "import serving_torch" not in text
        assert "fl_registry.serving.pyfunc_model import" not in text
        assert "fl_registry.serving.torch_code import" not in text


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import pickle as p; p.load(f)",
        "from cloudpickle import load",
        "import joblib",
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "import torch as t; t.load(f, weights_only=safe)",
        "from torch import load; load(f)",
        "import torch; torch.load(f, **options)",
        "import numpy as np; np.load(f)",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "import yaml; yaml.load(f, Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "eval('1')",
        "f = exec",
        "compile(text, 'x', 'exec')",
        "from ultralytics import YOLO",
        "import ultralytics; ultralytics.YOLO('x.pt')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import subprocess; subprocess.run(c, shell=flag)",
        "import os; os.system('ls')",
        "import mlflow; mlflow.pyfunc.load_model(uri)",
        "import importlib; importlib.import_module(name)",
        "import torch; torch.hub.load('x', 'y')",
        "import marshal",
        "import shelve",
    ],
)
def test_the_search_finds_each_way(source: str) -> None:
    assert list(unsafe(source)) != []


@pytest.mark.parametrize(
    "source",
    [
        "from pickle import UnpicklingError",
        "import torch; torch.load(f, map_location='cpu', weights_only=True)",
        "import numpy as np; np.load(f, allow_pickle=False)",
        "import yaml; yaml.safe_load(f)",
        "import re; re.compile('x')",
        "import subprocess; subprocess.run(['ls'])",
    ],
)
def test_the_search_leaves_the_safe_ways_alone(source: str) -> None:
    assert list(unsafe(source)) == []
