# SPDX-License-Identifier: Apache-2.0
"""Downloaded files stay on this machine, as many as were used last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_registry.files.digests import file_digest
from fl_registry.files.weights import save_weights
from fl_registry.mlflow.connection import Connection
from fl_registry.mlflow.files import MlflowFiles


def test_the_cache_holds_what_was_used_last(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = MlflowFiles(Connection("http://localhost:1", home), "m", cached=3)
    monkeypatch.setattr(files, "_location", lambda record: f"s3://bucket/{record}")
    fetched: list[str] = []
    digests: list[str] = []
    for number in range(6):
        file = tmp_path / str(number) / "w"
        file.parent.mkdir()
        save_weights({"w": np.full(4, number, np.float32)}, file)
        digests.append(file_digest(file))

    def download(location: str, name: str, folder: Path) -> Path:
        number = location[-1]
        fetched.append(number)
        (folder / name).write_bytes((tmp_path / number / "w").read_bytes())
        return folder / name

    monkeypatch.setattr(files, "_download", download)
    now = 1_000_000_000.0

    def read(number: int) -> None:
        nonlocal now
        record: Any = number
        path = files.path(record, "w", digests[number])
        assert file_digest(path) == digests[number]
        assert files.whole.has(path, digests[number])
        now += 10  # file systems and clocks are too coarse for a test
        os.utime(path.parent, (now, now))

    for number in (0, 1, 2, 0, 3, 0, 4):
        read(number)
    assert fetched == ["0", "1", "2", "3", "4"]
    left = {path.name for path in (home / "cache").iterdir()}
    assert left == {digests[number] for number in (0, 3, 4)}
    read(1)
    assert fetched[-1] == "1"
