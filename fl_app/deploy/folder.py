# SPDX-License-Identifier: Apache-2.0
"""What a deployment keeps, and where: one folder, from which a later start goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.keys import SECRET, Keys
from fl_registry.files.atomic import write_whole

OWN = 0o700


@dataclass(frozen=True)
class Settings:
    """What was chosen for a deployment.

    Parameters
    ----------
    nodes : int
        Number of SuperNodes.
    data : tuple[str, ...]
        Absolute path of each node's ``data.yaml``; empty: shares of the generated pictures.
    port : int
        TCP port of the SuperLink.
    mlflow_port : int
        TCP port of MLflow.
    """

    nodes: int = 2
    data: tuple[str, ...] = ()
    port: int = 8000
    mlflow_port: int = 5000


@dataclass(frozen=True)
class Layout:
    """Where a deployment keeps what.

    Parameters
    ----------
    folder : Path
        The folder of all of it; absolute.
    """

    folder: Path

    @property
    def keys(self) -> Keys:
        """Certificates and keys."""
        return Keys(self.folder / "keys")

    @property
    def postgres(self) -> Path:
        """The database cluster, which belongs to the account that runs it."""
        return self.folder / "postgres"

    @property
    def artifacts(self) -> Path:
        """Files of versions and runs, written by MLflow's server only."""
        return self.folder / "mlflow" / "artifacts"

    @property
    def superlink(self) -> Path:
        """Flower's own state: registered nodes and runs."""
        return self.folder / "superlink" / "state.db"

    @property
    def home(self) -> Path:
        """``FL_APP_HOME`` of the ServerApp."""
        return self.folder / "server"

    def node(self, number: int) -> Path:
        """Folder of a SuperNode, counted from 1: its data if they are generated, its home."""
        return self.folder / "nodes" / str(number)

    def log(self, service: str) -> Path:
        """What a process has printed."""
        return self.folder / "logs" / f"{service}.log"

    def prepare(self) -> None:
        """Make the folders, closed to others but for the way to the database.

        Raises
        ------
        DeploymentError
            They cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o711 if os.geteuid() == 0 else OWN)
            for name in ("keys", "logs", "mlflow", "nodes", "secrets", "server", "superlink"):
                (self.folder / name).mkdir(mode=OWN, exist_ok=True)
            self.artifacts.mkdir(exist_ok=True)
        except OSError as error:
            raise DeploymentError(
                f"The folder {self.folder} cannot be made ({error.strerror}); name one that you "
                "may write to with --folder."
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against another start; the lock ends with the process.

        Raises
        ------
        DeploymentError
            Somebody else holds it.
        """
        held = FileLock(self.folder / "lock", timeout=0)
        try:
            held.acquire()
        except Timeout:
            raise DeploymentError(
                f"A deployment runs in {self.folder} already; end it, or name another folder with "
                "--folder."
            ) from None
        try:
            yield
        finally:
            held.release()

    def settings(self) -> Settings:
        """What was chosen at the last start; the defaults before the first.

        Raises
        ------
        DeploymentError
            The file is damaged.
        """
        file = self.folder / "deployment.json"
        if not file.exists():
            return Settings()
        try:
            known = json.loads(file.read_text("utf-8"))
            return Settings(**{**known, "data": tuple(known["data"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DeploymentError(
                f"{file} cannot be read ({type(error).__name__}); remove it and name what you "
                "want by options again."
            ) from error

    def keep(self, settings: Settings) -> None:
        """Write down what was chosen."""
        text = json.dumps(asdict(settings), indent=1)
        write_whole(self.folder / "deployment.json", text.encode())

    def secret(self, name: str) -> str:
        """Return a secret that was kept, or an empty text."""
        file = self.folder / "secrets" / name
        return file.read_text("utf-8") if file.exists() else ""

    def keep_secret(self, name: str, value: str) -> None:
        """Write a secret into a file that only its owner reads."""
        write_whole(self.folder / "secrets" / name, value.encode(), mode=SECRET)


def default_folder() -> Path:
    """Return where a deployment is kept that names no folder.

    For root that is below ``/var/lib``: the account that runs PostgreSQL must get there, and
    root's own home is closed to it.
    """
    chosen = os.environ.get("FL_APP_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute() / "deployment"
    if os.name == "posix" and os.geteuid() == 0:
        return Path("/var/lib/fl-app/deployment")
    return Path("~/.fl-app/deployment").expanduser().absolute()
