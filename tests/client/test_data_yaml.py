# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets as tools export them and people write them, beside what Ultralytics makes of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from ultralytics.data import YOLODataset
from ultralytics.data.utils import check_det_dataset

from fl_app.client.clips import clip_of
from fl_app.client.data import load_node_data, partition, split_holdout
from fl_app.client.data_yaml import DataError, _warn_once, load_data_spec
from fl_app.config import ClientConfig
from fl_models.pictures import SUFFIXES, DataSpec

NAMES = "names: [a, b, c]\n"
BOTH = "train: images/train\nval: images/val\n"
HASH = "rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9"


class Lister(YOLODataset):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """Lists pictures and reads none."""

    def __init__(self) -> None:
        self.prefix, self.fraction = "", 1.0


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultralytics.data.utils.check_font", lambda font: None)
    monkeypatch.setattr("ultralytics.data.base.check_file_speeds", lambda files, prefix: None)
    _warn_once.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures to train on, two to evaluate on, and lists of them."""
    put(tmp_path, *(f"images/train/{number}.jpg" for number in range(3)))
    put(tmp_path, *(f"images/val/{number}.jpg" for number in range(2)))
    monkeypatch.chdir(tmp_path)  # where Ultralytics starts from
    return tmp_path


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not opened here")


def rows(*names: str) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def plain(file: Path) -> dict[str, list[str]] | str:
    """The pictures that Ultralytics would use, and its class names; or its error."""
    try:
        data = check_det_dataset(str(file), autodownload=False)
        found = {split: Lister().get_img_files(data[split]) for split in ("train", "val")}
    except Exception as error:  # noqa: BLE001 - it raises many types
        return f"{type(error).__name__}: {error}"
    # Its loader skips what does not exist.
    existing = {
        split: sorted({os.path.abspath(path) for path in paths if Path(path).is_file()})  # noqa: PTH100
        for split, paths in found.items()
    }
    if not all(existing.values()):
        return "No valid images found"
    return {**existing, "names": [data["names"][number] for number in range(data["nc"])]}


def ours(file: Path) -> dict[str, list[str]]:
    spec = load_data_spec(file, None)
    return {
        "train": list(map(str, spec.train)),
        "val": list(map(str, spec.val)),
        "names": list(spec.names),
    }


LISTS = {
    "dots.txt": rows("./images/train/0.jpg", "./images/train/2.jpg"),
    "crlf.txt": b"./images/val/0.jpg\r\n./images/val/1.jpg\r\n",
    "bom.txt": b"\xef\xbb\xbf./images/val/0.jpg\n",
    "one-missing.txt": rows("./images/train/0.jpg", "./images/train/gone.jpg"),
    "plain.txt": rows("images/train/0.jpg", "images/train/1.jpg"),
    "sub/plain.txt": rows("images/train/0.jpg", "images/train/1.jpg"),
}
EQUAL = {
    "folders": BOTH + NAMES,
    "path": "path: .\n" + BOTH + NAMES,
    "absolute path": "path: {root}\n" + BOTH + NAMES,
    "absolute splits": "train: {root}/images/train\nval: {root}/images/val\n" + NAMES,
    "../ as in Roboflow": "train: ../images/train\nval: ../images/val\nnc: 3\n" + NAMES,
    "more keys": BOTH + NAMES + "download: https://host/x.zip\nroboflow: {{version: 1}}\n",
    "list of folders": "train: [images/train]\nval: [images/val]\n" + NAMES,
    "folder above": "train: images/train\nval: images/val/../val\n" + NAMES,
    "validation": "train: images/train\nvalidation: images/val\n" + NAMES,
    "names by number": BOTH + "names: {{0: a, 1: b, 2: c}}\n",
    "names by number as text": BOTH + "names: {{'0': a, '1': b, '2': c}}\n",
    "names out of order": BOTH + "names: {{2: c, 0: a, 1: b}}\n",
    "names that YAML reads as others": BOTH + "names: [yes, 7, 1.5]\n",
    "nc only": BOTH + "nc: 3\n",
    "nc as text": BOTH + "nc: '3'\n" + NAMES,
    "nc as a fraction": BOTH + "nc: 3.0\n" + NAMES,
    "list with ./": "train: dots.txt\nval: crlf.txt\n" + NAMES,
    "list with a mark": "train: dots.txt\nval: bom.txt\n" + NAMES,
    "list with one missing": "train: one-missing.txt\nval: images/val\n" + NAMES,
    "list from path": "path: .\ntrain: plain.txt\nval: images/val\n" + NAMES,
    "list in a folder, from path": "path: .\ntrain: sub/plain.txt\nval: images/val\n" + NAMES,
}
BETTER = {  # what Ultralytics says or does, and the pictures that are used here
    "a pattern": (
        "train: images/train/*.jpg\nval: images/val\n" + NAMES,
        "Error loading data",
        (3, 2),
    ),
    "a picture by its name": (
        "train: [images/train/0.jpg]\nval: images/val\n" + NAMES,
        "Error loading data",
        (1, 2),
    ),
    "backslashes": ("train: images\\train\nval: images\\val\n" + NAMES, "not found", (3, 2)),
    "no val": ("train: images/train\n" + NAMES, "'val:' key missing", (2, 1)),
    "an empty val": ("train: images/train\nval:\n" + NAMES, "", (2, 1)),
    "a val that was not exported": (
        "train: ../images/train\nval: ../valid/images\nnc: 3\n" + NAMES,
        "images not found",
        (2, 1),
    ),
    "a list of CVAT": (
        "path: .\ntrain: cvat.txt\nnames: {{0: a, 1: b}}\n",
        "'val:' key missing",
        (2, 1),
    ),
    "a list with backslashes": ("train: windows.txt\nval: images/val\n" + NAMES, "", (2, 2)),
}
REFUSED = {
    "no names": (BOTH, "has no class names"),
    "names from 1": (BOTH + "names: {{1: a, 2: b}}\n", "numbers its classes"),
    "names with a gap": (BOTH + "names: {{0: a, 2: b}}\n", "numbers its classes"),
    "nc that differs": (BOTH + "nc: 4\n" + NAMES, "says nc: 4, but has 3 names"),
    "nc that is none": (BOTH + "nc: many\n" + NAMES, "nc: 'many', expected a number"),
    "a name twice": (BOTH + "names: [a, b, a]\n", "several classes of the name 'a'"),  # better
    "a path of another machine": (
        "path: /content/datasets/x\n" + BOTH + NAMES,
        "/content/datasets/x/images/train does not exist.*correct path or train",
    ),
    "a train that is not there": ("train: gone\nval: images/val\n" + NAMES, "gone does not exist"),
    "one val of two": (
        "train: images/train\nval: [images/val, gone]\n" + NAMES,
        "gone does not exist",
    ),
    "a list of nothing": ("train: gone.txt\nval: images/val\n" + NAMES, "nor any of the others"),
    "key points without a shape": (BOTH + NAMES + "kpt_shape: 17\n", "kpt_shape: 17, expected"),
    "ndjson": ("train: x.ndjson\nval: images/val\n" + NAMES, "does not exist"),
    "a text that is not UTF-8": (None, "can't be read: UnicodeDecodeError"),
}


def written(folder: Path, text: str) -> Path:
    for name, content in {
        **LISTS,
        "cvat.txt": rows(*(f"data/images/train/{number}.jpg" for number in range(3))),
        "windows.txt": rows("images\\train\\0.jpg", ".\\images\\train\\1.jpg"),
        "gone.txt": rows("images/train/8.jpg", "images/train/9.jpg"),
    }.items():
        put(folder, name)
        (folder / name).write_bytes(content)
    file = folder / "data.yaml"
    file.write_text(text.format(root=folder))
    return file


@pytest.mark.parametrize("case", EQUAL)
def test_as_in_ultralytics(folder: Path, case: str) -> None:
    file = written(folder, EQUAL[case])
    expected = plain(file)
    assert isinstance(expected, dict), expected
    assert ours(file) == expected


@pytest.mark.parametrize("case", BETTER)
def test_where_ultralytics_cannot(folder: Path, case: str) -> None:
    text, theirs, sizes = BETTER[case]
    file = written(folder, text)
    assert isinstance(plain(file), str)
    assert theirs in plain(file)
    spec = load_data_spec(file, None)
    assert (len(spec.train), len(spec.val)) == sizes
    assert not set(spec.train) & set(spec.val)
    assert all(path.is_file() for path in (*spec.train, *spec.val))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_sentence(folder: Path, case: str) -> None:
    text, sentence = REFUSED[case]
    file = written(folder, text or "")
    if text is None:
        file.write_bytes((BOTH + "names: [caf\xe9]\n").encode("latin-1"))
    elif case != "a name twice":
        assert isinstance(plain(file), str)
    with pytest.raises(DataError, match=sentence) as caught:
        load_data_spec(file, None)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_file_of_windows_is_read(folder: Path, encoding: str) -> None:
    text = BOTH + "names: [café, 猫]\n"
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (folder / "data.yaml").write_bytes((mark + text.replace("\n", "\r\n")).encode(encoding))
    assert load_data_spec(folder / "data.yaml", 2).names == ("café", "猫")


def test_links_are_followed_and_hidden_files_are_not(folder: Path) -> None:
    file = written(folder, EQUAL["folders"])
    put(folder, "elsewhere/deep/8.JPG", "images/train/.trash/9.jpg", "images/train/._0.jpg")
    train = folder / "images" / "train"
    (train / "more").symlink_to(folder / "elsewhere")
    (train / "5.png").symlink_to(folder / "elsewhere" / "deep" / "8.JPG")
    expected = plain(file)
    assert ours(file) == expected
    assert len(ours(file)["train"]) == 5
    (train / "again").symlink_to(train)  # Ultralytics lists all pictures forty times
    assert ours(file) == expected


def test_what_is_left_out_of_a_folder_or_a_list_is_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(folder, EQUAL["list with one missing"])
    put(folder, *(f"images/val/{number}.gif" for number in range(4)), "images/val/notes.txt")
    spec = load_data_spec(file, None)
    assert load_data_spec(file, None) == spec
    name = f"data set {folder.name}/data.yaml"
    assert list(spec.notes) == [record.getMessage() for record in caplog.records]
    assert list(spec.notes) == [
        f"{name}: 1 of 2 pictures that one-missing.txt names do not exist, such as "
        "./images/train/gone.jpg",
        f"{name}: 4 .gif files of val are left out: Ultralytics reads none",
    ]


def test_pictures_in_both_splits_are_evaluated_on_only(folder: Path) -> None:
    text = "train: [images/train, images/val]\nval: images/val\n" + NAMES
    spec = load_data_spec(written(folder, text), None)
    assert (len(spec.train), len(spec.val)) == (3, 2)
    assert "2 pictures are in train and in val" in spec.notes[0]
    same = load_data_spec(written(folder, "train: images\nval: images\n" + NAMES), None)
    assert (len(same.train), len(same.val)) == (4, 1)
    assert "all 5 pictures of train are in val too" in same.notes[0]
    assert "no pictures for val" in same.notes[1]
    text = "train: images/train\nval: images\n" + NAMES
    spec = load_data_spec(written(folder, text), None)
    assert (len(spec.train), len(spec.val)) == (3, 2)


def clips(folder: Path, *, count: int = 6, frames: int = 5) -> None:
    put(
        folder,
        *(
            f"images/train/clip{clip}_frame{frame:04d}_jpg.{HASH}{copy}.jpg"
            for clip in range(count)
            for frame in range(frames)
            for copy in range(2)
        ),
    )


def sides(spec: DataSpec) -> tuple[set[str], set[str]]:
    return {clip_of(path) for path in spec.train}, {clip_of(path) for path in spec.val}


@pytest.mark.parametrize("every", [2, 5, 10])
def test_no_clip_is_on_both_sides_of_a_split(folder: Path, every: int) -> None:
    clips(folder)
    file = written(folder, "train: images/train\n" + NAMES)
    spec = load_data_spec(file, None, holdout_every=every)
    train, val = sides(spec)
    assert not train & val
    assert val
    assert len(spec.train) + len(spec.val) == 63
    assert len(spec.val) <= -(-63 // every)
    assert (
        f"{len(spec.val)} of 63 training pictures are held out (one in {every}, and whole"
        in (spec.notes[0])
    )


def test_a_groups_file_goes_before_names(folder: Path) -> None:
    put(folder, *(f"images/train/{number:03d}.jpg" for number in range(40)))
    listed = [f"images/train/{number:03d}.jpg,site {number % 4}\n" for number in range(40)]
    (folder / "groups.csv").write_text("picture,site\n" + "".join(listed))
    file = written(folder, "train: images/train\n" + NAMES)
    spec = load_data_spec(file, None)
    for path in spec.val:
        if len(path.stem) == 3:
            mates = {p for p in spec.train if p.stem[0] == "0" and int(p.stem) % 4 == 3}
            assert not mates
    of = dict(zip(spec.train, spec.clips, strict=True))
    assert len({of[path] for path in spec.train if len(path.stem) == 3}) >= 3
    file.write_text("train: images/train\ngroups: sites.txt\n" + NAMES)
    with pytest.raises(DataError, match=r"sites\.txt does not exist"):
        load_data_spec(file, None)
    (folder / "sites.txt").write_text("000.jpg\n")
    with pytest.raises(DataError, match=r"row 1 of .*sites\.txt has 1 columns"):
        load_data_spec(file, None)
    (folder / "sites.txt").write_text("900.jpg north\n")
    with pytest.raises(DataError, match=r"list no training picture.* such as 0\.jpg"):
        load_data_spec(file, None)
    groups = {f"images/train/{number}.jpg": 7 for number in range(2)}
    file.write_text(f"train: images/train\ngroups: {groups}\n" + NAMES)
    spec = load_data_spec(file, None)
    pair = {"0.jpg", "1.jpg"}
    assert {path.name for path in spec.val} & pair in (set(), pair)


def test_a_clip_in_both_splits_of_the_user_is_told(folder: Path) -> None:
    clips(folder, count=2)
    put(folder, f"images/val/clip1_frame9999_jpg.{HASH}.jpg")
    put(folder, "images/val/0001.jpg")
    (folder / "groups.txt").write_text(
        f"clip1_frame0000_jpg.{HASH}0.jpg yard\nclip1_frame9999_jpg.{HASH}.jpg yard\n"
    )
    spec = load_data_spec(written(folder, BOTH + NAMES), None)
    assert "1 training pictures are of the same clips as some of val" in spec.notes[0]


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_a_simulation_divides_whole_clips_and_holds_out_whole_clips(
    folder: Path, kind: str
) -> None:
    clips(folder, count=20)
    file = written(folder, "train: images/train\n" + NAMES)
    server = load_data_spec(file, None)
    config = {"data": str(file), "partitioning": kind, "alpha": 1.0}
    seen: list[set[str]] = []
    for number in range(4):
        node = ClientConfig.from_run_config(config, {"partition-id": number, "num-partitions": 4})
        spec = load_node_data(node, ("a", "b", "c")).spec
        train, val = sides(spec)
        assert val
        assert not train & val
        assert not set(server.val) & {*spec.train, *spec.val}
        seen.append(train | val)
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_few_clips_are_divided_rather_than_leaving_a_node_without(folder: Path) -> None:
    spec = DataSpec(folder, tuple(folder / f"frame_{n}.png" for n in range(20)), (), ("a",))
    spec = DataSpec(folder, spec.train, (), ("a",), clips=("one",) * 20)
    shares = [partition(spec, num_partitions=4, partition_id=number) for number in range(4)]
    assert [len(share) for share in shares] == [5] * 4


def test_a_share_of_one_clip_holds_out_its_end() -> None:
    frames = [Path(f"/data/clip1_frame{number:03d}.jpg") for number in range(20)]
    train, val = split_holdout(frames)
    assert (list(train), list(val)) == (frames[:18], frames[18:])


def test_the_page_on_data_is_true(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    named = page.partition("Pictures may be ")[2].partition(" for `.heic`")[0]
    assert set(re.findall(r"`(\.\w+)`", named)) == SUFFIXES
    (groups,) = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)
    put(folder, "images/0001.jpg", "images/0002.jpg")
    (folder / "groups.csv").write_text(groups)
    spec = load_data_spec(written(folder, "train: images\n" + NAMES), None)
    assert {clip.rpartition(": ")[2] for clip in spec.clips} >= {"south gate"}
    table = page.partition("| names | together |")[2].partition("or from a file")[0]
    examples = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    names = [name for row in examples for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) == 7
    for name in names:
        path = folder / name.replace("HASH", HASH)
        assert clip_of(path) != str(path), name
