# SPDX-License-Identifier: Apache-2.0
"""What a failed probation does to the registry: the way back, taken once, and the tags of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fl_app.retraining.probation.rule import ways_back
from fl_app.retraining.probation.state import Failure, Phase, ProbationState
from fl_registry import (
    ArtifactError,
    InvalidMetric,
    ModelStore,
    RegistryError,
    StageError,
    Tenure,
    UnknownVersion,
    tenures,
)

logger = logging.getLogger("flwr.fl_app")

ACTOR = "probation"
"""Who the journal names for a rollback by itself."""
TAG, REASON_TAG = "probation", "probation_reason"
LOOKED_BACK = 50
"""Versions whose tags are asked whether they passed."""


def replacement(models: ModelStore, failure: Failure, state: ProbationState) -> tuple[str, bool]:
    """Bring a version back in place of one that failed, unless that was done.

    Returns
    -------
    tuple[str, bool]
        The version that came in its place, and whether it was brought back here. An empty text if
        there is nothing to go back to; then the version that failed stays.

    Raises
    ------
    RegistryError
        The registry does not answer, or others keep moving versions.
    """
    for _ in range(2):
        stays = tenures(models.history())
        places = [n for n, stay in enumerate(stays) if stay.id == failure.promotion]
        if not places:  # the registry was begun anew meanwhile
            return "", False
        after = stays[places[0] + 1 :]
        if after:
            return after[0].version, after[0].actor == ACTOR
        if not _go_back(models, failure, known_ways_back(models, stays, state)):
            return "", True
    raise RegistryError(f"Version {failure.version} could not be rolled back; try again.")


def known_ways_back(
    models: ModelStore, stays: Sequence[Tenure], state: ProbationState
) -> tuple[str, ...]:
    """Return the versions to go back to, the best first, by what the memory and tags tell."""
    good, failed = set(state.good), set(state.failed)
    newest_first = dict.fromkeys(stay.version for stay in reversed(stays))
    for version in list(newest_first)[:LOOKED_BACK]:
        if version not in good | failed:
            tag = models.get_version(version).tags.get(TAG)
            good |= {version} if tag == Phase.PASSED else set()
            failed |= {version} if tag == Phase.FAILED else set()
    return ways_back(stays, good, failed)


def tag_of(version: str, state: ProbationState) -> dict[str, str]:
    """Return the tags that tell what became of a version's probation."""
    if version not in state.failed:
        return {TAG: str(Phase.PASSED)}
    failure = state.failure
    known = failure is not None and failure.version == version
    reason = failure.reason if known and failure is not None else ""
    return {TAG: str(Phase.FAILED), REASON_TAG: reason}


def in_words(failure: Failure) -> str:
    """Say in one sentence what failed, why, and what came of it."""
    end = (
        f"version {failure.back} is in production in its place"
        if failure.back
        else "there is no other version to go back to, so it stays in production"
    )
    return f"version {failure.version} failed its probation, {end}: {failure.reason}"


def _go_back(models: ModelStore, failure: Failure, ways: Sequence[str]) -> bool:
    """Roll back to the first version that is whole; False if there is none."""
    for target in ways:
        try:
            models.rollback(
                target,
                actor=ACTOR,
                reason=f"version {failure.version} failed its probation: {failure.reason}",
                displacing=failure.version,
            )
        except (ArtifactError, InvalidMetric, UnknownVersion) as error:
            logger.warning("version %s cannot come back: %s", target, error)
        except StageError as error:
            if tenures(models.history())[-1].id != failure.promotion:
                return True  # somebody else was first
            logger.warning("version %s cannot come back: %s", target, error)
        else:
            return True
    return False
