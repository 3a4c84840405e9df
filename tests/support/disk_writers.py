# SPDX-License-Identifier: Apache-2.0
"""Everything that writes files, as cases for `disk_faults.py`."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
from safetensors.numpy import save_file

from fl_registry import InMemoryModelStore, InMemoryTracker, ModelManager, StoreUnavailable
from fl_registry.errors import RegistryError
from fl_registry.store import ModelStore
from support.disk_faults import Case, limited

COUNT = itertools.count()


def weights_file(number: int, ending: str = ".safetensors") -> Path:
    """Write a weights file of the test's own, elsewhere, whatever the limit is."""
    folder = Path(os.environ["FL_APP_HOME"]).with_name("own")
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}{ending}"
    with limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1]):
        if ending == ".pt":
            import torch

            torch.save({"w": torch.full((40, 40), float(number))}, path)
        else:
            save_file({"w": np.full((40, 40), number, np.float32), "n": np.array(number)}, path)
    return path


def weights(folder: Path) -> Case:
    from fl_registry.files.weights import load_weights, save_weights

    arrays = {"w": np.arange(2000.0)}
    path = folder / "w.safetensors"
    return Case(lambda: save_weights(arrays, path), (OSError,), check=lambda: load_weights(path))


def round_checkpoint(folder: Path) -> Case:
    from flwr.app import ArrayRecord

    from fl_app.strategy.checkpoints.round_store import RoundFiles, load_array_record
    from fl_app.strategy.errors import CheckpointError

    arrays = ArrayRecord([np.ones((30, 30), np.float32)])
    files = RoundFiles(folder)
    before, _ = files.save_arrays(arrays, 1, {})
    return Case(
        lambda: files.save_arrays(arrays, 2, {}),
        (CheckpointError,),
        check=lambda: load_array_record(folder / before),
    )


def session_folder(folder: Path) -> Case:
    """A session's own folder is there whole, or not at all."""
    from fl_app.backlog import SESSION_FILE
    from fl_app.strategy.checkpoints.folder import SessionFolder
    from fl_app.strategy.checkpoints.record import SessionRecord, read_file
    from fl_app.strategy.errors import CheckpointError
    from fl_app.strategy.records import Origin

    kept = SessionFolder.create(folder / "kept", SessionRecord("m", Origin(), 1, run_id="r"))

    def write() -> None:
        kept.note(run_id="r")
        made = SessionFolder.create(folder / f"new-{next(COUNT)}", SessionRecord("m", Origin(), 2))
        made.release()

    def check() -> None:
        read_file(kept.path / SESSION_FILE, SessionRecord)

    return Case(write, (CheckpointError,), (".lock",), check)


def reference(folder: Path) -> Case:
    from fl_app.client.summary.reference import load_reference, new_reference, save_reference

    made = new_reference("r", {"a": np.arange(500.0)}, np.arange(500, dtype=np.uint64))
    path = folder / "node" / "reference.npz"

    def check() -> None:
        assert load_reference(path) is not None

    return Case(lambda: save_reference(made, path), (OSError,), check=check)


