# SPDX-License-Identifier: Apache-2.0
"""Somebody tidies up in MLflow while a session trains: it goes on, and nothing is lost."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, MetricRecord
from mlflow import MlflowClient
from mlflow.entities import ViewType
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy
from fl_app.backlog import backlog
from fl_app.health import Health
from fl_app.strategy import SessionSettings
from fl_registry import FederatedLearningTracker, Gone, ModelManager, RegistryError, Stage
from fl_registry.breaker import Breaker

ROUNDS, WHEN = 4, 2
Deed = Callable[[MlflowClient], object]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    assert ModelManager(home=folder).client.search_registered_models() == []
    return folder / "mlflow.db"


class Session:
    """Sessions on MLflow in one home, with another person at work in the same MLflow."""

    def __init__(self, home: Path, name: str = "m") -> None:
        self.home, self.name, self.health = home, name, Health()
        uri = f"sqlite:///{home}/mlflow.db"
        self.person = MlflowClient(uri, uri)
        self.store = ModelManager(None, name, home=home)

    def run(self, deed: Deed | None = None, *, rounds: int = ROUNDS) -> None:
        """Run a session, in whose round `WHEN` somebody does something."""

        def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            if server_round == WHEN and deed is not None:
                deed(self.person)
            return MetricRecord({"accuracy": 0.5 + server_round / 10})

        settings = SessionSettings(
            health=self.health, drain_timeout=2.0, retry=Breaker(first=0.05, longest=0.2)
        )
        LifecycleStrategy(
            metric="accuracy",
            artifacts=[],
            home=self.home,
            store=ModelManager(None, self.name, home=self.home),
            tracker=FederatedLearningTracker(experiment_name="e", home=self.home),
            session=settings,
        ).start(LocalGrid(add_one), model(), num_rounds=rounds, evaluate_fn=holdout)

    @property
    def rounds(self) -> list[str]:
        store = ModelManager(None, self.name, home=self.home)
        return [row["tags"]["round"] for row in reversed(store.list_all_versions())]

    @property
    def waits(self) -> str:
        """Why rounds wait on disk."""
        return str(backlog(self.home, self.name))

    def runs(self) -> list[str]:
        """The states of all runs of sessions."""
        experiment = self.person.get_experiment_by_name("e")
        found = self.person.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
        return [run.info.status for run in found]

    def type(self, sentence: str) -> None:
        """Do what a sentence says is to be typed: its first command of MLflow's."""
        (command, *_) = re.findall(r"`(MLFLOW_TRACKING_URI=[^`]+)`", sentence)
        variable, program, *rest = shlex.split(command)
        name, _, value = variable.partition("=")
        assert program == "mlflow"
        subprocess.run(
            [sys.executable, "-m", "mlflow", *rest],
            env={**os.environ, name: value},
            check=True,
            capture_output=True,
        )


@pytest.fixture
def session(home: Path, empty_database: Path) -> Session:
    home.mkdir()
    shutil.copyfile(empty_database, home / "mlflow.db")
    return Session(home)


def experiment(client: MlflowClient, name: str = "e") -> str:
    return str(client.get_experiment_by_name(name).experiment_id)


def newest_run(client: MlflowClient) -> str:
    return str(client.search_runs([experiment(client)])[0].info.run_id)


def purge(client: MlflowClient) -> None:
    """Delete the session's run as `mlflow gc` does."""
    run_id = newest_run(client)
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)


RESTORED: dict[str, Deed] = {
    "experiment of the runs": lambda client: client.delete_experiment(experiment(client)),
    "experiment of the files": lambda client: client.delete_experiment(
        experiment(client, "fl-app")
    ),
    "run": lambda client: client.delete_run(newest_run(client)),
}


@pytest.mark.parametrize("what", RESTORED)
def test_what_was_deleted_is_waited_for_and_restored_by_the_printed_command(
    session: Session, what: str
) -> None:
    session.run(RESTORED[what])  # ends well, without what it could not hand over
    assert len(session.rounds) < ROUNDS
    assert "was deleted in MLflow; `MLFLOW_TRACKING_URI=" in session.waits
    assert "was deleted in MLflow" in session.health.failing["registry"]
    with pytest.raises(Gone, match="was deleted in MLflow"):
        session.run()  # says so before its first round
    session.type(session.waits)
    session.run(rounds=1)
    assert session.rounds == ["1", "2", "3", "4", "1"]
    assert session.runs() == ["FINISHED", "FINISHED"]
    assert not session.health.failing
    assert session.waits == "0 rounds"


