# SPDX-License-Identifier: Apache-2.0
"""The ServerApp on bad input: one sentence before any node has heard of the run."""

from __future__ import annotations

import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, RecordDict
from support.local_grid import LocalGrid, add_one

from fl_app.client.data_yaml import DataError
from fl_app.config import ConfigError, ServerConfig
from fl_app.server_app import in_known_order, main
from fl_app.strategy import EarlyStopping, TooFewNodesError
from fl_models.pictures import DataSpec
from fl_registry import ModelBusy, ModelManager, StoreUnavailable

ROOT = Path(__file__).parents[1]
DEFAULTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def start(home: Path, **changes: Any) -> None:
    config = {**DEFAULTS, "home": str(home), **{k.replace("_", "-"): v for k, v in changes.items()}}
    grid = LocalGrid(add_one)
    context = Context(7, 0, {}, RecordDict(), config)
    try:
        main(grid, context)
    finally:
        assert grid.sent == []


def data_yaml(folder: Path, **changes: Any) -> str:
    path = folder / "data.yaml"
    content = {"path": ".", "train": "train", "val": "val", "names": list("abcdefg"), **changes}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_wrong_value(home: Path) -> None:
    with pytest.raises(ConfigError, match="'batch-size' is 0"):
        start(home, batch_size=0)


def test_a_shadow_evaluation_without_nodes_that_evaluate(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"shadow-rounds=3 needs nodes .* fraction-evaluate=0\.0"):
        start(home, shadow_rounds=3, fraction_evaluate=0.0)


SECRET = "canary-9b74c9897bac770ffc029102a200c5de"  # noqa: S105 - it guards nothing


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"webhook_url": "http://hooks.example/"}, "plain http"),
        ({"webhook_url": "https://127.0.0.1:1/"}, "not a public address"),
        ({"webhook_url": "https://localhost:1/"}, "not a public address"),
        ({"webhook_url": "hooks.example"}, "https://hooks.example.org/fl-app"),
        ({"webhook_url": "https://a.example/", "webhook_hosts": "b.example"}, "not among"),
        (
            {"webhook_url": "https://a.example/", "webhook_secret_file": "/nowhere"},
            "cannot be read",
        ),
        ({"webhook_hosts": "a.example"}, "webhook-url is not"),
        ({"webhook_secret_file": "/nowhere"}, "webhook-url is not"),
    ],
)
def test_a_webhook_that_cannot_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("FL_APP_WEBHOOK_SECRET", SECRET)
    with pytest.raises(ValueError, match=said) as caught:
        start(home, **changes)
    assert SECRET not in str(caught.value)


def test_a_webhook_without_a_secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FL_APP_WEBHOOK_SECRET", raising=False)
    with pytest.raises(ValueError, match="no secret to sign with"):
        start(home, webhook_url="https://hooks.example/")


