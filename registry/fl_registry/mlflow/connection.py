# SPDX-License-Identifier: Apache-2.0
"""One MLflow client for one address: the only place that imports MLflow's client."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fl_registry.breaker import Breaker
from fl_registry.errors import RegistryError, StoreUnavailable, foreign_errors
from fl_registry.home import app_home
from fl_registry.mlflow.address import absolute_address, check_address, kind_of, sqlite_file
from fl_registry.mlflow.retries import again

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.tracking._model_registry.client import ModelRegistryClient

ADDRESS_VARIABLE = "FL_APP_MLFLOW_TRACKING_URI"
"""The environment variable that names MLflow where nobody else does."""
_LOOK_AGAIN = 10.0  # seconds for which a server that answered is taken to be there


class Connection:
    """An address, and the client that is made when it is first needed.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address. Default: ``$FL_APP_MLFLOW_TRACKING_URI``, else a SQLite file in the app's
        home.
    home : str | Path | None
        The app's home (see `app_home`).
    """

    def __init__(self, tracking_uri: str | None, home: str | Path | None) -> None:
        self.home = app_home(home)
        if tracking_uri is None:
            tracking_uri = os.environ.get(ADDRESS_VARIABLE) or None
        self.uri = absolute_address(tracking_uri, self.home)
        self._client: MlflowClient | None = None
        self._marker: ModelRegistryClient | None = None
        self._experiments: dict[str, str] = {}
        self._lock = threading.Lock()
        self._repeats = False
        self._looked = -_LOOK_AGAIN
        self._breaker = Breaker(first=0.25, longest=2.0)
        self._trouble = ""
        self._chance = random.Random()  # noqa: S311 - no secret

    @property
    def client(self) -> MlflowClient:
        """The client; made on first use, which takes seconds.

        Every few seconds we look whether a server is there before it is used. What failed a moment
        ago is not tried again but fails at once, so that nobody queues up for a server that is
        down.
        """
        with self._lock:
            if self.is_server:
                self._look()
            if self._client is None:
                with self.errors("be opened"):
                    self._client = self._connect()
            return self._client

    @property
    def marker(self) -> ModelRegistryClient:
        """The part of the client that writes aliases, tags and stages of model versions.

        `MlflowClient` itself reads the whole registered model before each such write, to see
        whether it is a prompt, which takes longer than the write.
        """
        client = self.client
        with self._lock:
            if self._marker is None:
                self._marker = client._get_registry_client()
            return self._marker

    @property
    def is_server(self) -> bool:
        """Whether there is an MLflow server between us and the database."""
        return kind_of(self.uri) == "http"

    @property
    def sends_once(self) -> bool:
        """Whether a create that was answered was certainly asked for once.

        MLflow's own client repeats calls over HTTP, unless `timeouts.py` keeps it from that.
        """
        return not self._repeats

    @property
    def file(self) -> Path | None:
        """The SQLite file behind the address, or None."""
        return sqlite_file(self.uri)

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn foreign errors in the block into ours; `doing` follows "could not"."""
        try:
            with foreign_errors(doing, uri=self.uri):
                yield
        except StoreUnavailable as error:
            self._failed(error)
            raise
        else:
            self._breaker = self._breaker.succeeded()

    def check(self) -> None:
        """Raise `StoreUnavailable`, within about 10 seconds, if the address cannot be used."""
        check_address(self.uri)

    def experiment_id(self, name: str) -> str:
        """Return the id of the experiment of that name, and create it if needed; asked once."""
        if name in self._experiments:
            return self._experiments[name]
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
        return self._experiments.setdefault(name, str(found.experiment_id))

    def create_experiment(self, name: str, *, tags: dict[str, str] | None = None) -> None:
        """Create an experiment; of several processes that create the same one, one wins."""
        where = self._artifact_location()
        again(self.client.create_experiment, name, artifact_location=where, tags=tags)

    def _look(self) -> None:
        """Raise `StoreUnavailable` if the server failed a moment ago, or is not there now."""
        now = time.monotonic()
        if not self._breaker.allows(now):
            raise StoreUnavailable(self._trouble)
        if self._breaker.failures or now - self._looked >= _LOOK_AGAIN:
            try:
                self.check()
            except StoreUnavailable as error:
                self._failed(error)
                raise
            self._looked = time.monotonic()

    def _failed(self, error: StoreUnavailable) -> None:
        """Leave a server alone for a while, unless that is why it failed."""
        now = time.monotonic()
        if self.is_server and self._breaker.allows(now):
            self._trouble = str(error)
            self._breaker = self._breaker.failed(now, self._chance.random())

    def _create_experiment(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.create_experiment(name)
        except MlflowException:
            if self.client.get_experiment_by_name(name) is None:
                raise  # otherwise another process was first, or our own call before its reply

    def _artifact_location(self) -> str | None:
        """Return where files go: beside a SQLite file; for a server MLflow's server knows.

        With any other database it is the app's home: MLflow would take the working folder.
        """
        file = sqlite_file(self.uri)
        folder = self.home if file is None else file.parent
        return None if self.is_server else (folder / "artifacts").as_uri()

    def _connect(self) -> MlflowClient:
        """Make the client; of several processes that find no database yet, one creates it."""
        file = sqlite_file(self.uri)
        if not self.is_server:
            check_address(self.uri)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # At the end of a run MLflow would print its address, with the password in it.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from filelock import FileLock
        from mlflow import MlflowClient

        if self.is_server:
            from fl_registry.mlflow.timeouts import limit_waits

            self._repeats = not limit_waits(self.uri)
        if file is None:
            return MlflowClient(self.uri, self.uri)
        with FileLock(file.with_name(f"{file.name}.lock")):
            client = MlflowClient(self.uri, self.uri)
            client.search_registered_models(max_results=1)  # opens the registry's tables too
        return client
