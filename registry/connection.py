# SPDX-License-Identifier: Apache-2.0
"""One MLflow client for one address: the only place that imports MLflow's client."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from registry.address import absolute_address, check_address, kind_of, sqlite_file
from registry.errors import RegistryError, foreign_errors
from registry.home import app_home, file_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Connection:
    """An address, and the client that is made when it is first needed.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address. Default: a SQLite file in the app's home.
    home : str | Path | None
        The app's home (see `app_home`).
    """

    def __init__(self, tracking_uri: str | None, home: str | Path | None) -> None:
        self.home = app_home(home)
        self.uri = absolute_address(tracking_uri, self.home)
        self._client: MlflowClient | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> MlflowClient:
        """The client; made on first use, which takes seconds."""
        with self._lock:
            if self._client is None:
                with self.errors("be opened"):
                    self._client = self._connect()
            return self._client

    @property
    def is_server(self) -> bool:
        """Whether there is an MLflow server between us and the database."""
        return kind_of(self.uri) == "http"

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn foreign errors in the block into ours; `doing` follows "could not"."""
        with foreign_errors(doing, uri=self.uri):
            yield

    def check(self) -> None:
        """Raise `StoreUnavailable`, within about 10 seconds, if the address cannot be used."""
        check_address(self.uri)

    def experiment_id(self, name: str) -> str:
        """Return the id of the experiment of that name, and create it if needed."""
        client = self.client
        with self.errors(f"open the experiment {name!r}"):
            found = client.get_experiment_by_name(name)
            if found is None:
                self._create_experiment(name)
                found = client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise RegistryError(
                f"The experiment {name!r} was deleted; restore it in MLflow, or use another name."
            )
        return str(found.experiment_id)

    def _create_experiment(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_experiment(name, artifact_location=self._artifact_location())
        except MlflowException:
            if self.client.get_experiment_by_name(name) is None:
                raise  # otherwise another process was first

    def _artifact_location(self) -> str | None:
        """Return where files go: beside a SQLite file; elsewhere MLflow's server knows."""
        file = sqlite_file(self.uri)
        return None if file is None else (file.parent / "artifacts").as_uri()

    def _connect(self) -> MlflowClient:
        """Make the client; of several processes that find no database yet, one creates it."""
        file = sqlite_file(self.uri)
        if kind_of(self.uri) == "sqlite":
            check_address(self.uri)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # At the end of a run MLflow would print its address, with the password in it.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        if file is None:
            return MlflowClient(self.uri, self.uri)
        with file_lock(file.with_name(f"{file.name}.lock")):
            client = MlflowClient(self.uri, self.uri)
            client.search_registered_models(max_results=1)  # opens the registry's tables too
        return client
