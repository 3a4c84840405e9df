# SPDX-License-Identifier: Apache-2.0
"""Weights files: what goes in comes out, and damage is seen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load_file, save_file

from fl_registry.files.digests import file_digest
from fl_registry.files.weights import (
    Manifest,
    WeightsError,
    load_weights,
    read_header,
    save_weights,
)

DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">f4", ">i8"]
arrays_of = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    max_size=6,
)


def manifest_of(path: Path) -> Manifest:
    with path.open("rb") as file:
        found = read_header(file).manifest
    assert found is not None
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    arrays = {"z": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(3)}
    save_weights(arrays, path, model={"family": "yolov8"})
    return path


@settings(max_examples=60, deadline=None)
@given(arrays=arrays_of)
def test_arrays_come_back_bit_for_bit(arrays: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        digest = save_weights(arrays, path)
        loaded, manifest = load_weights(path), manifest_of(path)
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(loaded) == list(arrays) == manifest.order
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert loaded[name].shape == array.shape
        assert loaded[name].dtype == native.dtype
        assert loaded[name].tobytes() == native.tobytes()
        assert loaded[name].flags.writeable


@settings(max_examples=60, deadline=None)
@given(
    arrays=arrays_of, model=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
)
def test_the_file_is_that_of_safetensors(
    arrays: dict[str, np.ndarray], model: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        save_weights(arrays, ours, model=model)
        plain = {name: np.array(array, order="C") for name, array in arrays.items()}
        save_file(plain, theirs, metadata=Manifest([*arrays], {**model}).as_metadata())
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_model_is_held_once_and_not_at_all_by_saving_it(tmp_path: Path) -> None:
    arrays = {f"layer.{n}": np.ones(1_000_000, np.float32) for n in range(10)}
    peaks = []
    for work in (
        lambda: save_weights(arrays, tmp_path / "w"),
        lambda: load_weights(tmp_path / "w"),
    ):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1] / 40e6)
        tracemalloc.stop()
    assert peaks[0] < 0.1
    assert peaks[1] < 1.1


def test_order_and_description_are_kept(saved: Path) -> None:
    assert list(load_weights(saved)) == ["z", "a"]
    with saved.open("rb") as file:
        header = read_header(file)
    assert header.manifest == Manifest(["z", "a"], {"family": "yolov8"})
    rows = {name: (row.dtype_name, row.shape) for name, row in header.rows.items()}
    assert rows == {"z": ("float32", [2, 3]), "a": ("int64", [])}


def test_a_header_of_very_many_parts_is_not_parsed(tmp_path: Path) -> None:
    text = b'{"__metadata__": {' + b'"":1,' * 80_000 + b'"":1}}'
    (tmp_path / "w").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(WeightsError, match="has 160002 parts, expected at most 150000"):
        load_weights(tmp_path / "w")
    save_weights(
        {f"layer.{n}": np.zeros((1, 1, 1, 1), "f4") for n in range(10_000)}, tmp_path / "w"
    )
    assert len(load_weights(tmp_path / "w")) == 10_000


def test_parts_of_larger_arrays_are_saved_as_they_look(tmp_path: Path) -> None:
    whole = np.arange(24.0).reshape(4, 6)
    parts = {"columns": whole[:, ::2], "turned": whole.T, "fortran": np.asfortranarray(whole)}
    save_weights(parts, tmp_path / "w")
    loaded = load_weights(tmp_path / "w")
    assert all(np.array_equal(loaded[name], part) for name, part in parts.items())


def test_equal_weights_have_equal_digests_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path;"
        "from fl_registry.files.weights import *;"
        "print(save_weights({'b': np.ones(3), 'a': np.zeros(())}, Path(sys.argv[1])))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "w")],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        ).stdout
        for _ in range(4)
    }
    assert len(digests) == 1


def test_any_safetensors_reader_understands_the_file(saved: Path) -> None:
    assert set(load_file(saved)) == {"z", "a"}


def test_a_flipped_byte_changes_the_digest_or_is_an_error(saved: Path) -> None:
    digest, data = file_digest(saved), saved.read_bytes()
    for position in range(len(data)):
        saved.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with contextlib.suppress(WeightsError):
            load_weights(saved)
            assert file_digest(saved) != digest


@pytest.mark.parametrize("size", [0, 5, 8, 60, -1])
def test_a_cut_off_file_is_one_clear_error(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"weights\.safetensors is damaged"):
        load_weights(saved)


def test_a_foreign_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(
        WeightsError, match="no manifest, expected one of format 'fl-app-weights/2'"
    ):
        load_weights(path)


@pytest.mark.parametrize(
    "manifest",
    [
        '{"order": [], "model": {}}',
        '{"order": ["a", "a"], "model": {}}',
        '{"order": 3, "model": {}}',
        '{"order": ["a"], "model": []}',
        '{"order": ["a"], "model": {}, "format": "fl-app-weights/3"}',
        '{"order": ["a"], "order": ["a"], "model": {}}',
        '{"order": ["a"], "model": {"size": NaN}}',
        '{"order": ["a"',
        "[]",
    ],
)
def test_a_damaged_manifest_is_an_error(tmp_path: Path, manifest: str) -> None:
    save_file({"a": np.zeros(2)}, tmp_path / "w", {"fl-app": manifest})
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(tmp_path / "w")


def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere cannot be read: No such file"):
        load_weights(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.array(["text"])},
        {"a": np.array([None])},
        {"a": np.zeros(2, np.complex128)},
        {"__metadata__": np.zeros(2)},
    ],
)
def test_what_cannot_be_stored_leaves_the_old_file(
    saved: Path, arrays: dict[str, np.ndarray]
) -> None:
    before = saved.read_bytes()
    with pytest.raises(WeightsError):
        save_weights(arrays, saved)
    assert saved.read_bytes() == before


def test_a_failed_write_leaves_the_old_file_and_no_other(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full_disk(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_weights({"a": np.zeros(9)}, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.glob("*weights*")) == [saved]
    assert not list(saved.parent.glob(".*.tmp"))


def test_reading_weights_needs_no_torch(saved: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fl_registry.files.weights import load_weights;"
        f"load_weights(Path({str(saved)!r})); import json;"
        "print(json.dumps([m for m in ('torch', 'ultralytics', 'mlflow') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert json.loads(done.stdout) == []
