# SPDX-License-Identifier: Apache-2.0
"""Class names are matched by name, and labels get the model's numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_models.classes import ClassError, match_names, name_differences
from fl_models.decoding import read_pictures
from fl_models.pictures import DataSpec, PictureError, read_boxes

COCO = [f"thing {number}" for number in range(80)]


def test_names_match_in_any_order() -> None:
    assert match_names("abc", "abc") == (0, 1, 2)
    assert match_names(("square", "disc"), ("disc", "square")) == (1, 0)
    assert name_differences("abc", "cab") == ""


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (("fishes", "shark"), "it has 'fishes' (did you mean 'fish'?) and it lacks 'fish'"),
        (("Fish", "shark"), "it has 'Fish' (did you mean 'fish'?) and it lacks 'fish'"),
        (("fish ", "shark"), "it has 'fish ' (did you mean 'fish'?) and it lacks 'fish'"),
        (("fish", "shark", "whale"), "it has 'whale'"),
        (("ﬁsh", "shark"), r"it has '\ufb01sh' (did you mean 'fish'?) and it lacks 'fish'"),
        (("shark",), "it lacks 'fish'"),
        (("cat", "dog"), "it has 'cat', 'dog' and it lacks 'fish', 'shark'"),
        (("fish", "shark", *COCO), "it has 'thing 0', 'thing 1', 'thing 2' and 77 more"),
    ],
)  # fmt: skip
def test_other_names_are_refused_with_their_difference(own: tuple[str, ...], text: str) -> None:
    with pytest.raises(ClassError, match=f"^{re.escape(text)}$"):
        match_names(own, ("fish", "shark"))


def test_others_can_be_ignored_unless_nothing_is_left() -> None:
    assert match_names(("cat", "shark"), ("fish", "shark"), ignore_others=True) == (-1, 1)
    with pytest.raises(ClassError):
        match_names(("cat", "dog"), ("fish", "shark"), ignore_others=True)


def picture_with(folder: Path, labels: str, name: str = "a") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    path = folder / "images" / f"{name}.png"
    Image.new("RGB", (32, 32)).save(path)
    rows = labels.split(",") if labels else []
    text = "".join(f"{row} 0.5 0.5 0.2 0.{number + 1}\n" for number, row in enumerate(rows))
    (folder / "labels" / f"{name}.txt").write_text(text)
    return path


def test_labels_get_the_numbers_of_the_model_and_others_are_left_out(tmp_path: Path) -> None:
    picture = picture_with(tmp_path, "0,1,2")
    own = DataSpec(tmp_path, (picture,), (), ("c", "other", "a"))
    data = own.for_model(("a", "b", "c"), ignore_others=True)
    assert (data.names, data.numbers, data.nc) == (("a", "b", "c"), (2, -1, 0), 3)
    boxes = read_boxes(picture, data.numbers)
    assert boxes[:, 0].tolist() == [2, 0]
    assert boxes[:, 4] == pytest.approx([0.1, 0.3])
    assert np.array_equal(read_boxes(picture, own.numbers)[:, 0], [0, 1, 2])
    again = data.for_model(("c", "b", "a"))
    assert again.numbers == (0, -1, 2)


def test_labels_numbered_from_one_are_refused(tmp_path: Path) -> None:
    """The last class alone would be left out, and each other one trained as its neighbour."""
    paths = [picture_with(tmp_path, str(number), f"p{number}") for number in (1, 2, 3)]
    pictures = read_pictures(paths, range(3))
    assert len(pictures) == 2
    with pytest.raises(PictureError, match="3 pictures are numbered 1 to 3, expected 0 to 2"):
        pictures.require_usable("pictures")
    paths.append(picture_with(tmp_path, "0", "p0"))  # so that 3 is one picture's mistake
    pictures = read_pictures(paths, range(3))
    pictures.require_usable("pictures")
    expected = "1 of 4 pictures are left out: 1 because of class 3, expected 0 to 2"
    assert pictures.note == expected


def test_pictures_without_a_usable_label_are_refused_though_backgrounds_are_left(
    tmp_path: Path,
) -> None:
    paths = [picture_with(tmp_path, "7", f"p{number}") for number in (1, 2)]
    background = picture_with(tmp_path, "", "none")
    (tmp_path / "labels" / "none.txt").unlink()
    pictures = read_pictures([*paths, background], range(3))
    assert len(pictures) == 1
    why = r"no label of the 3 pictures can be used \(2 of 3 .* class 7, expected 0 to 2"
    with pytest.raises(PictureError, match=why):
        pictures.require_usable("pictures")
    backgrounds = read_pictures([background], range(3))
    backgrounds.require_usable("pictures", backgrounds=True)
    assert backgrounds.left_out == {}
