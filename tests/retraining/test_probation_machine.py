# SPDX-License-Identifier: Apache-2.0
"""Any order of promotions, rollbacks, reports, restarts and faults keeps what a probation promises.

At most one rollback by itself for each promotion, never to a version that failed, never away from
what was brought back, and production is never empty.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fl_app.retraining import (
    MonitorStore,
    Probation,
    ProbationSettings,
    ProductionReport,
    RetrainingManager,
)
from fl_app.retraining.probation.probation import ACTOR
from fl_registry import (
    ArtifactError,
    Evidence,
    InMemoryModelStore,
    RegistryError,
    StageError,
    StoreUnavailable,
    tenures,
)
from fl_registry.files.weights import save_weights

VERSIONS = [str(number) for number in range(1, 6)]
SETTINGS = ProbationSettings(metric="mAP50", in_a_row=2, hours=10, reports=3)
FAULTS = ["before", "after", "tags", "request", "requested", "log", "overtaken"]


class ProcessKilled(BaseException):
    """The process ends here."""


class Models(InMemoryModelStore):
    """A registry that is away, or whose caller is killed, at a chosen step."""

    fault = ""
    killed = False

    def rollback(self, *arguments: Any, **named: Any) -> str:
        self._fail("before", **named)
        if self.fault == "overtaken" and named["actor"] == ACTOR:
            self._overtake(self.get_latest_version("Production"))
        version = super().rollback(*arguments, **named)
        self._fail("after", **named)
        return version

    def set_version_tags(self, *arguments: Any) -> None:
        self._fail("tags", actor=ACTOR)
        super().set_version_tags(*arguments)

    def log_production(self, *arguments: Any, **named: Any) -> None:
        self._fail("log", actor=ACTOR)
        super().log_production(*arguments, **named)

    def _overtake(self, held: str | None) -> None:
        for version in VERSIONS:
            with suppress(StageError, ArtifactError):
                if self.get_latest_version("Production") == held:
                    self.promote_to_production(version, actor="Ada")

    def _fail(self, step: str, *, actor: str = "", **_: Any) -> None:
        if self.fault == step and actor == ACTOR:
            raise ProcessKilled if self.killed else StoreUnavailable("MLflow does not answer.")


class Monitor(RetrainingManager):
    """A monitor whose process is killed before it takes a request, or right after it."""

    fault = ""

    def request(self, *arguments: Any, **named: Any) -> str:
        if self.fault == "request":
            raise ProcessKilled
        request_id = super().request(*arguments, **named)
        if self.fault == "requested":
            raise ProcessKilled
        return request_id


class Machine(RuleBasedStateMachine):
    """The registry, the memory, and two servers that share both."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.models, self.ahead = Models(), timedelta()
        for version in VERSIONS:
            path = Path(self.folder.name) / f"{version}.safetensors"
            save_weights({"w": np.full(3, int(version), dtype=np.float32)}, path)
            self.models.save_model_version(path, f"run-{version}", {"mAP50": 0.8})
        self.failed: set[str] = set()
        self.damaged: set[str] = set()
        self.failures: set[str] = set()
        self.seen = 0
        self.restart()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    @rule()
    def restart(self) -> None:
        url = f"sqlite:///{self.folder.name}/monitor.db"
        self.servers = [
            Probation(self.models, Monitor(store=MonitorStore(url)), SETTINGS, now=self.now)
            for _ in range(2)
        ]

    @contextmanager
    def fault(self, step: str, *, killed: bool) -> Iterator[None]:
        self.models.fault, self.models.killed, Monitor.fault = step, killed, step
        try:
            with suppress(RegistryError, ProcessKilled):
                yield
        finally:
            self.models.fault = Monitor.fault = ""

    @rule(version=st.sampled_from(VERSIONS))
    def promote(self, version: str) -> None:
        with suppress(StageError, ArtifactError):
            self.models.promote_to_production(version, actor="Ada")

    @rule(version=st.none() | st.sampled_from(VERSIONS))
    def a_person_rolls_back(self, version: str | None) -> None:
        with suppress(StageError, ArtifactError):
            self.models.rollback(version, actor="Ada")

    @rule(version=st.sampled_from(VERSIONS))
    def try_again(self, version: str) -> None:
        with suppress(StageError, ArtifactError):
            self.models.restore_version(version, actor="Ada")
            self.models.promote_to_production(version, actor="Ada")

    @rule(hours=st.integers(1, 12))
    def wait(self, hours: int) -> None:
        self.ahead += timedelta(hours=hours)

    @rule()
    def damage_what_is_next_to_come_back(self) -> None:
        versions = [stay.version for stay in tenures(self.models.history())]
        for version in versions[-2:-1]:
            with suppress(ArtifactError):
                self.models.weights_path(version).write_bytes(b"damaged")
                self.damaged.add(version)

    @rule(server=st.integers(0, 1), value=st.sampled_from([0.9, 0.88]), count=st.integers(1, 12))
    def does_well(self, server: int, value: float, count: int) -> None:
        for _ in range(count):
            with suppress(StageError):
                self.servers[server].report(ProductionReport(value))

    @rule(
        server=st.integers(0, 1),
        count=st.integers(1, 3),
        step=st.sampled_from(["", *FAULTS]),
        killed=st.booleans(),
    )
    def does_badly(self, server: int, count: int, step: str, killed: bool) -> None:
        for _ in range(count):
            with self.fault(step, killed=killed):
                self.servers[server].report(ProductionReport(0.3))
            self.look()

    @rule(server=st.integers(0, 1), mine=st.sampled_from([0.8, 0.5, math.nan, math.inf]))
    def compare(self, server: int, mine: float) -> None:
        pair = self.servers[server].to_compare()
        if pair is not None:
            theirs = None if pair[1] is None else {"mAP50": 0.8}
            before = self.models.history()
            self.servers[server].update_production(
                pair[0], Evidence({"mAP50": mine}, theirs), rival=pair[1]
            )
            assert math.isfinite(mine) or self.models.history() == before

    @rule(server=st.integers(0, 1))
    def after_a_look_nothing_is_left_to_do(self, server: int) -> None:
        self.servers[server].review()
        state, stays = self.servers[server].state(), tenures(self.models.history())
        assert state.untagged == ()
        if state.failure is not None:
            assert state.failure.back is not None
            if stays[-1].id == state.failure.promotion:
                ways = {stay.version for stay in stays[:-1]} - {stays[-1].version}
                assert ways <= self.failed | self.damaged | {stays[-1].version}

    @invariant()
    def look(self) -> None:
        """Judge each stay that came since the last look."""
        if not hasattr(self, "models"):
            return
        stays = tenures(self.models.history())
        for before, stay in zip(stays[self.seen :], stays[self.seen + 1 :], strict=False):
            if stay.actor == ACTOR:
                assert stay.returned
                assert not before.returned  # so there is one for each promotion at most
                assert stay.version not in self.failed | self.damaged
                assert stay.reason.startswith(f"version {before.version} failed its probation")
                self.failed.add(before.version)
        self.seen = max(0, len(stays) - 1)
        self.failed &= self.still_failed()
        assert (self.models.get_latest_version("Production") is None) == (not stays)
        failure = self.servers[0].state().failure
        self.failures |= set() if failure is None else {failure.promotion}

    def still_failed(self) -> set[str]:
        """A version that failed may be promoted again, and pass then."""
        passed = {
            row["version"]
            for row in self.models.list_all_versions()
            if row["tags"].get("probation") == "passed"
        }
        return set(VERSIONS) - passed

    @invariant()
    def nothing_is_asked_for_twice(self) -> None:
        if hasattr(self, "servers"):
            requests = self.servers[0]._monitor.trigger_history
            ids = [row["id"] for row in requests]
            assert len(ids) == len(set(ids))
            assert len(requests) <= len(self.failures)


TestProbation = Machine.TestCase
TestProbation.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=30)
