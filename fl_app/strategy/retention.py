# SPDX-License-Identifier: Apache-2.0
"""Which old versions go at the end of a session."""

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


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Remove old versions at the end of a session, by the rules of `ModelStore.prune`.

    What is or was in Production or is in Staging stays, and so do versions with the tag ``keep``.
    Without either limit nothing is removed. With one of them only, the other one is that of
    ``prune``: the newest 10 stay, of any age.

    Parameters
    ----------
    keep_versions : int | None
        Newest versions that stay when old ones are removed at the end of a session; None: all.
    keep_days : float | None
        Days for which versions stay when old ones are removed at the end of a session; None: by
        number only.

    Raises
    ------
    SettingError
        If a limit is not positive.
    """

    keep_versions: Annotated[int | None, Field(ge=1), Key(off=0)] = None
    keep_days: Annotated[float | None, Field(gt=0, le=36500), Key(off=0.0)] = None

    def __post_init__(self) -> None:
        check_settings(self)

    def apply(self, store: ModelStore) -> None:
        """Remove old versions; what cannot be removed is logged, and tried after the next session.

        Raises
        ------
        StoreUnavailable
            MLflow does not answer.
        """
        if self.keep_versions is None and self.keep_days is None:
            return
        keep = {} if self.keep_versions is None else {"keep": self.keep_versions}
        age = None if self.keep_days is None else timedelta(days=self.keep_days)
        try:
            report = store.prune(**keep, older_than=age, dry_run=False, actor=ACTOR)
        except StoreUnavailable:
            raise
        except RegistryError as error:
            logger.warning("old versions were not removed: %s", error)
            return
        logger.info(
            "retention: %d old versions removed, %.1f MB", len(report.versions), report.freed / 1e6
        )
        for version, why in report.left.items():
            logger.warning("version %s was not removed completely: %s", version, why)
