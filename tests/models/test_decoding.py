# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pictures that decode and that do not, in each format: found out once, before training."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils.patches import imread

from fl_models.dataset import PictureDataset
from fl_models.decoding import DecoderMissingError, picture_shape, read_pictures
from fl_models.pictures import SUFFIXES, PictureError, label_file

FORMATS = ["jpg", "mpo", "png", "bmp", "tif", "tiff", "webp", "avif", "jp2"]


@pytest.fixture
def photograph() -> Image.Image:
    """Colours that run, so that it compresses like a photograph; 64 wide, 48 high."""
    x, y = np.meshgrid(np.linspace(0, 6, 64), np.linspace(0, 4, 48))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x * y)], axis=2)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    return Image.fromarray(np.uint8((waves + noise).clip(-1, 1) * 127 + 128))


def saved(picture: Image.Image, folder: Path, name: str, **options: object) -> Path:
    path = folder / "images" / name
    path.parent.mkdir(exist_ok=True)
    picture.save(path, **options)
    label = label_file(path)
    label.parent.mkdir(exist_ok=True)
    label.write_text("0 0.5 0.5 0.2 0.4\n")
    return path


def test_every_suffix_of_ultralytics_is_read() -> None:
    assert {f".{name}" for name in IMG_FORMATS} == SUFFIXES


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_whole_picture_is_read_and_one_cut_off_anywhere_is_not(
    photograph: Image.Image, tmp_path: Path, suffix: str
) -> None:
    path = saved(photograph, tmp_path, f"a.{suffix}")
    assert picture_shape(path) == (48, 64)
    whole = path.read_bytes()
    for part in (0, 0.2, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(PictureError, match=rf"a\.{suffix} can't be decoded"):
            picture_shape(path)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_that_training_cannot_take_are_named(
    photograph: Image.Image, tmp_path: Path, dtype: str, channels: int
) -> None:
    path = tmp_path / "a.tif"
    pixels = np.asarray(photograph).astype(dtype)[..., :channels]
    assert cv2.imwrite(str(path), pixels)
    with pytest.raises(PictureError, match=r"can't be decoded|expected integers of 8 or 16 bits"):
        picture_shape(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_read_as_ultralytics_reads_them(
    photograph: Image.Image, tmp_path: Path, suffix: str, channels: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), np.asarray(photograph)[..., :channels].astype(np.uint16) * 257)
    assert picture_shape(path) == imread(path).shape[:2] == (48, 64)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_shape_is_that_of_the_upright_picture(
    photograph: Image.Image, tmp_path: Path, suffix: str, turned: int
) -> None:
    exif = Image.Exif()
    exif[0x112] = turned
    path = saved(photograph, tmp_path, f"a.{suffix}", exif=exif)
    assert picture_shape(path) == imread(path).shape[:2]


def test_pictures_without_a_decoder_are_counted_in_one_line(
    photograph: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = saved(photograph, tmp_path, "a.png")
    phone = [tmp_path / "images" / f"{number}.HEIC" for number in range(5)]
    for path in phone:
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    with caplog.at_level(logging.WARNING):
        assert [p.path for p in read_pictures([*phone, good], range(1))] == [good]
    (line,) = [record.getMessage() for record in caplog.records]
    try:
        import pi_heif  # noqa: F401
    except ImportError:
        with pytest.raises(DecoderMissingError):
            picture_shape(phone[0])
        assert line == ("skipped 5 pictures: no decoder for .heic is installed, install pi-heif")


def dataset(paths: list[Path], *, augment: bool, **settings: object) -> PictureDataset:
    used = {"imgsz": 32, "batch": 4, **settings}
    return PictureDataset(read_pictures(paths, range(1)), ["a"], settings=used, augment=augment)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_a_picture_that_breaks_during_training_is_replaced(
    photograph: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture, mosaic: float
) -> None:
    paths = [saved(photograph, tmp_path, f"{number}.png") for number in range(8)]
    data = dataset(paths, augment=True, mosaic=mosaic)
    paths[7].unlink()
    paths[0].write_bytes(paths[0].read_bytes()[:900])
    for _ in range(3):
        batches = list(data.loader(torch.device("cpu")))
        assert [len(batch["img"]) for batch in batches] == [4, 4]
        used = {name for batch in batches for name in batch["im_file"]}
        assert used <= {str(path) for path in paths[1:7]}
    lines = [r.getMessage() for r in caplog.records if "any more" in r.getMessage()]
    assert sorted(line.rpartition("/")[2] for line in lines) == ["0.png", "7.png"]


def test_training_ends_with_a_sentence_if_no_picture_is_left(
    photograph: Image.Image, tmp_path: Path
) -> None:
    path = saved(photograph, tmp_path, "a.png")
    data = dataset([path], augment=True)
    path.unlink()
    with pytest.raises(PictureError, match="none of 1 pictures can be read any more"):
        data[0]


def test_a_picture_that_breaks_is_missing_from_its_batch_in_evaluation(
    photograph: Image.Image, tmp_path: Path
) -> None:
    paths = [saved(photograph, tmp_path, f"{number}.png") for number in range(6)]
    data = dataset(paths, augment=False)
    for path in (paths[1], paths[4], paths[5]):
        path.unlink()
    batches = list(data.loader(torch.device("cpu")))
    assert [[Path(name) for name in batch.get("im_file", ())] for batch in batches] == [
        [paths[0], paths[2], paths[3]],
        [],
    ]
