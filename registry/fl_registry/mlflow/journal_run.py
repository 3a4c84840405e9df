# SPDX-License-Identifier: Apache-2.0
"""Finding a model's journal, and creating it so that there is only ever one.

A new model is created with its journal's id in one call, which one process wins. For a model that
other tools registered, the id is the tag of an experiment whose name follows from the model: names
of experiments are unique, so again one process wins, and the others use its journal.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from fl_registry.journal.entries import JournalError
from fl_registry.mlflow.connection import Connection

if TYPE_CHECKING:
    from mlflow.entities import Run

JOURNAL_EXPERIMENT = "fl-app-journal"
JOURNAL_TAG = "journal"  # on the registered model: the id of its journal run
_FOR_TAG = "journal_for"  # on the journal run: the name of the registered model
_MARK = "created_by_call"  # on the journal run: tells an echo of a create from the first one
_SINCE = 60_000  # milliseconds by which a journal run may be older than its model


class JournalHome:
    """Finds and makes the journal of one registered model.

    Parameters
    ----------
    connection : Connection
        Where MLflow is.
    name : str
        The registered model's name.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    def model(self) -> Any | None:
        """Return the registered model, or None if it does not exist yet."""
        connection = self._connection
        return connection.or_none(connection.client.get_registered_model, self._name)

    def find(self) -> str:
        """Return the id of the journal run, or an empty text if there is none yet."""
        model = self.model()
        if model is None:
            return ""
        run_id = self._noted(model)
        if not run_id and (lost := self._lost(model)):
            run_id = self._noted(self.model())  # another process may have begun it meanwhile
            if not run_id:
                raise JournalError(
                    f"Model {self._name!r} has lost its tag {JOURNAL_TAG!r}, but run {lost} holds "
                    "its journal; set the tag to that id in MLflow, or delete that run if the "
                    "model was registered anew."
                )
        return run_id

    def _noted(self, model: Any) -> str:
        """Return the id on the model, or on the experiment that claims it; empty for none."""
        if JOURNAL_TAG in model.tags:
            return str(model.tags[JOURNAL_TAG])
        claimed = self._connection.client.get_experiment_by_name(self._claim_name(model))
        if claimed is None:
            return ""
        run_id = str(claimed.tags[JOURNAL_TAG])
        self.point_to(run_id)
        return run_id

    def ensure(self) -> str:
        """Return the id of the journal run; create it, and the registered model, if needed."""
        return self.find() or self._create()

    def point_to(self, run_id: str) -> None:
        """Tag the model with the id of its journal."""
        client = self._connection.client
        self._connection.again(client.set_registered_model_tag, self._name, JOURNAL_TAG, run_id)

    def new_run(self, experiment: str) -> str:
        """Create a journal run, exactly one even where replies are lost, and return its id."""
        client = self._connection.client
        mark = uuid.uuid4().hex
        tags = {_FOR_TAG: self._name, _MARK: mark}

        def find() -> list[str]:
            runs = client.search_runs([experiment], f"tags.{_MARK} = '{mark}'")
            return [run.info.run_id for run in sorted(runs, key=_age)]

        def create() -> str:
            run = client.create_run(experiment, tags=tags, run_name=f"journal of {self._name}")
            return str(run.info.run_id)

        return self._connection.create_once(
            create,
            find,
            drop=lambda run_id: self._connection.again(client.delete_run, run_id),
            alone=lambda _: self._connection.sends_once,
        )

    def gone(self, run_id: str) -> JournalError:
        """Return the error for a journal run that was removed for good."""
        return JournalError(
            f"The journal of model {self._name!r} is gone from MLflow (run {run_id}); restore "
            f"MLflow's database from a backup, or remove the model's tag {JOURNAL_TAG!r} to begin "
            "a new journal, into which adopt() takes the aliases."
        )

    def _create(self) -> str:
        """Create model and journal together: of several processes the model's creator wins."""
        from mlflow.exceptions import MlflowException

        client = self._connection.client
        mine = self.new_run(self._connection.experiment_id(JOURNAL_EXPERIMENT))
        try:
            self._connection.again(
                client.create_registered_model, self._name, tags={JOURNAL_TAG: mine}
            )
            return mine
        except MlflowException:
            run_id, model = self.find(), self.model()
            if model is None:
                raise
        run_id = run_id or self._claim(model, mine)
        if run_id != mine:
            self._connection.again(client.delete_run, mine)
        return run_id

    def _claim(self, model: Any, mine: str) -> str:
        """Make `mine` the journal of a model that other tools registered, unless one was first."""
        from mlflow.exceptions import MlflowException

        name, client = self._claim_name(model), self._connection.client
        try:
            self._connection.create_experiment(name, tags={JOURNAL_TAG: mine})
        except MlflowException:
            if client.get_experiment_by_name(name) is None:
                raise
        run_id = str(client.get_experiment_by_name(name).tags[JOURNAL_TAG])
        self.point_to(run_id)
        return run_id

    def _claim_name(self, model: Any) -> str:
        return f"{JOURNAL_EXPERIMENT} of {self._name:.150} since {model.creation_timestamp}"

    def _lost(self, model: Any) -> str:
        """Return the journal run of a model without the tag; empty for none.

        Then only the tag was removed, and a second journal must not begin.
        """
        client = self._connection.client
        experiment = client.get_experiment_by_name(JOURNAL_EXPERIMENT)
        if experiment is None:
            return ""
        runs = client.search_runs(
            [experiment.experiment_id],
            f"tags.{_FOR_TAG} = '{self._name}' and params.`op.000001` LIKE '%'",
        )
        since = model.creation_timestamp - _SINCE
        matching = [
            run.info.run_id for run in sorted(runs, key=_age) if run.info.start_time >= since
        ]
        return str(matching[0]) if matching else ""


def _age(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id
