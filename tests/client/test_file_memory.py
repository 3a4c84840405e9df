# SPDX-License-Identifier: Apache-2.0
"""What is kept of unchanged files over processes: never a value of a file as it is no longer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_app.client.data import _digest, data_digest
from fl_app.client.data_yaml import load_data_spec
from fl_app.client.file_memory import FileMemory, memory_of
from fl_models.pictures import settled_state

PAST = time.time() - 36000


def an_hour_later() -> float:
    """As if the files of a test were an hour old, so that their times can be trusted."""
    return time.time() + 3600


class Reader:
    """Counts what is read of files; each process of a node has an object of its own."""

    def __init__(self, store: Path, clock: Callable[[], float] = an_hour_later) -> None:
        self.store, self.clock, self.read = store, clock, list[str]()

    def __call__(self, *files: Path) -> list[str]:
        with FileMemory(self.store, clock=self.clock) as memory:
            return [memory.of(file, self._text) for file in files]

    def _text(self, file: Path) -> str:
        self.read.append(file.name)
        return file.read_text()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_text("one")
    os.utime(path, (PAST, PAST))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return memory_of(tmp_path / "home", "texts", tmp_path)


def test_an_unchanged_file_is_read_by_the_first_process_alone(file: Path, store: Path) -> None:
    first, second = Reader(store), Reader(store)
    assert first(file) == second(file) == ["one"]
    assert (first.read, second.read) == (["a.jpg"], [])
    assert store.stat().st_mode & 0o077 == 0  # names of pictures may tell much


def in_place(file: Path) -> None:
    file.write_text("two")


def as_old_as_before(file: Path) -> None:
    file.write_text("two")
    os.utime(file, (PAST, PAST))


def replaced(file: Path) -> None:
    new = file.with_suffix(".new")
    new.write_text("two")
    os.utime(new, (PAST, PAST))
    new.replace(file)


@pytest.mark.parametrize("change", [in_place, as_old_as_before, replaced])
def test_a_changed_file_is_read_again(
    file: Path, store: Path, change: Callable[[Path], None]
) -> None:
    assert Reader(store)(file) == ["one"]
    change(file)
    assert Reader(store)(file) == Reader(store)(file) == ["two"]


def test_a_file_that_has_just_changed_is_read_each_time(file: Path, store: Path) -> None:
    # Another change right now could have the same time, and the same size.
    for _ in range(2):
        reader = Reader(store, clock=time.time)
        reader(file)
        assert reader.read == ["a.jpg"]
    assert not store.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no checksum",
        lambda content: content[:-1],
        lambda content: content.replace(b"one", b"two"),
        lambda content: content.partition(b"\n")[2],
        lambda content: b"\xff" * len(content),
    ],
)
def test_a_damaged_store_is_made_anew(
    file: Path, store: Path, damage: Callable[[bytes], bytes]
) -> None:
    Reader(store)(file)
    store.write_bytes(damage(store.read_bytes()))
    first, second = Reader(store), Reader(store)
    assert first(file) == second(file) == ["one"]
    assert (first.read, second.read) == (["a.jpg"], [])


def test_a_store_that_cannot_be_written_costs_no_value(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file")
    store = memory_of(tmp_path / "home", "texts", tmp_path)
    assert Reader(store)(file) == ["one"]
    assert "can't be written, so that the next message reads all files again" in caplog.text


def test_nothing_stays_of_deleted_files_and_the_values_of_others_do(
    file: Path, store: Path, tmp_path: Path
) -> None:
    gone, other = tmp_path / "gone.jpg", tmp_path / "other.jpg"
    for path in (gone, other):
        path.write_text(path.name)
    Reader(store)(gone, other)
    gone.unlink()
    Reader(store)(file)
    assert json.loads(store.read_bytes().partition(b"\n")[2]).keys() == {str(file), str(other)}


def test_values_are_kept_even_if_a_later_file_fails(file: Path, store: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reader(store)(file, file.with_name("missing.jpg"))
    reader = Reader(store)
    reader(file)
    assert reader.read == []


def test_a_node_s_digest_is_the_same_with_and_without_memory_and_reads_pictures_once(
    own_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_data_spec(own_yaml, None)
    paths = spec.train
    while any(settled_state(path) is None for path in paths):  # two seconds at most
        time.sleep(0.1)
    store, digest = memory_of(tmp_path, "digests", own_yaml.parent), data_digest(paths, spec)
    a_new_process = _digest.__wrapped__  # type: ignore[attr-defined]
    assert a_new_process(paths, spec, store) == digest
    monkeypatch.setattr("fl_app.client.data.file_digest", lambda path: pytest.fail(str(path)))
    assert a_new_process(paths, spec, store) == digest
