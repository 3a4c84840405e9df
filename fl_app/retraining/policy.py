# SPDX-License-Identifier: Apache-2.0
"""Whether a request may become a session now: pure, and apart from what makes requests."""

from __future__ import annotations

from dataclasses import dataclass

from fl_app.retraining.triggers import RetrainRequest, TriggerKind


@dataclass(frozen=True)
class RetrainPolicy:
    """Limits of automatic requests; those of people pass.

    Attributes
    ----------
    min_rounds_between_retrain : int
        Rounds since the last request was taken before a rule may ask again.
    """

    min_rounds_between_retrain: int = 10

    def __post_init__(self) -> None:
        if self.min_rounds_between_retrain < 0:
            raise ValueError(
                f"min_rounds_between_retrain is {self.min_rounds_between_retrain}, "
                "expected 0 or more rounds."
            )


@dataclass(frozen=True)
class Suppressed:
    """A request that did not go through, and why."""

    request: RetrainRequest
    why: str


def decide(
    policy: RetrainPolicy,
    request: RetrainRequest,
    *,
    pending: RetrainRequest | None,
    rounds_since_retrain: int | None,
) -> RetrainRequest | Suppressed:
    """Let a request through, or say why not.

    Parameters
    ----------
    policy : RetrainPolicy
        The limits.
    request : RetrainRequest
        The one that has come in.
    pending : RetrainRequest | None
        The one that waits already; at most one does, later ones join it.
    rounds_since_retrain : int | None
        Rounds since a request was last taken; None if none ever was.
    """
    if pending is not None:
        return Suppressed(request, f"it joins request {pending.id}, which waits already")
    if request.kind is TriggerKind.MANUAL or rounds_since_retrain is None:
        return request
    if rounds_since_retrain < policy.min_rounds_between_retrain:
        return Suppressed(
            request,
            f"only {rounds_since_retrain} rounds since the last retraining, "
            f"{policy.min_rounds_between_retrain} are asked for",
        )
    return request
