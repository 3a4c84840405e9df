# SPDX-License-Identifier: Apache-2.0
"""Who a session is and how far, as JSON beside its rounds; and whether another is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

from fl_app.strategy.records import Origin

FORMAT = "fl-app-session/1"

State = Literal["training", "left", "ending"]


@dataclass(frozen=True)
class SessionRecord:
    """A session.

    Attributes
    ----------
    model : str
        Name of the registered model.
    origin : Origin
        Why it runs.
    num_rounds : int
        Rounds that it has.
    chain : tuple[str, ...]
        Classes of the inner strategy and of those that it wraps.
    arrays : tuple[tuple[str, str, tuple[int, ...] | None], ...]
        Name, dtype and shape of the model's arrays; no shape where it may change.
    settings : Mapping[str, Any]
        Params, the inner strategy's numbers and texts, and the messages' configs at the start.
    tags, params : Mapping[str, str]
        Tags and params of its MLflow run.
    holdout : tuple[str, ...] | None
        Name, digest and place of the data that it is scored on, for that run.
    run_name, run_id : str
        That run; no id before there is one.
    started : datetime
        When, in UTC.
    first_metrics : Mapping[str, float] | None
        What the weights that it starts with scored; None until that is known.
    first_best : Mapping[str, float] | None
        What the version in Staging scored then.
    first_best_note : str
        What that score is, if it was not taken then.
    source : str
        What takes the metrics with plain names: `holdout_source`, or ``clients``.
    baselines : Mapping[str, Mapping[str, Mapping[str, float]]]
        ``metrics`` of registered versions that the nodes evaluated before round 1, and the metric
        on each of these ``nodes``, by version.
    described : bool
        Whether its MLflow run has its params, its data and these metrics.
    state : "training" | "left" | "ending"
        ``left``: its process has ended it with rounds still to be handed over. ``ending``: only
        the end of its MLflow run is missing.
    status : str
        How that run ends.
    """

    model: str
    origin: Origin
    num_rounds: int
    chain: tuple[str, ...] = ()
    arrays: tuple[tuple[str, str, tuple[int, ...] | None], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    holdout: tuple[str, ...] | None = None
    run_name: str = ""
    run_id: str = ""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    first_metrics: Mapping[str, float] | None = None
    first_best: Mapping[str, float] | None = None
    first_best_note: str = ""
    source: str = "clients"
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    described: bool = False
    state: State = "training"
    status: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as JSON knows it."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        rows = {"origin": asdict(self.origin), "started": self.started.isoformat()}
        return {"format": FORMAT, **plain, **rows}

    @classmethod
    def from_json(cls, text: Mapping[str, Any]) -> SessionRecord:
        """The record that `to_json` wrote down; raises KeyError, TypeError or ValueError."""
        plain = dict(text)
        if plain.pop("format") != FORMAT:
            raise ValueError("another format")
        rows = {
            "origin": Origin(**plain["origin"]),
            "started": datetime.fromisoformat(plain["started"]),
            "chain": tuple(plain["chain"]),
            "holdout": None if plain["holdout"] is None else tuple(plain["holdout"]),
            "arrays": tuple(
                (name, dtype, None if shape is None else tuple(shape))
                for name, dtype, shape in plain["arrays"]
            ),
        }
        return cls(**{**plain, **rows})

    def differences(self, now: SessionRecord) -> list[str]:
        """What keeps a session from going on as ``now``; empty if they are the same."""
        found = []
        if self.num_rounds != now.num_rounds:
            found.append(f"it has {self.num_rounds} rounds, and {now.num_rounds} are asked for")
        if self.chain != now.chain:
            old, new = "(".join(self.chain), "(".join(now.chain)
            found.append(f"its strategy is {old}, not {new}")
        if self.arrays != now.arrays:
            found.append("its model has other arrays")
        if self.source != now.source:
            found.append(f"its scores are of {self.source}, not of {now.source}")
        for name in sorted({*self.settings, *now.settings}):
            was, is_now = self.settings.get(name), now.settings.get(name)
            if was != is_now:
                found.append(f"{name} was {was!r:.60} and is {is_now!r:.60}")
        return found
