# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, and what tells an unfinished one."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fl_registry.files.atomic import (
    abandoned,
    copy_whole,
    new_folder,
    remove_abandoned,
    replacing,
    scratch_folder,
    write_whole,
)

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_is_replaced_with_the_permissions_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o644
    write_whole(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    copy_whole(path, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"
    assert names(tmp_path) == ["copy", "file"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, seen, stop = tmp_path / "file", set(), threading.Event()
    write_whole(path, b"a" * 100_000)

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(40):
        write_whole(path, bytes([97 + number % 2]) * 100_000)
    stop.set()
    thread.join()
    assert seen <= {b"a" * 100_000, b"b" * 100_000}


def half_written(path: Path, error: BaseException) -> None:
    with replacing(path) as file:
        file.write(b"half")
        raise error


def test_whatever_ends_the_block_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    for error in (OSError("full"), RuntimeError("torch's"), KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)):
            half_written(path, error)
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["file"]


def test_a_folder_gets_its_name_at_the_end_and_the_first_one_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as draft:
        (draft / "a").write_text("mine")
        assert not path.exists()
        with new_folder(path) as other:
            (other / "a").write_text("theirs")
    assert (path / "a").read_text() == "theirs"
    with suppress(RuntimeError), new_folder(tmp_path / "none"):
        raise RuntimeError
    assert names(tmp_path) == ["deep", "deep/folder", "deep/folder/a"]


def test_a_scratch_folder_goes_in_any_case(tmp_path: Path) -> None:
    with suppress(ValueError), scratch_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        raise ValueError
    assert names(tmp_path) == ["new"]


def killed(folder: Path) -> None:
    """Leave what a process leaves that is killed in the midst of each of these."""
    pid = os.fork()
    if pid == 0:
        with replacing(folder / "file") as file, scratch_folder(folder / "tmp") as scratch:
            (scratch / "part").write_text("half")
            file.write(b"half")
            with new_folder(folder / "data" / "set") as draft:
                (draft / "picture").touch()
                os._exit(9)
    os.waitpid(pid, 0)


def test_what_a_killed_process_left_is_found_at_once_and_removed(tmp_path: Path) -> None:
    write_whole(tmp_path / "kept.tmp", b"a file of somebody's")
    (tmp_path / ".hidden").touch()
    (tmp_path / ".artifact.uploading.x1").touch()  # as MLflow calls them, and does not lock them
    killed(tmp_path)
    now = datetime.now(UTC)
    assert abandoned(tmp_path, now=now) == []  # what is new may not be locked yet
    found = abandoned(tmp_path, now=now + 2 * SECOND)
    assert [path.parent.name for path in found] == [tmp_path.name, "data", "tmp"]
    assert remove_abandoned(tmp_path, now=now + 2 * SECOND) == found
    assert len(remove_abandoned(tmp_path, now=now + 2 * HOUR)) == 1
    assert names(tmp_path) == [".hidden", "data", "kept.tmp", "tmp"]


def test_what_a_process_writes_to_is_not_removed_however_old_it_is(tmp_path: Path) -> None:
    later = datetime.now(UTC) + 2 * HOUR
    with replacing(tmp_path / "file") as file, scratch_folder(tmp_path / "tmp") as scratch:
        (scratch / "part").write_text("half")
        pid = os.fork()
        if pid == 0:  # another process looks
            os._exit(len(remove_abandoned(tmp_path, now=later)))
        assert os.waitpid(pid, 0)[1] == 0
        assert remove_abandoned(tmp_path, now=later) == []
        file.write(b"whole")
        assert (scratch / "part").exists()
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_link_among_them_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".x.1.tmp").symlink_to(tmp_path / "precious")
    later = datetime.now(UTC) + 2 * HOUR
    assert len(remove_abandoned(tmp_path / "home", now=later)) == 1
    assert (tmp_path / "precious" / "file").exists()
