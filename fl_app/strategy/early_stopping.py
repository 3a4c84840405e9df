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
class Progress:
    """The progress of a session.

    Attributes
    ----------
    best : float | None
        The best score so far; None before the first one.
    best_round : int
        Its round.
    waited : int
        Rounds with a new model since then.
    """

    best: float | None = None
    best_round: int = 0
    waited: int = 0


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the metric has not improved for some rounds.

    Only rounds with a new model count, from round 1 on: what a session starts with is no best yet,
    since a model that was in Production often falls before it rises. A score that is missing or
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

    patience: Annotated[int, Field(ge=1), Key("patience", off=0)]
    min_delta: Annotated[float, Field(ge=0), Key("min-delta")] = 0.0

    def __post_init__(self) -> None:
        check_settings(self)

    def after(
        self,
        progress: Progress,
        server_round: int,
        score: float | None,
        *,
        mode: Literal["max", "min"],
    ) -> Progress:
        """Return the progress after a round; ``mode`` tells whether more or less is better."""
        if score is None or not math.isfinite(score) or not self._improves(progress, score, mode):
            return Progress(progress.best, progress.best_round, progress.waited + 1)
        return Progress(score, server_round)

    def _improves(self, progress: Progress, score: float, mode: Literal["max", "min"]) -> bool:
        if progress.best is None:
            return True
        gain = score - progress.best if mode == "max" else progress.best - score
        return gain > self.min_delta

    def judge(
        self,
        reports: Iterable[RoundReport],
        *,
        metric: str,
        mode: Literal["max", "min"],
    ) -> str:
        """Return why to stop after these rounds, or an empty text; once it stops, it has stopped.

        Nothing but the reports decides, so that a session which goes on after a crash decides the
        same.
        """
        progress = Progress()
        for report in reports:
            if report.failed or metric not in report.metrics:
                # A failed round says nothing about the model, so it does not use up patience. Three
                # of them in a row end the run anyway.
                continue
            score = report.metrics[metric]
            progress = self.after(progress, report.round, score, mode=mode)
            if why := self.verdict(progress, metric):
                return why
        return ""

    def verdict(self, progress: Progress, metric: str) -> str:
        """Return why to stop, in one sentence, or an empty text to go on."""
        if progress.waited < self.patience:
            return ""
        if progress.best is None:
            return f"{metric} was not a finite number in any of {progress.waited} rounds"
        return (
            f"{metric} has not improved by more than {self.min_delta:g} for {progress.waited} "
            f"rounds; the best was {progress.best:.4f} in round {progress.best_round}"
        )