def test_an_unknown_key(home: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown run-config key 'rounds'"):
        start(home, rounds=3)


def test_a_data_yaml_that_is_missing(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        start(home, data=str(tmp_path / "nowhere.yaml"))


def test_a_data_yaml_with_other_classes_says_both_counts(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)3.*7|7.*3"):
        start(home, data=data_yaml(tmp_path, names=["a", "b", "c"]), **{"num-classes": 7})


def test_pictures_that_are_not_there_are_not_downloaded(home: Path, tmp_path: Path) -> None:
    given = data_yaml(tmp_path, download="https://example.org/pictures.zip")
    with pytest.raises(DataError, match="train"):
        start(home, data=given)


def test_a_data_set_by_address_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        start(home, data="https://example.org/coco.yaml")


def test_an_mlflow_that_does_not_answer_is_told_within_seconds(home: Path) -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9"):
        start(home, mlflow_tracking_uri="http://127.0.0.1:9")
    assert time.monotonic() - began < 12


def test_a_password_in_the_uri_is_not_repeated(home: Path) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        start(home, mlflow_tracking_uri="http://ada:open-sesame@127.0.0.1:9")
    assert "open-sesame" not in str(caught.value)


def test_a_version_of_another_model_is_not_a_start(home: Path, tmp_path: Path) -> None:
    import numpy as np

    from fl_registry.files.weights import save_weights

    path = tmp_path / "w.safetensors"
    save_weights({"w": np.zeros(3, dtype=np.float32)}, path)
    manager = ModelManager(home=home)
    manager.promote_to_production(manager.save_model_version(path))
    with pytest.raises(ConfigError, match=r"Version 1 does not fit.*scratch"):
        start(home)


def known(home: Path, folder: Path, names: list[str]) -> ModelManager:
    """A registry with a version of these classes in Production."""
    import numpy as np

    from fl_registry.files.weights import save_weights

    path = folder / "known.safetensors"
    save_weights({"w": np.zeros(3, dtype=np.float32)}, path, model={"names": names})
    manager = ModelManager(home=home)
    manager.promote_to_production(manager.save_model_version(path))
    return manager


def test_a_version_of_other_classes_is_not_a_start(home: Path, tmp_path: Path) -> None:
    """Such as the demo's shapes, of which there are seven, for seven kinds of fish."""
    known(home, tmp_path, ["circle", "squares", "triangle", "star", "cross", "ring", "cube"])
    with pytest.raises(ConfigError) as caught:
        start(home)
    assert str(caught.value) == (
        "Version 1 does not know the classes of the data set: it has 'square' (did you mean "
        "'squares'?), 'diamond' and it lacks 'squares', 'cube'; set registered-model-name to a "
        "name for the model of these data, or restart-from to 'scratch'."
    )
    with pytest.raises(TooFewNodesError):  # as it says
        start(home, restart_from="scratch", min_nodes=5, node_wait_timeout=0.01)


def test_a_version_that_names_no_classes_is_a_start_with_a_warning(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a state dict of another program."""
    from support.arrays import to_arrays

    from fl_models.yolo import get_model
    from fl_registry.files.weights import save_weights

    path = tmp_path / "plain.safetensors"
    save_weights(to_arrays(get_model("n", 7)), path)
    ModelManager(home=home).save_model_version(path)
    with caplog.at_level("WARNING"), pytest.raises(TooFewNodesError):
        start(home, min_nodes=5, node_wait_timeout=0.01)
    lines = [record.getMessage() for record in caplog.records]
    expected = "version 1 does not name its classes, they are taken to be, in this order: circle, "
    assert sum(line.startswith(expected) for line in lines) == 1


@pytest.mark.parametrize("restart_from", ["production", "latest", "scratch"])
def test_classes_have_the_order_of_the_version_that_a_session_continues(
    home: Path, restart_from: str, tmp_path: Path
) -> None:
    manager = known(home, tmp_path, ["a", "b", "c"])
    data = DataSpec(tmp_path, (), (), ("c", "a", "b"))
    config = {**DEFAULTS, "home": str(home), "restart-from": restart_from}
    settings = ServerConfig.from_run_config(config)
    ordered = in_known_order(data, settings, manager)
    assert (ordered.names, ordered.numbers) == (("a", "b", "c"), (2, 0, 1))
    others = replace(data, names=("c", "a", "d"))
    assert in_known_order(others, settings, manager) is others


def test_too_few_nodes_end_the_run_at_the_deadline_that_was_set(home: Path) -> None:
    with pytest.raises(TooFewNodesError, match=r"3 connected, 5 needed, .* \(min-nodes\)"):
        start(home, min_nodes=5, node_wait_timeout=0.01)


def test_a_model_that_another_server_trains_is_refused_if_so_set(home: Path) -> None:
    with ModelManager(home=home).writer("another"), pytest.raises(ModelBusy, match="another on"):
        start(home, when_busy="refuse")


def test_early_stopping_is_off_unless_patience_is_set() -> None:
    config = ServerConfig.from_run_config({**DEFAULTS})
    assert config.early_stopping is None
    config = ServerConfig.from_run_config({**DEFAULTS, "patience": 3, "min-delta": 0.01})
    assert config.early_stopping == EarlyStopping(3, 0.01)
