# SPDX-License-Identifier: Apache-2.0
"""The journal in MLflow: runs whose params are write-once, one after the other.

Winning the write of param ``op.<n>`` is the commit. A full run ends with a pointer to the next
one in the place of an entry, so that a new page is won like any move. What entries mean is in
`fl_registry.journal.entries`; how a model gets its first run, in `journal_run.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_registry.backend import JournalStorage
from fl_registry.journal.entries import JournalError, Page, carried_over, read_page
from fl_registry.journal.lease import Heartbeat
from fl_registry.mlflow.connection import Connection
from fl_registry.mlflow.journal_run import JournalHome

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

PAGE_LENGTH = 1_000  # entries in one run; reading a run takes time in proportion to them
_ENTRY = re.compile(r"op\.(\d{6,})")
_NEXT, _BEFORE = '{"next":', "before"  # how a pointer starts; the param that names the run before
_HEARTBEAT = "lease"  # on the registered model: the last heartbeat of the server that writes
_CHUNK = 5_000  # characters of the carried state in one param; MLflow takes 6,000
_SHORT = 200  # entries that a server sends faster than it answers a search


@dataclass(frozen=True)
class _Here:
    """A journal run that was read."""

    run_id: str
    experiment: str
    page: Page
    before: str
    after: str


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
    """

    def __init__(
        self, connection: Connection, name: str, *, page_length: int = PAGE_LENGTH
    ) -> None:
        self._connection = connection
        self._home = JournalHome(connection, name)
        self._name = name
        self._page_length = page_length
        self._here: _Here | None = None

    def page(self, *, fresh: bool) -> Page:
        """Return the run that is written to; empty if there is no journal yet.

        Params never change, so only what is new is read, unless it is to be read `fresh`.
        """
        here = self._look(fresh=fresh)
        return Page() if here is None else here.page

    def pages(self) -> list[Page]:
        here = self._look(fresh=True)
        pages = [] if here is None else [here.page]
        with self._connection.errors("read the journal"):
            while here is not None and here.before:
                here = self._read(self._get(here.before))
                pages.append(here.page)
        return pages[::-1]

    def claim(self, number: int, text: str) -> bool:
        here, name = self.ensure(), _param(number)
        with self._connection.errors("write the journal"):
            if len(here.page.texts) >= self._page_length:
                self._turn_over(here)
                return False
            won = self._won(here.run_id, name, text)
            if won and number == here.page.first + len(here.page.texts):
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
            write = connection.client.set_registered_model_tag
            connection.again(write, self._name, _HEARTBEAT, beat.encode())

    def lock_file(self) -> Path | None:
        shared = f"{self._connection.uri}\n{self._name}"
        name = hashlib.sha256(shared.encode()).hexdigest()[:16]
        return self._connection.home / "leases" / f"{name}.lock"

    def ensure(self) -> _Here:
        """Make sure that the registered model and its one journal exist; return where it is."""
        if self._here is None:
            with self._connection.errors("open the journal"):
                self._here = self._follow(self._get(self._home.ensure()))
        return self._here

    def _look(self, *, fresh: bool) -> _Here | None:
        """Read the run that is written to; another thread may store an older reading meanwhile."""
        here = self._here
        run = None if here is None or fresh else self._grown(here)
        if here is None or fresh or run is not None:
            with self._connection.errors("read the journal"):
                if run is None and (run_id := here.run_id if here else self._home.find()):
                    run = self._get(run_id)
                here = self._follow(run) if run is not None else None
            self._here = here
        return here

    def _won(self, run_id: str, name: str, text: str) -> bool:
        from mlflow.exceptions import MlflowException

        client = self._connection.client
        try:
            client.log_param(run_id, name, text, synchronous=True)
        except MlflowException:
            # A lost race shows in many errors; only what is stored tells who won.
            run = self._get(run_id)
            stored = run.data.params.get(name)
            if stored is None and run.info.lifecycle_stage == "active":
                return self._won_late(run_id, name, text)
            return bool(stored == text)
        return True

    def _won_late(self, run_id: str, name: str, text: str) -> bool:
        """Write again what did not arrive; MLflow accepts the same param and text twice."""
        from mlflow.exceptions import MlflowException

        try:
            self._connection.again(self._connection.client.log_param, run_id, name, text)
        except MlflowException:
            stored = self._get(run_id).data.params.get(name)
            if stored is None:
                raise
            return bool(stored == text)
        return True

    def _grown(self, here: _Here) -> Run | None:
        """Return the run if it has more entries than were read.

        The search costs the same, however long the run is. A server takes some 40 ms for any search
        of runs, so a short run itself is read instead.
        """
        following = _param(here.page.first + len(here.page.texts))
        if self._connection.is_server and len(here.page.texts) < _SHORT:
            with self._connection.errors("read the journal"):
                run = self._get(here.run_id)
            return run if following in run.data.params else None
        condition = f"attributes.run_id = '{here.run_id}' and params.`{following}` LIKE '%'"
        with self._connection.errors("read the journal"):
            search = self._connection.client.search_runs
            runs = self._connection.again(search, [here.experiment], condition, max_results=1)
        return runs[0] if runs else None

    def _follow(self, run: Run) -> _Here:
        """Return the run that is written to, on from a run that may have been turned over."""
        here = self._read(run)
        if not here.after:
            return here
        while here.after:
            here = self._read(self._get(here.after))
        self._home.point_to(here.run_id)
        return here

    def _get(self, run_id: str) -> Run:
        """Return a journal run; a deleted one is restored, since all stages follow from it."""

        def missing(error: Exception) -> None:
            raise self._home.gone(run_id) from error

        connection, client = self._connection, self._connection.client
        run: Run = connection.or_none(client.get_run, run_id, missing=missing)
        if run.info.lifecycle_stage == "active":
            return run
        logger.warning("the journal run %s of %s was deleted and is restored", run_id, self._name)
        experiment = client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage != "active":
            connection.again(client.restore_experiment, experiment.experiment_id)
        connection.again(client.restore_run, run_id)
        return client.get_run(run_id)

    def _read(self, run: Run) -> _Here:
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
        after = _pointer(texts.pop()) if texts and texts[-1].startswith(_NEXT) else ""
        return _Here(
            run_id=str(run.info.run_id),
            experiment=str(run.info.experiment_id),
            page=Page(tuple(texts), _carried(params), first),
            before=params.get(_BEFORE, ""),
            after=after,
        )

    def _turn_over(self, here: _Here) -> None:
        """Begin a new run; of several processes that do it, one wins the place of the pointer."""
        from mlflow.entities import Param

        page = carried_over(read_page(here.page))
        run_id = self._home.new_run(here.experiment)
        pieces = range(0, len(page.carried), _CHUNK)
        params = [Param(_BEFORE, here.run_id)]
        params += [Param(f"state.{n // _CHUNK:03d}", page.carried[n : n + _CHUNK]) for n in pieces]
        params += [Param(_param(page.first), page.texts[0])]
        self._connection.again(self._connection.client.log_batch, run_id, params=params)
        pointer = json.dumps({"next": run_id}, separators=(",", ":"))
        if not self._won(here.run_id, _param(page.first), pointer):
            self._connection.client.delete_run(run_id)


def _param(number: int) -> str:
    return f"op.{number:06d}"


def _carried(params: dict[str, str]) -> str:
    return "".join(params[key] for key in sorted(params) if key.startswith("state."))


def _pointer(text: str) -> str:
    try:
        fields: dict[str, Any] = json.loads(text)
        return str(fields["next"])
    except (ValueError, KeyError) as error:
        raise JournalError(
            "The journal's pointer to its next run cannot be read: it was changed from outside; "
            "restore the registry's database from a backup."
        ) from error
