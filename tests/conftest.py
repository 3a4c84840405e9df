# SPDX-License-Identifier: Apache-2.0
"""What every test stands on: a home of its own, Flower's identity of a task, and PostgreSQL."""

from __future__ import annotations

import gc
import os
import sys

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Hundreds of processes import MLflow and torch, and would compile them each time.
    sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of two workers that wait for one another's cores take ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("COLUMNS", None)  # a worker's own, which consoles would keep for good

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, settings
from support.mlflow_databases import Copies
from support.postgres_server import postgres, postgres_programs

settings.register_profile("default", deadline=None)
settings.register_profile(
    "nightly", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With ``-n``, give each worker whole files, and almost all of Flower's runs to one.

    A SuperLink on a busy machine takes a run for dead that could not tell its end in seconds.
    """
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "runs" if _is_run(nodeid) else file

    config.option.loadscopereorder = False
    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with Flower's runs: they are on one worker, and take as long as all else together."""
    items.sort(key=lambda item: not _is_run(item.nodeid))


_LIGHT = (
    *("test_hostile_nodes", "test_killed_run", "test_shadow_evaluation", "test_local_superlink"),
    "test_flower_versions",
)
"""Runs that load little and wait for little: they go with all else, which takes less long."""


def _is_run(nodeid: str) -> bool:
    """Whether a test is of those that start Flower's runs, one of which takes all there is."""
    file = nodeid.partition("::")[0]
    return "/e2e/" in file and Path(file).stem not in _LIGHT


@pytest.fixture(autouse=True, scope="module")
def _few_objects_to_look_through() -> None:
    """Leave what earlier files have loaded out of garbage collections.

    Some of Flower's strategies have one for every array, which takes a second in a process that has
    everything loaded.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FL_APP_HOME in the test's own folder, so that nothing lands in the user's."""
    folder = tmp_path / "fl-app-home"
    monkeypatch.setenv("FL_APP_HOME", str(folder))
    for name in ("FL_APP_MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def _copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    return Copies(tmp_path_factory.mktemp("empty"))


@pytest.fixture(autouse=True)
def _databases_are_copies(_copies: Copies) -> None:
    """As soon as some test has imported MLflow."""
    _copies.take_over()


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    """Flower builds no Message outside of a running task."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1


@pytest.fixture(scope="session")
def postgres_address() -> Iterator[str]:
    """Yield the address of an empty database on a PostgreSQL cluster of our own."""
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with postgres(programs) as address:
        yield address
