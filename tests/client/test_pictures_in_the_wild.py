# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pictures and labels as cameras, tools and accidents leave them, beside Ultralytics' own check."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from PIL import Image
from support.arrays import to_arrays
from ultralytics.data.utils import verify_image_label
from ultralytics.utils.patches import imread

from fl_app.client import handlers
from fl_app.client.client_app import app
from fl_app.client.data_yaml import load_data_spec
from fl_app.client.summary.pictures import pixel_statistics
from fl_app.config import ServerConfig
from fl_app.yolo import YoloOnServer
from fl_models.decoding import read_pictures
from fl_models.pictures import label_file
from fl_models.yolo import get_model

BOX = "0 0.5 0.5 0.2 0.2\n"
NAMES = ("a", "b", "c")


def photograph(width: int = 96, height: int = 64) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 4, height))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x * y)], axis=2)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    return Image.fromarray(np.uint8((waves + noise).clip(-1, 1) * 127 + 128))


def as_mode(mode: str) -> Callable[[Path], None]:
    return lambda path: photograph().convert(mode).save(path)


def as_format(kind: str, **options: object) -> Callable[[Path], None]:
    return lambda path: photograph().save(path, kind, **options)


def as_array(dtype: str, scale: float, channels: int) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        pixels = np.asarray(photograph())[..., :channels] * np.float64(scale)
        assert cv2.imwrite(str(path), pixels.astype(dtype))

    return save


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    photograph().save(path, exif=exif)


def cut(path: Path) -> None:
    photograph().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def longer(path: Path) -> None:
    photograph().save(path)
    path.write_bytes(path.read_bytes() + b"more")


def of_bytes(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None  # type: ignore[func-returns-value]


def animated(path: Path) -> None:
    photograph().save(path, save_all=True, append_images=[photograph().rotate(90)])


def of_size(width: int, height: int, mode: str = "L") -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (width, height)).save(path)


