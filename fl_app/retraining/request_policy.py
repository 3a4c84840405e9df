# SPDX-License-Identifier: Apache-2.0
"""Which requests may become a session. Pure functions; nothing here makes requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from fl_app.retraining.requests import Outcome, RetrainRequest, TriggerKind
from fl_app.settings import Key, check_settings

BUDGET_WINDOW = timedelta(days=30)


@dataclass(frozen=True)
class RetrainPolicy:
    """Limits of requests that are not forced.

    Attributes
    ----------
    min_rounds_between_retrain : int
        Rounds after the start of a retraining before the monitor may request another.
    min_hours_between_retrain : float
        Hours after the start of a retraining before the monitor may request another.
    budget : int
        Retrainings in 30 days that the monitor may request.
    mode : "auto" | "suggest"
        ``suggest``: the monitor's requests are recorded, and a person decides.

    Raises
    ------
    SettingError
        If a limit is negative or not finite, or ``mode`` is another word.
    """

    min_rounds_between_retrain: Annotated[int, Field(ge=0), Key("min-rounds-between-retrain")] = 10
    min_hours_between_retrain: Annotated[float, Field(ge=0), Key("min-hours-between-retrain")] = (
        24.0
    )
    budget: Annotated[int, Field(ge=0), Key("retrain-budget")] = 4
    mode: Annotated[Literal["auto", "suggest"], Key("on-request")] = "auto"

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Situation:
    """What a decision depends on.

    Attributes
    ----------
    rounds_since, hours_since : float | None
        Since a request was last taken; None before the first.
    taken_in_window : int
        Automatic requests taken in the last 30 days.
    recovered : bool
        Whether the score was healthy at some time since the rule's last request.
    """

    rounds_since: int | None = None
    hours_since: float | None = None
    taken_in_window: int = 0
    recovered: bool = True


def decide(
    policy: RetrainPolicy, request: RetrainRequest, situation: Situation
) -> tuple[Outcome, str]:
    """Return the outcome of a new request, and the reason if it is not pending.

    Forced requests are always pending. All others must be past the cooldown in rounds and hours,
    within the budget, and not repeat a request about a fall that has not recovered.
    """
    # People's requests are forced. Cooldown and budget guard against a rule with false alarms, not
    # against a person, who has other information. Even so only one runs and one is pending.
    if request.force:
        return Outcome.PENDING, ""
    for exceeded, why in _limits(policy, request, situation):
        if exceeded:
            return Outcome.SUPPRESSED, why
    if policy.mode == "suggest":
        return Outcome.SUGGESTED, "the monitor only suggests; a person may trigger it"
    return Outcome.PENDING, ""


def _limits(
    policy: RetrainPolicy, request: RetrainRequest, situation: Situation
) -> Iterator[tuple[bool, str]]:
    rounds, hours = situation.rounds_since, situation.hours_since
    yield (
        rounds is not None and rounds < policy.min_rounds_between_retrain,
        f"only {rounds} rounds since the last retraining, "
        f"{policy.min_rounds_between_retrain} are required",
    )
    yield (
        hours is not None and hours < policy.min_hours_between_retrain,
        f"only {hours or 0:.1f} hours since the last retraining, "
        f"{policy.min_hours_between_retrain:g} are required",
    )
    yield (
        situation.taken_in_window >= policy.budget,
        f"{situation.taken_in_window} automatic retrainings in 30 days, the budget",
    )
    yield (
        request.kind is TriggerKind.DEGRADATION and not situation.recovered,
        "the score has not recovered since the last request",
    )
