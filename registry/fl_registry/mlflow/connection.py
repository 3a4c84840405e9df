# SPDX-License-Identifier: Apache-2.0
"""One MLflow client for one address, and how its calls are repeated and its errors mapped.

MLflow's own client repeats every call over HTTP, creates included, with waits that only its
environment variables set; so what is repeated here is bounded by time as well.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fl_registry.breaker import Breaker
from fl_registry.errors import (
    RegistryError,
    StoreUnavailable,
    is_down,
    is_missing,
    raise_if_foreign,
)
from fl_registry.home import app_home
from fl_registry.mlflow.address import (
    READ_SECONDS,
    absolute_address,
    check_address,
    kind_of,
    sqlite_file,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.tracking._model_registry.client import ModelRegistryClient

ADDRESS_VARIABLE = "FL_APP_MLFLOW_TRACKING_URI"
"""The environment variable with MLflow's address, used if none is given."""
_ATTEMPTS = 5
# Two first writes of one key, two writers of one row, one writer of a SQLite file:
_CONTENDED = (
    "UNIQUE constraint",
    "duplicate key value",
    "database is locked",
    "deadlock detected",
    "could not serialize",
    "StaleDataError",
)
T = TypeVar("T")


class Connection:
    """An address, and the client that is made when it is first needed.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address. Default: ``$FL_APP_MLFLOW_TRACKING_URI``, else a SQLite file in the app's
        home.
    home : str | Path | None
        The app's home (see `app_home`).
    client : MlflowClient | None
        The client to use; None makes one when it is first needed.
    read_seconds : float
        How long `check` waits for a server's reply.
    check_every : float
        Seconds for which a server that answered is taken to be there.
    first_wait : float
        Seconds before a call is repeated; doubled each time.
    patience : float
        A call that took more seconds is not repeated: MLflow's own client did that already.
    """

    def __init__(
        self,
        tracking_uri: str | None,
        home: str | Path | None,
        *,
        client: MlflowClient | None = None,
        read_seconds: float = READ_SECONDS,
        check_every: float = 10.0,
        first_wait: float = 0.02,
        patience: float = 5.0,
    ) -> None:
        self.home = app_home(home)
        if tracking_uri is None:
            tracking_uri = os.environ.get(ADDRESS_VARIABLE) or None
        self.uri = absolute_address(tracking_uri, self.home)
        self._client = client
        self._read_seconds = read_seconds
        self._check_every = check_every
        self._first_wait = first_wait
        self.patience = patience
        self._marker: ModelRegistryClient | None = None
        self._experiments: dict[str, str] = {}
        self._lock = threading.Lock()
        self._repeats = False
        self._checked = float("-inf")
        self._breaker = Breaker(first=0.25, longest=2.0)
        self._trouble = ""
        # Its own generator, so that Python's global one stays as the user seeded it.
        self._chance = random.Random()  # noqa: S311 - no secret

    @property
    def client(self) -> MlflowClient:
        """The client; made on first use, which takes seconds.

        Every few seconds a server is checked before it is used. What failed a moment ago is not
        tried again but fails at once, so that callers do not queue up for a server that is down.
        """
        with self._lock:
            if self.is_server:
                self._require_server()
            if self._client is None:
                with self.errors("be opened"):
                    self._client = self._connect()
            return self._client

    @property
    def marker(self) -> ModelRegistryClient:
        """The part of the client that writes aliases, tags and stages of model versions.

        `MlflowClient` itself reads the whole registered model before each such write, to see if it
        is a prompt, which takes longer than the write.
        """
        client = self.client
        with self._lock:
            if self._marker is None:
                self._marker = client._get_registry_client()
            return self._marker

    @cached_property
    def is_server(self) -> bool:
        """Whether the address is that of an MLflow server, and not of a database."""
        return kind_of(self.uri) == "http"

    @property
    def sends_once(self) -> bool:
        """Whether a create that was answered was certainly sent once.

        MLflow's own client repeats calls over HTTP, unless `timeouts.py` keeps it from that.
        """
        return not self._repeats

    @cached_property
    def file(self) -> Path | None:
        """The SQLite file behind the address, or None."""
        return sqlite_file(self.uri)

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn foreign errors in the block into ours; `doing` follows "could not"."""
        try:
            yield
        except Exception as error:
            self._raise_ours(error, doing)
            raise
        else:
            if self._breaker.failures:
                self._breaker = self._breaker.succeeded()

    def again(self, call: Callable[..., T], *arguments: object, **named: object) -> T:
        """Return what an idempotent call returns, repeating it a few times if others interfere."""
        from mlflow.exceptions import MlflowException

        for attempt in range(_ATTEMPTS):
            began = time.monotonic()
            try:
                return call(*arguments, **named)
            except MlflowException as error:
                if attempt + 1 == _ATTEMPTS or not self._is_worth_repeating(error, began):
                    raise
            time.sleep(self._first_wait * 2**attempt)
        raise AssertionError("unreachable")

    def or_none(
        self,
        call: Callable[..., T],
        *arguments: object,
        missing: Callable[[Exception], object] | None = None,
    ) -> T | None:
        """Return what an idempotent call returns, or None if MLflow does not have what it names.

        Then `missing` is called with MLflow's error first; it may raise another one.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self.again(call, *arguments)
        except MlflowException as error:
            if not is_missing(error):
                raise
            if missing is not None:
                missing(error)
            return None

    def create_once(
        self,
        create: Callable[[], T],
        find: Callable[[], Sequence[T]],
        *,
        drop: Callable[[T], object],
        alone: Callable[[T], bool],
    ) -> T:
        """Create something that has no unique name in MLflow, and leave exactly one of it.

        Parameters
        ----------
        create : Callable[[], T]
            Creates it, marked so that `find` finds it, and returns it.
        find : Callable[[], Sequence[T]]
            Returns what bears the mark, the one to keep first.
        drop : Callable[[T], object]
            Removes an echo: what a create made that was repeated since its reply was lost.
        alone : Callable[[T], bool]
            Whether what `create` returned is certainly the only one; then `find` is not called.
        """
        from mlflow.exceptions import MlflowException

        for attempt in range(_ATTEMPTS):
            began = time.monotonic()
            try:
                created = create()
                if alone(created):
                    return created
                break
            except MlflowException as error:
                if self.again(find):
                    break
                if attempt + 1 == _ATTEMPTS or not self._is_worth_repeating(error, began):
                    raise
            time.sleep(self._first_wait * 2**attempt)
        first, *echoes = self.again(find)
        for echo in echoes:
            drop(echo)
        return first

    def check(self) -> None:
        """Raise `StoreUnavailable`, within about 10 seconds, if the address cannot be used."""
        check_address(self.uri, read_seconds=self._read_seconds)

    def experiment_id(self, name: str) -> str:
        """Return the id of the experiment of that name, and create it if needed; read once."""
        if name in self._experiments:
            return self._experiments[name]
        client = self.client
        with self.errors(f"open the experiment {name!r}"):
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                self._create_experiment(name)
                experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise RegistryError(
                f"The experiment {name!r} was deleted; restore it in MLflow, or use another name."
            )
        return self._experiments.setdefault(name, str(experiment.experiment_id))

    def create_experiment(self, name: str, *, tags: dict[str, str] | None = None) -> None:
        """Create an experiment; of several processes that create the same one, one wins."""
        where = self._artifact_location()
        self.again(self.client.create_experiment, name, artifact_location=where, tags=tags)

    def _require_server(self) -> None:
        """Raise `StoreUnavailable` if the server failed a moment ago, or is not there now."""
        now = time.monotonic()
        if not self._breaker.allows(now):
            raise StoreUnavailable(self._trouble)
        if self._breaker.failures or now - self._checked >= self._check_every:
            try:
                self.check()
            except StoreUnavailable as error:
                self._failed(error)
                raise
            self._checked = time.monotonic()

    def _raise_ours(self, error: Exception, doing: str) -> None:
        """Raise our error for a foreign one, and note if the server failed."""
        try:
            raise_if_foreign(error, doing=doing, uri=self.uri)
        except StoreUnavailable as ours:
            self._failed(ours)
            raise
        if isinstance(error, StoreUnavailable):
            self._failed(error)

    def _failed(self, error: StoreUnavailable) -> None:
        """Send nothing to a server for a while, unless that is why the call failed."""
        now = time.monotonic()
        if self.is_server and self._breaker.allows(now):
            self._trouble = str(error)
            self._breaker = self._breaker.failed(now, self._chance.random())

    def _is_worth_repeating(self, error: Exception, began: float) -> bool:
        if time.monotonic() - began > self.patience:
            return False
        text = str(error)
        return is_down(error) or any(sign in text for sign in _CONTENDED)

    def _create_experiment(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.create_experiment(name)
        except MlflowException:
            if self.client.get_experiment_by_name(name) is None:
                raise  # otherwise another process was first, or our own call before its reply

    def _artifact_location(self) -> str | None:
        """Return where files go: beside a SQLite file; a server decides itself.

        With any other database it is the app's home: MLflow would take the working folder.
        """
        file = sqlite_file(self.uri)
        folder = self.home if file is None else file.parent
        return None if self.is_server else (folder / "artifacts").as_uri()

    def _connect(self) -> MlflowClient:
        """Make the client; of several processes at a new database, one creates it."""
        file = sqlite_file(self.uri)
        if not self.is_server:
            self.check()
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