def summary(folder: Path) -> Case:
    """A node's reply goes out whatever becomes of its summary."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from fl_app.client.mods.data_summary import data_summary_mod

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    rows = lambda message, context: {"a": np.arange(200.0 + 60 * next(COUNT))}  # noqa: E731
    mod = data_summary_mod(rows, folder=lambda context: folder / "node")
    content = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()})
    context = Context(7, 1, {}, RecordDict(), {})

    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"loss": 1.0})}), reply_to=message)

    def write() -> None:
        message = Message(content, 1, "train")
        message.metadata.__dict__["_message_id"] = "1"
        answer = mod(message, context, train)
        assert answer.content.metric_records["m"]["loss"] == 1.0

    return Case(write, ignored=("reference.npz",))


def generated_set(folder: Path) -> Case:
    from fl_app.client.data_yaml import load_data_spec
    from fl_app.client.generated_shapes import shapes_data

    seeds = itertools.count()

    def write() -> None:
        shapes_data(folder, train=2, val=1, image_size=32, seed=next(seeds))

    def check() -> None:
        for found in folder.glob("data/*/data.yaml"):
            spec = load_data_spec(found, 7)
            assert (len(spec.train), len(spec.val)) == (2, 1)

    return Case(write, (OSError,), check=check)


def holds(store: ModelStore) -> Callable[[], None]:
    """Check that each version that is listed is whole."""

    def check() -> None:
        rows = store.list_all_versions()
        assert rows
        for row in rows:
            assert store.weights_path(row["version"]).is_file()

    return check


def saved_in_memory(folder: Path) -> Case:
    store = InMemoryModelStore(folder)
    return _saved(store, ".safetensors")


def saved_in_mlflow(folder: Path) -> Case:
    return _saved(ModelManager(home=folder), ".safetensors")


def checkpoint_import(folder: Path) -> Case:
    return _saved(InMemoryModelStore(folder), ".pt")


def _saved(store: ModelStore, ending: str) -> Case:
    def write() -> None:
        path = weights_file(next(COUNT), ending)
        store.save_model_version(path, metrics={"m": 0.5}, per_example={"a": 1.0, "b": 0.0})

    return Case(write, (StoreUnavailable, RegistryError), DATABASES, holds(store))


def halved_in_memory(folder: Path) -> Case:
    return _halved(InMemoryModelStore(folder))


def halved_in_mlflow(folder: Path) -> Case:
    return _halved(ModelManager(home=folder))


def _halved(store: ModelStore) -> Case:
    store.save_model_version(weights_file(next(COUNT)))
    return Case(lambda: store.compress_version("1"), (RegistryError,), DATABASES, holds(store))


def downloaded(folder: Path) -> Case:
    """Files of versions that lie elsewhere are kept in a cache; here the cache is cut each time."""
    from fl_registry.mlflow import files

    manager = ModelManager(home=folder / "home")
    manager.save_model_version(weights_file(next(COUNT)))

    def write() -> None:
        for kept in (folder / "home" / "cache").glob("*/*"):
            kept.unlink()
        # As if the files were in an object store.
        with patch.object(files, "local_folder", lambda location: None):
            manager.weights_path("1")

    return Case(write, (RegistryError,), (*DATABASES, "weights.safetensors"))


def pictures(folder: Path) -> Case:
    """A session ends well without its pictures."""
    from fl_app.strategy.finish.reporting import log_artifacts, plot_metrics
    from fl_app.strategy.records import SessionReport

    tracker = InMemoryTracker()
    tracker.start_run("r")
    report = SessionReport((), "r", {"accuracy": ((1, 0.5), (2, 0.6))}, None, None)

    def table(report: object, folder: Path) -> list[Path]:
        (folder / "drift.csv").write_text("feature\n")
        return [folder / "drift.csv"]

    return Case(lambda: log_artifacts(report, tracker, [plot_metrics, table]))


def monitor(folder: Path) -> Case:
    """A round goes on where the monitor's memory cannot be written."""
    from fl_app.retraining import MonitorStore, RetrainingManager
    from fl_app.retraining.manager import MonitorState

    url = f"sqlite:///{folder / 'monitor.db'}"
    manager = RetrainingManager(store=MonitorStore(url))

    def write() -> None:
        number = next(COUNT)
        manager.update_metrics(accuracy=0.5, round_num=number)
        manager.update_data({}, number)

    def check() -> None:
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(folder / "monitor.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        MonitorStore(url).note("monitor", MonitorState).read()

    return Case(write, (), DATABASES, check)


DATABASES = (".db", ".db-journal", ".db-wal", ".db-shm", ".lock")
CASES: dict[str, Callable[[Path], Case]] = {
    made.__name__: made
    for made in (
        weights,
        round_checkpoint,
        session_folder,
        reference,
        summary,
        generated_set,
        saved_in_memory,
        checkpoint_import,
        halved_in_memory,
        pictures,
        monitor,
        saved_in_mlflow,
        halved_in_mlflow,
        downloaded,
    )
}
