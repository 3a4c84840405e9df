# SPDX-License-Identifier: Apache-2.0
"""`ModelStore`: versions of one registered model, their stages, and all that can be asked of them.

What is allowed and what it leads to is decided in `fl_registry.stages`, what entries look like in
`fl_registry.journal.entries`, and where everything is stored by a `fl_registry.backend.Backend`.
"""

from __future__ import annotations

import logging
import math
import re
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from fl_registry.backend import Backend, NewVersion
from fl_registry.errors import (
    ArtifactError,
    Gone,
    InvalidMetric,
    RegistryError,
    StageError,
    UnknownVersion,
    foreign_errors,
)
from fl_registry.files.artifacts import (
    HALF_FILE,
    SCORES_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    HalfCopy,
    Removal,
    prepared,
    read_half,
    write_half,
)
from fl_registry.files.digests import Weights, digest_of, file_digest
from fl_registry.files.loading import ReadyModels, read_arrays
from fl_registry.gates.paired import paired_verdict
from fl_registry.journal.entries import (
    Entry,
    JournalError,
    Ledger,
    Mark,
    appended,
    as_moment,
    check_since,
    is_date,
    mark_at_end,
    new_entry,
    production_at,
    read_chain,
    read_page,
    touched,
)
from fl_registry.journal.lease import (
    LEASE_SECONDS,
    NOBODY,
    Heartbeat,
    Lease,
    WhenBusy,
    Writer,
    require_lease,
)
from fl_registry.serving.mlmodel import MODEL_FILE, Serving
from fl_registry.stages import (
    Drift,
    Move,
    Stage,
    State,
    displaced_mark,
    mark_of,
    shown_tags,
    stage_drift,
)
from fl_registry.tracking import Names, finite_metrics
from fl_registry.versions import (
    ModelVersion,
    PruneReport,
    architecture_differences,
    checked_description,
    checked_metrics,
    checked_scores,
    checked_tags,
    data_differences,
    metric_differences,
    not_taken_over,
    param_differences,
    read_numbers,
    read_version,
    reasons_to_stay,
    version_tags,
)

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

ALIAS_SECONDS = 2.0
"""Seconds after a move in which another process may still be writing its aliases."""
_ATTEMPTS = 50  # claims lost in a row before giving up; each loss means that another move was won
_CONTENDED = "other processes kept moving versions at the same time; try again."
_NEEDS_METRICS = (Move.STAGE, Move.PROMOTE, Move.RESTORE, Move.ADOPT)
_AT_ONCE, _FEW = 10_000, 20  # versions requested at a time
_LISTED_EVERY = 500  # removals after which it is looked again who else refers to files
_RECENT = 3  # moves whose versions a new store object checks
_VERSION = re.compile(r"[0-9]{1,18}", re.ASCII)
_PICTURE = re.compile(r"[\w .()-]{1,150}\.(png|jpg|jpeg)", re.ASCII)
_FRESH = 5.0  # seconds for which a version is taken to be as this object saved it


class By(TypedDict, total=False):
    """Who moves a version, and why.

    Attributes
    ----------
    actor, reason : str
        For the journal.
    lease : Lease | None
        The lease of a server that moves versions by rule; None for people.
    """

    actor: str
    reason: str
    lease: Lease | None


@dataclass(frozen=True)
class _Snapshot:
    """What was last read of the backend; a thread may put an older one in its place.

    Attributes
    ----------
    ledger : Ledger
        The journal.
    fingerprint : Hashable | None
        The backend's, right before that was read.
    synced : int
        How many entries have aliases and marks that were seen right.
    production : tuple[Hashable | None, float, ModelVersion | None] | None
        The version in production, with the fingerprint and the time of that question.
    """

    ledger: Ledger = field(default_factory=Ledger)
    fingerprint: Hashable | None = None
    synced: int = 0
    production: tuple[Hashable | None, float, ModelVersion | None] | None = None


class _Shared(threading.local):
    """The reading that a thread's calls share in a `one_reading` block."""

    depth = 0
    ledger: Ledger | None = None


