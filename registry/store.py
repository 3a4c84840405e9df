# SPDX-License-Identifier: Apache-2.0
"""What every model store does alike: stage moves through the journal, and the questions to it.

Where versions, files and journal entries are kept is left to the stores that derive from this.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.artifacts import verify
from registry.errors import ArtifactError, JournalError
from registry.journal import Entry, Move, State, fold, new_entry, plan, read_chain, rollback_target
from registry.records import ModelVersion, Stage
from registry.versions import checked_stage, checked_version

logger = logging.getLogger(__name__)

_ATTEMPTS = 50  # claims lost in a row before giving up; each loss means that another move was won
_PAGE, _FEW = 10_000, 20  # versions asked for at a time


class JournalledStore(ABC):
    """A model store whose stages are derived from a journal of write-once entries."""

    @abstractmethod
    def save_model_version(
        self,
        model_path: str | Path,
        run_id: str | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Save a model file as a new version, in stage None, and return its number as text.

        Saving the same file again for the same run and round returns the first one's number.

        Parameters
        ----------
        model_path : str | Path
            A ``.safetensors`` file, or a ``.pt``/``.pth`` file with a plain state dict.
        run_id : str | None
            The run that made it.
        metrics : Mapping[str, float] | None
            Its metrics; finite numbers.
        tags : Mapping[str, str] | None
            Further tags; those in `registry.versions.RESERVED` are kept by the registry.

        Raises
        ------
        ArtifactError, InvalidMetric, InvalidName
            The file, a metric or a tag cannot be used; nothing was saved.
        """

    @abstractmethod
    def set_version_tags(self, version: str | int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; those in `registry.versions.RESERVED` are refused."""

    @abstractmethod
    def ping(self) -> None:
        """Raise `StoreUnavailable`, within about 10 seconds, if the store cannot be used."""

    @abstractmethod
    def _texts(self) -> list[str]:
        """Return the journal's entries as stored."""

    @abstractmethod
    def _claim(self, number: int, text: str) -> bool:
        """Write entry `number` if nobody has; say whether it is ours now. This is the commit."""

    @abstractmethod
    def _apply(self, state: State, entries: Sequence[Entry] | None) -> None:
        """Make aliases, tags and stages say what `state` says, for the versions that `entries`
        touched (None: for all). Doing so twice changes nothing."""

    @abstractmethod
    def _all(self, state: State, *, page: int) -> Iterator[ModelVersion]:
        """Yield all versions, newest first, asking for `page` of them at a time."""

    @abstractmethod
    def _one(self, version: str, state: State) -> ModelVersion:
        """Return one version, or raise `UnknownVersion`."""

    @abstractmethod
    def _file(self, record: ModelVersion) -> Path:
        """Return where the version's weights file is, or should be, on this machine."""

    def promote_to_staging(self, version: str | int, *, actor: str = "", reason: str = "") -> None:
        """Put a new version into staging; the one that was there is archived."""
        self._move(Move.STAGE, checked_version(version), actor=actor, reason=reason)

    def promote_to_production(
        self, version: str | int, *, actor: str = "", reason: str = ""
    ) -> None:
        """Put a version into production; the one that was there is archived.

        Raises
        ------
        StageError
            The version is archived: `rollback` is the way back.
        ArtifactError
            Its weights are missing or have changed since they were saved.
        """
        self._move(Move.PROMOTE, checked_version(version), actor=actor, reason=reason)

    def archive_version(self, version: str | int, *, actor: str = "", reason: str = "") -> None:
        """Archive a version; the one in production cannot be."""
        self._move(Move.ARCHIVE, checked_version(version), actor=actor, reason=reason)

    def rollback(self, to: str | int | None = None, *, actor: str = "", reason: str = "") -> str:
        """Put an earlier production version back, by default the previous one; return its number.

        Doing it twice returns to where it began.
        """
        target = None if to is None else checked_version(to)
        return self._move(Move.ROLLBACK, target, actor=actor, reason=reason)

    def reconcile(self) -> None:
        """Bring aliases, tags and stages in line with the journal, whatever was left undone."""
        entries = self.history()
        self._settle(entries, None)

    def history(self) -> tuple[Entry, ...]:
        """Return the journal, oldest first, its hash chain checked."""
        return read_chain(self._texts())

    def list_all_versions(self) -> list[dict[str, Any]]:
        """Return all versions as dictionaries, newest first (see `ModelVersion.as_row`)."""
        return [record.as_row() for record in self._all(self._state(), page=_PAGE)]

    def get_version(self, version: str | int) -> ModelVersion:
        """Return one version."""
        return self._one(checked_version(version), self._state())

    def get_latest_version(self, stage: str | Stage | None = None) -> str | None:
        """Return the newest version of a stage (None: of any), or None if there is none."""
        wanted, state = None if stage is None else checked_stage(stage), self._state()
        if wanted is Stage.PRODUCTION:
            return state.production
        if wanted is Stage.STAGING:
            return state.staging
        for record in self._all(state, page=_FEW):
            if wanted is None or record.stage is wanted:
                return record.version
        return None

    def compare_versions(self, a: str | int, b: str | int) -> dict[str, Any]:
        """Return both versions and, for each metric that both have, by how much `b` exceeds `a`."""
        state = self._state()
        one, two = self._one(checked_version(a), state), self._one(checked_version(b), state)
        shared = [name for name in one.metrics if name in two.metrics]
        return {
            "version1": one.as_row(),
            "version2": two.as_row(),
            "differences": {name: two.metrics[name] - one.metrics[name] for name in shared},
        }

    def weights_path(self, version: str | int) -> Path:
        """Return the local path of a version's weights, their digest checked.

        The file belongs to the registry: copy it, never change it.

        Raises
        ------
        ArtifactError
            The file is missing or has changed, or the version was not saved by this app.
        """
        return self._verified(self.get_version(version))

    def load_production_model(
        self, model_class: Callable[[], Any], device: str = "cpu"
    ) -> Any | None:
        """Return the production model ready for inference, or None if there is none.

        Parameters
        ----------
        model_class : Callable[[], Any]
            Makes the module, e.g. ``lambda: get_model(model_size="n", num_classes=7)``.
        device : str
            Where to put it.

        Raises
        ------
        ArtifactError
            The weights have changed since they were saved, or do not fit the module.
        """
        state = self._state()
        if state.production is None:
            return None
        record = self._one(state.production, state)
        from registry.loading import load_into

        return (
            load_into(model_class(), self._verified(record), version=record.version)
            .to(device)
            .eval()
        )

    def _state(self) -> State:
        return fold(self.history())

    def _verified(self, record: ModelVersion) -> Path:
        if not record.sha256:
            raise ArtifactError(
                f"Version {record.version} was not saved by this app and has no digest to check; "
                "save its file with save_model_version first."
            )
        return verify(self._file(record), record.sha256, version=record.version)

    def _move(self, op: Move, version: str | None, *, actor: str, reason: str) -> str:
        """Plan, verify, claim, apply; plan again whenever another process was first."""
        target, checked = version or "", False
        for _ in range(_ATTEMPTS):
            texts = self._texts()
            entries = read_chain(texts)
            state = self._settle(entries, entries)
            # Chosen once: of two rollbacks at the same time, the second must not undo the first.
            target = target or rollback_target(state)
            record = self._one(target, state)
            displaced = plan(state, op, target)
            if displaced is None:
                return target
            if op is not Move.ARCHIVE and not checked:
                self._verified(record)
                checked = True
            entry = new_entry(
                texts, op, version=target, displaced=displaced, actor=actor, reason=reason
            )
            if self._claim(entry.number, entry.encode()):
                logger.info("%s: version %s (%s)", op, target, reason or "no reason given")
                now = (*entries, entry)
                self._settle(now, now)
                return target
        raise JournalError(
            f"Version {target} could not be moved: other processes kept moving versions at the "
            "same time; try again."
        )

    def _settle(self, entries: Sequence[Entry], touched: Sequence[Entry] | None) -> State:
        """Apply the journal; if it grew meanwhile, apply it again, so that no stale state stays."""
        while True:
            state = fold(entries)
            self._apply(state, touched)
            newer = self.history()
            if len(newer) <= len(entries):
                return state
            entries, touched = newer, None if touched is None else newer