EQUAL_FILES: dict[str, Callable[[Path], None]] = {
    "rgb.jpg": as_mode("RGB"),
    "grey.jpg": as_mode("L"),
    "cmyk.jpg": as_mode("CMYK"),
    "rgba.png": as_mode("RGBA"),
    "grey with alpha.png": as_mode("LA"),
    "palette.png": as_mode("P"),
    "one bit.png": as_mode("1"),
    "16 bits grey.png": as_array("uint16", 257, 1),
    "16 bits.png": as_array("uint16", 257, 3),
    "16 bits grey.tif": as_array("uint16", 257, 1),
    "16 bits.tif": as_array("uint16", 257, 3),
    "12 of 16 bits.png": as_array("uint16", 16, 3),
    "grey.tif": as_mode("L"),
    "cmyk.tif": as_mode("CMYK"),
    "lzw.tif": as_format("TIFF", compression="tiff_lzw"),
    "pages.tif": animated,
    "upright.jpg": turned,
    "upright.png": turned,
    "upright.webp": turned,
    "web.webp": as_mode("RGB"),
    "web with alpha.webp": as_mode("RGBA"),
    "animated.webp": animated,
    "two in one.jpg": as_format("MPO", save_all=True, append_images=[photograph()]),
    "two in one.mpo": as_format("MPO", save_all=True, append_images=[photograph()]),
    "jpeg named.png": as_format("JPEG"),
    "png named.jpg": as_format("PNG"),
    "UPPER.JPG": as_format("JPEG"),
    "long.jpeg": as_mode("RGB"),
    "bitmap.bmp": as_mode("RGB"),
    "new.avif": as_mode("RGB"),
    "new.jp2": as_mode("RGB"),
    "raw.dng": as_format("TIFF"),
    "large.png": of_size(9000, 9000, "1"),
    "more at the end.jpg": longer,  # Ultralytics writes the user's file anew
    "zero bytes.jpg": of_bytes(b""),
    "web page.jpg": of_bytes(b"<html>404</html>"),
    "cut.jpg": cut,
    "cut.png": cut,
    "cut.webp": cut,
    "cut.avif": cut,
    "cut.mpo": cut,
    "small.png": of_size(9, 40),
    "bomb.png": of_size(20000, 20000, "1"),
}
REASON_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    # Ultralytics lists these and then fails in training: it finds no picture.
    "cut.bmp": (cut, "can't be decoded: it is damaged"),
    "cut.tif": (cut, "can't be decoded: it is damaged"),
    "cut.jp2": (cut, "can't be decoded: it is damaged"),
    "float.tif": (as_array("float32", 1 / 255, 1), "can't be decoded: it is damaged, or its kind"),
    "int32.tif": (as_array("int32", 1000, 1), "can't be decoded: it is damaged, or its kind"),
}
BETTER_FILES: dict[str, Callable[[Path], None]] = {
    # Decoded in training as any other; Ultralytics' check wants the suffix of the format.
    "gif named.jpg": as_format("GIF"),
}
EQUAL_LABELS: dict[str, bytes | None] = {
    "box": BOX.encode(),
    "class beyond": b"3 0.5 0.5 0.2 0.2\n",
    "one class beyond": (BOX + "9 .5 .5 .1 .1\n").encode(),
    "repeated": BOX.encode() * 3,
    "negative": b"0 -0.2 0.5 0.2 0.2\n",
    "a little negative": b"0 -0.005 0.5 0.2 0.2\n",
    "centre outside": b"0 1.2 0.5 0.2 0.2\n",
    "over the edge": b"0 0.95 0.5 0.3 0.2\n",
    "a little too wide": b"0 0.5 0.5 1.005 0.2\n",
    "too wide": b"0 0.5 0.5 1.02 0.2\n",
    "pixels": b"0 120 80 30 30\n",
    "lines of Windows": b"0 0.5 0.5 0.2 0.2\r\n0 0.3 0.3 0.1 0.1\r\n",
    "a mark": b"\xef\xbb\xbf" + BOX.encode(),
    "empty lines": b"\n\n0 0.5 0.5 0.2 0.2\n\n",
    "tabs": b"0\t0.5\t0.5\t0.2\t0.2\n",
    "class as a fraction": b"0.0 0.5 0.5 0.2 0.2\n",
    "half a class": b"1.5 0.5 0.5 0.2 0.2\n",
    "confidence": b"0 0.5 0.5 0.2 0.2 0.98\n",
    "confidence in one row": (BOX + "0 0.5 0.5 0.2 0.2 0.98\n").encode(),
    "polygon": b"0 0.1 0.1 0.3 0.1 0.3 0.4\n",
    "turned box": b"0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4\n",
    "polygon a little outside": b"0 0.1 0.1 1.005 0.1 0.3 0.4\n",
    "polygon outside": b"0 0.1 0.1 1.05 0.1 0.3 0.4\n",
    "key points that can be seen": b"0 0.5 0.5 0.2 0.2 0.4 0.4 2\n",
    "17 key points": ("0 0.5 0.5 0.2 0.2" + " 0.5 0.5 2" * 17 + "\n").encode(),
    "no area": b"0 0.5 0.5 0 0\n",
    "empty": b"",
    "missing": None,
    "commas": b"0,0.5,0.5,0.2,0.2\n",
    "UTF-16": BOX.encode("utf-16"),
    "no number": b"0 nan 0.5 0.2 0.2\n",
    "a name": b"fish 0.5 0.5 0.2 0.2\n",
    "class -1": b"-1 0.5 0.5 0.2 0.2\n",
    "three numbers": b"0 0.5 0.5\n",
    "infinite": b"0 inf 0.5 0.2 0.2\n",
}
BETTER_LABELS = {"box and polygon": (BOX + "1 0.1 0.1 0.3 0.1 0.3 0.4\n").encode()}


def placed(
    folder: Path, name: str, save: Callable[[Path], None], label: bytes | None = BOX.encode()
) -> Path:
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)
    if label is not None:
        label_file(path).parent.mkdir(parents=True, exist_ok=True)
        label_file(path).write_bytes(label)
    return path


def plain(path: Path) -> tuple[tuple[int, int], np.ndarray] | str:
    """Shape and boxes by Ultralytics, or why it leaves the picture out."""
    copy = path.parents[1] / "copy" / path.name  # it may rewrite a JPEG
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(path, copy)
    found = verify_image_label(
        (str(copy), str(label_file(path)), "", False, len(NAMES), 0, 0, False)
    )
    return (found[2], found[1]) if found[0] else str(found[9])


