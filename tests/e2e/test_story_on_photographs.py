# SPDX-License-Identifier: Apache-2.0
"""A model's life from candidate to production and back, on photographs, in the nightly run.

It learns few of them by heart: from scratch, a model that knows them all takes hours.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from hypothesis import settings
from support.flower import ROOT, Flower
from support.story import Story, tell

from fl_registry import Stage

AQUARIUM = ROOT.parent / "shared" / "data" / "aquarium"
NIGHTLY = settings.get_current_profile_name() == "nightly"
FISH, PUFFIN, STARFISH = 0, 3, 5
OF_EACH = 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AQUARIUM.is_dir(), reason=f"no photographs at {AQUARIUM}"),
    pytest.mark.skipif(not NIGHTLY, reason="takes minutes to learn: in `make nightly` only"),
]


def plain_photographs() -> list[Path]:
    """The labels of photographs of one kind only; of each kind those with the fewest boxes."""
    found = defaultdict(list)
    for label in sorted((AQUARIUM / "labels" / "train").iterdir()):
        boxes = [row.split() for row in label.read_text().splitlines()]
        kinds = {int(kind) for kind, *_ in boxes}
        if len(kinds) == 1:
            largest = max(float(width) * float(height) for *_, width, height in boxes)
            found[kinds.pop()].append((len(boxes), -largest, label))
    return [
        label for kind in (FISH, PUFFIN, STARFISH) for *_, label in sorted(found[kind])[:OF_EACH]
    ]


def photographs(folder: Path) -> Path:
    """A few photographs to train on, and the same to score; returns the data.yaml."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for label in plain_photographs():
            picture = AQUARIUM / "images" / "train" / f"{label.stem}.jpg"
            shutil.copy(label, folder / "labels" / split)
            shutil.copy(picture, folder / "images" / split)
    content = yaml.safe_load((AQUARIUM / "data.yaml").read_text())
    content.update(path=".", train="images/train", val="images/val")
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def test_from_candidate_to_production_and_back_on_photographs(
    flower: Flower, app: Path, tmp_path: Path
) -> None:
    data = photographs(tmp_path / "photographs")
    story = Story(
        flower,
        flower,
        app,
        data,
        exchanged={str(PUFFIN): str(STARFISH), str(STARFISH): str(PUFFIN)},
        settings="image-size=96 batch-size=4 staging-threshold=0.1",
    )

    # The first session gives a champion, from scratch.
    story.train("num-server-rounds=4 local-epochs=20")
    champion = story.manager.get_latest_version(Stage.STAGING)
    assert champion is not None
    why = tell(
        story,
        champion,
        poisoned="num-server-rounds=1 local-epochs=40",
        honest="num-server-rounds=5 local-epochs=25",
        folder=tmp_path,
    )
    assert any(f"class {name} goes from " in why for name in ("puffin", "starfish"))