def test_a_run_that_was_purged_is_replaced_by_the_next_session(session: Session) -> None:
    session.run(purge)
    assert "was removed from MLflow" in session.waits
    session.run(rounds=1)
    assert session.rounds == ["1", "2", "3", "4", "1"]
    assert session.runs() == ["FINISHED", "FINISHED"]
    assert session.waits == "0 rounds"


def test_a_registered_model_that_was_deleted_is_told_and_can_be_begun_anew(
    session: Session,
) -> None:
    session.run(lambda client: client.delete_registered_model("m"))
    assert "The registered model 'm' was deleted in MLflow" in session.waits
    with pytest.raises(Gone, match="its ledger is still there"):
        ModelManager(None, "m", home=session.home).get_latest_version("Production")
    with pytest.raises(Gone, match="was deleted in MLflow"):
        session.run()
    session.type(session.waits)
    session.run(rounds=1)
    assert session.rounds == ["2", "3", "4", "1"]  # round 1 went with the model
    assert session.runs() == ["FINISHED", "FINISHED"]
    assert session.store.verify() > 0


def test_a_registered_model_that_was_renamed_is_found_by_its_journal(session: Session) -> None:
    session.run(rounds=2)
    session.store.promote_to_production("2")
    session.run(lambda client: client.rename_registered_model("m", "other"))
    assert session.rounds == ["1", "2", "1", "2", "3", "4"]
    assert session.waits == "0 rounds"
    store = ModelManager(None, "m", home=session.home)
    assert store.get_latest_version(Stage.PRODUCTION) == "2"
    (notice,) = store.losses()
    assert notice.startswith("Model 'm' is called 'other' in MLflow now")
    assert store.rollback("2") == "2"
    again = ModelManager(None, "other", home=session.home)
    assert again.losses() == ()
    assert again.verify() == store.verify()


def test_the_journal_and_its_experiment_are_restored(session: Session) -> None:
    def deed(client: MlflowClient) -> None:
        client.delete_experiment(experiment(client, "fl-app-journal"))

    session.run(deed)
    assert session.rounds == ["1", "2", "3", "4"]
    assert session.store.verify() > ROUNDS
    assert session.runs() == ["FINISHED"]


def test_a_staged_version_that_was_deleted_costs_nothing(session: Session) -> None:
    def deed(client: MlflowClient) -> None:
        client.delete_model_version("m", "1")

    session.run(deed)
    assert session.rounds == ["2", "3", "4"]
    session.person.delete_model_version("m", "4")
    (loss,) = session.store.losses()
    assert loss == (
        "Version 4, which is in Staging, was deleted in MLflow; `fl-app doctor --repair` takes it "
        "out of Staging."
    )
    session.run(rounds=1)  # compares with nothing
    assert session.rounds == ["2", "3", "1"]


def test_a_production_version_that_was_deleted_is_told_with_the_way_out(session: Session) -> None:
    session.run(rounds=2)
    session.store.promote_to_production("2")
    session.store.restore_version("1")
    session.store.promote_to_production("1")
    session.person.delete_model_version("m", "1")
    (loss,) = session.store.losses()
    assert loss.startswith("Version 1, which is in Production, was deleted in MLflow; `fl-app roll")
    session.run(rounds=1)  # goes on; there is nothing to compare its version with
    assert "Version 1, which is in Production, was deleted" in session.waits
    with pytest.raises(RegistryError, match="is in Production; `fl-app rollback`"):
        session.store.acknowledge("1")
    assert session.store.rollback() == "2"
    session.run(rounds=1)
    assert session.rounds == ["2", "1", "1"]
    assert set(session.runs()) == {"FINISHED"}
    session.store.acknowledge("1", actor="Ada", reason="it was tidied up")
    assert session.store.acknowledged() == {"1"}


def test_tags_aliases_and_stages_by_hand_end_no_session(session: Session) -> None:
    def deed(client: MlflowClient) -> Any:
        client.set_registered_model_alias("m", "staging", "1")
        client.set_model_version_tag("m", "1", "stage", "Production")
        client.set_model_version_tag("m", "1", "metrics", "{")
        client.transition_model_version_stage("m", "1", "Production")

    session.run(deed)
    assert session.rounds == ["1", "2", "3", "4"]
    session.store.reconcile()
    assert session.store.drift() == ()
    assert session.person.get_model_version("m", "1").current_stage == "Archived"
