# SPDX-License-Identifier: Apache-2.0
"""Drift end to end on real photographs: two of four cameras break, and a new session starts."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import yaml
from support.flower import ROOT, Flower
from support.shipped_app import shipped_app

from fl_app.retraining import MonitorStore
from fl_app.retraining.manager import MonitorState
from fl_app.retraining.memory.store import default_url
from fl_registry import ModelManager

AQUARIUM = ROOT.parent / "shared" / "data" / "aquarium"

pytestmark = pytest.mark.slow
on_photographs = pytest.mark.skipif(not AQUARIUM.is_dir(), reason=f"no photographs at {AQUARIUM}")
PICTURES, TO_SCORE = 240, 12


@pytest.fixture(scope="module")
def camera_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flower app with the shipped ServerApp and the ClientApp whose pictures change."""
    return shipped_app(tmp_path_factory.mktemp("apps") / "cameras", "camera_client")


def photographs(folder: Path) -> Path:
    """A few photographs with their labels, which a run may change; returns the data.yaml."""
    for split, count in (("train", PICTURES), ("valid", TO_SCORE)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
            for path in sorted((AQUARIUM / kind / split).iterdir())[:count]:
                shutil.copy(path, folder / kind / split)
    content = yaml.safe_load((AQUARIUM / "data.yaml").read_text())
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "path": "."}))
    return folder / "data.yaml"


def run(flower: Flower, app: Path, data: Path, home: Path) -> list[dict[str, object]]:
    """Three rounds, and three more if the monitor asks; what it asked for.

    In the first check nobody knows yet how checks differ. At one false alarm in a year this would
    take two checks or more; at one in 20 checks a gross change rings at once.
    """
    flower.run(
        app,
        f'home="{home}" data="{data}" image-size=64 num-server-rounds=3 local-epochs=1 '
        "min-nodes=4 max-retrains=1 drift-false-alarm-days=0.01",
        "--federation-config",
        "num-supernodes=4 client-resources-num-cpus=1",
    )
    return MonitorStore(default_url(home)).requests.history()


@on_photographs
def test_two_broken_cameras_start_a_session_that_names_what_they_did(
    flower: Flower, camera_app: Path, tmp_path: Path
) -> None:
    data, home = photographs(tmp_path / "data"), tmp_path / "home"
    (data.parent / "broken").touch()
    (request,) = run(flower, camera_app, data, home)
    assert (request["kind"], request["outcome"]) == ("drift", "done")
    reason = str(request["reason"])
    assert reason.startswith("in round 3 the data moved: ")
    assert "sharpness lower" in reason or "edge share lower" in reason
    assert "2 of 2 nodes" in reason  # the others had nothing new to tell
    manager = ModelManager(home=home)
    rows = manager.list_all_versions()
    assert [row["tags"]["session"] for row in rows] == ["2"] * 3 + ["1"] * 3
    assert rows[0]["tags"]["trigger"] == reason
    picture, table = (
        manager.client.download_artifacts(rows[3]["run_id"], name, str(tmp_path))
        for name in ("drift.png", "drift.csv")
    )
    assert Path(picture).stat().st_size > 10_000
    with Path(table).open() as file:
        drifted = {row["feature"] for row in csv.DictReader(file) if row["drifted"] == "yes"}
    assert drifted & {"brightness", "sharpness", "edge share"}
    assert not drifted & {"boxes", "box size", "main class"}


@on_photographs
def test_the_same_pictures_saved_anew_start_none(
    flower: Flower, camera_app: Path, tmp_path: Path
) -> None:
    data, home = photographs(tmp_path / "data"), tmp_path / "home"
    assert run(flower, camera_app, data, home) == []
    assert (data.parent / "changed-0").exists()
    _, state = MonitorStore(default_url(home)).note("monitor", MonitorState).read()
    assert state is not None
    assert state.drift.checks == 1  # they were new, and were looked at
    assert len(ModelManager(home=home).list_all_versions()) == 3
