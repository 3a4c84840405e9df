# SPDX-License-Identifier: Apache-2.0
"""What the app writes is for its owner alone, also in a home that others may enter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy
from fl_app.client.summary.reference import new_reference, save_reference
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_registry import FederatedLearningTracker, ModelManager, app_home
from fl_registry.home import sqlite_address

NOT_PRIVATE = {".lock": "holds nothing"}
"""Endings of files that others may read, each with the reason."""
MADE = {"artifacts", "checkpoints", "leases", "mlflow.db", "monitor.db", "node", "tmp"}


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def killed(node_id: int, message: Message) -> Any:
    if int(message.content["config"]["server-round"]) == 2:
        raise KeyboardInterrupt
    return add_one(node_id, message)


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_others_read_nothing_in_a_home_after_a_session(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    if mode != 0o700:  # made by somebody else
        home.mkdir(mode=mode)
    monitor = RetrainingManager(store=MonitorStore(sqlite_address(app_home(home) / "monitor.db")))
    strategy = LifecycleStrategy(
        metric="accuracy",
        store=ModelManager(home=home),
        tracker=FederatedLearningTracker(home=home),
        monitor=monitor,
        home=home,
    )
    with pytest.raises(KeyboardInterrupt):  # so that its checkpoints are there
        strategy.start(LocalGrid(killed), model(), 3)
    save_reference(
        new_reference("r", {"a": np.arange(9.0)}, np.arange(9, dtype=np.uint64)),
        home / "node" / "reference.npz",
    )
    assert home.stat().st_mode & 0o777 == mode
    made = {path.name for path in home.iterdir() if path.suffix not in NOT_PRIVATE}
    assert made == MADE  # a new kind is looked at here
    for path in home.iterdir():
        if path.suffix not in NOT_PRIVATE:  # what is below a private folder is private
            assert path.stat().st_mode & 0o077 == 0, path
    assert list((home / "checkpoints").glob("*/round-*.safetensors"))
