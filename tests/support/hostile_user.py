# SPDX-License-Identifier: Apache-2.0
"""A process that is given hostile names, paths and addresses: run as `hostile_user.py EVERY`.

Nothing may be written outside of its folder, no private file read, nothing started, and no
connection made but to the very host that an operator names. What was tried is told as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import numpy as np
from mlflow.exceptions import MlflowException
from safetensors.numpy import save_file

from fl_app.api import create_trigger_api
from fl_app.client.data_yaml import DataError, load_data_spec
from fl_app.config import ConfigError, absolute_data
from fl_app.hooks.webhook import Target
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_registry import FederatedLearningTracker, ModelManager, RegistryError, app_home
from support.hostile_inputs import payloads
from support.watched import NETWORK, PROGRAMS, Watch, normal

KNOWN = (RegistryError, DataError, ConfigError)
PRIVATE = ("/etc/passwd", "/root/.ssh", "/proc/self/environ", "/etc/fl-app-hostile")
Use = Callable[[str], object]


def weights(folder: Path, number: int) -> Path:
    path = folder / f"{number}.safetensors"
    save_file({"w": np.full(3, number, np.float32)}, path)
    return path


def named(folder: Path) -> Iterator[tuple[str, Use]]:
    """Names and paths that an operator sets."""
    path, tracker = weights(folder, 1), FederatedLearningTracker(home=folder / "home")
    tracker.start_run("r")

    def model(text: str) -> None:
        ModelManager(None, text, home=folder / "home").save_model_version(path)

    def experiment(text: str) -> None:
        FederatedLearningTracker(None, text, home=folder / "home").start_run("r")

    def files_experiment(text: str) -> None:
        store = ModelManager(None, "m", home=folder / "home", experiment_name=text)
        store.save_model_version(weights(folder, hash(text) % 10**6))

    def data(text: str) -> None:
        path = absolute_data(text)
        if not normal(str(path)).startswith(PRIVATE):
            load_data_spec(path, 1)

    def within_data(text: str) -> None:
        file = folder / "data.yaml"
        fields = {"path": text, "train": text, "val": [text], "names": ["a"], "download": text}
        file.write_text(json.dumps(fields))
        load_data_spec(file, 1)

    yield "registered model", model
    yield "experiment", experiment
    yield "experiment of the files", files_experiment
    yield "home", lambda text: None if _leads_out(text) else app_home(text)
    yield "data", data
    yield "in data.yaml", within_data
    yield "model path", lambda text: ModelManager(home=folder / "home").save_model_version(text)
    yield "artifact's folder", lambda text: tracker.log_artifact(path, text)
    yield "metric", lambda text: tracker.log_metrics({text: 1.0})
    yield "param", lambda text: tracker.log_params({text: text})
    yield "run's tag", lambda text: tracker.set_tags({f"t.{text}": text})
    yield "data set", lambda text: tracker.log_dataset("n", "d", text)


def _leads_out(text: str) -> bool:
    """Whether an operator would have named a file elsewhere, which is then used as told."""
    path = text.removeprefix("sqlite:///")
    return (
        not path
        or path.startswith("~")
        or not normal(str(Path(path).absolute())).startswith(str(Path.cwd()))
    )


def versions(folder: Path) -> Iterator[tuple[str, Use]]:
    """What the store is asked for, and told."""
    store = ModelManager(None, "versions", home=folder / "home")
    for number in (1, 2):
        store.save_model_version(weights(folder, number), metrics={"m": 0.5})
        store.promote_to_production(str(number))
    for ask in (
        store.get_version,
        store.weights_path,
        store.compress_version,
        store.production_at,
        store.promote_to_staging,
        store.rollback,
        lambda text: store.compare_versions("1", text),
        lambda text: store.prune(keep=1, actor=text),
    ):
        yield getattr(ask, "__name__", "versions"), ask
    yield "tag of a version", lambda text: store.set_version_tags("1", {text: text, "ok": text})
    yield "who and why", lambda text: store.archive_version("1", actor=text, reason=text)
    yield (
        "file of a run",
        lambda text: store.log_production(
            "1", {}, step=1, time=store.get_version("1").created, texts={text: "x"}
        ),
    )


def of_others(folder: Path) -> Iterator[tuple[str, Use]]:
    """Versions that other tools registered, with what they like in their tags and locations."""
    home = folder / "home"

    def manager() -> ModelManager:
        return ModelManager(None, "others", home=home)

    store = manager()
    good = store.save_model_version(weights(folder, 1), metrics={"m": 0.5})
    client, name = store.client, store.registered_model_name
    model_id = store.get_version(good).tags["model_id"]

    def registered(source: str, fields: dict[str, str]) -> str:
        """Register a version as other tools do, if MLflow itself takes it."""
        with contextlib.suppress(MlflowException):
            return str(client.create_model_version(name, source, tags=fields).version)
        return ""

    def use(version: str) -> None:
        if not version:
            return
        mine = manager()
        mine.list_all_versions()
        for ask in (
            lambda: mine.weights_path(version),
            lambda: mine.promote_to_production(version),
            lambda: mine.load_production_model(lambda: None),
            lambda: mine.load_production_model(lambda: None, half=True),
            lambda: mine.compare_versions(good, version),
            lambda: mine.compress_version(version),
            lambda: mine.prune(keep=1, dry_run=True),
        ):
            with contextlib.suppress(*KNOWN):
                ask()
        client.delete_model_version(name, version)

    def tags(text: str) -> None:
        half = json.dumps({"sha256": text, "size": 1, "changes": {}})
        fields = dict.fromkeys(("sha256", "size", "metrics", "created", "per_example"), text)
        fields |= {"half": half, "nodes": text, "model_id": text, "save_key": text}
        use(registered(text or "/x", fields))
        fields |= {"model_id": model_id, "sha256": "0" * 64}
        use(registered("/x", fields))

    def location(text: str) -> None:
        found = SimpleNamespace(artifact_location=text)
        fields = {"model_id": model_id, "sha256": "0" * 64, "size": "1"}
        version = str(client.create_model_version(name, "/x", tags=fields).version)
        for where in (text, f"{text}/{model_id}/artifacts", f"{model_id}/{text}"):
            found.artifact_location = where
            mine = manager()
            mine.client.get_logged_model = lambda model_id: found
            for ask in (mine.weights_path, mine.compress_version):
                with contextlib.suppress(*KNOWN):
                    ask(version)
            with contextlib.suppress(*KNOWN):
                mine.backend.files.size(mine.get_version(version))
        client.delete_model_version(name, version)

    yield "tags of other tools", tags
    yield "location of other tools", location


def api(folder: Path) -> Iterator[tuple[str, Use]]:
    """Bodies, paths, queries and headers; no answer may be a failure of the server."""
    store = ModelManager(None, "api", home=folder / "home")
    store.save_model_version(weights(folder, 1), metrics={"m": 0.5})
    memory = MonitorStore(f"sqlite:///{folder / 'home' / 'monitor.db'}", "api")
    client = create_trigger_api(RetrainingManager(store=memory), store=store).test_client()

    def asked(text: str) -> None:
        coded = quote(text.encode("utf-8", "replace"), safe="/")
        answers = [client.get(f"/{coded}"), client.get(f"/versions?before={coded}")]
        answers += [client.get(f"/trigger_history?before={coded}"), client.get(f"/?metric={coded}")]
        for body in (
            {"reason": text},
            {text: text},
            {"to": text},
            {"by": text, "note": text},
            {"by": text, "to": text},
        ):
            for path in (
                "/trigger_retrain",
                f"/versions/{coded}/promote",
                "/versions/1/reject",
                "/rollback",
                "/production_metrics",
            ):
                answers.append(client.post(path, json=body))
        for header in ("Idempotency-Key", "Authorization", "Host", "Origin", "Accept"):
            with contextlib.suppress(ValueError, UnicodeError):  # what no client can send
                answers.append(client.get("/status", headers={header: text}))
        worst = max(answer.status_code for answer in answers)
        if worst >= 500:
            raise AssertionError(f"the API answered {worst}")

    yield "API", asked


def addresses(folder: Path, watch: Watch) -> Iterator[tuple[str, Use]]:
    """Addresses that an operator sets; only the host that is named may be asked."""

    def asked(text: str) -> None:
        if text.startswith("sqlite:") and _leads_out(text):
            return
        with contextlib.suppress(ValueError, OSError):
            host = urlsplit(text).hostname or "localhost"
            watch.hosts = frozenset({host})
            host = "127.0.0.1" if host == "localhost" else host
            same = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
            watch.hosts |= {str(entry[4][0]) for entry in same}
        try:
            ModelManager(text, home=folder / "home").ping()
        finally:
            watch.hosts = frozenset()

    def posted(text: str) -> None:
        with contextlib.suppress(ValueError):
            watch.hosts = frozenset({urlsplit(text).hostname or ""})  # whether it is an address
        try:
            Target.of(text)
        finally:
            watch.hosts = frozenset()

    yield "tracking URI", asked
    yield "webhook", posted


def main(every: int) -> None:
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(dir=os.environ["FL_APP_HOME"]))
    tempfile.tempdir = str(folder)
    os.chdir(folder)
    watch = Watch(folder, (*PROGRAMS, *NETWORK), hidden=PRIVATE)
    watch.active = False
    uses = [*named(folder), *versions(folder), *of_others(folder), *api(folder)]
    uses += addresses(folder, watch)
    watch.active = True
    found, count = [], 0
    for place, text in enumerate(payloads()):
        if place % every:
            continue
        for what, use in uses:
            watch.tried.clear()
            count += 1
            try:
                use(text)
            except KNOWN as error:
                if not str(error).isprintable():
                    found.append(f"{what} {text!r:.80}: not one printable line: {error!s:.200}")
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
                said = f"{type(error).__name__}: {error!s:.200}"
                if not (what == "webhook" and isinstance(error, ValueError)):
                    found.append(f"{what} {text!r:.80}: {said}")
            found += [f"{what} {text!r:.80}: tried {tried}" for tried in watch.tried]
    if (folder / "ran").exists():
        found.append("something was run")
    sys.stdout.write(json.dumps({"problems": found, "count": count}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
