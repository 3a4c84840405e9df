# SPDX-License-Identifier: Apache-2.0
"""What the monitor remembers between rounds, as one frozen record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from fl_app.retraining.degradation import Rule
from fl_app.retraining.drift.state import DriftState


def _rule_or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read a rule; None for the state of a rule that this version does not have."""
    try:
        return read(value)
    except ValidationError:
        return None


@dataclass(frozen=True)
class MonitorState:
    """The state of a `RetrainingManager`, as the monitor's memory stores it.

    Attributes
    ----------
    rule : Rule | None
        The degradation rule with its scores; None if it cannot be read.
    served_version : str | None
        Version whose score the rule was last rebased on.
    recovered : bool
        Whether the score was healthy at some time since the rule's last request.
    rounds_since : int | None
        Rounds since a request was last taken; None before the first.
    taken : str
        Id of that request.
    errors_in_a_row : int
        Rejected scores since the last one that was a number.
    drift : DriftState
        The state of the drift test.
    """

    rule: Annotated[Rule | None, WrapValidator(_rule_or_none)] = None
    served_version: str | None = None
    recovered: bool = True
    rounds_since: int | None = None
    taken: str = ""
    errors_in_a_row: int = 0
    drift: DriftState = field(default_factory=DriftState)
