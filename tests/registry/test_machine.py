# SPDX-License-Identifier: Apache-2.0
"""Whatever people, crashes and a second process do to the registry, in any order, it holds.

The many runs are over MLflow's client in memory (`fake_mlflow`), some over MLflow on SQLite.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mlflow.exceptions import MlflowException
from safetensors.numpy import save_file
from support.fake_mlflow import FakeMlflow
from support.registry_faults import CALLS, told

from fl_registry import ModelManager, ModelStore, RegistryError, Stage
from fl_registry.mlflow.backend import MlflowBackend
from fl_registry.mlflow.connection import Connection
from fl_registry.stages import State

NAME = "fl-global-model"
NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = pytest.mark.chaos
MOVES = ("stage", "promote", "archive", "restore", "rollback", "reconcile", "adopt")
numbers = st.integers(1, 6)


class Crash(BaseException):
    """The process ends here."""


class Trouble:
    """Does something at the n-th call from now, once."""

    def __init__(self) -> None:
        self.left, self.when = 0, ""
        self.act: Callable[[], None] = lambda: None
        self.watch: Callable[[], None] = lambda: None

    def at(self, call: int, when: str, act: Callable[[], None]) -> None:
        self.left, self.when, self.act = call, when, act

    def __call__(self, name: str, when: str) -> None:
        self.watch()
        if when == self.when and self.left > 0:
            self.left -= 1
            if self.left == 0:
                self.act()


class Registry(RuleBasedStateMachine):
    """Two managers on one store, of which the first may crash at any call."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.trouble = Trouble()
        self.open()
        self.first, self.second = self.manager(), self.manager()
        self.saved: dict[str, int] = {}
        self.had_production = False
        self.calm = True  # nobody else acts, and nothing fails, within one operation
        self.trouble.watch = self.production_is_there

    def open(self) -> None:
        self.fake = FakeMlflow()
        self.fake.hook = self.trouble

    def manager(self) -> ModelStore:
        return self.fake.manager(self.folder / "home")

    def plain_aliases(self) -> dict[str, str]:
        model = self.fake.models.get(NAME)
        return {} if model is None else {a: str(v) for a, v in model.aliases.items()}

    def move_alias(self, alias: str, version: str) -> None:
        self.fake.set_registered_model_alias(NAME, alias, version)

    def rows(self) -> dict[str, tuple[str, str]]:
        """Return what MLflow shows of each version: the tag and the stage field."""
        return {
            str(r.version): (r.tags["stage"], r.current_stage)
            for r in self.fake.search_model_versions(f"name = '{NAME}'")
        }

    def production_is_there(self) -> None:
        if self.had_production:
            assert "production" in self.plain_aliases()
        elif "production" in self.plain_aliases():
            self.had_production = True

    def do(self, manager: ModelStore, op: str, version: int | None) -> None:
        """Do one thing; whatever the registry refuses is refused with an error of its own."""
        text = str(version or 1)
        calls: dict[str, Callable[[], Any]] = {
            "save": lambda: self.save(manager, version or 1),
            "stage": lambda: manager.promote_to_staging(text),
            "promote": lambda: manager.promote_to_production(text),
            "archive": lambda: manager.archive_version(text),
            "restore": lambda: manager.restore_version(text),
            "rollback": lambda: manager.rollback(text if version else None),
            "reconcile": manager.reconcile,
            "adopt": manager.adopt,
        }
        try:
            calls[op]()
        except RegistryError:
            return
        if op == "promote" and self.calm:
            assert manager.get_latest_version("Production") == text
        if op != "save":
            self.agrees()

    def agrees(self) -> None:
        """Check what an operation leaves that came to its end, without any reconciling."""
        self.trouble.left = 0
        state, aliases, rows = self.manager()._state(), self.plain_aliases(), self.rows()
        if state.production is not None:
            assert aliases["production"] == state.production
        if state != State():
            assert aliases.get("staging") == state.staging
        for version in filter(None, state.aliases.values()):
            stage = state.stage_of(version)
            assert rows[version] == (stage, stage)

    def save(self, manager: ModelStore, number: int) -> None:
        path = self.folder / f"{number}.safetensors"
        save_file({"a": np.full((2,), number, np.float32)}, path)
        run_id = ("first", "second", None)[number % 3]
        version = manager.save_model_version(path, run_id, metrics={"m": number / 10})
        assert self.saved.setdefault(version, number) == number
        assert [v for v, n in self.saved.items() if n == number] == [version]

    @contextlib.contextmanager
    def troubled(self, call: int, when: str, act: Callable[[], None]) -> Iterator[None]:
        self.trouble.at(call, when, act)
        self.calm = False
        try:
            yield
        finally:
            self.trouble.left, self.calm = 0, True

    @rule(number=numbers, second=st.booleans())
    def saves(self, number: int, second: bool) -> None:
        self.do(self.second if second else self.first, "save", number)

    @rule(op=st.sampled_from(MOVES), version=numbers, second=st.booleans())
    def moves(self, op: str, version: int, second: bool) -> None:
        self.do(self.second if second else self.first, op, version)

    @rule(second=st.booleans())
    def goes_back(self, second: bool) -> None:
        self.do(self.second if second else self.first, "rollback", None)

    @rule(
        op=st.sampled_from(("save", *MOVES)),
        version=numbers,
        call=st.integers(1, 25),
        when=st.sampled_from(("before", "after")),
        retry=st.booleans(),
        anew=st.booleans(),
    )
    def crashes(  # noqa: PLR0917 - Hypothesis gives them all by name
        self, op: str, version: int, call: int, when: str, retry: bool, anew: bool
    ) -> None:
        def crash() -> None:
            raise Crash

        with self.troubled(call, when, crash), contextlib.suppress(Crash):
            self.do(self.first, op, version)
        if anew:
            self.first = self.manager()
        if retry:
            self.do(self.first, op, version)

    @rule(
        op=st.sampled_from(("save", *MOVES)),
        version=numbers,
        call=st.integers(1, 25),
        when=st.sampled_from(("before", "after")),
    )
    def loses_a_message(self, op: str, version: int, call: int, when: str) -> None:
        def lose() -> None:
            raise MlflowException("API request to http://mlflow failed with exception reset")

        with self.troubled(call, when, lose):
            self.do(self.first, op, version)

    @rule(
        op=st.sampled_from(("save", *MOVES)),
        version=numbers,
        call=st.integers(1, 25),
        other=st.sampled_from(MOVES),
        others=numbers,
    )
    def is_overtaken(self, op: str, version: int, call: int, other: str, others: int) -> None:
        with self.troubled(call, "before", lambda: self.do(self.second, other, others)):
            self.do(self.first, op, version)

    @precondition(lambda self: bool(self.saved))
    @rule(alias=st.sampled_from(("production", "staging")), data=st.data())
    def is_moved_by_hand(self, alias: str, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.saved)))
        self.move_alias(alias, version)

    @invariant()
    def the_journal_is_whole_and_keeps_one_production(self) -> None:
        watcher = self.manager()
        seen = ""
        for entry in watcher.history():
            if entry.op in ("promote", "rollback", "adopt"):
                assert entry.displaced == seen
                seen = entry.version
        state = watcher._state()
        assert (state.production or "") == seen
        assert self.first._state() == self.second._state() == state

    @invariant()
    def nothing_that_was_saved_is_lost(self) -> None:
        listed = {row["version"]: row for row in self.manager().list_all_versions()}
        assert self.saved.keys() <= listed.keys()
        digests = [row["sha256"] for row in listed.values()]
        assert len(set(digests)) == len(digests)

    @invariant()
    def what_is_shown_follows_from_the_journal_once_it_is_reconciled(self) -> None:
        if self.trouble_is_shown():
            return
        manager = self.manager()
        manager.reconcile()
        state = manager._state()
        self.shown(manager, state)

    def trouble_is_shown(self) -> bool:
        """Leave what was cut short as it is most of the time, so that the next step meets it."""
        self.looked = getattr(self, "looked", 0) + 1
        return self.looked % 5 != 0

    def shown(self, manager: ModelStore, state: Any) -> None:
        aliases = self.plain_aliases()
        if state.production is not None:
            assert aliases["production"] == state.production
            assert aliases.get("staging") == state.staging
            for version in aliases.values():
                assert manager.weights_path(version).is_file()
        for version, marks in self.rows().items():
            stage = state.stage_of(version)
            if stage is not Stage.NONE:
                assert marks == (stage, stage)
            else:
                assert marks[0] == "None"

    def teardown(self) -> None:
        manager = self.manager()
        manager.reconcile()
        self.shown(manager, manager._state())
        assert manager.drift() == () or manager._state().production is None
        assert manager.verify() == len(manager.history())
        shutil.rmtree(self.folder)


