# SPDX-License-Identifier: Apache-2.0
"""The journal in MLflow: runs whose params are write-once, one after the other.

Winning the write of param ``op.<n>`` is the commit. A full run ends with a pointer to the next
one in the place of an entry, so that a new page is won like any move. What entries mean is in
`fl_registry.journal.entries`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fl_registry.backend import JournalStorage
from fl_registry.errors import Gone
from fl_registry.files.atomic import write_whole
from fl_registry.journal.entries import JournalError, Mark, Page, carried_over, read_page
from fl_registry.journal.lease import Heartbeat
from fl_registry.mlflow.connection import Connection
from fl_registry.mlflow.locations import JOURNAL_FOR_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

PAGE_LENGTH = 1_000  # entries in one run; reading a run takes time in proportion to them
JOURNAL_EXPERIMENT = "fl-app-journal"
JOURNAL_TAG = "journal"  # on the registered model: the id of its journal run
_ENTRY = re.compile(r"op\.(\d{6,})")
_BEFORE = "before"  # the param that names the run before
_NEXT = re.compile(r'\{"next":"([^"]+)"\}')  # the pointer to the next run
_HEARTBEAT = "lease"  # on the registered model: the last heartbeat of the server that writes
_CHUNK = 5_000  # characters of the carried state in one param; MLflow takes 6,000
_SHORT = 200  # entries that a server sends faster than it answers a search
_MARK = TypeAdapter(Mark)
_SINCE = 60_000  # milliseconds by which a journal run may be older than its model


@dataclass
class ModelName:
    """The name of a registered model, which people may change in MLflow at any time.

    Attributes
    ----------
    given : str
        What it was called at first.
    now : str
        What it is called.
    """

    given: str
    now: str


class JournalHome:
    """Finds the journal of one registered model, or creates it so that there is only ever one.

    A new model is created with its journal's id in one call, which one process wins. For a model
    that other tools registered, the id is the tag of an experiment whose name follows from the
    model: names of experiments are unique, so again one process wins, and the others use its
    journal. A model that was renamed is found by its journal.

    Parameters
    ----------
    connection : Connection
        Where MLflow is.
    name : ModelName
        The registered model's name.
    """

    def __init__(self, connection: Connection, name: ModelName) -> None:
        self._connection = connection
        self._name = name

    def model(self) -> Any | None:
        """Return the registered model, or None if it does not exist yet."""
        connection = self._connection
        if connection.lacks_model(self._name.now):
            return None
        return connection.registered_model(self._name.now)

    def find(self) -> str:
        """Return the id of the journal run, or an empty text if there is none yet.

        Raises
        ------
        Gone
            The registered model was deleted in MLflow, and its journal is still there.
        """
        if (model := self.model()) is None:
            return self.find_elsewhere()
        run_id = self._noted(model)
        if not run_id and (lost := self._journal_runs(since=model.creation_timestamp - _SINCE)):
            run_id = self._noted(self.model())  # another process may have begun it meanwhile
            if not run_id:
                raise JournalError(
                    f"Model {self._name.now!r} has lost its tag {JOURNAL_TAG!r}, but run {lost[0]} "
                    "holds its journal; set the tag to that id in MLflow, or delete that run if "
                    "the model was registered anew."
                )
        return run_id

    def find_elsewhere(self) -> str:
        """Find the journal of a model that is not there, and the model's present name.

        Returns
        -------
        str
            The id of the journal run; empty if there never was such a model.

        Raises
        ------
        Gone
            No model has the journal any more.
        """
        if self._connection.lacks_model(self._name.now):
            return ""
        runs = self._journal_runs()
        search = self._connection.client.search_registered_models
        for run_id in reversed(runs):  # the model names its newest one
            for model in search(filter_string=f"tags.{JOURNAL_TAG} = '{run_id}'", max_results=1):
                logger.warning("model %s is called %s in MLflow now", self._name.now, model.name)
                self._name.now = model.name
                return run_id
        if not runs:
            return ""
        begin = self._connection.command(f"runs delete --run-id {runs[0]}")
        raise Gone(
            f"The registered model {self._name.now!r} was deleted in MLflow, all versions with it; "
            "its ledger is still there. Restore MLflow's database from a backup; or begin a new "
            f"model of that name, with version 1: {begin}."
        )

    def ensure(self) -> str:
        """Return the id of the journal run; create it, and the registered model, if needed.

        Both are created together: of several processes the model's creator wins.
        """
        if run_id := self.find():
            return run_id
        connection, client, name = self._connection, self._connection.client, self._name.now
        mine = self.new_run(connection.experiment_id(JOURNAL_EXPERIMENT))
        try:
            connection.again(client.create_registered_model, name, tags={JOURNAL_TAG: mine})
            return mine
        except Exception:
            run_id, model = self.find(), self.model()
            if model is None:
                raise
        if not run_id:  # other tools registered the model
            claim = connection.create_experiment(self._claim(model), tags={JOURNAL_TAG: mine})
            run_id = self.point_to(claim.tags[JOURNAL_TAG])
        if run_id != mine:
            connection.again(client.delete_run, mine)
        return run_id

    def point_to(self, run_id: str) -> str:
        """Tag the model with the id of its journal, and return it."""
        write = self._connection.marker.set_registered_model_tag
        self._connection.again(write, self._name.now, JOURNAL_TAG, run_id)
        return run_id

    def new_run(self, experiment: str) -> str:
        """Create a journal run and return its id."""
        name = self._name.given
        run = self._connection.create_run(experiment, f"journal of {name}", {JOURNAL_FOR_TAG: name})
        return str(run.info.run_id)

    def _noted(self, model: Any) -> str:
        """Return the id on the model, or on the experiment that claims it; empty for none."""
        if JOURNAL_TAG in model.tags:
            return str(model.tags[JOURNAL_TAG])
        claim = self._connection.client.get_experiment_by_name(self._claim(model))
        return "" if claim is None else self.point_to(claim.tags[JOURNAL_TAG])

    def _claim(self, model: Any) -> str:
        return f"{JOURNAL_EXPERIMENT} of {self._name.given:.150} since {model.creation_timestamp}"

    def _journal_runs(self, since: int = 0) -> list[str]:
        """Return the runs of a model's journal, oldest first; none without the first of them.

        Those of a model that is there and has no tag: then only the tag was removed, and a second
        journal must not begin.
        """
        client = self._connection.client
        experiment = client.get_experiment_by_name(JOURNAL_EXPERIMENT)
        if experiment is None:
            return []
        runs = [
            run
            for run in self._connection.rows(
                client.search_runs,
                [experiment.experiment_id],
                f"tags.{JOURNAL_FOR_TAG} = '{self._name.given}'",
            )
            if run.info.start_time >= since and run.data.params
        ]
        runs.sort(key=lambda run: (run.info.start_time, run.info.run_id))
        begun = [place for place, run in enumerate(runs) if _param(1) in run.data.params]
        return [str(run.info.run_id) for run in runs[begun[0] :]] if begun else []


@dataclass(frozen=True)
class _Here:
    """A journal run that was read."""

    run_id: str
    experiment: str
    page: Page
    before: str
    after: str

    @property
    def following(self) -> int:
        """The number of the entry that comes next."""
        return self.page.first + len(self.page.texts)


class MlflowJournal(JournalStorage):
    """The journal of one registered model.

    Parameters
    ----------
    connection : Connection
        Where MLflow is.
    name : str
        The registered model's name.
    page_length : int
        Entries after which a new run is begun.

    Attributes
    ----------
    name : ModelName
        The registered model's name, which changes if it is renamed in MLflow.
    """

    def __init__(
        self, connection: Connection, name: str, *, page_length: int = PAGE_LENGTH
    ) -> None:
        self.name = ModelName(name, name)
        self._connection = connection
        self._home = JournalHome(connection, self.name)
        self._page_length = page_length
        self._here: _Here | None = None

    def page(self, *, fresh: bool) -> Page:
        """Return the run that is written to; empty if there is no journal yet.

        Params never change, so only what is new is read, unless it is to be read `fresh`.
        """
        here = self._look(fresh=fresh)
        return Page() if here is None else here.page

    def pages(self, *, after: int = 0) -> list[Page]:
        here = self._look(fresh=True)
        pages = [] if here is None else [here.page]
        with self._connection.errors("read the journal"):
            while here is not None and here.before and here.page.first > after + 1:
                here = self._read(self._get(here.before))
                pages.append(here.page)
        return pages[::-1]

    def claim(self, number: int, text: str) -> bool:
        here = self.ensure()
        with self._connection.errors("write the journal"):
            if len(here.page.texts) >= self._page_length:
                self._turn_over(here)
                return False
            won = self._won(here.run_id, number, text)
            if won and number == here.following:
                page = replace(here.page, texts=(*here.page.texts, text))
                self._here = replace(here, page=page)
            return won

    def heartbeat(self) -> Heartbeat:
        with self._connection.errors("read who writes"):
            model = self._home.model()
        return Heartbeat.decode(model.tags.get(_HEARTBEAT, "") if model is not None else "")

    def set_heartbeat(self, beat: Heartbeat) -> None:
        connection = self._connection
        with connection.errors("write who writes"):
            write = connection.marker.set_registered_model_tag
            connection.again(write, self.name.now, _HEARTBEAT, beat.encode())

    def lock_file(self) -> Path | None:
        return self._connection.home / "leases" / f"{self._short_name}.lock"

    def checked(self) -> Mark:
        with suppress(OSError, ValueError):  # without it the whole journal is checked
            return _MARK.validate_json(self._mark_file.read_bytes())
        return Mark()

    def set_checked(self, mark: Mark) -> None:
        try:
            self._mark_file.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(self._mark_file, _MARK.dump_json(mark))
        except OSError as error:
            logger.info("%s could not be written: %s", self._mark_file, error.strerror)

    @property
    def _mark_file(self) -> Path:
        return self._connection.home / "journals" / f"{self._short_name}.json"

    @property
    def _short_name(self) -> str:
        """A file's name for this model of this store."""
        shared = f"{self._connection.uri}\n{self.name.given}"
        return hashlib.sha256(shared.encode()).hexdigest()[:16]

    def follow(self) -> bool:
        """Look where the model is that could not be found; return whether it was renamed.

        Raises
        ------
        Gone
            It was deleted.
        """
        before = self.name.now
        with self._connection.errors("look for the registered model"):
            if self._home.model() is None:
                self._here = None  # it may begin anew
                self._home.find_elsewhere()
        return self.name.now != before

    def ensure(self) -> _Here:
        """Make sure that the registered model and its one journal exist; return where it is."""
        if self._here is None:
            with self._connection.errors("open the journal"):
                self._here = self._follow(self._get(self._home.ensure()))
        return self._here

    def _look(self, *, fresh: bool) -> _Here | None:
        """Read the run that is written to; another thread may store an older reading meanwhile."""
        here = self._here
        with self._connection.errors("read the journal"):
            if here is not None and not fresh:
                run = self._grown(here)
            else:
                run_id = here.run_id if here is not None else self._home.find()
                run = self._get(run_id) if run_id else None
            if run is not None:
                self._here = here = self._follow(run)
        return here

    def _grown(self, here: _Here) -> Run | None:
        """Return the run if it has more entries than were read.

        The search costs the same, however long the run is. A server takes some 40 ms for any search
        of runs, so a short run itself is read instead.
        """
        following = _param(here.following)
        if self._connection.is_server and len(here.page.texts) < _SHORT:
            run = self._get(here.run_id)
            return run if following in run.data.params else None
        condition = f"attributes.run_id = '{here.run_id}' and params.`{following}` LIKE '%'"
        search = self._connection.client.search_runs
        runs = self._connection.again(search, [here.experiment], condition, max_results=1)
        return runs[0] if runs else None

    def _follow(self, run: Run) -> _Here:
        """Return the run that is written to, on from a run that may have been turned over."""
        here = first = self._read(run)
        while here.after:
            here = self._read(self._get(here.after))
        if here is not first:
            self._home.point_to(here.run_id)
        return here

    def _get(self, run_id: str) -> Run:
        """Return a journal run; a deleted one is restored, since all stages follow from it."""
        connection, client = self._connection, self._connection.client
        run: Run | None = connection.or_none(client.get_run, run_id)
        if run is None:
            raise JournalError(
                f"The journal of model {self.name.now!r} is gone from MLflow (run {run_id}); "
                "restore MLflow's database from a backup, or remove the model's tag "
                f"{JOURNAL_TAG!r} to "
                "begin a new journal, into which adopt() takes the aliases."
            )
        if run.info.lifecycle_stage == "active":
            return run
        logger.warning(
            "the journal run %s of %s was deleted and is restored", run_id, self.name.now
        )
        experiment = client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage != "active":
            connection.again(client.restore_experiment, experiment.experiment_id)
        connection.again(client.restore_run, run_id)
        return client.get_run(run_id)

    @staticmethod
    def _read(run: Run) -> _Here:
        params: dict[str, str] = run.data.params
        numbers = sorted(int(m.group(1)) for key in params if (m := _ENTRY.fullmatch(key)))
        first = numbers[0] if _BEFORE in params and numbers else 1
        for expected, number in enumerate(numbers, start=first):
            if number != expected:
                raise JournalError(
                    f"Entry {expected} of the journal is missing, though entry {number} is there: "
                    "it was changed from outside; restore the registry's database from a backup."
                )
        texts = [params[_param(number)] for number in numbers]
        pointer = _NEXT.fullmatch(texts[-1]) if texts else None
        carried = "".join(params[key] for key in sorted(params) if key.startswith("state."))
        return _Here(
            run_id=str(run.info.run_id),
            experiment=str(run.info.experiment_id),
            page=Page(tuple(texts[:-1] if pointer else texts), carried, first),
            before=params.get(_BEFORE, ""),
            after=pointer.group(1) if pointer else "",
        )

    def _turn_over(self, here: _Here) -> None:
        """Begin a new run; of several processes that do it, one wins the place of the pointer."""
        from mlflow.entities import Param

        page = carried_over(read_page(here.page))
        run_id = self._home.new_run(here.experiment)
        pieces = range(0, len(page.carried), _CHUNK)
        params = [Param(_BEFORE, here.run_id), Param(_param(page.first), page.texts[0])]
        params += [Param(f"state.{n // _CHUNK:03d}", page.carried[n : n + _CHUNK]) for n in pieces]
        self._connection.again(self._connection.client.log_batch, run_id, params=params)
        if not self._won(here.run_id, page.first, f'{{"next":"{run_id}"}}'):
            self._connection.client.delete_run(run_id)

    def _won(self, run_id: str, number: int, text: str) -> bool:
        """Write an entry, and return whether it is the one that is stored in this place now."""
        from mlflow.exceptions import MlflowException

        log_param = self._connection.client.log_param
        write = partial(log_param, run_id, _param(number), text, synchronous=True)
        # MLflow accepts the same param and text twice, so what did not arrive is written again.
        for attempt in (write, partial(self._connection.again, write)):
            try:
                attempt()
            except MlflowException as error:
                # A lost race shows in many errors; only what is stored tells who won.
                failure, stored = error, self._get(run_id).data.params.get(_param(number))
                if stored is not None:
                    return bool(stored == text)
            else:
                return True
        raise failure


def _param(number: int) -> str:
    return f"op.{number:06d}"
