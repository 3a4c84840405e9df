# SPDX-License-Identifier: Apache-2.0
"""A model's life from candidate to production and back, told once by the real thing.

A champion; a candidate that poisoned nodes made worse in one class, and that is refused; a better
one that waits and is approved on the page; production that degrades and comes back by itself; and a
ledger that tells all of it, and tells when it was altered.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.flower import Flower
from support.story import Story, tell

from fl_app.client.generated_shapes import TRAIN_ARGS
from fl_registry import ModelManager

pytestmark = pytest.mark.slow

CIRCLE, SQUARE = "0", "1"


def own_pictures(trained: Flower, folder: Path) -> Path:
    """The generated pictures, copied so that their labels may be changed; returns data.yaml."""
    (drawn,) = (trained.fl_app_home / "data").glob("*/data.yaml")
    shutil.copytree(drawn.parent, folder)
    return folder / "data.yaml"


def test_from_candidate_to_production_and_back(
    trained: tuple[Flower, str], flower: Flower, app: Path, tmp_path: Path
) -> None:
    first, home = trained[0], trained[0].fl_app_home
    data = own_pictures(first, tmp_path / "shapes")
    # As for the generated pictures themselves, of which these are a copy.
    settings = f'staging-threshold=0.3 train-args="{TRAIN_ARGS}"'
    exchanged = {CIRCLE: SQUARE, SQUARE: CIRCLE}
    story = Story(flower, first, app, data, exchanged, settings)

    # The first session gave a champion: a version of the main job.
    learnt = ModelManager(home=home).get_version("2")
    champion = story.manager.save_model_version(
        ModelManager(home=home).weights_path("2"), learnt.run_id, learnt.metrics, {"round": "2"}
    )
    why = tell(
        story,
        champion,
        poisoned="num-server-rounds=1 local-epochs=4",  # better but for the two classes
        honest="num-server-rounds=2",
        folder=tmp_path,
    )
    assert "class circle goes from 0." in why
