# SPDX-License-Identifier: Apache-2.0
"""What others have put into Staging while a session was cut short, and must be beaten too."""

from __future__ import annotations

import math
from typing import Literal

from fl_app.strategy.session.state import Session
from fl_registry import ModelStore, Stage


def meet_staging(
    session: Session, store: ModelStore, metric: str | None, mode: Literal["max", "min"]
) -> None:
    """Let the best so far be what is in Staging by now, if that is another's and is better.

    Before the first model of a server without a model nothing can be compared. A version of the
    session itself is left out, also if its round was cut short before it was done.
    """
    version = store.get_latest_version(Stage.STAGING)
    if metric is None or version is None or not session.schema:
        return
    if store.get_version(version).run_id == session.run_id:
        return
    scored = session.score_of(store, version, metric)
    if scored is None or not math.isfinite(score := scored.metrics.get(metric, math.nan)):
        return
    own = math.nan if session.best is None else session.best.metrics.get(metric, math.nan)
    if not math.isfinite(own) or (score > own if mode == "max" else score < own):
        session.best = scored
