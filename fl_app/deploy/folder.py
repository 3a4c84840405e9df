# SPDX-License-Identifier: Apache-2.0
"""The files of a deployment: one folder, which a later start uses again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.keys import SECRET, Keys
from fl_registry.files.atomic import write_whole


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Settings:
    """The options of a deployment, and the ids of its SuperNodes.

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
    database_url : str
        SQLAlchemy URL of MLflow's database; empty: SQLite in the deployment's folder.
    node_ids : tuple[str, ...]
        The SuperLink's id of each SuperNode, in their order.
    """

    nodes: int
    data: tuple[str, ...]
    port: int
    mlflow_port: int
    database_url: str = field(repr=False)
    node_ids: tuple[str, ...]


DEFAULTS = Settings(nodes=2, data=(), port=8000, mlflow_port=5000, database_url="", node_ids=())
_JSON = TypeAdapter(Settings)


@dataclass(frozen=True)
class Layout:
    """Paths of a deployment's files.

    Parameters
    ----------
    folder : Path
        The folder of all of them; absolute.
    """

    folder: Path

    @property
    def keys(self) -> Keys:
        """Certificates and keys."""
        return Keys(self.folder / "keys")

    @property
    def database(self) -> Path:
        """MLflow's SQLite file, if no other database is set."""
        return self.folder / "mlflow" / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """Files of versions and runs; only MLflow's server writes them."""
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
        """Folder of a SuperNode, counted from 1: its home, and its data if they are generated."""
        return self.folder / "nodes" / str(number)

    def log(self, service: str) -> Path:
        """Output of a process."""
        return self.folder / "logs" / f"{service}.log"

    def prepare(self) -> None:
        """Create the folders, which only their owner may enter.

        Raises
        ------
        DeploymentError
            They cannot be created.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            for name in ("keys", "logs", "mlflow", "nodes", "server", "superlink"):
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            self.artifacts.mkdir(exist_ok=True)
        except OSError as error:
            raise DeploymentError(
                f"The folder {self.folder} cannot be created ({error.strerror}); name one that you "
                "may write to with --folder."
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against another start; the lock ends with the process.

        Raises
        ------
        DeploymentError
            Another process has locked it.
        """
        try:
            with FileLock(self.folder / "lock", timeout=0):
                yield
        except Timeout:
            raise DeploymentError(
                f"A deployment runs in {self.folder} already; end it, or name another folder with "
                "--folder."
            ) from None

    def settings(self) -> Settings:
        """Read the settings of the last start; before the first, the defaults.

        Raises
        ------
        DeploymentError
            The file is damaged.
        """
        try:
            return _JSON.validate_json(self._settings_file.read_bytes())
        except FileNotFoundError:
            return DEFAULTS
        except (OSError, ValidationError) as error:
            raise DeploymentError(
                f"{self._settings_file} cannot be read ({type(error).__name__}); remove it and "
                "give your options again."
            ) from error

    def save(self, settings: Settings) -> None:
        """Write the settings, for their owner only: a database's address may hold a password."""
        write_whole(self._settings_file, _JSON.dump_json(settings, indent=1), mode=SECRET)

    @property
    def _settings_file(self) -> Path:
        return self.folder / "deployment.json"
