# SPDX-License-Identifier: Apache-2.0
"""A promotion that is killed before or after any of its calls to MLflow (kill -9).

The next start must find one production, within seconds, and nobody who looks meanwhile may ever
find none.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from support.fork_context import fork_context
from support.registry_children import killed
from support.registry_faults import told

from fl_registry import ModelManager

MakeWeights = Callable[[float], Path]
NAME = "fl-global-model"
NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture
def prepared(manager: ModelManager, weights: MakeWeights, mlflow_home: Path) -> Path:
    """Return a home with version 1 in production and version 2 in staging."""
    for number in (1, 2):
        manager.save_model_version(weights(number), metrics={"m": number / 10})
    manager.promote_to_production("1")
    manager.promote_to_staging("2")
    return mlflow_home


def calls_of_a_promotion(home: Path, scratch: Path) -> int:
    """Count the calls that the killed process would make; they are its fail points."""
    shutil.copytree(home, scratch)
    manager = ModelManager(home=scratch)
    manager.get_version("2")
    found: list[str] = []
    told(
        manager.backend.connection,
        lambda name, when: found.append(name) if when == "before" else None,
    )
    manager.promote_to_production("2")
    return len(found)


class Observer(threading.Thread):
    """Looks 20 times a second at what is in production, past the registry."""

    def __init__(self, database: Path) -> None:
        super().__init__(daemon=True)
        self.database, self.seen, self.stop = database, [], threading.Event()  # type: ignore[var-annotated]

    def run(self) -> None:
        question = "SELECT version FROM registered_model_aliases WHERE alias = 'production'"
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30) as database:
            while not self.stop.wait(0.05):
                self.seen.append([str(row[0]) for row in database.execute(question)])


def test_a_killed_promotion_leaves_one_production_and_is_finished_by_the_next_start(
    prepared: Path, tmp_path: Path
) -> None:
    count = calls_of_a_promotion(prepared, tmp_path / "counted")
    assert count >= 8
    points = [f"{n}:{when}" for n in range(1, count + 1) for when in ("before", "after")]
    committed = set()
    for point in points if NIGHTLY else points[::3]:
        home = tmp_path / point.replace(":", "-")
        shutil.copytree(prepared, home)
        observer = Observer(home / "mlflow.db")
        observer.start()
        process = fork_context("support.registry_children").Process(
            target=killed, args=(f"sqlite:///{home / 'mlflow.db'}", home, NAME, point)
        )
        process.start()
        process.join(120)
        assert process.exitcode == -9, point
        began = time.monotonic()
        manager = ModelManager(home=home)
        manager.reconcile()
        took = time.monotonic() - began
        observer.stop.set()
        observer.join()
        assert took < 10, point
        assert observer.seen, point
        assert all(seen in (["1"], ["2"]) for seen in observer.seen), point
        production = manager.get_latest_version("Production")
        committed.add(production)
        holds(manager, production)
    assert committed == {"1", "2"}


def holds(manager: ModelManager, production: str | None) -> None:
    """Check that everything says the same."""
    rows = manager.client.search_model_versions(f"name = '{NAME}'")
    stages = {str(row.version): (row.tags["stage"], row.current_stage) for row in rows}
    finished = {"1": ("Archived", "Archived"), "2": ("Production", "Production")}
    begun = {"1": ("Production", "Production"), "2": ("Staging", "Staging")}
    assert stages == (finished if production == "2" else begun)
    aliases = {a: str(v) for a, v in manager.client.get_registered_model(NAME).aliases.items()}
    assert aliases["production"] == production
    assert ("staging" in aliases) == (production == "1")
    assert manager.verify() == len(manager.history())
    assert manager.weights_path(str(production)).is_file()
    manager.promote_to_production("2")
    assert manager.get_latest_version("Production") == "2"
