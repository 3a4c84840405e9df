# SPDX-License-Identifier: Apache-2.0
"""What is read from files is cached while they are unchanged, and not a moment longer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from fl_models.pictures import cached_while_unchanged, file_states

HOUR = 3600
PAST = time.time() - 10 * HOUR


def an_hour_later() -> float:
    """As if the files of a test were an hour old, so that their times can be trusted."""
    return time.time() + HOUR


def picture(folder: Path) -> Path:
    path = folder / "images" / "a.jpg"
    for file in (path, folder / "labels" / "a.txt"):
        file.parent.mkdir()
        file.write_text("one")
    return path


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


@pytest.mark.parametrize("change", [in_place, as_old_as_before, replaced, Path.unlink])
@pytest.mark.parametrize("which", ["images/a.jpg", "labels/a.txt"])
def test_a_change_of_a_picture_or_its_label_is_noticed(
    tmp_path: Path, which: str, change: Callable[[Path], None]
) -> None:
    path, file = picture(tmp_path), tmp_path / which
    os.utime(file, (PAST, PAST))
    reads: list[str] = []

    @partial(cached_while_unchanged, clock=an_hour_later)
    def read(paths: Sequence[Path]) -> str:
        reads.append(file.read_text() if file.exists() else "none")
        return reads[-1]

    assert read([path]) == read([path]) == "one"
    assert len(reads) == 1
    change(file)
    assert read([path]) == read([path]) != "one"
    assert len(reads) == 2


def test_files_that_have_just_changed_are_read_each_time(tmp_path: Path) -> None:
    path, reads = picture(tmp_path), []

    @cached_while_unchanged
    def read(paths: Sequence[Path]) -> int:
        reads.append(paths)
        return len(reads)

    assert file_states([path]) is None
    assert [read([path]), read([path])] == [1, 2]


def test_other_arguments_and_errors_are_read_anew(tmp_path: Path) -> None:
    path, reads = picture(tmp_path), []

    @partial(cached_while_unchanged, clock=an_hour_later)
    def read(paths: Sequence[Path], classes: int) -> int:
        reads.append(classes)
        if classes == 3:
            raise ValueError("no")
        return classes

    assert [read([path], 1), read([path], 2), read([path], 1)] == [1, 2, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            read([path], 3)
    assert reads == [1, 2, 3, 3]
