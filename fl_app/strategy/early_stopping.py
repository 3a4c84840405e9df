# SPDX-License-Identifier: Apache-2.0
"""When a session stops early: a rule over the metric of its rounds. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fl_app.events import RoundReport
from fl_app.settings import Key, check_settings


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the metric has not improved for some rounds.

    Only rounds with a new model count, from round 1 on: what a session starts with is no best yet,
    since a model that was in Production often falls before it rises. A score that is
    not finite is no improvement.

    Parameters
    ----------
    patience : int
        Rounds without an improvement after which no further one is trained.
    min_delta : float
        An improvement is more than this.

    Raises
    ------
    SettingError
        If ``patience`` is not positive or ``min_delta`` is negative.
    """

    patience: Annotated[int, Field(ge=1), Key(off=0)]
    min_delta: Annotated[float, Field(ge=0), Key()] = 0.0

    def __post_init__(self) -> None:
        check_settings(self)

    def judge(
        self, reports: Iterable[RoundReport], *, metric: str, mode: Literal["max", "min"]
    ) -> str:
        """Return why to stop after these rounds, or an empty text; once it stops, it has stopped.

        Nothing but the reports decides, so that a session which goes on after a crash decides the
        same.
        """
        best: float | None = None
        best_round = waited = 0
        for report in reports:
            if report.failed or metric not in report.metrics:
                # A failed round says nothing about the model, so it does not use up patience. Three
                # of them in a row end the run anyway.
                continue
            score, waited = report.metrics[metric], waited + 1
            gain = score - (best or 0.0) if mode == "max" else (best or 0.0) - score
            if math.isfinite(score) and (best is None or gain > self.min_delta):
                best, best_round, waited = score, report.round, 0
            elif waited >= self.patience and best is None:
                return f"{metric} was not a finite number in any of {waited} rounds"
            elif waited >= self.patience:
                return (
                    f"{metric} has not improved by more than {self.min_delta:g} for {waited} "
                    f"rounds; the best was {best:.4f} in round {best_round}"
                )
        return ""
