# SPDX-License-Identifier: Apache-2.0
"""Questions to a model store: list, compare, find, load. The same for every model store.

Nothing here changes what is stored.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_registry.comparison import (
    architecture_differences,
    data_differences,
    metric_differences,
    paired_verdict,
    param_differences,
    read_scores,
)
from fl_registry.errors import ArtifactError, UnknownVersion
from fl_registry.files.artifacts import (
    HALF_FILE,
    SCORES_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    WholeFiles,
    checked_header,
    describe,
    digest_of,
)
from fl_registry.files.half import read_half
from fl_registry.files.loading import ReadyModels, Weights, read_arrays
from fl_registry.files.version_files import VersionFiles
from fl_registry.records import ModelVersion
from fl_registry.stage_moves import StageMoves
from fl_registry.stages import Stage, State
from fl_registry.version_tags import checked_stage, checked_version

if TYPE_CHECKING:
    import numpy as np

PAGE, _FEW = 10_000, 20  # versions asked for at a time


class VersionQueries(StageMoves):
    """The half of a model store that answers questions."""

    def __init__(self, files: VersionFiles) -> None:
        super().__init__()
        self._files = files
        self._whole = WholeFiles()
        self._ready = ReadyModels(self._whole)
        # Answers, each with what the store looked like before; the second with its time too.
        self._states: tuple[Hashable, State] | None = None
        self._productions: tuple[Hashable, float, ModelVersion | None] | None = None

    @abstractmethod
    def _all(self, state: State, *, page: int) -> Iterator[ModelVersion]:
        """Yield all versions, newest first, asking for `page` of them at a time."""

    @abstractmethod
    def _run_params(self, run_id: str) -> Mapping[str, str] | None:
        """Return the params of a run, or None where they are not known."""

    def _fingerprint(self) -> Hashable | None:
        """Return what changes whenever the store does; None where that takes asking it."""
        return None

    def list_all_versions(self) -> list[dict[str, Any]]:
        """Return all versions as dictionaries, newest first (see `ModelVersion.as_row`)."""
        state = self._state()
        found = self._all(state, page=PAGE)
        return [record.as_row() for record in found if record.version not in state.retired]

    def get_version(self, version: str | int) -> ModelVersion:
        """Return one version."""
        number, state = checked_version(version), self._state()
        if number in state.retired:
            raise UnknownVersion(f"Version {number} was removed for good; use another version.")
        return self._one(number, state)

    def get_latest_version(self, stage: str | Stage | None = None) -> str | None:
        """Return the newest version of a stage (None: of any), or None if there is none."""
        wanted, state = None if stage is None else checked_stage(stage), self._state()
        if wanted is Stage.PRODUCTION:
            return state.production
        if wanted is Stage.STAGING:
            return state.staging
        for record in self._all(state, page=_FEW):
            if record.version not in state.retired and wanted in (None, record.stage):
                return record.version
        return None

    def compare_versions(self, a: str | int, b: str | int) -> dict[str, Any]:
        """Return two versions and what differs between them.

        Returns
        -------
        dict[str, Any]
            ``version1``, ``version2``: both, as `list_all_versions` has them. ``differences``:
            for each metric that both have, by how much `b` exceeds `a`. ``params``: params of
            the runs that made them; ``architecture``: arrays of other names, shapes or dtypes;
            ``data``: nodes that took part, and whether their data changed; ``paired``: whether
            `b` is better on the very same examples (see `fl_registry.comparison`). What cannot be
            told, since it was never saved or is gone, is None.
        """
        state = self._state()
        one, two = self._one(checked_version(a), state), self._one(checked_version(b), state)
        specs = [self._files.read(record, SPEC_FILE) for record in (one, two)]
        return {
            "version1": one.as_row(),
            "version2": two.as_row(),
            "differences": metric_differences(one.metrics, two.metrics),
            "params": param_differences(*(self._params(record) for record in (one, two))),
            "architecture": architecture_differences(*specs),
            "data": data_differences(one.tags.get("nodes"), two.tags.get("nodes")),
            "paired": paired_verdict(*(self._scores(record) for record in (one, two))),
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
        record = self._named(version_or_stage)
        weights = self._weights(record, half=False)
        content = self._whole.read(weights.path, weights.sha256, version=record.version)
        spec = describe(checked_header(weights.path, shown=weights.path), shown=weights.path)
        return read_arrays(content, spec, version=record.version)

    def _named(self, version_or_stage: str | int | Stage) -> ModelVersion:
        """Return a version by its number, or the newest one of a stage."""
        text = str(version_or_stage).strip()
        if text.isdecimal():
            return self.get_version(text)
        stage = checked_stage(text)
        version = self.get_latest_version(stage)
        if version is not None:
            return self.get_version(version)
        newest = self.get_latest_version()
        if newest is None:
            raise UnknownVersion("There are no versions yet; save one with save_model_version().")
        raise UnknownVersion(
            f"No version is in stage {stage}; the newest is version {newest}, in stage "
            f"{self.get_version(newest).stage}: load_arrays('{newest}') returns it, and "
            "list_all_versions() lists them all."
        )

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

        The last two models stay ready. Whoever asks for the same weights on the same device with
        the same function gets the same module: use it, do not change it. If its arrays or its
        file were changed all the same, it is loaded anew (or refused). A change through
        ``tensor.data`` is the one that is not seen.

        Parameters
        ----------
        model_class : Callable[[], Any]
            Makes the module, e.g. ``lambda: get_model(model_size="n", num_classes=7)``.
        device : str
            Where to put it.
        half : bool
            Read the half-precision copy (see `compress_version`): half the bytes to fetch and
            read. The module keeps the precision in which `model_class` makes it.
        copy : bool
            Return a module of one's own, to train or change; it is loaded from the file.
        max_age : float
            Seconds for which an earlier answer to "which version is in production" will do. Only
            with a server or a database elsewhere does asking take more than a millisecond.

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

    def _production(self, max_age: float) -> ModelVersion | None:
        """Return the version in production; not asked for again while the store is unchanged."""
        mark, now, seen = self._fingerprint(), time.monotonic(), self._productions
        if seen is not None and ((mark is not None and mark == seen[0]) or now - seen[1] < max_age):
            return seen[2]
        state = self._state()
        record = None if state.production is None else self._one(state.production, state)
        self._productions = (mark, now, record)
        return record

    def _state(self) -> State:
        """Return the state; the journal is not read again while the store is unchanged."""
        if self._shared.ledger is not None:  # it may be older than the store is by now
            return self._shared.ledger.state
        mark, seen = self._fingerprint(), self._states
        if seen is not None and mark is not None and mark == seen[0]:
            return seen[1]
        state = super()._state()
        self._states = (mark, state)
        return state

    def _weights(self, record: ModelVersion, *, half: bool) -> Weights:
        if not half:
            path = self._files.path(record, WEIGHTS_FILE, _digest(record))
            return Weights(path, record.sha256, record.version)
        copy = read_half(record.version, record.tags.get("half"))
        path = self._files.path(record, HALF_FILE, copy.sha256)
        return Weights(path, copy.sha256, record.version)

    def _verified(self, record: ModelVersion) -> Path:
        path = self._files.path(record, WEIGHTS_FILE, _digest(record))
        return self._whole.verify(path, record.sha256, version=record.version)

    def _params(self, record: ModelVersion) -> Mapping[str, str] | None:
        return self._run_params(record.run_id) if record.run_id else None

    def _scores(self, record: ModelVersion) -> dict[str, float] | None:
        digest = record.tags.get("per_example")
        content = self._files.read(record, SCORES_FILE) if digest else None
        return read_scores(content) if content and digest_of(content) == digest else None


def _digest(record: ModelVersion) -> str:
    if not record.sha256:
        raise ArtifactError(
            f"Version {record.version} was not saved by this app and has no digest to check; "
            "save its file with save_model_version first."
        )
    return record.sha256
