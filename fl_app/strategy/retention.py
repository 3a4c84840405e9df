# SPDX-License-Identifier: Apache-2.0
"""Which old versions go, during a session and at its end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from fl_app.settings import Key, check_settings
from fl_registry import ModelStore, RegistryError, StoreUnavailable

logger = logging.getLogger("flwr.fl_app")

ACTOR = "retention"
"""Actor of the removals in the journal."""
FEW_ROUNDS, MANY_ROUNDS = 10, 50
"""Rounds between two removals during a session, at least and at most."""
AT_END = 200
"""Versions that go at the end of a session, which waits for it."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Remove old versions during a session and at its end, by the rules of `ModelStore.prune`.

    What is or was in Production or is in Staging stays, and so do versions with the tag ``keep``.
    Without either limit nothing is removed. With one of them only, the other one is that of
    ``prune``: the newest 10 stay, of any age.

    After some rounds (10, or a quarter of ``keep_versions``, at most 50) a session removes its own
    old versions, and at its end those of earlier sessions as well. Each time the number is bounded.

    Parameters
    ----------
    keep_versions : int | None
        Newest versions that stay when old ones are removed, in and after a session; None: all.
    keep_days : float | None
        Days for which versions stay when old ones are removed; None: by number only.

    Raises
    ------
    SettingError
        If a limit is not positive.
    """

    keep_versions: Annotated[int | None, Field(ge=1), Key(off=0)] = None
    keep_days: Annotated[float | None, Field(gt=0, le=36500), Key(off=0.0)] = None

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def every(self) -> int:
        """Rounds after which a session removes its old versions; 0 if nothing is removed."""
        if self.keep_versions is None and self.keep_days is None:
            return 0
        return min(max(FEW_ROUNDS, (self.keep_versions or 0) // 4), MANY_ROUNDS)

    def apply_in_session(self, store: ModelStore, run_id: str, number: int) -> None:
        """After a round, remove old versions of this session if it is time to.

        What cannot be removed is logged, and tried again after some more rounds.
        """
        if run_id and self.every and number % self.every == 0:
            try:
                self._prune(store, run_id=run_id, most=2 * self.every)
            except StoreUnavailable as error:  # the next round finds out as well
                logger.info("old versions were not removed: %s", error)

    def apply(self, store: ModelStore) -> None:
        """Remove old versions; what cannot be removed is logged, and tried after the next session.

        Raises
        ------
        StoreUnavailable
            MLflow does not answer.
        """
        if self.every:
            self._prune(store, most=AT_END)

    def _prune(self, store: ModelStore, *, most: int, run_id: str = "") -> None:
        keep = {} if self.keep_versions is None else {"keep": self.keep_versions}
        age = None if self.keep_days is None else timedelta(days=self.keep_days)
        try:
            report = store.prune(
                **keep, older_than=age, dry_run=False, actor=ACTOR, run_id=run_id, most=most
            )
        except StoreUnavailable:
            raise
        except RegistryError as error:
            logger.warning("old versions were not removed: %s", error)
            return
        if report.versions:
            logger.info(
                "retention: %d old versions removed, %.1f MB",
                len(report.versions),
                report.freed / 1e6,
            )
        if report.later:
            logger.info(
                "retention: %d more old versions go later; `fl-app prune` removes them at once",
                report.later,
            )
        for version, why in report.left.items():
            logger.warning("version %s was not removed completely: %s", version, why)
