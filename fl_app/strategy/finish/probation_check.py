# SPDX-License-Identifier: Apache-2.0
"""What a session tells of the version on probation: how it and its rival score on the same data."""

from __future__ import annotations

import logging

from fl_app.strategy.finish.evaluation import Scored
from fl_app.strategy.records import ProductionWatch
from fl_app.strategy.session.state import Session
from fl_registry import Evidence, ModelStore, RegistryError

logger = logging.getLogger("flwr.fl_app")


def compare_production(
    watch: ProductionWatch | None, session: Session, store: ModelStore, metric: str | None
) -> None:
    """Score the version on probation and the one it would go back to, and tell of both.

    Nothing where there is no such version, or no holdout. A rival that cannot be scored is left
    out.
    """
    pair = None if watch is None else watch.to_compare()
    if watch is None or pair is None or session.evaluate_fn is None:
        return
    version, rival = pair
    mine = _scored(session, store, version, metric) or Scored({})
    theirs = _scored(session, store, rival, metric) or Scored({})
    evidence = Evidence(
        metrics=mine.metrics,
        champion=theirs.metrics or None,
        results=mine.results,
        champion_results=theirs.results,
    )
    watch.update_production(version, evidence, rival=rival)


def _scored(
    session: Session, store: ModelStore, version: str | None, metric: str | None
) -> Scored | None:
    """Return a fresh score; one that stands in for it says nothing about today."""
    try:
        scored = session.score_of(store, version, metric)
        return None if scored is None or scored.note else scored
    except RegistryError as error:
        logger.warning("version %s cannot be scored: %s", version, error)
        return None