class ModelStore:
    """Versions of one registered model, and their stages.

    The journal in the backend is the truth; aliases, tags and MLflow's stage field are derived
    from it, and put right before each move. Moves take ``actor`` and ``reason`` for the journal. A
    move that a server makes by rule also names its ``lease``, and is refused with `LeaseLost` once
    another server has taken over; moves of people name none.

    Parameters
    ----------
    backend : Backend
        Where versions, files and the journal are stored.
    alias_seconds : float
        Seconds after a move in which a wrong alias may still be on its way.
    """

    def __init__(self, backend: Backend, *, alias_seconds: float = ALIAS_SECONDS) -> None:
        self.backend = backend
        self.alias_seconds = alias_seconds
        self._ready = ReadyModels(backend.files.whole)
        self._last = _Snapshot()
        self._shared = _Shared()
        self._saved: tuple[float, ModelVersion] | None = None  # the newest save, and when
        self._whole: tuple[Hashable | None, tuple[Entry, ...]] | None = None  # the journal
        self._full_pages: tuple[Ledger, ...] = ()  # of the journal, oldest first; they stay so
        self._names: defaultdict[str, Names] = defaultdict(Names)  # of metrics, by run

    def ping(self) -> None:
        """Raise `StoreUnavailable`, within about 10 seconds, if the store cannot be used."""
        self.backend.ping()

    def check_files(self) -> None:
        """Check that the store takes a version's files and gives them back.

        Raises
        ------
        RegistryError
            It does not; the text says why.
        """
        self.backend.check_files()

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
        final: bool = False,
    ) -> str:
        """Save a model file as a new version, in stage None, and return its number as text.

        Saving equal weights again for the same run and round returns the first version's number.
        That version keeps its metrics and tags, and a warning in the log names what was given and
        not stored. `set_version_tags` changes tags; with another `run_id`, or another tag
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
            Further tags; those in `fl_registry.versions.RESERVED` are refused. One called
            ``keep`` keeps the version from being pruned; ``approval=pending`` makes a version that
            is put into staging wait for approval.
        description : str
            Free text for people.
        per_example : Mapping[str, float] | None
            Its score on each example of a holdout, by a name that stays the same from version to
            version; higher is better. Stored as a file; `compare_versions` pairs them.
        serving : Serving | None
            How MLflow is to load and serve it; None stores a version that only this app loads.
        final : bool
            Nobody writes to the file again. It may then be stored as a hard link, not as a copy.

        Raises
        ------
        ArtifactError, InvalidMetric, InvalidName
            The file, a metric or a tag cannot be used, or the weights hold NaN or infinity;
            nothing was saved.
        """
        text, scores = checked_description(description), checked_scores(per_example)
        with prepared(model_path, self.backend.scratch, per_example=scores) as artifact:
            given = version_tags(artifact, run_id=run_id, metrics=metrics, tags=tags)
            new = NewVersion(artifact, run_id or "", given, text, serving, final)
            record, is_new = self.backend.save(new, lambda: self._state().retired)
        if is_new:
            self._saved = time.monotonic(), record
            return record.version
        lost = not_taken_over(record, given, description=text)
        if serving is not None and self.backend.files.read(record, MODEL_FILE) is None:
            lost.append("serving")
        if lost:
            logger.warning(
                "version %s already has these weights for the same run and round and is not "
                "changed; not stored: %s. Change tags with set_version_tags, or give another "
                "run_id or tag round to save a new version",
                record.version,
                ", ".join(lost),
            )
        return record.version

    def set_version_tags(self, version: str | int, tags: Mapping[str, str]) -> None:
        """Set tags of a version; those in `fl_registry.versions.RESERVED` are refused."""
        self._set_tags(_checked_number(version), checked_tags(tags))

    def compress_version(
        self,
        version: str | int,
        *,
        evaluate: Callable[[Path], Mapping[str, float]] | None = None,
    ) -> HalfCopy:
        """Store a half-precision copy beside a version's weights, for `load_production_model`.

        The full weights stay what is promoted, compared and verified. The copy has its own
        digest, in the tag ``half``, together with what it changed. A repeated call replaces it.

        Parameters
        ----------
        version : str | int
            The version.
        evaluate : Callable[[Path], Mapping[str, float]] | None
            Returns the metrics of a weights file. It is called with the full weights and with the
            copy; None measures nothing.

        Raises
        ------
        ArtifactError
            The weights are missing, have changed, or hold numbers that are too large.
        InvalidMetric
            `evaluate` returned something that is not a finite number; nothing was stored.
        """
        record = self.get_version(version)
        full = self._verified(record)
        with ExitStack() as stack:
            with foreign_errors(f"halve the weights of version {record.version}"):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fl-app-half-"))
                target = Path(folder) / HALF_FILE
                write_half(full, target)
            changes = {}
            if evaluate is not None:
                before, after = (checked_metrics(evaluate(path)) for path in (full, target))
                changes = metric_differences(before, after)
            copy = HalfCopy(record.version, file_digest(target), target.stat().st_size, changes)
            self.backend.files.add(record, target)
        self._set_tags(record.version, {"half": copy.encode()})
        return copy

    def promote_to_staging(self, version: str | int, **by: Unpack[By]) -> None:
        """Put a new version into staging; the one that was there is archived.

        Raises
        ------
        StageError
            The version is archived (`restore_version` is the way back) or in production.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        self._move(Move.STAGE, _checked_number(version), **by)

    def promote_to_production(self, version: str | int, **by: Unpack[By]) -> None:
        """Put a version into production; the one that was there is archived.

        A version that has once been in production comes back: the journal calls it a rollback.

        Raises
        ------
        StageError
            The version is archived and has never been in production.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        self._move(Move.PROMOTE, _checked_number(version), **by)

    def archive_version(self, version: str | int, **by: Unpack[By]) -> None:
        """Archive a version; the one in production is refused with `StageError`."""
        self._move(Move.ARCHIVE, _checked_number(version), **by)

    def restore_version(self, version: str | int, **by: Unpack[By]) -> None:
        """Put an archived version back into staging; the one that was there is archived.

        Raises
        ------
        StageError
            The version is not archived.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        self._move(Move.RESTORE, _checked_number(version), **by)

    def approve_version(self, version: str | int, **by: Unpack[By]) -> None:
        """Promote a version that waits for approval: its tag ``approval`` is ``pending``.

        Raises
        ------
        StageError
            It does not wait for approval, or may not go into production.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        record = self._pending(version, ("approved", Stage.PRODUCTION))
        self.promote_to_production(record.version, **by)

    def reject_version(self, version: str | int, **by: Unpack[By]) -> None:
        """Archive a version that waits for approval; the journal records who and why.

        Raises
        ------
        StageError
            It does not wait for approval.
        """
        record = self._pending(version, ("rejected", Stage.ARCHIVED))
        by["reason"] = by.get("reason") or "rejected"
        self._move(Move.ARCHIVE, record.version, approval="rejected", **by)

    def rollback(
        self, to: str | int | date | None = None, *, displacing: str = "", **by: Unpack[By]
    ) -> str:
        """Put a version that has been in production back there, and return its number.

        Without `to` it is the one that was there before, so rolling back twice returns.

        Parameters
        ----------
        to : str | int | date | None
            A version; or a day or moment, such as ``"2026-11-23"``: what was in production then
            (see `production_at`).
        displacing : str
            Only go back if this version is still the one in production; empty for any.

        Raises
        ------
        StageError
            There is no such version, or another one than `displacing` is in production.
        ArtifactError
            Its weights are missing or have changed since they were saved.
        """
        goal = None if to is None or is_date(to) else _checked_number(to)
        if is_date(to) and (goal := self.production_at(to)) is None:
            raise StageError(
                f"Nothing was in production at {to}, so there is nothing to roll back to; "
                "name a version with to=."
            )
        return self._move(Move.ROLLBACK, goal, displacing=displacing, **by)[0]

    def adopt(self, *, actor: str = "", reason: str = "") -> tuple[Entry, ...]:
        """Journal the aliases that were moved outside the registry, and return the entries.

        The alias ``previous-production``, and a ``production`` that was deleted, follow from the
        journal: they cannot be adopted and are put right.

        Raises
        ------
        StageError, ArtifactError, InvalidMetric
            The version that the alias names may not be there; `reconcile` puts the alias back.
        """
        why = f"adopted from MLflow: {reason}" if reason else "adopted from MLflow"
        drift, entries = self._alias_drift()[1], []
        for op, version in self._state().adoptions(drift):
            # Aliases are synced after the last one only: before, that would undo the others.
            entries.append(self._move(op, version, sync=False, actor=actor, reason=why)[1])
        self._synced()
        return tuple(filter(None, entries))

    def acknowledge(self, version: str | int, *, actor: str = "", reason: str = "") -> None:
        """Journal that a version's files are lost and that this is known; `doctor` is content then.

        Raises
        ------
        StageError
            The version is in Staging or Production, or its files are whole.
        UnknownVersion
            The journal does not know it.
        """
        number = _checked_number(version)
        state = self._read_new().state
        stage = state.stage_of(number)
        if stage in (Stage.PRODUCTION, Stage.STAGING):
            raise StageError(f"Version {number} is in {stage}; {_way_out(stage)} first.")
        try:
            self._verified(self.get_version(number))
        except (ArtifactError, Gone):
            pass
        else:
            raise StageError(f"The files of version {number} are whole; nothing was acknowledged.")
        draft = Entry(Move.ACKNOWLEDGE, number, actor=actor, reason=reason)
        self._claimed(draft, lambda ledger: ledger.state.stage_of(number) is stage)

    def acknowledged(self) -> frozenset[str]:
        """Return the versions whose loss is known, and which were not in production since."""
        known: set[str] = set()
        for entry in self.history():
            if entry.op is Move.ACKNOWLEDGE:
                known.add(entry.version)
            else:
                known.discard(entry.version)
        return frozenset(known)

    def losses(self) -> tuple[str, ...]:
        """Return, in sentences, what people have deleted or renamed that is in use; none is usual.

        Raises
        ------
        Gone
            The registered model itself was deleted.
        """
        state = self._state()
        named = filter(None, map(state.version_in, (Stage.PRODUCTION, Stage.STAGING)))
        gone = [v for v in named if self.backend.find(v) is None]
        return (*self.backend.notices(), *(_deleted(v, state) for v in gone))

    def prune(
        self,
        *,
        keep: int = 10,
        older_than: timedelta | None = None,
        dry_run: bool = True,
        actor: str = "",
        run_id: str = "",
        most: int | None = None,
    ) -> PruneReport:
        """Remove old versions and their files for good, or report which would go.

        What is or has been in production stays for ever; so do the version in staging, versions
        with the tag ``keep``, those of other tools, and the newest `keep` whose files are whole.
        Each removal is journalled before anything is touched; an interrupted one is finished by
        the next clean-up. Files that another version refers to stay.

        Parameters
        ----------
        keep : int
            How many of the newest versions that can be restored stay.
        older_than : timedelta | None
            Only versions older than this go.
        dry_run : bool
            Only report what would go.
        actor : str
            Who requested it, for the journal.
        run_id : str
            Only versions that this run made, `keep` of which stay; the others are not even read.
        most : int | None
            How many go at most, the oldest first; None for all.

        Raises
        ------
        RegistryError
            A setting cannot be used, or MLflow failed on the way.
        """
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise RegistryError(f"most is {most!r}; expected a number of versions, 1 or more.")
        state, files, inventory = self._state(), self.backend.files, self.backend.inventory(run_id)
        stored = inventory.records
        begun = [record for record in stored if record.version in state.retired]
        records = [
            _staged(record, state) for record in stored if record.version not in state.retired
        ]
        stay = reasons_to_stay(records, state, keep, older_than, restorable=files.is_whole)
        going = [record for record in reversed(records) if record.version not in stay]
        due = [*begun, *going][:most]
        later = len(begun) + len(going) - len(due)
        if dry_run:
            sizes = {
                record.version: 0 if inventory.users(record) else files.size(record)
                for record in due
            }
            gone_then = tuple(sorted(sizes, key=int))
            return PruneReport(True, gone_then, sum(sizes.values()), stay, later=later)
        gone: dict[str, Removal] = {}
        for place, record in enumerate(due):
            if place and place % _LISTED_EVERY == 0:  # others may refer to files by now
                inventory = self.backend.inventory(run_id)
            try:
                if record.version not in state.retired:
                    self._move(Move.RETIRE, record.version, actor=actor, reason="pruned")
            except StageError as error:  # it was moved meanwhile
                stay[record.version] = str(error)
                continue
            gone[record.version] = files.remove(record, users=inventory.users(record))
        left = {version: removal.left for version, removal in gone.items() if removal.left}
        freed = sum(removal.freed for removal in gone.values())
        logger.info("pruned %d versions, %d bytes are free", len(gone), freed)
        return PruneReport(False, tuple(sorted(gone, key=int)), freed, stay, left, later)

    def list_versions(
        self,
        *,
        limit: int | None = None,
        stage: str | Stage | None = None,
        since: date | str | None = None,
        before: str | int | None = None,
    ) -> list[dict[str, Any]]:
        """Return versions as `list_all_versions` does, and read no more than these.

        Parameters
        ----------
        limit : int | None
            How many at most, the newest ones.
        stage : str | Stage | None
            Only those in this stage.
        since : date | str | None
            Only those that were saved on that day, or at that moment in UTC, or later.
        before : str | int | None
            Only those with a smaller number than this version: the last one of the page before.

        Raises
        ------
        StageError, InvalidName, UnknownVersion
            There is no such stage; it is no date, or no version's number.
        """
        wanted, state = None if stage is None else _checked_stage(stage), self._state()
        start = None if since is None else as_moment(since, end=False)
        first = "" if before is None else _checked_number(before)
        if limit is not None and limit <= 0:
            return []
        at_once = _AT_ONCE if limit is None else min(limit + _FEW, _AT_ONCE)
        rows: list[dict[str, Any]] = []
        for record in self._records(state, at_once=at_once, stage=wanted, before=first):
            if (start is not None and record.created < start) or len(rows) == limit:
                break
            rows.append(record.as_row())
        return rows

    def list_all_versions(self) -> list[dict[str, Any]]:
        """Return all versions as dictionaries, newest first (see `ModelVersion.as_row`)."""
        return self.list_versions()

    def get_version(self, version: str | int) -> ModelVersion:
        """Return one version."""
        number, state = _checked_number(version), self._state()
        if number in state.retired:
            raise UnknownVersion(f"Version {number} was removed for good; use another version.")
        return self._found(number, state)

    def named_version(self, version_or_stage: str | int | Stage) -> ModelVersion:
        """Return a version by its number, or the newest one of a stage.

        Raises
        ------
        UnknownVersion
            There is no such version, or none in the stage.
        StageError
            It is neither a version nor a stage.
        """
        text = str(version_or_stage).strip()
        if text.isdecimal():
            return self.get_version(text)
        stage = _checked_stage(text)
        version = self.get_latest_version(stage)
        if version is not None:
            return self.get_version(version)
        newest = self.get_latest_version()
        if newest is None:
            raise UnknownVersion("There are no versions yet; save one with save_model_version().")
        raise UnknownVersion(
            f"No version is in stage {stage}; the newest is version {newest}, in stage "
            f"{self.get_version(newest).stage}; give its number, or promote it first."
        )

    def get_latest_version(self, stage: str | Stage | None = None) -> str | None:
        """Return the newest version of a stage (None: of any), or None if there is none."""
        wanted, state = None if stage is None else _checked_stage(stage), self._state()
        if wanted in (Stage.PRODUCTION, Stage.STAGING):
            return state.version_in(wanted)
        records = self._records(state, at_once=_FEW, stage=wanted)
        return next((record.version for record in records), None)

    def compare_versions(self, a: str | int, b: str | int) -> dict[str, Any]:
        """Return two versions and what differs between them.

        Returns
        -------
        dict[str, Any]
            ``version1``, ``version2``: both, as `list_all_versions` has them. ``differences``:
            for each metric that both have, by how much `b` exceeds `a`. ``params``: params of
            the runs that made them; ``architecture``: arrays of other names, shapes or dtypes;
            ``data``: nodes that took part, and whether their data changed; ``paired``: whether
            `b` is better on the very same examples (see `paired_verdict`). What is not
            known, since it was never saved or is gone, is None.
        """
        with self.one_reading():
            one, two = self.get_version(a), self.get_version(b)
        specs = [self.backend.files.read(record, SPEC_FILE) for record in (one, two)]
        params = [self.backend.run_params(r.run_id) if r.run_id else None for r in (one, two)]
        return {
            "version1": one.as_row(),
            "version2": two.as_row(),
            "differences": metric_differences(one.metrics, two.metrics),
            "params": param_differences(*params),
            "architecture": architecture_differences(*specs),
            "data": data_differences(one.tags.get("nodes"), two.tags.get("nodes")),
            "paired": paired_verdict(*(self._scores(record) for record in (one, two))),
        }

    def pictures(self, version: str | int) -> tuple[str, ...]:
        """Return the names of the pictures in the run that made a version; often of its session."""
        run_id = self.get_version(version).run_id
        names = self.backend.run_files(run_id) if run_id else ()
        return tuple(name for name in names if _PICTURE.fullmatch(name))

    def picture(self, version: str | int, name: str) -> bytes:
        """Return a picture of the run that made a version.

        Raises
        ------
        ArtifactError
            There is none of that name.
        """
        number, run_id = _checked_number(version), self.get_version(version).run_id
        content = None
        if run_id and _PICTURE.fullmatch(name):
            content = self.backend.run_file(run_id, name)
        if content is None:
            raise ArtifactError(f"The run of version {number} has no picture {name!r:.60}.")
        return content

    def links(self, version: str | int) -> Mapping[str, str]:
        """Return the addresses of MLflow's pages of a ``version`` and of its ``run``.

        There are none without a server.
        """
        record = self.get_version(version)
        return self.backend.links(record.version, record.run_id)

    def models(self) -> Mapping[str, Mapping[str, str]]:
        """Return the registered models in the same place: their aliases, by name."""
        return self.backend.models()

    def allowed_moves(self, version: str | int) -> tuple[Move, ...]:
        """Return the moves that a person may make with a version now."""
        number, state = self.get_version(version).version, self._state()
        allowed = []
        for op in (Move.PROMOTE, Move.STAGE, Move.RESTORE, Move.ARCHIVE):
            with suppress(StageError):
                if (planned := state.plan(op, number)) is not None:
                    allowed.append(planned[0])
        return tuple(allowed)

    def production_at(self, when: date | str) -> str | None:
        """Return the version that was in production on a day (at its end) or at a moment, in UTC.

        Raises
        ------
        InvalidName
            `when` is not a date.
        JournalError
            The journal was changed from outside.
        """
        return production_at(self.history(), as_moment(when))

    def history(self, *, after: int = 0) -> tuple[Entry, ...]:
        """Return the journal, oldest first, its hash chain checked.

        Pages that are full never change, so each is read once. With `after`, only the entries
        behind that number, which is often much cheaper.
        """
        recent = self._read().entries if after or self._shared.depth else ()
        if recent and recent[0].number <= after + 1:
            return tuple(entry for entry in recent if entry.number > after)
        mark = self.backend.fingerprint()  # first: what is written later makes another one
        if mark is None or self._whole is None or self._whole[0] != mark:
            self._whole = mark, self._read_whole()
        return tuple(entry for entry in self._whole[1] if entry.number > after)

    def _read_whole(self) -> tuple[Entry, ...]:
        """Read what is new in the journal, and its last page again."""
        read, known = self._full_pages, self._full_pages[-1].length if self._full_pages else 0
        try:
            read += read_chain(self.backend.journal.pages(after=known), read[-1] if read else None)
        except JournalError as error:
            error.before = (*(entry for each in read for entry in each.entries), *error.before)
            raise
        self._full_pages = read[:-1]
        return tuple(entry for each in read for entry in each.entries)

    def verify(self, *, whole: bool = True) -> int:
        """Check the journal, and return how many entries it has.

        Parameters
        ----------
        whole : bool
            Check it from its first entry. Otherwise from the last entry on that was checked on this
            machine, which takes the same time however long the journal is.

        Raises
        ------
        JournalError
            Names the first entry that is missing, unreadable, or does not follow.
        """
        journal = self.backend.journal
        mark = Mark() if whole else journal.checked()
        read = read_chain(journal.pages(after=max(mark.number - 1, 0)))
        if mark.number:
            check_since(read, mark)
        if read and read[-1].length:
            journal.set_checked(mark_at_end(read[-1]))
        return read[-1].length if read else 0

    def drift(self) -> tuple[Drift, ...]:
        """Return the aliases, and the stages of versions, that were changed outside the registry.

        An interrupted move is not among them: the next operation finishes it. Right after a move
        this waits a moment, since another process may still be writing its aliases.
        """
        ledger, moved = self._alias_drift()
        if ledger.state.untouched:  # stages may be those of other tools
            return moved
        texts = ledger.page.texts
        before = read_page(replace(ledger.page, texts=texts[:-1])).state if texts else State()
        shown = (
            stage_drift(before, ledger.state, record.version, record.stage, record.tags)
            for record in self.backend.versions(at_once=_AT_ONCE)
            if record.version not in ledger.state.retired
        )
        return (*moved, *filter(None, shown))

    def _alias_drift(self) -> tuple[Ledger, tuple[Drift, ...]]:
        """Return the journal, and the aliases that were moved by hand."""
        ledger = self._read(fresh=True)
        moved = self._by_hand(ledger.state)
        while moved and self._is_fresh(ledger):
            time.sleep(0.2)
            ledger = self._read_new()
            moved = self._by_hand(ledger.state)
        return ledger, moved

    def reconcile(self) -> None:
        """Bring aliases, tags and stages in line with the journal, whatever was left undone."""
        self._sync(self._read(fresh=True), everything=True)

    @contextmanager
    def one_reading(self) -> Iterator[None]:
        """Read the journal once for all calls of this thread in a block.

        What others commit meanwhile is seen at the latest when a move is committed: its place is
        taken then, so the journal is read and the move planned again. The journal is also read
        again after each move. Blocks may be nested.
        """
        self._shared.depth += 1
        try:
            yield
        finally:
            self._shared.depth -= 1
            if not self._shared.depth:
                self._shared.ledger = None

    def weights_path(self, version: str | int) -> Path:
        """Return the local path of a version's weights, their digest checked.

        The file belongs to the registry: copy it, never change it.

        Raises
        ------
        ArtifactError
            The file is missing or has changed, or the version was not saved by this app.
        """
        return self._verified(self.get_version(version))

    def load_arrays(
        self, version_or_stage: str | int | Stage = Stage.PRODUCTION
    ) -> dict[str, np.ndarray]:
        """Return the weights of a version, of any framework, as NumPy arrays.

        Parameters
        ----------
        version_or_stage : str | int | Stage
            A version's number, or a stage, whose newest version it is.

        Returns
        -------
        dict[str, np.ndarray]
            The arrays by name, in the model's own order, with the dtypes that were saved. They
            are the caller's own.

        Raises
        ------
        UnknownVersion
            There is no such version, or none in the stage.
        StageError
            It is neither a version nor a stage.
        ArtifactError
            The file is missing or has changed since it was saved, or NumPy lacks a dtype.
        """
        weights = self._weights(self.named_version(version_or_stage), half=False)
        content = self.backend.files.whole.read(weights)
        return read_arrays(content, version=weights.version)

    def load_production_model(
        self,
        model_class: Callable[[], Any],
        device: str = "cpu",
        *,
        half: bool = False,
        copy: bool = False,
        max_age: float = 0.0,
    ) -> Any | None:
        """Return the production model, a torch module, ready for inference; None without one.

        The last two models stay ready. Requests for the same weights on the same device with the
        same function return the same module: use it, do not change it. If its arrays or its file
        were changed, it is loaded again (or refused). A change through ``tensor.data`` is the one
        that is not noticed.

        Parameters
        ----------
        model_class : Callable[[], Any]
            Makes the module, e.g. ``lambda: get_model(model_size="n", num_classes=7)``. If it has a
            method ``load_description``, that is called first, with the description of the model
            that was saved with the weights.
        device : str
            Where to put it.
        half : bool
            Read the half-precision copy (see `compress_version`): half the bytes to fetch and
            read. The module has the precision in which `model_class` makes it.
        copy : bool
            Return a module of one's own, to train or change; it is loaded from the file.
        max_age : float
            Seconds for which an earlier answer to "which version is in production" is good enough.
            Only with a server or a database elsewhere does it take more than a millisecond to get
            a new one.

        Raises
        ------
        ArtifactError
            The weights have changed since they were saved, or do not fit the module; or
            `model_class` makes something else than a torch module: `load_arrays` serves that.
        """
        record = self._production(max_age)
        if record is None:
            return None
        weights = self._weights(record, half=half)
        if copy:
            return self._ready.load(weights, model_class, device=device)
        return self._ready.get(weights, model_class, device=device)

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
            When they were reported, in UTC.
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
        self.backend.log_to_run(record.run_id, numbers, texts or {}, step=step, time=time)

    def writer(
        self, name: str, *, when_busy: WhenBusy = "wait", lasts: float = LEASE_SECONDS
    ) -> Writer:
        """Return the right to write to this model, to be used as ``with store.writer(…):``."""
        return Writer(self, name, when_busy=when_busy, lasts=lasts)

    def current_lease(self) -> Lease:
        """Return the lease in force, whether it has ended or not; epoch 0 if there was none."""
        return self._read().state.lease

    def take_lease(self, owner: str, *, over: Lease, reason: str = "") -> Lease | None:
        """Journal a new lease in the place of `over`, or return None if that is not in force.

        Whether `over` may be replaced is decided by the caller (see `Writer`).

        Raises
        ------
        JournalError
            Other processes kept moving versions at the same time.
        """
        draft = Entry(Move.LEASE, actor=owner, reason=reason)
        entry = self._claimed(draft, lambda ledger: ledger.state.lease == over)
        if entry is None:
            return None
        logger.info("%s writes to this model from now on (%s)", entry.actor, entry.reason)
        return Lease(entry.number, entry.actor)

    def last_heartbeat(self) -> Heartbeat:
        """Return the last heartbeat of the server that writes, or of one that wrote."""
        return self.backend.journal.heartbeat()

    def send_heartbeat(self, beat: Heartbeat) -> None:
        """Store a heartbeat."""
        self.backend.journal.set_heartbeat(beat)

    def lock_file(self) -> Path | None:
        """Return a file to lock that only this machine's servers of this model have, or None."""
        return self.backend.journal.lock_file()

    def _claimed(self, draft: Entry, allows: Callable[[Ledger], bool]) -> Entry | None:
        """Journal an entry that moves nothing; None if that is not allowed any more."""
        for _ in range(_ATTEMPTS):
            ledger = self._read()
            if not allows(ledger):
                return None
            entry = new_entry(ledger, draft)
            self._shared.ledger = None
            if self.backend.journal.claim(entry.number, entry.encode()):
                return entry
        raise JournalError(f"The entry {draft.op} of {draft.actor} was not made: {_CONTENDED}")

    def _move(
        self,
        op: Move,
        version: str | None,
        *,
        displacing: str = "",
        approval: str = "",
        lease: Lease | None = None,
        actor: str = "",
        reason: str = "",
        sync: bool = True,
    ) -> tuple[str, Entry | None]:
        """Plan a move, claim its place in the journal, and display what it changed.

        Whenever another process claims the place first, the move is planned again. Returns the
        version and the entry, which is None if there was nothing to change. Without `sync` aliases
        and marks are left as they are, before and after.
        """
        target, checked = version or "", False
        for attempt in range(_ATTEMPTS):
            ledger = self._synced() if sync else self._read()
            state = ledger.state
            # An entry that wins the place after this ledger has seen every lease before it.
            if lease is not None:
                require_lease(state.lease, lease)
            if displacing and state.production != displacing:
                raise StageError(
                    f"Version {displacing} is not in production any more, "
                    f"{state.production or 'none'} is; nothing was moved."
                )
            # Chosen once: of two rollbacks at the same time, the second must not undo the first.
            target = target or state.rollback_target()
            # A server with the lease is the only one that changes what it saved just now, unless
            # its claim was lost: then somebody else acts, and the version is read again.
            unread = op is Move.STAGE and lease is not None and not attempt
            mine = self._just_saved(target) if unread else None
            record = mine or self._movable(op, target, state)
            planned = state.plan(op, target)
            if planned is None:
                return target, None
            named, displaced = planned
            if not checked:
                self._check(named, record, stored=mine is not None)
                checked = True
            waits = named is Move.STAGE and record.tags.get("approval") == "pending"
            status, epoch = "pending" if waits else approval, (lease or NOBODY).epoch
            draft = Entry(named, target, displaced, actor, reason, epoch=epoch, approval=status)
            entry = new_entry(ledger, draft)
            self._shared.ledger = None  # won or lost, what was read is old from here on
            if self.backend.journal.claim(entry.number, entry.encode()):
                break
        else:
            raise JournalError(f"Version {target} could not be moved: {_CONTENDED}")
        if not sync:
            return target, entry
        logger.info("%s: version %s (%s)", entry.op, target, entry.reason or "no reason given")
        after = appended(ledger, entry)
        marks = [mark_of(after.state, target, record.stage, record.tags)]
        if displaced:
            marks.append(displaced_mark(state, after.state, displaced))
        # Before the first move the aliases may be anything: other tools may have set them.
        aliases = self.backend.aliases() if state.untouched else state.aliases
        self.backend.show(after.state.alias_changes(aliases), [*filter(None, marks)])
        self._last = replace(self._last, ledger=after, fingerprint=None, synced=after.length)
        if self.backend.journal.page(fresh=False) != after.page:
            self._synced()  # others moved versions meanwhile
        elif self._shared.depth:
            self._shared.ledger = after
        return target, entry

    def _movable(self, op: Move, version: str, state: State) -> ModelVersion:
        """Return a stored version; one that was deleted in MLflow can only leave Staging."""
        record = self.backend.find(version)
        if record is None and op is Move.ARCHIVE and version == state.staging:
            return read_version(version, {}, run_id="", created=datetime.now(UTC))
        if record is None:
            raise _unknown(version, state)
        return record

    def _check(self, op: Move, record: ModelVersion, *, stored: bool) -> None:
        """Refuse a version whose files or numbers are not what they must be.

        Files that were `stored` elsewhere just now are not fetched to be checked.
        """
        if op in (Move.ARCHIVE, Move.RETIRE):
            return
        if not stored or self.backend.files.is_local(record):
            self._verified(record)
        wrong = sorted(n for n, value in record.metrics.items() if not math.isfinite(value))
        if not record.metrics and record.tags.get("metrics", "{}") != "{}":
            wrong = ["the tag 'metrics' cannot be read"]
        if wrong and op in _NEEDS_METRICS:
            raise InvalidMetric(
                f"Version {record.version} cannot be moved on: not a finite number: "
                f"{', '.join(wrong)}; save its file again with the right metrics."
            )

    def _pending(self, version: str | int, done: tuple[str, Stage]) -> ModelVersion:
        """Return a version that waits for approval, or for which the same is `done` already."""
        record = self.get_version(version)
        approval = record.tags.get("approval", "none")
        if approval != "pending" and (approval, record.stage) != done:
            raise StageError(
                f"Version {record.version} does not wait for approval (it is {approval!r}); "
                "promote or archive it if that is wanted all the same."
            )
        return record

    def _just_saved(self, version: str) -> ModelVersion | None:
        """Return a version that this object has stored a moment ago, as it was stored."""
        when, record = self._saved or (-math.inf, None)
        fresh = record is not None and record.version == version
        return record if fresh and time.monotonic() - when <= _FRESH else None

    def _synced(self) -> Ledger:
        """Read the journal; first finish what an interrupted move left undone."""
        ledger = self._read()
        if not self._behind(ledger) and not ledger.state.alias_changes(self.backend.aliases()):
            return ledger
        # Others may have moved versions, and aliases with them, since it was read.
        return self._sync(self._read_new())

    def _sync(self, ledger: Ledger, *, everything: bool = False) -> Ledger:
        """Display what the journal says until it has not grown meanwhile."""
        while True:
            self._warn(ledger)
            if not ledger.state.untouched:
                changes = ledger.state.alias_changes(self.backend.aliases())
                if everything:
                    records = list(self.backend.versions(at_once=_AT_ONCE))
                else:
                    versions = self._behind(ledger) or _recent(ledger)
                    records = [r for v in versions if (r := self.backend.find(v)) is not None]
                marks = (mark_of(ledger.state, r.version, r.stage, r.tags) for r in records)
                self.backend.show(changes, [*filter(None, marks)])
            self._last = replace(self._last, synced=max(self._last.synced, ledger.length))
            newer = self._read_new()
            if newer.length == ledger.length:
                return newer
            ledger = newer

    def _behind(self, ledger: Ledger) -> list[str]:
        """Return the versions whose marks this object has not seen right yet."""
        synced = self._last.synced
        if ledger.length <= synced:
            return []
        if ledger.entries[0].number <= synced:
            return touched(entry for entry in ledger.entries if entry.number > synced)
        named = {*_recent(ledger), *filter(None, ledger.state.aliases.values())}
        return sorted(named, key=int)

    def _by_hand(self, state: State) -> tuple[Drift, ...]:
        """Return the drift that no interrupted move explains: marks are written after aliases."""
        moved = []
        for drift in state.drifts(self.backend.aliases()):
            version = drift.journal or drift.mlflow or ""
            record = self.backend.find(version)
            mark = record.tags.get("stage") if record is not None else None
            if (mark or Stage.NONE) == state.stage_of(version):
                moved.append(drift)
        return tuple(moved)

    def _warn(self, ledger: Ledger) -> None:
        if ledger.state.untouched or self._is_fresh(ledger):
            return  # another process may still be writing the aliases of its move
        moved = [d for d in self._by_hand(ledger.state) if d.journal or d.alias == "staging"]
        if moved:
            logger.warning(
                "aliases were moved outside the registry and are put back (adopt() accepts such a "
                "change): %s",
                "; ".join(str(drift) for drift in moved),
            )

    def _is_fresh(self, ledger: Ledger) -> bool:
        """Return whether the last move was made just now."""
        if not ledger.entries:
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(ledger.entries[-1].time)
        return abs(age.total_seconds()) < self.alias_seconds

    def _state(self) -> State:
        return self._read().state

    def _read(self, *, fresh: bool = False) -> Ledger:
        """Return the journal; `fresh` also reads again what cannot have changed."""
        shared, last = self._shared, self._last
        if shared.ledger is not None and not fresh:
            return shared.ledger
        mark = self.backend.fingerprint()  # first: what is written later makes another one
        ledger = last.ledger
        if fresh or mark is None or mark != last.fingerprint:
            page = self.backend.journal.page(fresh=fresh)
            ledger = read_page(page, None if fresh else ledger)
            # Another thread may put an older reading in its place; this one is returned all the
            # same.
            self._last = replace(last, ledger=ledger, fingerprint=mark)
        shared.ledger = ledger if shared.depth else None
        return ledger

    def _read_new(self) -> Ledger:
        """Read what is new in the journal, whatever was read before."""
        self._shared.ledger = None
        return self._read()

    def _production(self, max_age: float) -> ModelVersion | None:
        """Return the version in production; not read again while the store is unchanged."""
        mark, now = self.backend.fingerprint(), time.monotonic()
        if self._last.production is not None:
            before, when, record = self._last.production
            if (mark is not None and mark == before) or now - when < max_age:
                return record
        state = self._state()
        record = None if state.production is None else self._found(state.production, state)
        self._last = replace(self._last, production=(mark, now, record))
        return record

    def _records(
        self, state: State, *, at_once: int, stage: Stage | None = None, before: str = ""
    ) -> Iterator[ModelVersion]:
        """Yield all versions that are not removed, newest first, or those of a stage."""
        # Of many versions few are asked for one by one, and all of them in one listing.
        if stage in (None, Stage.NONE) or at_once == _AT_ONCE:
            for record in self.backend.versions(at_once=at_once, before=before):
                if record.version not in state.retired:
                    staged = _staged(record, state)
                    if stage in (None, staged.stage):
                        yield staged
            return
        named = state.archived if stage is Stage.ARCHIVED else {state.version_in(stage)}
        last = int(before or 10**18)
        for version in sorted(filter(None, named), key=int, reverse=True):
            if int(version) < last and version not in state.retired:
                found = self.backend.find(version)
                if found is not None:
                    yield _staged(found, state)

    def _found(self, version: str, state: State) -> ModelVersion:
        record = self.backend.find(version)
        if record is None:
            raise _unknown(version, state)
        return _staged(record, state)

    def _set_tags(self, version: str, tags: Mapping[str, str]) -> None:
        if self._saved is not None and self._saved[1].version == version:
            self._saved = None
        self.backend.set_tags(version, tags)

    def _weights(self, record: ModelVersion, *, half: bool) -> Weights:
        name, digest = WEIGHTS_FILE, record.sha256
        if half:
            name, digest = HALF_FILE, read_half(record.version, record.tags.get("half")).sha256
        elif not digest:
            raise ArtifactError(
                f"Version {record.version} was not saved by this app and has no digest to check; "
                "save its file with save_model_version first."
            )
        return Weights(self.backend.files.path(record, name, digest), digest, record.version)

    def _verified(self, record: ModelVersion) -> Path:
        """Return the path of a version's weights, or raise `ArtifactError`."""
        return self.backend.files.whole.verify(self._weights(record, half=False))

    def _scores(self, record: ModelVersion) -> dict[str, float] | None:
        digest = record.tags.get("per_example")
        content = self.backend.files.read(record, SCORES_FILE) if digest else None
        return read_numbers(content) if content and digest_of(content) == digest else None


