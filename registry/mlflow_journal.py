# SPDX-License-Identifier: Apache-2.0
"""The journal kept in MLflow: one run per registered model, whose params are write-once.

Winning the write of param ``op.<n>`` is the commit. What entries mean is `registry.journal`'s.
"""

from __future__ import annotations

from registry.connection import Connection
from registry.errors import UnknownVersion, error_code

JOURNAL_EXPERIMENT = "fl-app-journal"
JOURNAL_TAG = "journal"  # on the registered model: the id of its journal run
_FOR_TAG = "journal_for"  # on the journal run: the name of the registered model


class MlflowJournal:
    """The journal of one registered model.

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
        self._run_id = ""

    def texts(self) -> list[str]:
        """Return the entries as stored, oldest first; none where there is no journal yet."""
        with self._connection.errors("read the journal"):
            run_id = self._run_id or self._known_run()
            if not run_id:
                return []
            self._run_id = run_id
            params = self._connection.client.get_run(run_id).data.params
        found: list[str] = []
        while (text := params.get(_param(len(found) + 1))) is not None:
            found.append(text)
        return found

    def claim(self, number: int, text: str) -> bool:
        """Write entry `number` if it is free; say whether `text` is what stands there now."""
        from mlflow.exceptions import MlflowException

        self.ensure()
        client = self._connection.client
        with self._connection.errors("write the journal"):
            try:
                client.log_param(self._run_id, _param(number), text, synchronous=True)
            except MlflowException:
                # Whoever lost learns it in many ways; what is stored is the only answer.
                stored = client.get_run(self._run_id).data.params.get(_param(number))
                if stored is None:
                    raise
                return bool(stored == text)
        return True

    def ensure(self) -> None:
        """Make sure that the registered model and its one journal run exist."""
        if self._run_id:
            return
        with self._connection.errors("open the journal"):
            self._run_id = self._known_run() or self._create()

    def _known_run(self) -> str:
        from mlflow.exceptions import MlflowException

        try:
            model = self._connection.client.get_registered_model(self._name)
        except MlflowException as error:
            if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
                return ""
            raise
        return str(model.tags.get(JOURNAL_TAG, ""))

    def _create(self) -> str:
        """Create model and journal together: of several processes the model's creator wins."""
        from mlflow.exceptions import MlflowException

        client = self._connection.client
        experiment = self._connection.experiment_id(JOURNAL_EXPERIMENT)
        run_name = f"journal of {self._name}"
        run = client.create_run(experiment, tags={_FOR_TAG: self._name}, run_name=run_name)
        mine = str(run.info.run_id)
        try:
            client.create_registered_model(self._name, tags={JOURNAL_TAG: mine})
            return mine
        except MlflowException:
            found = self._known_run()
            if not found and not self._model_exists():
                raise
        if not found:
            found = self._adopt_oldest(experiment)
        if found != mine:
            client.delete_run(mine)
        return found

    def _model_exists(self) -> bool:
        filter_string = f"name = '{self._name}'"
        models = self._connection.client.search_registered_models(filter_string, max_results=1)
        return bool(models)

    def _adopt_oldest(self, experiment: str) -> str:
        """Choose the journal of a model that other tools registered: the oldest run."""
        client = self._connection.client
        runs = client.search_runs([experiment], f"tags.{_FOR_TAG} = '{self._name}'")
        oldest = min(runs, key=lambda run: (run.info.start_time, run.info.run_id))
        chosen = str(oldest.info.run_id)
        client.set_registered_model_tag(self._name, JOURNAL_TAG, chosen)
        return chosen


def missing_version(name: str, version: str) -> UnknownVersion:
    """Return the error for a version that a registered model does not have."""
    return UnknownVersion(
        f"There is no version {version} of model {name!r}; list_all_versions() tells which exist."
    )


def _param(number: int) -> str:
    return f"op.{number:06d}"
