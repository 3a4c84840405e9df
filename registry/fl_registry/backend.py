# SPDX-License-Identifier: Apache-2.0
"""What a model store needs of the place where versions, files and the journal are stored.

`InMemoryBackend` in `fl_registry.memory` is the shortest example; `fl_registry.mlflow` has the
other one. A backend stores and returns: what moves are allowed, and what they lead to, is decided
by `fl_registry.store.ModelStore`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fl_registry.files.artifacts import Artifact, Removal
from fl_registry.files.digests import WholeFiles
from fl_registry.journal.entries import Mark, Page
from fl_registry.journal.lease import Heartbeat
from fl_registry.serving.mlmodel import Serving
from fl_registry.stages import StageMark
from fl_registry.versions import ModelVersion


@dataclass(frozen=True)
class NewVersion:
    """A version that is about to be saved; everything in it was checked.

    Attributes
    ----------
    artifact : Artifact
        The folder with its files.
    run_id : str
        The run that made it; empty for none.
    tags : Mapping[str, str]
        All its tags. ``save_key`` is equal for equal weights of the same run and round.
    description : str
        Free text for people.
    serving : Serving | None
        How MLflow is to load it, to be written beside the weights.
    final : bool
        Whether nobody writes to the files again, so that a store may keep them by another name.
    """

    artifact: Artifact
    run_id: str
    tags: Mapping[str, str]
    description: str
    serving: Serving | None
    final: bool = False


class JournalStorage(ABC):
    """The pages of the journal, and the heartbeat of the server that writes."""

    @abstractmethod
    def page(self, *, fresh: bool) -> Page:
        """Return the current page; `fresh` also reads again what was read before."""

    @abstractmethod
    def pages(self, *, after: int = 0) -> Sequence[Page]:
        """Return the journal, oldest page first, read again.

        With `after`, only from the page on that has the entry behind that number.
        """

    @abstractmethod
    def checked(self) -> Mark:
        """Return how far the journal was checked on this machine."""

    @abstractmethod
    def set_checked(self, mark: Mark) -> None:
        """Note how far the journal was checked."""

    @abstractmethod
    def claim(self, number: int, text: str) -> bool:
        """Write entry `number` if that place is free; return whether `text` is stored there now.

        This is the commit of a move: of several processes exactly one may get True.
        """

    @abstractmethod
    def heartbeat(self) -> Heartbeat:
        """Return the last heartbeat; `Heartbeat()` if there was none."""

    @abstractmethod
    def set_heartbeat(self, beat: Heartbeat) -> None:
        """Store a heartbeat in the place of the last one."""

    @abstractmethod
    def lock_file(self) -> Path | None:
        """Return a file for servers of this model on this machine to lock, or None."""


class VersionFiles(ABC):
    """The files of a registered model's versions.

    Attributes
    ----------
    whole : WholeFiles
        The files whose digest was checked.
    """

    def __init__(self) -> None:
        self.whole = WholeFiles()

    @abstractmethod
    def path(self, record: ModelVersion, name: str, sha256: str) -> Path:
        """Return where a file of a version is, or should be, on this machine.

        Raises
        ------
        ArtifactError
            It is not recorded, or no longer known, where the file is.
        """

    @abstractmethod
    def is_local(self, record: ModelVersion) -> bool:
        """Return whether the files are on this machine, so that `path` fetches nothing."""

    @abstractmethod
    def read(self, record: ModelVersion, name: str) -> bytes | None:
        """Return the content of a small file of a version, or None if it cannot be read."""

    @abstractmethod
    def add(self, record: ModelVersion, file: Path) -> None:
        """Store a further file beside those that a version has."""

    @abstractmethod
    def is_whole(self, record: ModelVersion) -> bool:
        """Return whether the weights are there and whole."""

    @abstractmethod
    def size(self, record: ModelVersion) -> int:
        """Return the bytes of a version's files that no others share."""

    @abstractmethod
    def remove(self, record: ModelVersion, *, users: str = "") -> Removal:
        """Remove a retired version and its files; a repeated call finishes an interrupted one.

        The version goes last: as long as it is there, any process can finish the removal.

        Parameters
        ----------
        record : ModelVersion
            The version.
        users : str
            Versions that refer to its files (see `Backend.inventory`); then the files stay.
        """


