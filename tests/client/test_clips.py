# SPDX-License-Identifier: Apache-2.0
"""Pictures of one clip stay on one side, whether their names say so or a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.client.clips import (
    GroupsError,
    clip_of,
    clips_of,
    held_out,
    known_clips,
    read_groups,
)

HASH = "rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("clip3_frame0012.jpg", "clip3_frame0013.jpg"),
        ("clip3-frame-1.png", "clip3-frame-200.png"),
        (f"dog_jpg.{HASH}.jpg", f"dog_jpg.{HASH[:-1]}0.jpg"),
        (f"dog.{HASH}.jpg", f"dog.{HASH[:-1]}0.jpg"),
        (f"gate_mp4-12_jpg.{HASH}.jpg", f"gate_mp4-13_jpg.{HASH}.jpg"),
        (f"clip3_frame0012_jpg.{HASH}.jpg", "clip3_frame0099.jpg"),
        ("video 1_0001.jpg", "video 1_0002.jpg"),
        ("night-scene-4_17.webp", "night-scene-4_18.webp"),
        ("frame_000001.PNG", "frame_000002.PNG"),
    ],
)
def test_pictures_of_one_clip_are_known_by_their_names(one: str, other: str) -> None:
    folder = Path("/data/images")
    assert clip_of(folder / one) == clip_of(folder / other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("IMG_2274.jpg", "IMG_2275.jpg"),
        ("train_0000.jpg", "train_0001.jpg"),
        ("00001.jpg", "00002.jpg"),
        ("snapshot_20260101.jpg", "snapshot_20260102.jpg"),
        ("clip3_frame0012.jpg", "clip4_frame0012.jpg"),
        (f"IMG_1_jpg.{HASH}.jpg", f"IMG_2_jpg.{HASH}.jpg"),
        ("a/frame_1.jpg", "b/frame_2.jpg"),
        ("video1_0001.jpg", "video2_0001.jpg"),
    ],
)
def test_other_pictures_are_of_no_clip(one: str, other: str) -> None:
    folder = Path("/data/images")
    assert clip_of(folder / one) != clip_of(folder / other)


sizes = st.lists(st.integers(1, 40), min_size=2, max_size=60)


@settings(max_examples=200, deadline=None)
@given(sizes=sizes, every=st.integers(2, 20), shuffle=st.randoms())
def test_a_clip_is_on_one_side_and_neither_side_is_empty(
    sizes: list[int], every: int, shuffle: st.DataObject
) -> None:
    clips = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    shuffle.shuffle(clips)  # type: ignore[attr-defined]
    held = held_out(clips, every)
    left = sorted(set(range(len(clips))) - set(held))
    assert held == sorted(set(held))
    assert held
    assert left
    assert not {clips[i] for i in held} & {clips[i] for i in left}
    assert len(held) <= max(-(-len(clips) // every), min(sizes))


@given(size=st.integers(2, 300), every=st.integers(2, 20))
def test_pictures_without_clips_are_held_out_one_in_n(size: int, every: int) -> None:
    clips = [str(number) for number in range(size)]
    assert held_out(clips, every) == list(range(size))[::every]


def test_of_a_single_clip_the_end_is_held_out() -> None:
    assert held_out(["a"] * 25, 10) == [22, 23, 24]


@pytest.mark.parametrize(
    "text",
    [
        "picture,group\nimages/a.jpg,north\nimages/b.jpg,south side\n",
        "images/a.jpg;north\nimages/b.jpg;south side",
        'images\\a.jpg\tnorth\n\n"b.jpg"\tsouth side\n',
        "a.jpg, north, 7\nb.jpg, south side, 8\n",
    ],
)
def test_a_file_says_which_pictures_belong_together(text: str) -> None:
    root = Path("/data")
    groups = read_groups(root / "groups.csv", text, root)
    pictures = [root / "images" / name for name in ("a.jpg", "b.jpg", "clip1_frame2.jpg")]
    assert clips_of(pictures, groups) == (
        "/data/groups.csv: north",
        "/data/groups.csv: south side",
        clip_of(pictures[2]),
    )


def test_the_clips_of_a_holdout_are_known_only_if_something_says_several() -> None:
    def known(*names: str, groups: dict[str, str] | None = None) -> tuple[str, ...]:
        return known_clips([Path("/data") / name for name in names], groups or {})

    assert known("a.jpg", "b.jpg") == ()
    assert known("clip1_frame1.jpg", "clip1_frame2.jpg") == ()
    assert known("clip1_frame1.jpg", "clip1_frame2.jpg", "b.jpg") == (
        "/data/clip1",
        "/data/clip1",
        "/data/b.jpg",
    )
    assert known("a.jpg", "b.jpg", groups={"a.jpg": "1", "b.jpg": "2"}) == ("1", "2")
    assert known("a.jpg", "b.jpg", groups={"a.jpg": "1"}) == ()


def test_a_row_without_a_group_is_named() -> None:
    with pytest.raises(GroupsError, match=r"row 2 of groups\.txt has 1 columns"):
        read_groups(Path("groups.txt"), "a.jpg one\nb.jpg\n", Path("/data"))