class RegistryOnSqlite(Registry):
    """The same over MLflow itself."""

    def open(self) -> None:
        self.plain = ModelManager(home=self.folder / "home")

    def manager(self) -> ModelStore:
        connection = Connection(None, self.folder / "home", first_wait=0.0)
        told(connection, self.trouble)
        return ModelStore(MlflowBackend(connection, NAME, page_length=7), alias_seconds=0.0)

    def plain_aliases(self) -> dict[str, str]:
        return self.plain.backend.aliases()

    def production_is_there(self) -> None:
        """Too slow to look at each call here."""

    def move_alias(self, alias: str, version: str) -> None:
        self.plain.client.set_registered_model_alias(NAME, alias, version)

    def rows(self) -> dict[str, tuple[str, str]]:
        return {
            str(r.version): (r.tags["stage"], r.current_stage)
            for r in self.plain.client.search_model_versions(f"name = '{NAME}'")
        }


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
Registry.TestCase.settings = settings(
    max_examples=500 if NIGHTLY else 100,
    stateful_step_count=50 if NIGHTLY else 30,
    deadline=None,
    suppress_health_check=QUIET,
)
TestRegistry = pytest.mark.slow(Registry.TestCase)


@pytest.mark.slow
def test_the_same_over_sqlite() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        RegistryOnSqlite,
        settings=settings(
            max_examples=60 if NIGHTLY else 6,
            stateful_step_count=30 if NIGHTLY else 20,
            deadline=None,
            suppress_health_check=QUIET,
        ),
    )


def test_all_calls_that_the_registry_makes_are_among_those_that_fail() -> None:
    fake = {name for name in dir(FakeMlflow) if not name.startswith("_") and name != "manager"}
    assert fake <= set(CALLS)