@dataclass(frozen=True)
class Inventory:
    """Versions at one moment.

    Attributes
    ----------
    records : Sequence[ModelVersion]
        The versions, newest first.
    users : Callable[[ModelVersion], str]
        Returns the names of others, of any model, that refer to a version's files; empty for none.
    """

    records: Sequence[ModelVersion]
    users: Callable[[ModelVersion], str] = lambda _: ""


class Backend(ABC):
    """The place where one registered model is stored.

    Records are returned as stored: `ModelVersion.stage` and the tags ``stage`` and ``approval``
    are those that the backend displays, and may lag behind the journal.

    Attributes
    ----------
    journal : JournalStorage
        The journal's pages.
    files : VersionFiles
        The files of versions.
    scratch : Path
        A folder for files that are about to be saved.
    """

    journal: JournalStorage
    files: VersionFiles
    scratch: Path

    @abstractmethod
    def ping(self) -> None:
        """Raise `StoreUnavailable`, within about 10 seconds, if the backend cannot be used."""

    def notices(self) -> tuple[str, ...]:
        """Return, in sentences, what people should know of the place, though it works."""
        return ()

    @abstractmethod
    def check_files(self) -> None:
        """Store a small file where the next version's go, read it back and remove it.

        Raises
        ------
        RegistryError
            It was not taken, or is not what comes back.
        """

    @abstractmethod
    def fingerprint(self) -> Hashable | None:
        """Return a value that changes with every write, had cheaply; None if there is none."""

    @abstractmethod
    def save(
        self, new: NewVersion, retired: Callable[[], frozenset[str]]
    ) -> tuple[ModelVersion, bool]:
        """Store a version with the next number, and return it and whether it is new.

        If a version with the same ``save_key`` exists that is not one of `retired()`, that version
        is returned, and nothing is stored. Either all of a version is stored or nothing.
        """

    @abstractmethod
    def find(self, version: str) -> ModelVersion | None:
        """Return one version, or None if there is none."""

    @abstractmethod
    def versions(self, *, at_once: int, before: str = "") -> Iterator[ModelVersion]:
        """Yield all versions, newest first, requesting `at_once` of them at a time.

        With `before`, only those with a smaller number.
        """

    @abstractmethod
    def inventory(self, run_id: str = "") -> Inventory:
        """Return the versions that a run made, and who else refers to their files.

        Without a run all versions, in one listing that also says who refers to their files.
        """

    @abstractmethod
    def set_tags(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version, or raise `UnknownVersion`."""

    @abstractmethod
    def aliases(self) -> Mapping[str, str]:
        """Return the aliases as they are displayed."""

    @abstractmethod
    def show(self, aliases: Mapping[str, str | None], marks: Sequence[StageMark]) -> None:
        """Display stages: set aliases in their order (None removes one), and mark versions.

        Repeating it changes nothing. Versions that do not exist are ignored.
        """

    @abstractmethod
    def log_to_run(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
        *,
        step: int,
        time: datetime,
    ) -> None:
        """Log metrics, and text files by path, to a run that may have ended.

        Raises
        ------
        RegistryError
            There is no such run.
        """

    @abstractmethod
    def run_params(self, run_id: str) -> Mapping[str, str] | None:
        """Return the params of a run, or None if they are not known."""

    @abstractmethod
    def run_files(self, run_id: str) -> Sequence[str]:
        """Return the names of a run's files, those in folders left out; none if it is not known."""

    @abstractmethod
    def run_file(self, run_id: str, name: str) -> bytes | None:
        """Return the content of a run's file, or None if there is none of that name."""

    @abstractmethod
    def models(self) -> Mapping[str, Mapping[str, str]]:
        """Return all registered models of the place: their aliases, by name."""

    def links(self, version: str, run_id: str) -> Mapping[str, str]:
        """Return the addresses of pages for people: of the ``version``, and of its ``run``."""
        return {}
