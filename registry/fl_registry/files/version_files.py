# SPDX-License-Identifier: Apache-2.0
"""Storage of versions' files: the interface that a model store needs, and plain folders."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from fl_registry.errors import disk_errors
from fl_registry.files.artifacts import WEIGHTS_FILE, file_digest
from fl_registry.files.atomic import copy_whole
from fl_registry.records import ModelVersion
from fl_registry.retention import Removal

_LARGEST = 64 << 20  # bytes; descriptions and results per example are far smaller


class VersionFiles(ABC):
    """The files of a registered model's versions."""

    @abstractmethod
    def path(self, record: ModelVersion, name: str, sha256: str) -> Path:
        """Return where a file of a version is, or should be, on this machine.

        Raises
        ------
        ArtifactError
            Its location is unknown.
        """

    @abstractmethod
    def read(self, record: ModelVersion, name: str) -> bytes | None:
        """Return the content of a small file of a version, or None where there is none."""

    @abstractmethod
    def add(self, record: ModelVersion, file: Path) -> None:
        """Add a file to those of a version."""

    @abstractmethod
    def is_whole(self, record: ModelVersion) -> bool:
        """Return whether the weights exist and are unchanged."""

    @abstractmethod
    def size(self, record: ModelVersion) -> int:
        """Return the bytes that would be freed if the version were removed."""

    @abstractmethod
    def note(self, record: ModelVersion) -> None:
        """Record that a version's files are to be removed, so that any process can finish it."""

    @abstractmethod
    def noted(self) -> Mapping[str, int]:
        """Return the versions whose removal was begun, and the bytes that it would free."""

    @abstractmethod
    def remove(self, version: str) -> Removal:
        """Remove a retired version and its files; repeat it to finish an interrupted removal."""


class FolderFiles(VersionFiles):
    """One folder for each version.

    Parameters
    ----------
    folder : Path
        Holds the folders of the versions.
    forget : Callable[[str], object]
        Called with the number of a version that is removed.
    """

    def __init__(self, folder: Path, forget: Callable[[str], object]) -> None:
        self._folder = folder
        self._forget = forget

    def path(self, record: ModelVersion, name: str, sha256: str) -> Path:
        return self._folder / record.version / name

    def read(self, record: ModelVersion, name: str) -> bytes | None:
        file = self._folder / record.version / name
        return read_small(file) if file.is_file() else None

    def add(self, record: ModelVersion, file: Path) -> None:
        with disk_errors(f"store {file.name} of version {record.version}"):
            copy_whole(file, self._folder / record.version / file.name)

    def is_whole(self, record: ModelVersion) -> bool:
        file = self._folder / record.version / WEIGHTS_FILE
        return file.is_file() and file_digest(file) == record.sha256

    def size(self, record: ModelVersion) -> int:
        return own_bytes(self._folder / record.version)

    def note(self, record: ModelVersion) -> None:
        """Do nothing: the versions of this process end with it."""

    def noted(self) -> Mapping[str, int]:
        return {}

    def remove(self, version: str) -> Removal:
        self._forget(version)
        return remove_folder(self._folder / version)


def read_small(path: Path) -> bytes | None:
    """Return the content of a file; None if it is larger than any file of a version."""
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    return content if len(content) <= _LARGEST else None


def remove_folder(folder: Path) -> Removal:
    """Remove a folder and return the bytes that were freed."""
    before = own_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    after = own_bytes(folder)
    return Removal(before - after, f"{folder} could not be removed" if folder.exists() else "")


def own_bytes(folder: Path) -> int:
    """Return the bytes that removing a folder frees: files with other hard links stay on disk."""
    files = [path.lstat() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return sum(file.st_size for file in files if file.st_nlink == 1)
