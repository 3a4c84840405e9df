# SPDX-License-Identifier: AGPL-3.0-or-later
"""Registered versions as MLflow itself loads and serves them, without a line of ours around."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from support.arrays import to_arrays
from support.docs import block

from fl_models import serving
from fl_models.yolo import get_model
from fl_registry import (
    ArtifactError,
    InMemoryModelStore,
    InvalidName,
    ModelManager,
    Serving,
    torch_serving,
)
from fl_registry.files.weights import save_weights
from fl_registry.store import ModelStore

MakeWeights = Callable[[float], Path]
ROOT = Path(__file__).parents[2]
NAMES = [f"shape {number}" for number in range(7)]
YOLO = Serving(Path(serving.__file__), **serving.SERVING)
FACTORY = """
import torch
def make():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
"""


@pytest.fixture
def yolo_weights(tmp_path: Path) -> Path:
    path = tmp_path / "yolo.safetensors"
    model = get_model("n", 7, names=NAMES, seed=3, image_size=96)
    save_weights(to_arrays(model), path, model=model.description)
    return path


@pytest.fixture
def torch_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain module's state dict; what makes the module is a file on the path."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "served_net.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    import served_net  # type: ignore[import-not-found]

    module = served_net.make()
    module[1].running_mean += 2
    torch.save(module.state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


@pytest.fixture(params=["memory", "mlflow"])
def local_store(request: pytest.FixtureRequest) -> ModelStore:
    """Stores whose files of a version lie together; of a server's only the weights are fetched."""
    if request.param == "memory":
        return InMemoryModelStore()
    found: ModelManager = request.getfixturevalue("manager")
    return found


def picture() -> np.ndarray:
    """A generated picture, 60 by 90 pixels, BGR."""
    pixels = np.full((60, 90, 3), 40, np.uint8)
    cv2.circle(pixels, (30, 30), 18, (20, 200, 240), -1)
    cv2.rectangle(pixels, (55, 10), (85, 45), (200, 30, 60), -1)
    return pixels


def encoded(pixels: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


def assert_same_boxes(found: list[dict[str, Any]], result: Any) -> None:
    """Boxes as served, against those of `YoloModel.predict`."""
    expected = result.boxes
    assert len(found) == len(expected) > 0
    assert np.allclose([b["xyxy"] for b in found], expected.xyxy, atol=1e-4)
    assert np.allclose([b["confidence"] for b in found], expected.conf, atol=1e-6)
    assert [b["class"] for b in found] == expected.cls.int().tolist()
    assert [b["name"] for b in found] == [NAMES[b["class"]] for b in found]


def test_yolo_serves_the_boxes_that_our_own_loader_finds(
    manager: ModelManager, yolo_weights: Path
) -> None:
    from mlflow.pyfunc import load_model

    version = manager.save_model_version(yolo_weights, serving=YOLO)
    manager.promote_to_production(version)
    ours = manager.load_production_model(lambda: get_model("n", 7, names=NAMES))
    assert ours is not None
    served = load_model(str(manager.weights_path(version).parent))
    pixels = picture()
    forms: list[Any] = [encoded(pixels), pixels, pixels.tolist()]
    all_found = served.predict({"image": forms}, params={"conf": 0.001})
    assert len(all_found) == len(forms)
    result = ours.predict(pixels, conf=0.001, imgsz=96)[0]
    for found in all_found:
        assert_same_boxes(found, result)
    json.dumps(all_found)
    (found,) = served.predict({"image": [pixels]}, params={"conf": 0.001, "imgsz": 64})
    assert_same_boxes(found, ours.predict(pixels, conf=0.001, imgsz=64)[0])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("!!", "not base64"),
        ("aGVsbG8=", "can't be decoded"),
        ("", "can't be decoded"),
        ([[1, 2], [3, 4]], r"shape \(2, 2\)"),
        ([[[1, 2, 300]]], "outside of 0 to 255"),
        ([[[0.5, 0.5, 0.5]]], "whole numbers"),
        (None, "whole numbers"),
    ],
)
def test_a_picture_that_is_none_is_told(yolo_weights: Path, bad: object, says: str) -> None:
    spec = {"model": get_model("n", 7, names=NAMES).description}
    predict = serving.load(yolo_weights, spec, serving.SERVING["config"])
    with pytest.raises(ValueError, match=says):
        predict({"image": [bad]}, {})


def test_weights_of_another_model_are_not_served_as_yolo(yolo_weights: Path) -> None:
    with pytest.raises(ValueError, match="expected a detector of Ultralytics"):
        serving.load(yolo_weights, {"model": {}}, serving.SERVING["config"])


