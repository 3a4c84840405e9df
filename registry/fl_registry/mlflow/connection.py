# SPDX-License-Identifier: Apache-2.0
"""One MLflow client for one address, and how its calls are repeated and its errors mapped.

MLflow's own client repeats every call over HTTP, creates included, with waits that only its
environment variables set; so what is repeated here is bounded by time as well.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fl_registry.breaker import Breaker
from fl_registry.errors import (
    Gone,
    RegistryError,
    RunPurged,
    StoreUnavailable,
    is_down,
    is_missing,
    raise_if_foreign,
    require,
)
from fl_registry.files.sqlite import create_private
from fl_registry.home import app_home
from fl_registry.imports import uncollected
from fl_registry.mlflow.address import (
    READ_SECONDS,
    absolute_address,
    check_address,
    kind_of,
    sqlite_file,
)
from fl_registry.mlflow.locations import FOLDER_TAG, Folder, lacks_model, local_folder
from fl_registry.patience import reply_seconds
from fl_registry.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import RegisteredModel

    from fl_registry.mlflow.internals import ModelRegistryClient

logger = logging.getLogger(__name__)

ADDRESS_VARIABLE = "FL_APP_MLFLOW_TRACKING_URI"
"""The environment variable with MLflow's address, used if none is given."""
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own variable, used if that is not set either."""
MARK = "created_by_call"
"""The tag that tells what a repeated create made from what others made."""
STORE_MODULES = {
    **dict.fromkeys(("s3", "r2", "b2"), "boto3"),
    "gs": "google.cloud.storage",
    "wasbs": "azure.storage.blob",
    "abfss": "azure.storage.filedatalake",
    **dict.fromkeys(("hdfs", "viewfs"), "pyarrow"),
}
"""What MLflow imports to store files at locations of each scheme."""
_ATTEMPTS = 5
# Two first writes of one key, two writers of one row, one writer of a SQLite file:
_CONTENDED = re.compile(
    "UNIQUE constraint|duplicate key value|database is locked|deadlock detected|"
    "could not serialize|StaleDataError"
)
_INACTIVE = re.compile(r"The (run|experiment) (\w+) must be in the 'active' state")
_NO_RUN = re.compile(r"Run with id=(\w+) not found")
T = TypeVar("T")


class Connection:
    """An address, and the client that is made when it is first needed.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address. Default: ``$FL_APP_MLFLOW_TRACKING_URI``, else ``$MLFLOW_TRACKING_URI``,
        else a SQLite file in the app's home.
    home : str | Path | None
        The app's home (see `app_home`).
    client : MlflowClient | None
        The client to use; None makes one when it is first needed.
    check_every : float
        Seconds for which a server that answered is taken to be there.
    first_wait : float
        Seconds before a call is repeated; doubled each time.

    Attributes
    ----------
    uri : str
        MLflow's address, absolute, with its password if it has one.
    chosen_by : str
        The environment variable that the address is from; empty for none.
    file : Path | None
        The SQLite file behind the address, or None.
    patience : float
        A call that took more seconds is not repeated: MLflow's own client did that already.
    resolved : dict[str, str]
        What MLflow was asked once and never changes: ids of experiments by their name, locations
        of files by the id of their logged model.
    """

    def __init__(
        self,
        tracking_uri: str | None,
        home: str | Path | None,
        *,
        client: MlflowClient | None = None,
        check_every: float = 10.0,
        first_wait: float = 0.02,
    ) -> None:
        self.home = app_home(home)
        self.chosen_by = ""
        if tracking_uri is None:
            variables = (ADDRESS_VARIABLE, MLFLOW_VARIABLE)
            self.chosen_by = next((name for name in variables if os.environ.get(name)), "")
            tracking_uri = os.environ.get(self.chosen_by) or None
        self.uri = absolute_address(tracking_uri, self.home)
        self.file = sqlite_file(self.uri)
        self.patience = 5.0
        self.resolved: dict[str, str] = {}
        self._client = client
        self._check_every = check_every
        self._first_wait = first_wait
        self._lock = threading.Lock()
        self._repeats = False  # whether MLflow's own client may send a create more than once
        self._prepared = False  # whether MLflow's requests to the server wait as ours do
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

    def lacks_model(self, name: str) -> bool:
        """Return whether there is surely no such registered model; does not open MLflow."""
        if self._client is not None or self.file is None:
            return False
        return lacks_model(self.file, name)

    @property
    def marker(self) -> ModelRegistryClient:
        """The part of the client that writes aliases, tags and stages, and deletes versions.

        `MlflowClient` itself reads the registered model before each such write, to see if it is a
        prompt. That takes longer than the write, and longer with each version there ever was.
        """
        from fl_registry.mlflow.internals import registry_client

        return registry_client(self.client)

    @cached_property
    def is_server(self) -> bool:
        """Whether the address is that of an MLflow server, and not of a database."""
        with self._names_variable():
            return kind_of(self.uri) == "http"

    def require_usable(self) -> None:
        """Raise `StoreUnavailable` if MLflow cannot be at such an address; makes no call."""
        with self._names_variable():
            kind_of(self.uri)

    @property
    def place(self) -> str:
        """Where MLflow is, in words, without a password, and which variable says so."""
        chosen = f" (from {self.chosen_by})" if self.chosen_by else ""
        return f"MLflow at {redact(self.uri, self.uri)}{chosen}"

    @cached_property
    def folder(self) -> Folder | None:
        """The folder below which the local files of a database's store are; None with a server.

        Beside a SQLite file; with any other database the app's home, since MLflow would take the
        working folder.
        """
        if self.is_server:
            return None
        now = (self.home if self.file is None else self.file.parent).resolve()
        with self.errors("look where files are"):
            found = self.again(
                self.client.search_experiments, filter_string=f"tags.`{FOLDER_TAG}` LIKE '%'"
            )
        noted = {Path(experiment.tags[FOLDER_TAG]) for experiment in found}
        others = sorted(path for path in noted - {now} if path.is_absolute())
        if self.file is None and now in noted:
            return Folder(now, now)  # the others are those of other homes
        return Folder(now, others[0] if others else now, len(others))

    def here(self, location: str) -> str:
        """Return where files are now that MLflow has noted at a location.

        Raises
        ------
        ArtifactError
            They are outside of the store's folder (see `Folder`).
        """
        if local_folder(location) is None or (folder := self.folder) is None:
            return location
        # A SQLite file was copied or moved together with its files. Another database has stayed
        # where it is, and the home that it names may still be in use.
        return (folder if self.file is not None else replace(folder, noted=folder.now)).here(
            location
        )

    def settle_moved(self) -> None:
        """Before MLflow itself writes files: settle in a folder that was moved."""
        if self.file is not None:
            self.settle()

    def settle(self, moved_from: Path | None = None) -> int:
        """Note in MLflow that the store was moved here; return how many locations changed.

        Parameters
        ----------
        moved_from : Path | None
            The folder where it was; None for the one that MLflow has noted.

        Raises
        ------
        RegistryError
            Another home may use what MLflow has noted: a database that is no file beside the
            home's own files serves many homes.
        """
        from fl_registry.mlflow.internals import LOCATIONS

        folder = self.folder
        if folder is None:
            return 0
        before = {folder.noted, moved_from or folder.noted} - {folder.now}
        if self.file is None:
            before = {moved_from} if moved_from else before
            if before and not moved_from and (folder.others > 1 or folder.noted.exists()):
                why = f"{folder.noted} is still there"
                if folder.others > 1:
                    why = f"its files are noted in {folder.others} other folders"
                raise RegistryError(
                    f"Which home was moved to {folder.now} is not known to {self.place}, since "
                    f"{why}; move it back, and use `fl-app home move {folder.now}` there."
                )
        changed = 0
        for noted in sorted(before):
            changed += replace(folder, noted=noted).rewrite(self.uri, LOCATIONS)
            logger.info("the store was moved from %s to %s", noted, folder.now)
        if before:
            del self.folder
            self.resolved.clear()
        return changed

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn foreign errors in the block into ours; `doing` follows "could not"."""
        gone: Gone | None = None
        try:
            try:
                yield
            except Exception as error:
                gone = self._gone(error, doing)
                if gone is None:
                    raise_if_foreign(error, doing=doing, uri=self.uri)
                    raise
        except StoreUnavailable as error:
            self._failed(error)
            raise
        if gone is not None:
            raise gone
        self._checked = time.monotonic()
        if self._breaker.failures:
            self._breaker = self._breaker.succeeded()

    def again(self, call: Callable[..., T], *arguments: object, **named: object) -> T:
        """Return what an idempotent call returns, repeating it a few times if others interfere."""
        for attempt in range(_ATTEMPTS):
            began = time.monotonic()
            try:
                return call(*arguments, **named)
            except Exception as error:
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
        try:
            return self.again(call, *arguments)
        except Exception as error:
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
        alone: Callable[[T], bool] | None = None,
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
        alone : Callable[[T], bool] | None
            Whether what `create` returned is certainly the only one; then `find` is not called.
            None: it is where the call was certainly sent once.
        """
        for attempt in range(_ATTEMPTS):
            began = time.monotonic()
            try:
                created = create()
                if alone(created) if alone is not None else not self._repeats:
                    return created
                break
            except Exception as error:
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
        """Raise `StoreUnavailable`, within about 30 seconds, if the address cannot be used."""
        self._prepare_mlflow()
        seconds = min(READ_SECONDS, reply_seconds() or READ_SECONDS)
        with self._names_variable():
            check_address(self.uri, read_seconds=seconds)

    def rows(
        self, search: Callable[..., Any], *arguments: object, **named: object
    ) -> Iterator[Any]:
        """Yield all that a search of MLflow's client returns, page by page."""
        token: str | None = None
        while token != "":
            page = search(*arguments, page_token=token, **named)
            yield from page
            token = page.token or ""

    def registered_model(self, name: str) -> RegisteredModel | None:
        """Return a registered model with its tags and aliases, or None if there is none.

        By a search, which has the database choose the newest version of each stage. MLflow's
        ``get_registered_model`` loads all versions for that, those that were removed included.
        """
        search = self.client.search_registered_models
        found = self.again(search, filter_string=f"name = '{name}'", max_results=1)
        return found[0] if found else None

    def create_run(self, experiment: str, name: str, tags: Mapping[str, str]) -> Run:
        """Create a run, exactly one even where the reply to the call is lost."""
        client, mark = self.client, uuid.uuid4().hex

        def find() -> list[Run]:
            runs = client.search_runs([experiment], f"tags.{MARK} = '{mark}'")
            return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

        return self.create_once(
            lambda: client.create_run(experiment, run_name=name, tags={**tags, MARK: mark}),
            find,
            drop=lambda echo: self.again(client.delete_run, echo.info.run_id),
        )

    def experiment_id(self, name: str) -> str:
        """Return the id of the experiment of that name, and create it if needed."""
        key = f"experiment {name}"
        if key in self.resolved:
            return self.resolved[key]
        with self.errors(f"open the experiment {name!r}"):
            found = self.client.get_experiment_by_name(name)
            experiment = found or self.create_experiment(name)
        if experiment.lifecycle_stage != "active":
            number = str(experiment.experiment_id)
            raise Gone(
                f"The experiment {name!r} was deleted in MLflow; "
                f"{self._restores('experiment', number)} restores it, or use another name."
            )
        scheme = urlsplit(str(experiment.artifact_location)).scheme
        if scheme in STORE_MODULES:  # without it a session would find out after its first round
            require(f"{self.place}, which keeps files at {scheme}://,", STORE_MODULES[scheme])
        self.settle_moved()
        return self.resolved.setdefault(key, str(experiment.experiment_id))

    def create_experiment(self, name: str, *, tags: dict[str, str] | None = None) -> Any:
        """Create an experiment and return it; of several processes that create it, one wins."""
        where, tags = None, dict(tags or {})
        if self.folder is not None:  # a server decides itself
            files = self.folder.now / "artifacts"
            with suppress(OSError):  # MLflow tells
                files.mkdir(mode=0o700, exist_ok=True)
            where = files.as_uri()
            tags[FOLDER_TAG] = str(self.folder.now)
        try:
            self.again(self.client.create_experiment, name, artifact_location=where, tags=tags)
        except Exception:
            if (experiment := self.client.get_experiment_by_name(name)) is None:
                raise
            return experiment  # another process was first, or our own call before its reply
        if where is not None:
            del self.folder  # which is noted now
        return self.client.get_experiment_by_name(name)

    def command(self, text: str) -> str:
        """Return a command of MLflow's for this address, as it is typed, without a password."""
        return f"`MLFLOW_TRACKING_URI={shlex.quote(redact(self.uri, self.uri))} mlflow {text}`"

    def _restores(self, kind: str, number: str) -> str:
        return self.command(f"{kind}s restore --{kind}-id {number}")

    def _gone(self, error: Exception, doing: str) -> Gone | None:
        """Return our error for one that means that somebody has deleted what a call names."""
        text = str(error)
        if is_missing(error) and (run := _NO_RUN.search(text)):
            return RunPurged(f"Could not {doing}: run {run.group(1)} was removed from MLflow.")
        found = _INACTIVE.search(text)
        if found is None or self._client is None:
            return None
        (kind, number), what = found.groups(), ""
        with suppress(Exception):  # it only makes the sentence better
            where = self._client.get_run(number).info.experiment_id if kind == "run" else number
            experiment = self._client.get_experiment(where)
            if experiment.lifecycle_stage != "active":  # and all runs in it
                kind, number, what = "experiment", where, f" {experiment.name!r}"
        return Gone(
            f"Could not {doing}: the {kind}{what or f' {number}'} was deleted in MLflow; "
            f"{self._restores(kind, number)} restores it."
        )

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

    def _failed(self, error: StoreUnavailable) -> None:
        """Send nothing to a server for a while, unless that is why the call failed."""
        now = time.monotonic()
        if self.is_server and self._breaker.allows(now):
            self._trouble = str(error)
            self._breaker = self._breaker.failed(now, self._chance.random())

    def _is_worth_repeating(self, error: Exception, began: float) -> bool:
        brief = time.monotonic() - began <= self.patience
        return brief and (is_down(error) or _CONTENDED.search(str(error)) is not None)

    @contextmanager
    def _names_variable(self) -> Iterator[None]:
        """Have errors of the address name the environment variable that it is from."""
        try:
            yield
        except StoreUnavailable as error:
            if not self.chosen_by:
                raise
            raise StoreUnavailable(f"{error} The address is that of {self.chosen_by}.") from None

    def _prepare_mlflow(self) -> None:
        """Set what has to be set before MLflow is imported, and how its requests wait."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # At the end of a run MLflow would print its address, with the password in it.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        if self.is_server and not self._prepared:
            from fl_registry.mlflow.timeouts import limit_waits

            self._repeats, self._prepared = not limit_waits(self.uri), True

    @uncollected()
    def _connect(self) -> MlflowClient:
        """Make the client; of several processes at a new database, one creates it."""
        if not self.is_server:
            self.check()
        from filelock import FileLock
        from mlflow import MlflowClient

        if self.file is None:
            return MlflowClient(self.uri, self.uri)
        # MLflow makes the folder of the address as it is written, which holds % as %25, ? as %3F.
        written = Path(self.uri.removeprefix("sqlite:///")).parent
        is_stray = written != self.file.parent and not written.exists()
        with FileLock(self.file.with_name(f"{self.file.name}.lock")):
            create_private(self.file)
            client = MlflowClient(self.uri, self.uri)
            client.search_registered_models(max_results=1)  # opens the registry's tables too
        if is_stray:
            with suppress(OSError):
                os.removedirs(written)
        return client