def ours(path: Path, caplog: pytest.LogCaptureFixture) -> tuple[tuple[int, int], np.ndarray] | str:
    """Shape and boxes, or the warning."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pictures = read_pictures([path], range(len(NAMES)))
    if pictures:
        return pictures[0].shape, pictures[0].boxes
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("skipped a picture: ")
    assert path.name in line
    return line


def require_equal(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected, found = plain(path), ours(path, caplog)
    assert isinstance(found, str) == isinstance(expected, str), (found, expected)
    if not isinstance(found, str) and not isinstance(expected, str):
        assert tuple(found[0]) == tuple(expected[0])
        assert imread(path).shape[:2] == found[0]
        order = np.lexsort(found[1].T[::-1])  # Ultralytics sorts rows if some are repeated
        there = np.lexsort(expected[1].T[::-1])
        assert found[1][order] == pytest.approx(expected[1][there], abs=1e-6)


@pytest.mark.parametrize("name", EQUAL_FILES)
def test_a_file_is_used_or_left_out_as_in_ultralytics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    require_equal(placed(tmp_path, name, EQUAL_FILES[name]), caplog)


@pytest.mark.parametrize("name", REASON_FILES)
def test_what_ultralytics_would_fail_on_later_is_left_out_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    save, reason = REASON_FILES[name]
    path = placed(tmp_path, name, save)
    assert isinstance(plain(path), tuple)
    assert imread(path) is None
    assert reason in str(ours(path, caplog))


@pytest.mark.parametrize("name", BETTER_FILES)
def test_what_ultralytics_leaves_out_and_can_be_decoded_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = placed(tmp_path, name, BETTER_FILES[name])
    assert isinstance(plain(path), str)
    assert isinstance(ours(path, caplog), tuple)


@pytest.mark.parametrize("kind", EQUAL_LABELS)
def test_labels_are_used_or_left_out_as_in_ultralytics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    require_equal(placed(tmp_path, "a.png", as_mode("RGB"), EQUAL_LABELS[kind]), caplog)


@pytest.mark.parametrize("kind", BETTER_LABELS)
def test_labels_that_ultralytics_leaves_out_and_are_clear_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = placed(tmp_path, "a.png", as_mode("RGB"), BETTER_LABELS[kind])
    assert isinstance(plain(path), str)
    _, boxes = ours(path, caplog)
    assert len(boxes) == BETTER_LABELS[kind].count(b"\n")


@pytest.mark.parametrize("shape", [(17, 3), (17, 2), (1, 3)])
def test_key_points_are_left_out_as_in_ultralytics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, int]
) -> None:
    numbers = shape[0] * shape[1]
    row = f"1 0.5 0.4 0.2 0.3{' 0.25' * numbers}\n"
    path = placed(tmp_path, "images/a.png", as_mode("RGB"), (BOX + row).encode())
    found = verify_image_label((str(path), str(label_file(path)), "", False, 3, *shape, False))
    assert found[1] == pytest.approx(np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.5, 0.4, 0.2, 0.3]]))
    (tmp_path / "data.yaml").write_text(
        f"train: images\nval: images\nnames: [a, b, c]\nkpt_shape: {list(shape)}\n"
    )
    placed(tmp_path, "images/b.png", as_mode("RGB"), row.encode())
    spec = load_data_spec(tmp_path / "data.yaml", 3)
    pictures = read_pictures([path], spec.numbers, spec.keypoints)
    assert pictures[0].boxes == pytest.approx(found[1])
    assert not ask("train", tmp_path / "data.yaml").has_error()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a picture of each kind in both splits."""
    folder = tmp_path_factory.mktemp("everything")
    reasons = {name: save for name, (save, _) in REASON_FILES.items()}
    files = {**EQUAL_FILES, **reasons, **BETTER_FILES}
    for split in ("train", "val"):
        for name, save in files.items():
            if not name.startswith(("large", "bomb")):  # for the test's time
                placed(folder / split, name, save)
        for kind, label in {**EQUAL_LABELS, **BETTER_LABELS}.items():
            placed(folder / split, f"{kind}.png", as_mode("RGB"), label)
    text = f"train: train/images\nval: val/images\nnames: {list(NAMES)}\n"
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def ask(kind: str, data: Path, **settings: bool | float | int | str) -> Message:
    model = get_model("n", names=NAMES, num_classes=len(NAMES), seed=1)
    arrays = to_arrays(model)
    order: dict[str, Any] = {"server-round": 1, "num-rounds": 1, "train-args": "{}"}
    order |= {"names": list(NAMES), "model": json.dumps(model.description)}
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    content = RecordDict({"arrays": record, "config": ConfigRecord(order)})
    run: dict[str, bool | float | int | str] = {
        "image-size": 64,
        "batch-size": 8,
        "local-epochs": 1,
        "home": str(data.parent / "home"),
        **settings,
    }
    context = Context(7, 1, {"data": str(data)}, RecordDict(), run)
    return app(Message(content, dst_node_id=1, message_type=kind), context)


