# SPDX-License-Identifier: Apache-2.0
"""What a model store promises, and what every store does alike with a version and its files.

Moves are in `stage_moves.py`, questions in `queries.py`. Where versions, files and
journal entries are kept is left to the stores that derive from this.
"""

from __future__ import annotations

import logging
import tempfile
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

from fl_registry.comparison import metric_differences
from fl_registry.errors import RegistryError, StageError, disk_errors
from fl_registry.files.artifacts import HALF_FILE, file_digest
from fl_registry.files.half import HalfCopy, write_half
from fl_registry.files.version_files import VersionFiles
from fl_registry.journal.lease import Beat, Lease
from fl_registry.journal.lease_holder import LEASE_SECONDS, WhenBusy, Writer
from fl_registry.queries import PAGE, VersionQueries
from fl_registry.records import ModelVersion
from fl_registry.retention import PruneReport, Rule, reasons_to_stay
from fl_registry.serving.mlmodel import MODEL_FILE, Serving
from fl_registry.stages import Move, Stage
from fl_registry.tracking_checks import Names, finite_metrics
from fl_registry.version_tags import checked_metrics, checked_tags, checked_version, not_taken_over

logger = logging.getLogger(__name__)


class JournalledStore(VersionQueries):
    """A model store whose stages are derived from a journal of write-once entries."""

    def __init__(self, files: VersionFiles) -> None:
        super().__init__(files)
        self._names: defaultdict[str, Names] = defaultdict(Names)  # of metrics, by run

    @abstractmethod
    def save_model_version(
        self,
        model_path: str | Path,
        run_id: str | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        description: str = "",
        per_example: Mapping[str, float] | None = None,
        serving: Serving | None = None,
    ) -> str:
        """Save a model file as a new version, in stage None, and return its number as text.

        Saving equal weights again for the same run and round returns the first version's number:
        it keeps its metrics and tags, and a warning in the log says which of the new ones it does
        not take over. `set_version_tags` changes tags; with another `run_id`, or another tag
        ``round``, the same weights become a new version.

        Parameters
        ----------
        model_path : str | Path
            A ``.safetensors`` file, or a ``.pt``/``.pth`` file with a plain state dict.
        run_id : str | None
            The run that made it.
        metrics : Mapping[str, float] | None
            Its metrics; finite numbers. The first is shown as its score, unless a tag ``metric``
            names another.
        tags : Mapping[str, str] | None
            Further tags; those in `fl_registry.version_tags.RESERVED` are kept by the registry. One
            called ``keep`` keeps the version from being pruned.
        description : str
            Free text for people.
        per_example : Mapping[str, float] | None
            Its score on each example of a holdout, by a name that stays the same from version to
            version; higher is better. Kept as a file; `compare_versions` pairs them.
        serving : Serving | None
            How MLflow is to load and serve it; None leaves a version that only this app loads.

        Raises
        ------
        ArtifactError, InvalidMetric, InvalidName
            The file, a metric or a tag cannot be used, or the weights hold NaN or infinity;
            nothing was saved.
        """

    def _saved_again(
        self, version: str, tags: Mapping[str, str], *, description: str, serving: Serving | None
    ) -> str:
        """Return a version whose weights were saved again; report what it does not take over."""
        saved = self.get_version(version)
        lost = not_taken_over(saved, tags, description=description)
        if serving is not None and self._files.read(saved, MODEL_FILE) is None:
            lost.append("serving")
        if lost:
            logger.warning(
                "version %s has these weights already for the same run and round, and stays as it "
                "is; not taken over: %s. Change tags with set_version_tags, or give another run_id "
                "or tag round to save a new version",
                version,
                ", ".join(lost),
            )
        return version

    @abstractmethod
    def ping(self) -> None:
        """Raise `StoreUnavailable`, within about 10 seconds, if the store cannot be used."""

    @abstractmethod
    def last_beat(self) -> Beat:
        """Return the last sign of life of the server that writes; who gave it may have lost it."""

    @abstractmethod
    def give_beat(self, beat: Beat) -> None:
        """Store a sign of life."""

    @abstractmethod
    def lease_file(self) -> Path | None:
        """Return a file to lock that only this machine's servers of this model have, or None."""

    def writer(
        self, name: str, *, when_busy: WhenBusy = "wait", lasts: float = LEASE_SECONDS
    ) -> Writer:
        """Return the right to write to this model, to be used as ``with store.writer(…):``."""
        return Writer(self, name, when_busy=when_busy, lasts=lasts)

    @abstractmethod
    def _tag(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version, the registry's own included, or raise `UnknownVersion`."""

    @abstractmethod
    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
        *,
        step: int,
        time: datetime,
    ) -> None:
        """Log to a run, whether it has ended or not; `RegistryError` where there is none."""

    def log_production(
        self,
        version: str | int,
        metrics: Mapping[str, float],
        *,
        step: int,
        time: datetime,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Log how a version does in production to the run that made it.

        The run's status stays as it is. Logging the same numbers again changes nothing.

        Parameters
        ----------
        version : str | int
            The version.
        metrics : Mapping[str, float]
            By name; what is not a finite number is left out with a warning.
        step : int
            Place of the numbers in the run's curves.
        time : datetime
            When they were told, in UTC.
        texts : Mapping[str, str] | None
            Files to store with the run: content by path.

        Raises
        ------
        RegistryError
            The version names no run, or one that is gone.
        """
        record = self.get_version(version)
        if not record.run_id:
            raise RegistryError(
                f"Version {record.version} was saved without a run, so there is none to log its "
                "time in production to; save versions with run_id=."
            )
        numbers = self._names[record.run_id](finite_metrics(metrics))
        self._log(record.run_id, numbers, texts or {}, step=step, time=time)

    def set_version_tags(self, version: str | int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; those in `fl_registry.version_tags.RESERVED` are refused."""
        self._tag(checked_version(version), checked_tags(tags))

    def approve_version(
        self,
        version: str | int,
        *,
        actor: str = "",
        reason: str = "",
        lease: Lease | None = None,
    ) -> None:
        """Promote a version that waits for approval: its tag ``approval`` is ``pending``.

        Raises
        ------
        StageError
            It does not wait for approval, or may not go into production.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        record = self._waiting(version, ("approved", Stage.PRODUCTION))
        self.promote_to_production(record.version, actor=actor, reason=reason, lease=lease)
        self._tag(record.version, {"approval": "approved"})

    def reject_version(
        self,
        version: str | int,
        *,
        actor: str = "",
        reason: str = "",
        lease: Lease | None = None,
    ) -> None:
        """Archive a version that waits for approval; the journal keeps who and why.

        Raises
        ------
        StageError
            It does not wait for approval.
        """
        record = self._waiting(version, ("rejected", Stage.ARCHIVED))
        self.archive_version(record.version, actor=actor, reason=reason or "rejected", lease=lease)
        self._tag(record.version, {"approval": "rejected"})

    def _waiting(self, version: str | int, done: tuple[str, Stage]) -> ModelVersion:
        """Return a version that waits for approval, or for which the same is `done` already."""
        record = self.get_version(version)
        approval = record.tags.get("approval", "none")
        if approval != "pending" and (approval, record.stage) != done:
            raise StageError(
                f"Version {record.version} does not wait for approval (it is {approval!r}); "
                "promote or archive it if that is wanted all the same."
            )
        return record

    def compress_version(
        self,
        version: str | int,
        *,
        evaluate: Callable[[Path], Mapping[str, float]] | None = None,
    ) -> HalfCopy:
        """Keep a half-precision copy beside a version's weights, for `load_production_model`.

        The full weights stay what is promoted, compared and verified. The copy has its own
        digest, in the tag ``half``, together with what it changed. Doing it again replaces it.

        Parameters
        ----------
        version : str | int
            The version.
        evaluate : Callable[[Path], Mapping[str, float]] | None
            Returns the metrics of a weights file. It is called for the full weights and for the
            copy, on whatever data it likes; None measures nothing.

        Raises
        ------
        ArtifactError
            The weights are missing, have changed, or hold numbers that are too large.
        InvalidMetric
            `evaluate` returned something that is not a finite number; nothing was kept.
        """
        record = self.get_version(version)
        full = self._verified(record)
        with ExitStack() as stack:
            with disk_errors(f"halve the weights of version {record.version}"):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fl-app-half-"))
                target = Path(folder) / HALF_FILE
                write_half(full, target)
            changes = {}
            if evaluate is not None:
                before, after = (checked_metrics(evaluate(path)) for path in (full, target))
                changes = metric_differences(before, after)
            copy = HalfCopy(record.version, file_digest(target), target.stat().st_size, changes)
            self._files.add(record, target)
        self._tag(record.version, {"half": copy.encode()})
        return copy

    def prune(
        self,
        *,
        keep: int = 10,
        older_than: timedelta | None = None,
        dry_run: bool = True,
        actor: str = "",
    ) -> PruneReport:
        """Remove old versions and their files for good, or tell which would go.

        What is or has been in production stays for ever; so do the version in staging, versions
        with the tag ``keep``, those of other tools, and the newest `keep` whose files are whole.
        Each removal is journalled before anything is touched; one that was cut short is finished
        by the next clean-up. Files that another version refers to stay.

        Parameters
        ----------
        keep : int
            How many of the newest versions that can be restored stay.
        older_than : timedelta | None
            Only versions older than this go.
        dry_run : bool
            Only tell what would go.
        actor : str
            Who asks for it, for the journal.

        Raises
        ------
        RegistryError
            A setting cannot be used, or MLflow failed on the way.
        """
        rule, state = Rule(keep, older_than), self._state()
        records = list(self._all(state, page=PAGE))
        known = [record for record in records if record.version not in state.retired]
        kept = reasons_to_stay(known, state, rule, restorable=self._files.is_whole)
        begun = {v: size for v, size in self._files.noted().items() if v in state.retired}
        going = [record for record in reversed(known) if record.version not in kept]
        if dry_run:
            sizes = begun | {record.version: self._files.size(record) for record in going}
            return PruneReport(True, _sorted(sizes), sum(sizes.values()), kept)
        gone = {version: self._files.remove(version) for version in begun}
        for record in going:
            try:
                self._retire(record, actor)
            except StageError as error:  # it was moved meanwhile
                kept[record.version] = str(error)
            else:
                gone[record.version] = self._files.remove(record.version)
        left = {version: removal.left for version, removal in gone.items() if removal.left}
        freed = sum(removal.freed for removal in gone.values())
        logger.info("pruned %d versions, %d bytes are free", len(gone), freed)
        return PruneReport(False, _sorted(gone), freed, kept, left)

    def _retire(self, record: ModelVersion, actor: str) -> None:
        self._files.note(record)
        self._move(Move.RETIRE, record.version, actor=actor, reason="pruned")


def _sorted(versions: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(sorted(versions, key=int))
