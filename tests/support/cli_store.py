# SPDX-License-Identifier: Apache-2.0
"""A home whose store, requests and sessions are always the same, and a machine that is as well."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fl_app.cli import deploy, doctor, main, pages, runs, yolo
from fl_app.deploy.local import Deployment
from fl_app.deploy.local_superlink import LocalSuperLink
from fl_app.events import RejectedReply
from fl_app.retraining import MonitorStore, Outcome, RetrainingManager
from fl_app.retraining.memory.store import default_url
from fl_app.versions.tags import gates_tag, rejected_tag
from fl_app.yolo_versions import Evaluation
from fl_registry import ModelManager, Verdict
from fl_registry.files.weights import save_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOME = Path("/tmp/fl-app-golden")  # noqa: S108 - its length is in what is folded
UNFOLDED = {"card", "deploy-local", "home", "keys", "people", "run", "serve"}
"""Commands that print lines which are to be copied, or are Flower's."""
START = datetime(2025, 3, 1, 9, 0, tzinfo=UTC)


class Clock(datetime):
    """A clock that stands still until it is set."""

    moment = START

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.moment.astimezone(tz)


@contextmanager
def standing_clock() -> Iterator[None]:
    """Let what is stored be stored at `Clock.moment`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("fl_registry.versions", "fl_registry.journal.entries"):
            patch.setattr(f"{module}.datetime", Clock)
        patch.setattr("fl_app.retraining.requests.datetime", Clock)
        yield


def make_home(home: Path) -> None:
    """Fill a home: five versions in all stages, two requests, and a session that was set apart."""
    home.mkdir(mode=0o700)
    manager, weights = ModelManager(home=home), home / "weights.safetensors"
    with standing_clock():
        for number in range(1, 6):
            Clock.moment = START + timedelta(days=number)
            score = 0.1234 * number
            nodes = [
                {"node_id": str(node), "num_examples": 100 * node, "data_digest": f"{node:064x}"}
                for node in (1, 2)
            ]
            reason = f"mAP50 {score:.4f} is the best so far"
            tags = {
                "round": str(number),
                "session": "1",
                "metric": "mAP50",
                "score_source": "holdout",
                "parent_version": "",
                "trigger": "",
                "flower_run_id": "77",
                "app_version": "0.1.0",
                "reason": reason,
                "approval": "pending" if number == 5 else "none",
                "nodes": json.dumps(nodes),
                "node_scores": json.dumps({"ab12": score, "cd34": score / 2}),
                **gates_tag([Verdict("BestSoFar", True, reason)]),
            }
            if number == 5:
                tags |= rejected_tag(
                    [RejectedReply("77", "train", "'w' is not finite", in_a_row=3)]
                )
            metrics = {"mAP50": score, "mAP50/fish": score / 2, "train/loss": 9.0 - number}
            save_weights({"w": np.full(3, number, dtype=np.float32)}, weights)
            manager.save_model_version(weights, metrics=metrics, tags=tags)
            if number > 1:
                manager.promote_to_staging(str(number), actor="policy", reason=reason)
            if number in (1, 2, 4):
                manager.promote_to_production(str(number), actor="Ada", reason="it sees [fish]")
        weights.unlink()
        memory = MonitorStore(default_url(home))
        for text in ("new pictures", "the score fell"):
            Clock.moment += timedelta(hours=1)
            retraining = RetrainingManager(store=memory)
            retraining.manual_trigger(f"{text} (asked by ada)")
            request = memory.requests.take(Clock.moment)
            assert request is not None
            memory.requests.finish(request.id, Outcome.DONE, Clock.moment)
        memory.close()
    session = home / "checkpoints" / f"{'a' * 8}.failed"
    session.mkdir(parents=True)
    (session / "session.json").write_text(
        json.dumps({"SessionRecord": {"model": "fl-global-model"}})
    )
    (session / "closed-0007.json").write_text("{}")
    (session / "trouble.json").write_text(json.dumps("the run was deleted in MLflow for good"))


def known_machine(patch: pytest.MonkeyPatch) -> None:
    """Let commands see a machine that is always the same, and start nothing."""
    link = LocalSuperLink(39999, 39998, HOME / "superlink")
    patch.setattr(LocalSuperLink, "of_this_account", lambda: link)
    patch.setattr(LocalSuperLink, "process", lambda _: None)
    patch.setattr(LocalSuperLink, "answers", lambda _: False)
    patch.setattr(LocalSuperLink, "database_problem", lambda _: "")
    patch.setattr(LocalSuperLink, "ensure", lambda *_: None)
    patch.setattr("getpass.getuser", lambda: "ada")
    patch.delenv("UV", raising=False)
    versions = {"fl-app": "0.1.0", "flwr": "1.42.0", "mlflow": "3.17.2"}
    patch.setattr(doctor, "installed", versions.__getitem__)
    patch.setattr(main, "version", versions.__getitem__)
    room = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=42 << 30))
    patch.setattr(doctor, "shutil", room)
    # Of the shipped model: tests/models/test_cli_yolo.py has the real ones.
    exported = {"version": "4", "file": f"{HOME}/best.pt", "bytes": 6_200_000}
    patch.setattr(yolo, "_ultralytics", lambda _: {})
    patch.setattr(yolo, "export_version", lambda *_, **__: exported)
    patch.setattr(yolo, "evaluate_version", lambda *_, **__: EVALUATION)
    # What would run until it is ended.
    ended = Event()
    ended.set()
    for module in (pages, deploy):
        patch.setattr(module, "stop_signals", lambda *_: ended)
    done = SimpleNamespace(returncode=0)
    patch.setattr(pages, "subprocess", SimpleNamespace(run=lambda *_, **__: done))
    patch.setattr("fl_app.flower_internals.run_flower", _completed)
    patch.setattr(runs, "require", lambda *_: None)
    server = SimpleNamespace(host="127.0.0.1", port=5056, close=lambda: None)
    patch.setattr("fl_app.api.serve_api", lambda *_, **__: server)
    patch.setattr(Deployment, "run", _told)
    patch.setattr("fl_app.deploy.fork_server.run_supernode", lambda _: 0)


def _completed(words: Sequence[str]) -> int:
    """Print what `flwr run` and `flwr list` print of a run that completes at once."""
    lines = {"run": "Successfully started run 7\nround 1/1  mAP50 0.5000"}
    sys.stdout.write(lines.get(words[0], "finished:completed") + "\n")
    return 0


def _told(deployment: Deployment) -> None:
    data = [f"/data/{number}/data.yaml" for number in range(1, deployment.settings.nodes + 1)]
    deployment.say(deployment.instructions(data, []))


EVALUATION = Evaluation(
    version="4",
    data="data.yaml",
    split="val",
    pictures=127,
    image_size=640,
    scores={"mAP50": 0.5906, "mAP50-95": 0.3, "precision": 0.61, "recall": 0.5},
    classes=[
        {"class": name, "images": 60, "instances": 200}
        | {"mAP50": 0.5, "mAP50-95": 0.25, "precision": 0.6, "recall": 0.55}
        for name in ("fish", "jellyfish")
    ],
    notes=("3 pictures cannot be read",),
)
