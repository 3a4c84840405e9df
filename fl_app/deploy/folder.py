# SPDX-License-Identifier: Apache-2.0
"""The files of a deployment: one folder, which a later start uses again, and the SuperNodes' data.

The data are the user's own data sets, checked, or shares of the generated pictures in the folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from fl_app.client.data import generated_data, partition, split_holdout
from fl_app.client.data_yaml import DataError, load_data_spec
from fl_app.client.generated_shapes import NAMES
from fl_app.deploy.errors import DeploymentError, explained
from fl_app.deploy.keys import SECRET, Keys
from fl_models.classes import name_differences, near_name
from fl_models.pictures import DataSpec, label_file
from fl_registry.files.atomic import new_folder, write_whole

SEED = 42
"""Of the shares of the generated pictures."""


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
        with explained(
            f"The folder {self.folder} cannot be created",
            "name one that you may write to with --folder",
        ):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            for name in ("keys", "logs", "mlflow", "nodes", "server", "superlink"):
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            self.artifacts.mkdir(exist_ok=True)

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


def data_file(path: str) -> str:
    """Return the absolute path of a ``data.yaml``, given itself or its folder.

    Raises
    ------
    DeploymentError
        The path cannot be written into a SuperNode's settings.
    """
    absolute = Path(path).expanduser().absolute()
    file = absolute / "data.yaml" if absolute.is_dir() else absolute
    if not str(file).isprintable() or set(str(file)) & set("\"'\\="):
        raise DeploymentError(
            f"{path!r} holds a quote, a backslash, = or a control character, with which a "
            "SuperNode's settings cannot be written; rename the folder."
        )
    return str(file)


def check_data(files: Sequence[str]) -> bool:
    """Check that data sets can be used together, and return whether they have the same classes.

    Their order does not matter. With others, nodes train the classes that the server has too, if
    ``unknown-classes`` is set to ``ignore-others``.

    Parameters
    ----------
    files : Sequence[str]
        Absolute path of each ``data.yaml``; at least one.

    Raises
    ------
    DeploymentError
        One cannot be used, has no class of the first, or has a class whose name is nearly one.
    """
    try:
        specs = [load_data_spec(file, None) for file in files]
    except DataError as error:
        raise DeploymentError(f"{error}.") from error
    first, same = specs[0].names, True
    for file, spec in zip(files, specs, strict=True):
        difference = name_differences(spec.names, first)
        same &= not difference
        missing = [name for name in first if name not in spec.names]
        nearly = any(near_name(name, missing) for name in {*spec.names} - {*first})
        if nearly or not set(spec.names) & set(first):
            raise DeploymentError(
                f"{file} has other classes than {files[0]}: {difference}; correct the names, which "
                "nodes must write in the same way."
            )
    return same


def generated_shares(layout: Layout, nodes: int) -> list[str]:
    """Return a ``data.yaml`` for each node, with its share of the generated pictures.

    A share is written once, into the node's own folder. Another number of nodes gets new shares.

    Raises
    ------
    DeploymentError
        The disk is full, or there are more nodes than pictures.
    """
    folders = [
        layout.node(number) / f"shapes-{number}-of-{nodes}" for number in range(1, nodes + 1)
    ]
    try:
        with explained(
            f"The nodes' pictures cannot be written below {layout.folder}",
            "free space there, or name another folder with --folder",
        ):
            if not all(folder.is_dir() for folder in folders):
                spec = generated_data(layout.home, len(NAMES))
                for index, folder in enumerate(folders):
                    if not folder.is_dir():
                        _write_share(spec, folder, index, nodes)
    except DataError as error:
        raise DeploymentError(f"{error}.") from error
    return [str(folder / "data.yaml") for folder in folders]


def _write_share(spec: DataSpec, folder: Path, index: int, nodes: int) -> None:
    share = partition(spec, num_partitions=nodes, partition_id=index, kind="iid", seed=SEED)
    train, val = split_holdout(share)
    with new_folder(folder) as draft:
        for split, pictures in {"train": train, "val": val}.items():
            images, labels = draft / "images" / split, draft / "labels" / split
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for picture in pictures:
                shutil.copyfile(picture, images / picture.name)
                if (label := label_file(picture)).is_file():
                    shutil.copyfile(label, labels / label.name)
        content = {"train": "images/train", "val": "images/val", "names": list(spec.names)}
        (draft / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
