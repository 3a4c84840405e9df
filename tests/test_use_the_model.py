# SPDX-License-Identifier: Apache-2.0
"""docs/use-the-model.md: its apps are trained, then each of its snippets is run as it stands."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import xgboost
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from support.local_grid import LocalGrid, reply
from torch import nn

from fl_app.cli import main
from fl_registry import ModelManager

PAGE = Path(__file__).parents[1] / "docs" / "use-the-model.md"
README = PAGE.parents[1] / "README.md"
TASK = """
from torch import nn


def make_model():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""
NODES = (11, 12, 13)
Train = Callable[[ArrayRecord, np.ndarray, np.ndarray], ArrayRecord]


def blocks() -> dict[str, list[str]]:
    """The page's code by section."""
    found: dict[str, list[str]] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        title = section.partition("\n")[0]
        found[title] = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return found


def file_of(code: str) -> str:
    """The file that a block is, by its first line; empty for a snippet."""
    found = re.match(r"# (\w+/\w+\.py)\n", code)
    return found.group(1) if found else ""


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), names)  # noqa: S102 - that is the test
    return names


def train_torch(arrays: ArrayRecord, rows: np.ndarray, labels: np.ndarray) -> ArrayRecord:
    from torch_app.task import make_model  # type: ignore[import-not-found]

    model: nn.Module = make_model()
    model.load_state_dict({n: torch.from_numpy(a.numpy().copy()) for n, a in arrays.items()})
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(5):
        found = model(torch.from_numpy(rows.astype(np.float32)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(found, torch.from_numpy(labels)).backward()
        optimizer.step()
    return ArrayRecord(model.state_dict())


def train_sklearn(arrays: ArrayRecord, rows: np.ndarray, labels: np.ndarray) -> ArrayRecord:
    model = LogisticRegression(max_iter=5, warm_start=True)
    model.coef_, model.intercept_ = arrays.to_numpy_ndarrays()
    model.classes_ = np.arange(10)
    model.fit(rows, labels)
    return ArrayRecord([model.coef_, model.intercept_])


def train_xgboost(arrays: ArrayRecord, rows: np.ndarray, labels: np.ndarray) -> ArrayRecord:
    data = xgboost.DMatrix(rows, labels < 5)
    settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    (content,) = arrays.to_numpy_ndarrays()
    if content.size:
        booster = xgboost.Booster(settings)
        booster.load_model(bytearray(content))
        booster.update(data, booster.num_boosted_rounds())
        booster = booster[booster.num_boosted_rounds() - 1 :]
    else:
        booster = xgboost.train(settings, data, num_boost_round=1)
    return ArrayRecord([np.frombuffer(booster.save_raw("json"), np.uint8)])


def first_of_torch() -> ArrayRecord:
    from torch_app.task import make_model

    torch.manual_seed(1)
    state = make_model().state_dict()
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


APPS: dict[str, tuple[Callable[[], ArrayRecord], Train]] = {
    "torch": (first_of_torch, train_torch),
    "sklearn": (lambda: ArrayRecord([np.zeros((10, 64)), np.zeros(10)]), train_sklearn),
    "xgboost": (lambda: ArrayRecord([np.zeros(0, np.uint8)]), train_xgboost),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of the page's three apps: version 2 is in Production, version 3 in Staging."""
    folder = tmp_path_factory.mktemp("apps")
    files = {file_of(code): code for codes in blocks().values() for code in codes if file_of(code)}
    for name, text in {**files, "torch_app/task.py": TASK}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    digits = load_digits()
    shares = dict(zip(NODES, np.array_split(np.arange(300), len(NODES)), strict=True))
    address = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_APP_HOME", str(folder / "home"))
        patch.syspath_prepend(str(folder))
        for framework, (first, train) in APPS.items():
            strategy = importlib.import_module(f"{framework}_app.server_app").strategy

            def answer(node_id: int, message: Message, train: Train = train) -> RecordDict:
                share, arrays = shares[node_id], message.content["arrays"]
                if message.metadata.message_type != "train":
                    return reply(accuracy=0.5)
                return reply(train(arrays, digits.data[share], digits.target[share]))

            strategy.start(LocalGrid(answer, NODES), first(), num_rounds=3)
            manager = ModelManager(registered_model_name=f"digits-{framework}")
            manager.promote_to_production("2")
            manager.promote_to_staging("3")
        yield folder / "home"
    mlflow.set_tracking_uri(address)
    ours = tuple(f"{framework}_app" for framework in APPS)
    for name in [name for name in sys.modules if name.startswith(ours)]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def in_their_home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_APP_HOME", str(trained))


def test_each_section_is_tried_here() -> None:
    titles = ["Arrays, whatever the framework", "PyTorch", "scikit-learn", "XGBoost"]
    assert list(blocks()) == ["YOLO", *titles, "mlflow.pyfunc", "Model card"]
    assert "docs/use-the-model.md" in README.read_text()


def test_each_command_in_the_text_exists(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"`fl-app ([^`]+)`", PAGE.read_text())
    assert commands
    for command in commands:
        words = command.split()
        with pytest.raises(SystemExit) as ended:
            main.main([words[0], "--help"])
        assert not ended.value.code
        assert all(word in capsys.readouterr().out for word in words if word.startswith("--"))


def test_arrays() -> None:
    (code,) = blocks()["Arrays, whatever the framework"]
    names = run(code)
    order = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(names["production"]) == list(names["staging"]) == list(names["first"]) == order
    assert (names["production"]["0.weight"] != names["staging"]["0.weight"]).any()


def test_a_torch_module() -> None:
    production, staging = map(run, blocks()["PyTorch"])
    assert production["digits"].shape == (5,)
    assert not production["model"].training
    arrays = ModelManager(registered_model_name="digits-torch").load_arrays(3)
    state = staging["model"].state_dict()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in arrays.items())


def test_an_estimator_of_scikit_learn() -> None:
    (code,) = blocks()["scikit-learn"]
    names = run(code)
    assert names["digits"].shape == (5,)
    digits = load_digits()
    assert names["model"].score(digits.data[300:], digits.target[300:]) > 0.7


def test_a_booster_of_xgboost() -> None:
    (code,) = blocks()["XGBoost"]
    names = run(code)
    assert names["scores"].shape == (5,)
    assert names["booster"].num_boosted_rounds() == 2 * len(NODES)


def test_pyfunc_loads_every_version(trained: Path) -> None:
    (code,) = (code for code in blocks()["mlflow.pyfunc"] if not file_of(code))
    found = run(code)["digits"]
    assert {name: len(predicted) for name, predicted in found.items()} == {
        "digits-torch": 5,
        "digits-sklearn": 5,
        "digits-xgboost": 5,
    }
    assert np.array_equal(found["digits-sklearn"], run(blocks()["scikit-learn"][0])["digits"])
    assert np.allclose(found["digits-xgboost"], run(blocks()["XGBoost"][0])["scores"])
    rows = load_digits().data[:2].astype(np.float32)
    for name in found:
        for version in "123":
            model = mlflow.pyfunc.load_model(f"models:/{name}/{version}")
            assert len(model.predict(rows)) == 2
