# SPDX-License-Identifier: Apache-2.0
"""What every model store promises; each test runs over the one in memory and the one in MLflow."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fl_registry import (
    ArtifactError,
    InMemoryModelStore,
    InvalidMetric,
    InvalidName,
    ModelManager,
    ModelStore,
    Serving,
    Stage,
    StageError,
    UnknownVersion,
)
from fl_registry.files.weights import save_weights

MakeWeights = Callable[[float], Path]


def save(store: ModelStore, weights: MakeWeights, count: int) -> None:
    """Save versions 1 to `count`."""
    for number in range(1, count + 1):
        saved = store.save_model_version(weights(number), metrics={"accuracy": number / 10})
        assert saved == str(number)


def stages(store: ModelStore) -> dict[str, str]:
    return {row["version"]: row["stage"] for row in store.list_all_versions()}


def test_a_saved_version_keeps_all_it_was_saved_with(
    store: ModelStore, weights: MakeWeights
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    kept: ModelStore = store
    version = kept.save_model_version(
        model_path=str(weights(1)),
        run_id="abc123",
        metrics={"accuracy": 0.85, "mAP50(B)": 0.42},
        tags={"round": "10", "clients": "3"},
    )
    record = store.get_version(version)
    assert version == "1"
    assert record.stage is Stage.NONE
    assert before <= record.created <= datetime.now(UTC)
    assert record.metrics == {"accuracy": 0.85, "mAP50(B)": 0.42}
    assert (record.tags["round"], record.tags["clients"], record.tags["stage"]) == (
        "10",
        "3",
        "None",
    )
    assert record.run_id == "abc123"
    assert record.size == weights(1).stat().st_size
    assert store.weights_path(version).read_bytes() == weights(1).read_bytes()


def test_versions_are_listed_newest_first(store: ModelStore, weights: MakeWeights) -> None:
    assert store.list_all_versions() == []
    save(store, weights, 11)
    rows = store.list_all_versions()
    assert [row["version"] for row in rows] == [str(n) for n in range(11, 0, -1)]
    assert set(rows[0]) == {
        "version", "stage", "created", "metrics", "tags", "sha256", "size", "run_id", "description"
    }  # fmt: skip
    assert datetime.fromisoformat(rows[0]["created"]).utcoffset() == timedelta(0)
    assert rows[0] == store.get_version(11).as_row()


def test_metrics_keep_the_order_in_which_they_are_given(
    store: ModelStore, weights: MakeWeights
) -> None:
    store.save_model_version(weights(1), metrics={"mAP50": 0.5, "F1": 0.4, "accuracy": 0.3})
    assert list(store.get_version("1").metrics) == ["mAP50", "F1", "accuracy"]
    assert list(store.list_all_versions()[0]["metrics"]) == ["mAP50", "F1", "accuracy"]


def test_equal_weights_saved_again_say_what_is_not_taken_over(
    store: ModelStore,
    weights: MakeWeights,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tags = {"round": "1", "clients": "3"}
    path, scores = weights(1), {"a.jpg": 1.0}
    assert store.save_model_version(path, "run", {"accuracy": 0.5}, tags) == "1"
    assert store.save_model_version(path, "run", {"accuracy": 0.5}, tags) == "1"
    assert store.save_model_version(path, "run", None, {"round": "1"}) == "1"
    assert caplog.text == ""
    given = {**tags, "clients": "4", "reviewer": "Ada"}
    (tmp_path / "code.py").write_text("def load(weights, spec, config): ...")
    again = store.save_model_version(
        path,
        "run",
        {"accuracy": 0.6, "F1": 0.4},
        given,
        description="better",
        per_example=scores,
        serving=Serving(tmp_path / "code.py"),
    )
    assert again == "1"
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert (
        "not stored: metric accuracy 0.6 (it has 0.5), metric F1 0.4 (it has none), "
        "tag clients, tag reviewer, description, per_example, serving. "
    ) in line
    assert "set_version_tags" in line
    record = store.get_version("1")
    assert (record.metrics, record.tags["clients"]) == ({"accuracy": 0.5}, "3")
    assert store.save_model_version(path, "run", {"accuracy": 0.6}, {"round": "2"}) == "2"
    assert store.save_model_version(path, "another", {"accuracy": 0.6}, tags) == "3"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_with_nan_or_infinity_are_refused(
    tmp_path: Path, bad: float, dtype: torch.dtype, ending: str
) -> None:
    store = InMemoryModelStore(tmp_path / "store")
    path = tmp_path / f"global_round_10.{ending}"
    largest = torch.finfo(dtype).max
    good = torch.full((100_001,), largest, dtype=dtype)
    broken = good.clone()
    broken[-1] = bad
    write = torch.save if ending == "pt" else save_file
    rest = {"b.none": good[:0].clone(), "b.weight": broken, "c": good.clone()}
    write({"counter": torch.full((2,), -1), "a": good, **rest}, path)
    with pytest.raises(ArtifactError, match=r"array 'b\.weight' of .*global_round_10.* holds NaN"):
        store.save_model_version(path)
    assert store.list_all_versions() == []
    write({"counter": torch.full((2,), -1), "a": good}, path)
    assert store.save_model_version(path) == "1"


def test_a_file_that_nobody_writes_to_again_is_stored_once(
    tmp_path: Path, weights: MakeWeights
) -> None:
    store = ModelManager(home=tmp_path / "home")
    mine, final = tmp_path / "mine.safetensors", tmp_path / "final.safetensors"
    for number, path in enumerate((mine, final), start=1):
        shutil.copyfile(weights(number), path)
        store.save_model_version(path, final=path is final)
    assert store.weights_path("2").samefile(final)
    before = store.load_arrays("1")
    mine.write_bytes(b"trained on, in the same file")
    np.testing.assert_equal(store.load_arrays("1"), before)
    final.unlink()
    assert store.weights_path("2").is_file()


@pytest.mark.parametrize("named", [0, 1, 2])
def test_where_a_disk_has_no_hard_links_a_file_is_copied(
    tmp_path: Path, weights: MakeWeights, monkeypatch: pytest.MonkeyPatch, named: int
) -> None:
    link, calls = os.link, itertools.count()

    def refused(*paths: Path) -> None:
        if next(calls) >= named:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(*paths)

    monkeypatch.setattr(os, "link", refused)
    store, path = ModelManager(home=tmp_path / "home"), weights(1)
    store.save_model_version(path, final=True)
    assert store.weights_path("1").read_bytes() == path.read_bytes()
    assert not store.weights_path("1").samefile(path)


def test_every_store_refuses_weights_with_nan(store: ModelStore, weights: MakeWeights) -> None:
    with pytest.raises(ArtifactError, match="save finite weights"):
        store.save_model_version(weights(math.nan))
    assert store.list_all_versions() == []


def test_saving_the_same_file_for_the_same_round_again_gives_the_same_version(
    store: ModelStore, weights: MakeWeights
) -> None:
    for _ in range(2):
        assert store.save_model_version(weights(1), "run", tags={"round": "1"}) == "1"
    assert store.save_model_version(weights(1), "run", tags={"round": "2"}) == "2"
    assert store.save_model_version(weights(1), "other", tags={"round": "1"}) == "3"
    assert store.save_model_version(weights(2), "run", tags={"round": "1"}) == "4"
    assert len(store.list_all_versions()) == 4


def test_a_version_climbs_and_the_one_before_is_archived(
    store: ModelStore, weights: MakeWeights
) -> None:
    save(store, weights, 3)
    store.promote_to_staging("1")
    assert stages(store) == {"1": "Staging", "2": "None", "3": "None"}
    store.promote_to_production("1")
    store.promote_to_staging(2, actor="ada", reason="beats version 1")
    assert stages(store) == {"1": "Production", "2": "Staging", "3": "None"}
    store.promote_to_staging("3")
    assert stages(store) == {"1": "Production", "2": "Archived", "3": "Staging"}
    store.promote_to_production("3")
    assert stages(store) == {"1": "Archived", "2": "Archived", "3": "Production"}
    entry = store.history()[2]
    assert (entry.op, entry.version, entry.actor, entry.reason) == (
        "stage",
        "2",
        "ada",
        "beats version 1",
    )
    assert store.history()[-1].displaced == "1"


def test_a_move_that_changes_nothing_is_not_journalled(
    store: ModelStore, weights: MakeWeights
) -> None:
    save(store, weights, 2)
    for _ in range(2):
        store.promote_to_staging("1")
        store.archive_version("2")
    store.promote_to_production("1")
    store.promote_to_production("1")
    assert store.rollback("1") == "1"
    assert [entry.op for entry in store.history()] == ["stage", "archive", "promote"]


def test_rolling_back_twice_returns(store: ModelStore, weights: MakeWeights) -> None:
    save(store, weights, 3)
    for version in "123":
        store.promote_to_production(version)
    assert store.rollback(actor="ada", reason="worse on night pictures") == "2"
    assert stages(store) == {"1": "Archived", "2": "Production", "3": "Archived"}
    assert store.rollback() == "3"
    assert store.rollback(to=1) == "1"
    assert store.rollback() == "3"
    assert stages(store) == {"1": "Archived", "2": "Archived", "3": "Production"}


@pytest.mark.parametrize(
    ("move", "version", "says"),
    [
        ("promote_to_staging", "1", "archived and cannot go to staging"),
        ("promote_to_staging", "2", "in production and cannot go back to staging"),
        ("promote_to_production", "3", r"restore_version\('3'\) puts it back into staging"),
        ("restore_version", "2", "in production and cannot go back"),
        ("restore_version", "4", "not archived, so there is nothing to restore"),
        ("archive_version", "2", "there must always be one"),
        ("rollback", "4", "never been in production"),
    ],
)
def test_a_forbidden_move_says_what_is_allowed_and_changes_nothing(
    store: ModelStore, weights: MakeWeights, move: str, version: str, says: str
) -> None:
    save(store, weights, 4)
    store.promote_to_production("1")
    store.promote_to_production("2")
    store.archive_version("3")
    before = store.history()
    with pytest.raises(StageError, match=says):
        getattr(store, move)(version)
    assert store.history() == before
    assert stages(store) == {"1": "Archived", "2": "Production", "3": "Archived", "4": "None"}


def test_there_is_nothing_to_roll_back_to_at_first(store: ModelStore, weights: MakeWeights) -> None:
    save(store, weights, 1)
    store.promote_to_production("1")
    with pytest.raises(StageError, match="no earlier production version"):
        store.rollback()


def test_the_newest_of_a_stage(store: ModelStore, weights: MakeWeights) -> None:
    assert store.get_latest_version() is None
    assert store.get_latest_version("Production") is None
    save(store, weights, 4)
    store.promote_to_production("2")
    store.promote_to_staging("3")
    store.archive_version("1")
    assert store.get_latest_version() == "4"
    assert store.get_latest_version("None") == "4"
    assert store.get_latest_version(Stage.STAGING) == "3"
    assert store.get_latest_version("production") == "2"
    assert store.get_latest_version("Archived") == "1"
    with pytest.raises(StageError, match=r"no stage 'Live'.*Production"):
        store.get_latest_version("Live")


def test_comparing_tells_by_how_much_the_second_exceeds_the_first(
    store: ModelStore, weights: MakeWeights
) -> None:
    store.save_model_version(weights(1), metrics={"accuracy": 0.5, "loss": 2.0})
    store.save_model_version(weights(2), metrics={"accuracy": 0.75, "f1": 0.1})
    comparison = store.compare_versions("1", "2")
    assert comparison["version1"]["metrics"]["accuracy"] == 0.5
    assert comparison["version2"]["stage"] == "None"
    assert comparison["differences"] == {"accuracy": 0.25}


def test_changed_or_lost_weights_are_neither_promoted_nor_loaded(
    store: ModelStore, weights: MakeWeights
) -> None:
    if isinstance(store, ModelManager) and store.tracking_uri.startswith("http"):
        pytest.skip("the files lie with the server; a damaged download is fetched again")
    save(store, weights, 3)
    store.promote_to_production("1")
    store.weights_path("2").write_bytes(weights(3).read_bytes())
    store.weights_path("3").unlink()
    for move in (store.promote_to_staging, store.promote_to_production):
        with pytest.raises(ArtifactError, match="version 2 have changed"):
            move("2")
        with pytest.raises(ArtifactError, match="version 3 are missing"):
            move("3")
    assert store.get_latest_version("Production") == "1"
    store.weights_path("1").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="version 1 have changed"):
        store.load_production_model(lambda: nn.Linear(1, 1))


def test_saving_does_not_tie_the_version_to_the_callers_file(
    store: ModelStore, weights: MakeWeights
) -> None:
    path = weights(1)
    version = store.save_model_version(path)
    with path.open("r+b") as file:  # in place, as a hard link would show
        file.write(b"overwritten")
    assert store.weights_path(version).is_file()


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"accuracy": math.nan}, "accuracy is nan; expected a finite number"),
        ({"loss": -math.inf}, "loss is -inf"),
        ({"loss": "low"}, "loss is 'low'"),
        ({"ok": True}, "ok is True"),
        ({"": 1.0}, "not empty"),
    ],
)
def test_metrics_that_are_not_finite_numbers_are_refused(
    store: ModelStore, weights: MakeWeights, metrics: dict[str, float], says: str
) -> None:
    with pytest.raises(InvalidMetric, match=says):
        store.save_model_version(weights(1), metrics=metrics)
    assert store.list_all_versions() == []


@pytest.mark.parametrize("tags", [{"sha256": "0"}, {"": "x"}, {"x" * 251: "1"}, {"k": "v" * 10**6}])
def test_tags_that_cannot_be_kept_are_refused(
    store: ModelStore, weights: MakeWeights, tags: dict[str, str]
) -> None:
    with pytest.raises(InvalidName, match="tag"):
        store.save_model_version(weights(1), tags=tags)
    assert store.list_all_versions() == []


def test_files_that_are_not_there_or_not_models_are_refused(
    store: ModelStore, weights: MakeWeights, tmp_path: Path
) -> None:
    good = weights(1).read_bytes()
    files = {
        "empty.safetensors": (b"", "is empty"),
        "cut.safetensors": (good[:-4], "cut off"),
        "longer.safetensors": (good + b"....", "cut off, or"),
        "text.safetensors": (b"not a model at all", "no safetensors header"),
        "none.safetensors": ((2).to_bytes(8, "little") + b"{}", "holds no arrays"),
        "text.pt": (b"not a model at all", "cannot be read safely"),
    }
    for name, (content, says) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=says):
            store.save_model_version(tmp_path / name)
    with pytest.raises(ArtifactError, match=r"no model file at .*nowhere"):
        store.save_model_version(tmp_path / "nowhere.pt")
    with pytest.raises(ArtifactError, match="is a folder"):
        store.save_model_version(tmp_path)
    assert store.list_all_versions() == []


@pytest.mark.parametrize("version", ["7", "0", "-1", "one", "", "1.0", "latest"])
def test_versions_that_do_not_exist(store: ModelStore, weights: MakeWeights, version: str) -> None:
    save(store, weights, 1)
    for ask in (
        store.get_version,
        store.weights_path,
        store.promote_to_staging,
        store.promote_to_production,
        store.archive_version,
        store.rollback,
    ):
        with pytest.raises(UnknownVersion):
            ask(version)
    with pytest.raises(UnknownVersion):
        store.set_version_tags(version, {"a": "b"})
    assert store.history() == ()


def test_tags_can_be_set_later_but_not_the_registrys_own(
    store: ModelStore, weights: MakeWeights
) -> None:
    save(store, weights, 1)
    store.set_version_tags("1", {"approval": "pending", "note": "Überprüft"})
    assert store.get_version("1").tags["approval"] == "pending"
    assert store.get_version("1").tags["note"] == "Überprüft"
    with pytest.raises(InvalidName, match="'stage' belongs to the registry"):
        store.set_version_tags("1", {"stage": "Production"})


def test_a_plain_state_dict_is_imported_and_loaded(store: ModelStore, tmp_path: Path) -> None:
    trained = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.save(trained.state_dict(), tmp_path / "global_round_10.pt")
    assert store.load_production_model(lambda: nn.Linear(1, 1)) is None
    version = store.save_model_version(tmp_path / "global_round_10.pt")
    assert store.save_model_version(tmp_path / "global_round_10.pt") == version
    store.promote_to_production(version)
    loaded = store.load_production_model(
        model_class=lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), device="cpu"
    )
    assert isinstance(loaded, nn.Module)
    assert not loaded.training
    picture = torch.randn(4, 3)
    assert torch.equal(loaded(picture), trained.eval()(picture))


def test_weights_of_another_model_are_not_loaded(store: ModelStore, tmp_path: Path) -> None:
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "w.safetensors")
    store.promote_to_production(store.save_model_version(tmp_path / "w.safetensors"))
    with pytest.raises(ArtifactError, match="2 of other shape"):
        store.load_production_model(lambda: nn.Linear(5, 4))
    with pytest.raises(ArtifactError, match="1 unexpected"):
        store.load_production_model(lambda: nn.Linear(3, 2, bias=False))


def test_ping_and_reconcile_of_a_new_store(store: ModelStore) -> None:
    store.ping()
    store.reconcile()
    assert store.history() == ()


def test_arrays_of_any_version_or_stage_come_in_the_model_s_own_order(
    store: ModelStore, tmp_path: Path
) -> None:
    path, kept = tmp_path / "weights.safetensors", {}
    for number in (1, 2):
        kept[number] = {
            "z.weight": np.full((2, 3), number, np.float16),
            "a": np.float64(number) * np.ones(()),  # 0-d
            "trees": np.frombuffer(b'{"learner": 1}', np.uint8),
            "empty": np.zeros((0, 4), np.float32),
            "mask": np.array([True, False]),
        }
        save_weights(kept[number], path)
        store.save_model_version(path)
    store.promote_to_production("1")
    store.promote_to_staging("2")
    protocol: ModelStore = store
    for name, number in [("Production", 1), ("staging", 2), (Stage.STAGING, 2), ("1", 1), (2, 2)]:
        arrays = protocol.load_arrays(name)
        assert list(arrays) == list(kept[number])
        for key, array in arrays.items():
            assert (array.dtype, array.shape) == (kept[number][key].dtype, kept[number][key].shape)
            assert np.array_equal(array, kept[number][key])
    arrays = store.load_arrays()
    arrays["z.weight"] += 1  # the caller's own
    assert (store.load_arrays()["z.weight"] == 1).all()


def test_arrays_of_nothing_are_refused_with_what_there_is(
    store: ModelStore, weights: MakeWeights
) -> None:
    with pytest.raises(UnknownVersion, match=r"no versions yet; save one with save_model_version"):
        store.load_arrays()
    save(store, weights, 2)
    store.promote_to_staging("2")
    with pytest.raises(UnknownVersion) as refused:
        store.load_arrays("production")
    assert str(refused.value) == (
        "No version is in stage Production; the newest is version 2, in stage Staging; "
        "give its number, or promote it first."
    )
    with pytest.raises(UnknownVersion, match="version 7"):
        store.load_arrays(7)
    with pytest.raises(StageError, match="expected one of None, Staging"):
        store.load_arrays("latest")


def test_arrays_that_changed_on_disk_or_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    store, path = InMemoryModelStore(tmp_path / "store"), tmp_path / "w.safetensors"
    save_file({"w": torch.ones(3, dtype=torch.bfloat16)}, path)
    store.save_model_version(path)
    with pytest.raises(ArtifactError, match=r"dtype BF16.*weights_path\('1'\)"):
        store.load_arrays("1")
    store.weights_path("1").write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="have changed since they were saved"):
        store.load_arrays("1")


def test_what_is_no_torch_module_is_refused_with_the_call_that_serves(
    store: ModelStore, weights: MakeWeights
) -> None:
    class LogisticRegression:
        pass

    store.promote_to_production(store.save_model_version(weights(1)))
    for copy in (True, False):
        with pytest.raises(ArtifactError, match=r"a LogisticRegression, .*; load_arrays\(\) "):
            store.load_production_model(LogisticRegression, copy=copy)