def _unknown(version: str, state: State) -> RegistryError:
    if state.stage_of(version) is not Stage.NONE or version in state.served:
        return Gone(_deleted(version, state))
    return UnknownVersion(
        f"There is no version {version}; list_all_versions() returns those that exist."
    )


def _deleted(version: str, state: State) -> str:
    stage = state.stage_of(version)
    was = f"was deleted in MLflow; {_way_out(stage)}."
    if stage in (Stage.PRODUCTION, Stage.STAGING):
        return f"Version {version}, which is in {stage}, {was}"
    return f"Version {version} {was}"


def _way_out(stage: Stage) -> str:
    """Return what to type where a version of this stage is lost."""
    return {
        Stage.PRODUCTION: "`fl-app rollback` brings the one before back, or `fl-app promote` "
        "another version",
        Stage.STAGING: "`fl-app doctor --repair` takes it out of Staging",
    }.get(stage, "use another version")


def _checked_number(version: object) -> str:
    """Return a version's number as text without leading zeros, or raise `UnknownVersion`."""
    text = str(version).strip()
    if isinstance(version, bool) or not _VERSION.fullmatch(text) or not int(text):
        raise UnknownVersion(f"{version!r:.60} is not a version; expected a number such as '3'.")
    return str(int(text))


def _checked_stage(stage: str | Stage) -> Stage:
    """Return the stage of that name, in any case, or raise `StageError`."""
    for known in Stage:
        if str(stage).lower() == known.value.lower():
            return known
    names = ", ".join(s.value for s in Stage)
    raise StageError(f"There is no stage {str(stage)!r}; expected one of {names}.")


def _staged(record: ModelVersion, state: State) -> ModelVersion:
    """Return a stored version with the stage and the approval that the journal gives it."""
    stage = state.stage_of(record.version)
    approval = state.approval_of(record.version, record.tags.get("approval", ""))
    return replace(record, stage=stage, tags={**record.tags, **shown_tags(stage, approval)})


def _recent(ledger: Ledger) -> list[str]:
    """Return the versions of the last moves."""
    return touched([entry for entry in ledger.entries if entry.version][-_RECENT:])