def test_none_of_them_ends_a_round_an_evaluation_or_a_summary(
    everything: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = load_data_spec(everything, len(NAMES))
    usable = len(read_pictures(spec.train, spec.numbers))
    assert usable > 40
    trained, scored = ask("train", everything), ask("evaluate", everything)
    for reply in (trained, scored):
        assert not reply.has_error(), reply.error.reason
        assert reply.content.metric_records["metrics"]["num-examples"] == usable
        notes = reply.content.config_records["node"]["notes"]
        assert any("pictures are left out" in str(note) for note in notes)
    server = YoloOnServer(
        ServerConfig.from_run_config({"data": str(everything), "image-size": 64}), spec
    )
    scores = server.evaluate(0, server.first_arrays())
    assert scores["mAP50"] >= 0
    statistics = pixel_statistics(spec.train)
    missing = int(np.isnan(statistics["brightness"]).sum())
    assert 0 < missing < 15
    assert "no data summary" not in caplog.text


def write(folder: Path, count: int = 6) -> Path:
    for split in ("train", "val"):
        for number in range(count):
            placed(folder / split, f"{number}.png", as_mode("RGB"))
    file = folder / "data.yaml"
    file.write_text(f"train: train/images\nval: val/images\nnames: {list(NAMES)}\n")
    return file


@pytest.mark.parametrize(
    ("lose", "sentence"),
    [
        (
            shutil.rmtree,
            "none of the 6 {what} pictures has a label file: they were looked for in .*/labels, "
            r"such as 0\.txt",
        ),
        (
            lambda labels: [file.write_text("") for file in labels.iterdir()],
            "the label files of the 6 {what} pictures have no box",
        ),
    ],
)
def test_a_node_without_a_box_takes_no_part_unless_it_may(
    tmp_path: Path, lose: Callable[[Path], object], sentence: str
) -> None:
    file = write(tmp_path)
    lose(tmp_path / "train" / "labels")
    reply = ask("train", file)
    assert reply.has_error()
    with pytest.raises(AssertionError, match=sentence.format(what="training")):
        raise AssertionError(reply.error.reason)
    assert reply.error.reason.endswith("set allow-backgrounds=true to train without")
    assert not ask("evaluate", file).has_error()
    assert not ask("train", file, **{"allow-backgrounds": True}).has_error()


def test_a_node_without_a_box_to_evaluate_on_sends_no_score(tmp_path: Path) -> None:
    file = write(tmp_path)
    shutil.rmtree(tmp_path / "val" / "labels")
    reply = ask("evaluate", file, **{"allow-backgrounds": True})
    assert reply.has_error()
    assert "none of the 6 holdout pictures has a label file" in reply.error.reason
    assert not ask("train", file).has_error()


def test_a_node_with_few_label_files_tells_the_server(tmp_path: Path) -> None:
    file = write(tmp_path)
    for number in range(5):
        (tmp_path / "train" / "labels" / f"{number}.txt").unlink()
    (note,) = ask("train", file).content.config_records["node"]["notes"]
    assert note == "5 of 6 pictures have no label file and count as background"


def test_names_that_are_no_utf_8_are_as_good_as_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = os.fsdecode(b"caf\xe9-%d.png")
    for split in ("train", "val"):
        for number in range(30):
            placed(tmp_path / split, odd.replace("%d", str(number)), as_mode("RGB"))
    listed = [os.fsencode(path) for path in (tmp_path / "val" / "images").iterdir()]
    (tmp_path / "val.txt").write_bytes(b"\n".join(listed))
    file = tmp_path / "data.yaml"
    file.write_text(f"train: train/images\nval: val.txt\nnames: {list(NAMES)}\n")
    home = tmp_path / "home"
    for kind in ("train", "evaluate", "train"):
        reply = ask(kind, file)
        assert reply.content.metric_records["metrics"]["num-examples"] == 30
    assert "no data summary" not in caplog.text
    assert list((home / "summaries").rglob("reference.npz"))
    shutil.rmtree(tmp_path / "train" / "labels")
    assert ask("train", file).error.reason.isprintable()


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_break_after_the_check_do_not_end_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    file = write(tmp_path)
    read = handlers.read_pictures

    def then_broken(*args: Any, **options: Any) -> Any:
        pictures = read(*args, **options)
        (tmp_path / "train" / "images" / "0.png").unlink()
        (tmp_path / "train" / "images" / "4.png").write_bytes(b"half of it")
        return pictures

    monkeypatch.setattr(handlers, "read_pictures", then_broken)
    reply = ask("train", file, workers=workers, cache="none")
    assert not reply.has_error(), reply.error.reason
    assert np.isfinite(reply.content.metric_records["metrics"]["loss"])