def test_a_torch_module_serves_the_values_that_our_own_loader_gives(
    manager: ModelManager, torch_weights: Path
) -> None:
    import served_net
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import load_model

    how = torch_serving("served_net:make", shape=(-1, 4))
    version = manager.save_model_version(torch_weights, serving=how)
    manager.promote_to_production(version)
    ours = manager.load_production_model(served_net.make)
    assert ours is not None
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    served = load_model(str(manager.weights_path(version).parent))
    with torch.no_grad():
        expected = ours(torch.from_numpy(rows)).numpy()
    assert np.array_equal(served.predict(rows), expected)
    with pytest.raises(MlflowException, match="schema"):
        served.predict(rows[:, :3])


def test_mlflow_itself_loads_a_version_after_its_home_was_moved(
    manager: ModelManager,
    torch_weights: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow.pyfunc import load_model

    from fl_registry.mlflow.home import move_home

    how = torch_serving("served_net:make", shape=(-1, 4))
    version = manager.save_model_version(torch_weights, serving=how)
    manager.promote_to_production(version)
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = load_model(str(manager.weights_path(version).parent)).predict(rows)
    moved = ModelManager(home=move_home(None, home, tmp_path / "moved").home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", moved.tracking_uri)
    name = moved.registered_model_name
    assert np.array_equal(load_model(f"models:/{name}@production").predict(rows), expected)
    assert not home.exists()


def test_weights_that_changed_are_not_served(manager: ModelManager, torch_weights: Path) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import load_model

    version = manager.save_model_version(torch_weights, serving=torch_serving("served_net:make"))
    weights = manager.weights_path(version)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MlflowException, match="have changed since they were saved"):
        load_model(str(weights.parent))


def test_what_is_stored_is_text_and_the_weights(
    local_store: ModelStore, weights: MakeWeights
) -> None:
    version = local_store.save_model_version(weights(1), serving=YOLO)
    folder = local_store.weights_path(version).parent
    texts = {
        "MLmodel", "mlflow_model.py", "python_env.yaml", "requirements.txt", "serving.py",
        "spec.json",
    }  # fmt: skip
    assert {p.name for p in folder.iterdir()} == texts | {"weights.safetensors"}
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert list(described["flavors"]) == ["python_function"]
    pinned = (folder / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in pinned)
    assert {line.partition("==")[0] for line in pinned} >= {"mlflow", "ultralytics", "torch"}
    assert (folder / "serving.py").read_text() == Path(serving.__file__).read_text()


def test_the_signature_is_one_that_mlflow_reads(tmp_path: Path, weights: MakeWeights) -> None:
    from mlflow.models import Model

    store = InMemoryModelStore(tmp_path / "store")
    folder = store.weights_path(store.save_model_version(weights(1), serving=YOLO)).parent
    signature = Model.load(str(folder)).signature
    assert signature.inputs.input_names() == ["image"]
    assert [param.name for param in signature.params] == [
        *("conf", "iou", "imgsz", "classes", "max_det", "half")
    ]
    assert signature.outputs is not None


def test_without_serving_nothing_is_added(local_store: ModelStore, weights: MakeWeights) -> None:
    folder = local_store.weights_path(local_store.save_model_version(weights(1))).parent
    assert {p.name for p in folder.iterdir()} == {"spec.json", "weights.safetensors"}


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file"), ("def load(:", "invalid syntax"), ("x = 1", "defines no load")],
)
def test_code_that_cannot_serve_is_refused_at_once(
    tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "code.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArtifactError, match=says):
        Serving(path)


@pytest.mark.parametrize("factory", ["", "module", "module:", ":make", "a b:make", "m:make()"])
def test_a_factory_that_names_no_function_is_refused(factory: str) -> None:
    with pytest.raises(InvalidName, match=r"expected 'package\.module:function'"):
        torch_serving(factory)


def test_registering_a_servable_version_imports_nothing_of_the_model(
    mlflow_home: Path, weights: MakeWeights
) -> None:
    code = (
        "import sys; from pathlib import Path; from fl_registry import *;"
        f"s = Serving(Path({serving.__file__!r}), [{{'type': 'any', 'name': 'image'}}]);"
        f"m = ModelManager(home={str(mlflow_home)!r});"
        f"m.save_model_version({str(weights(1))!r}, serving=s);"
        "print([m for m in ('torch', 'ultralytics', 'cv2') if m in sys.modules])"
    )
    assert run_python(code, mlflow_home) == "[]"


def environment(home: Path, *path: Path) -> dict[str, str]:
    """What a shell with the environment activated and MLflow's address set would have."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def run_python(code: str, home: Path, *path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env=environment(home, *path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_mlflow_loads_what_is_in_production_by_its_own_address(
    mlflow_home: Path, yolo_weights: Path, torch_weights: Path
) -> None:
    yolo = ModelManager(home=mlflow_home)
    yolo.promote_to_production(yolo.save_model_version(yolo_weights, serving=YOLO))
    net = ModelManager(None, "net", home=mlflow_home)
    how = torch_serving("served_net:make")
    net.promote_to_production(net.save_model_version(torch_weights, serving=how))
    code = (
        "import json, sys, numpy as np; from mlflow.pyfunc import load_model;"
        "net = load_model('models:/net@production');"
        "yolo = load_model('models:/fl-global-model@production');"
        f"found = yolo.predict({{'image': [{encoded(picture())!r}]}}, params={{'conf': 0.001}});"
        "ones = net.predict(np.ones((2, 4), np.float32)).tolist();"
        "print(json.dumps([found, ones, [m for m in sys.modules if m.split('.')[0] in"
        " ('fl_registry', 'fl_models', 'fl_app', 'flwr')]]))"
    )
    found, ones, ours_loaded = json.loads(
        run_python(code, mlflow_home, torch_weights.parent / "code")
    )
    assert ours_loaded == []  # a machine that serves needs nothing of this project
    detector = yolo.load_production_model(lambda: get_model("n", 7, names=NAMES))
    assert detector is not None
    assert_same_boxes(found[0], detector.predict(picture(), conf=0.001, imgsz=96)[0])
    import served_net

    module = net.load_production_model(served_net.make)
    assert module is not None
    with torch.no_grad():
        assert np.allclose(ones, module(torch.ones(2, 4)).numpy(), atol=1e-6)


@contextmanager
def served(home: Path, log: Path) -> Iterator[str]:
    """The page's `mlflow models serve` on a free port, stopped at the end with its children."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = block("use-the-model.md", "mlflow models serve", "bash")
    command = command.replace("$HOME/.fl-app", str(home)).replace("uv run ", "")
    inherited = {k: v for k, v in environment(home).items() if k != "MLFLOW_TRACKING_URI"}
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", command.replace("5002", str(port))],
            cwd=home,
            env=inherited,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(address, process, log)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/ping", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def post(address: str, body: object) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{address}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def by_curl(address: str, pixels: np.ndarray, folder: Path) -> Any:
    """What the command of docs/use-the-model.md answers for a picture."""
    command = block("use-the-model.md", "/invocations", "bash")
    (folder / "picture.jpg").write_bytes(base64.b64decode(encoded(pixels)))
    command = command.replace("http://localhost:5002", address).replace("0.25", "0.001")
    shell = ["bash", "-euo", "pipefail", "-c", command]
    return json.loads(subprocess.run(shell, cwd=folder, capture_output=True, check=True).stdout)


@pytest.mark.slow
def test_mlflow_serves_yolo_over_http(
    mlflow_home: Path, yolo_weights: Path, tmp_path: Path
) -> None:
    manager = ModelManager(home=mlflow_home)
    manager.promote_to_production(manager.save_model_version(yolo_weights, serving=YOLO))
    ours = manager.load_production_model(lambda: get_model("n", 7, names=NAMES))
    assert ours is not None
    pixels = picture()
    expected = ours.predict(pixels, conf=0.001, imgsz=96)[0]
    with served(mlflow_home, tmp_path / "log") as address:
        bodies: list[dict[str, object]] = [
            {"dataframe_records": [{"image": encoded(pixels)}]},
            {"dataframe_records": [{"image": pixels.tolist()}]},
            {"inputs": {"image": [encoded(pixels)]}},
        ]
        for body in bodies:
            status, reply = post(address, {**body, "params": {"conf": 0.001}})
            assert status == 200, reply
            assert_same_boxes(reply["predictions"][0], expected)
        answered = by_curl(address, pixels, tmp_path)["predictions"]
        assert_same_boxes(answered[0], expected)
        status, reply = post(address, {"dataframe_records": [{"image": "!!"}]})
        assert (status, "not base64" in reply["message"]) == (400, True)
        status, reply = post(address, {"dataframe_records": [{"photo": encoded(pixels)}]})
        assert (status, "missing inputs ['image']" in reply["message"]) == (400, True)
        status, _ = post(
            address, {"dataframe_records": [{"image": "", "n": 1}], "params": {"conf": "x"}}
        )
        assert status == 400
    assert not (mlflow_home / "mlruns").exists()
