# SPDX-License-Identifier: Apache-2.0
"""A registry and a monitor with a past, at fixed times: three sessions, and one of each request."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fl_app.retraining import MonitorStore, RetrainingManager, TriggerKind
from fl_app.retraining.drift.state import DriftCheck, FeatureDrift
from fl_app.retraining.manager import MonitorState
from fl_app.wire.data_summary import Feature
from fl_registry import InMemoryModelStore

CLOCKS = [
    "fl_registry.journal.entries.datetime",
    "fl_registry.memory.datetime",
    "fl_registry.versions.datetime",
    "fl_app.retraining.requests.datetime",
]
BEGIN = datetime(2026, 11, 19, 8, 30, tzinfo=UTC)
FIRST = [0.0012, 0.2121, 0.4306, 0.5906, 0.6544, 0.7022, 0.7381, 0.7512]
SECOND = [0.7604, 0.7713, 0.7698, 0.7931, 0.8017, 0.7988, 0.8106, 0.8094]
THIRD = [0.8122, 0.8301, 0.8254, 0.8467, 0.8590, 0.8571, 0.8688, 0.8723]


class Clock:
    """What time it is, for everything that asks after `stop` was called."""

    def __init__(self) -> None:
        self.now = BEGIN

    def stop(self, patch: pytest.MonkeyPatch) -> None:
        """Let all who write times down ask this clock."""
        clock = self

        class Stopped(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return clock.now

            @classmethod
            def __get_pydantic_core_schema__(cls, _: Any, handler: Any) -> Any:
                return handler(datetime)  # for a record that is first stored while time stands

        for name in CLOCKS:
            patch.setattr(name, Stopped)

    def advance(self, **time: float) -> None:
        """Let time pass."""
        self.now += timedelta(**time)


class Story:
    """The model's life so far.

    Attributes
    ----------
    store, manager : InMemoryModelStore, RetrainingManager
        The registry, with version 24 waiting for approval, and the monitor.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder, self.clock = folder, clock
        self.store = InMemoryModelStore()
        self.manager = RetrainingManager(
            store=MonitorStore(), min_rounds_between_retrain=0, now=self.time
        )
        self._live()

    def time(self) -> datetime:
        """What time it is."""
        return self.clock.now

    def _live(self) -> None:
        self._session(1, FIRST, staged=(4, 8))
        self.clock.advance(hours=3)
        self._promote("8", "Ada Lovelace", "looked at the pictures of all seven classes")
        self._served(TriggerKind.SCHEDULE, "every 2 days, due 2026-11-21 06:00 UTC", days=2)
        self._session(2, SECOND, staged=(12, 15))
        self.clock.advance(hours=5)
        self._promote("15", "Ada Lovelace", "better in every class")
        self.clock.advance(hours=20)
        self.store.rollback("8", actor="Grace Hopper", reason="misses ships in this morning's fog")
        self._served(
            TriggerKind.DEGRADATION,
            "in round 3 the score stays below its baseline of 0.7512: it is 0.6830 now, "
            "worse by 0.0682, and noise does not explain it",
            days=0.2,
        )
        self._session(3, THIRD, staged=(20, 24), waits="24")
        self._drift()
        self.clock.advance(hours=2)
        self.manager.manual_trigger(
            "new pictures from the north camera (requested by Ada Lovelace)"
        )
        self.clock.advance(minutes=40)

    def _session(
        self, number: int, scores: list[float], *, staged: tuple[int, ...], waits: str = ""
    ) -> None:
        for server_round, score in enumerate(scores, start=1):
            self.clock.advance(minutes=2)
            version = self.save(number, server_round, score)
            if int(version) in staged:
                reason = f"mAP50 {score:.4f}, the best so far"
                self.store.promote_to_staging(version, actor="policy", reason=reason)
            if version == waits:
                self.store.set_version_tags(version, {"approval": "pending"})
            self.manager.update_metrics(score, server_round)

    def save(self, session: int, server_round: int, score: float, **tags: str) -> str:
        """Register a version."""
        path = self.folder / "weights.safetensors"
        save_file({"w": np.full(3, score, dtype=np.float32)}, path)
        nodes = [{"node_id": str(n), "num_examples": 205 + n, "data_digest": ""} for n in (1, 2)]
        better = {1: ", and there is no production version to beat"}.get(
            session, ", surely better than version 8 on the same 127 pictures (95 %)"
        )
        why = f"mAP50 {score:.2f} is below 0.50" if score < 0.5 else f"mAP50 {score:.4f}{better}"
        return self.store.save_model_version(
            path,
            run_id=f"run-{session}",
            metrics={
                "mAP50": score,
                "mAP50-95": round(0.61 * score, 4),
                "client/mAP50": round(0.97 * score, 4),
                "train/loss": round(3.4 - 2 * score, 4),
            },
            tags={
                "metric": "mAP50",
                "round": str(server_round),
                "session": str(session),
                "nodes": json.dumps(nodes),
                "reason": why,
                **tags,
            },
        )

    def _promote(self, version: str, who: str, why: str) -> None:
        self.store.promote_to_production(version, actor=who, reason=why)

    def _served(self, kind: TriggerKind, reason: str, *, days: float) -> None:
        self.clock.advance(days=days)
        self.manager.request(kind, reason)
        request = self.manager.take()
        assert request is not None, self.manager.trigger_history
        with self.manager.running(request):
            self.clock.advance(minutes=21)

    def _drift(self) -> None:
        found = [
            ("brightness", 3.1e-4, 8212.0, 0.31, "lower", 2),
            ("contrast", 0.011, 96.4, 0.17, "lower", 1),
            ("sharpness", 0.2, 4.18, 0.09, "lower", 0),
            ("edge share", 0.44, 1.37, 0.05, "higher", 0),
            ("objects", 0.63, 0.82, 0.03, "higher", 0),
            ("saturation", 0.71, 0.55, 0.02, "wider", 0),
        ]
        features = tuple(FeatureDrift(Feature(name), *rest) for name, *rest in found)
        self.manager.request(
            TriggerKind.DRIFT, "in round 8 the data moved: brightness lower (effect 0.31)"
        )
        self.manager.update_metrics(THIRD[-1], 9)
        check = DriftCheck((), features, nodes=2, rows=412, height=105_120.0)
        note = self.manager.store.note("monitor", MonitorState)
        _, state = note.read()
        assert state is not None
        note.write(replace(state, drift=replace(state.drift, last=check)))
