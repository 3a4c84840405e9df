# SPDX-License-Identifier: Apache-2.0
"""An MLflow server that fails in six ways while a session runs: the proxy, and the session."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.supercore.task_identity import TaskIdentity

from fl_app import LifecycleStrategy
from fl_registry import FederatedLearningTracker, ModelManager
from support.local_grid import LocalGrid, reply

FAULTS = ("refused", "500", "429", "silent", "slow", "reset")
BYTES_PER_SECOND = 1000
"""How fast a slow server is, in both directions together."""


class OutageProxy:
    """Passes TCP on to an address, or fails as it is told; what is open then is cut.

    ``well`` passes on. ``refused``: nobody listens. ``500``, ``429``: that answer to everything.
    ``silent``: takes requests and never answers. ``slow``: 1 kB a second. ``reset``: each
    connection is reset once it has asked something.
    """

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._there = (host, int(port))
        self._mode = "well"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._listen()

    def be(self, mode: str) -> None:
        """Change the mode; connections that are open are reset."""
        with self._lock:
            before, self._mode = self._mode, mode
            cut, self._open = self._open, set()
        if mode == "refused":
            # A shutdown wakes up whoever accepts, which a close alone does not.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        elif before == "refused":
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._listen()
        for one in cut:
            reset(one)

    def close(self) -> None:
        """End it."""
        if self._mode != "refused":
            self.be("refused")

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self._lock:
                    self._open.add(client)
                    mode = self._mode
                threading.Thread(target=self._serve, args=(client, mode), daemon=True).start()

    def _serve(self, client: socket.socket, mode: str) -> None:
        with contextlib.suppress(OSError):
            if mode in ("well", "slow"):
                self._pass_on(client, slow=mode == "slow")
            elif mode == "silent":
                while client.recv(65536):
                    pass
            elif mode == "reset":
                client.recv(1)
                reset(client)
            else:
                answer(client, int(mode))
        client.close()

    def _pass_on(self, client: socket.socket, *, slow: bool) -> None:
        there = socket.create_connection(self._there)
        with self._lock:
            self._open.add(there)
        back = threading.Thread(target=pump, args=(there, client, slow), daemon=True)
        back.start()
        pump(client, there, slow)
        back.join()


def pump(source: socket.socket, target: socket.socket, slow: bool) -> None:
    """Pass on what comes, until one of the two ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(BYTES_PER_SECOND // 10 if slow else 65536):
            if slow:
                time.sleep(len(data) / BYTES_PER_SECOND)
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def reset(one: socket.socket) -> None:
    """Close a connection as a machine does that crashed: by a reset."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RD)
    one.close()


def answer(client: socket.socket, status: int) -> None:
    """Read one request, and answer with an error."""
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := client.recv(65536)):
            return
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length and (data := client.recv(65536)):
        body += data
    client.sendall(
        b"HTTP/1.1 %d Trouble\r\nContent-Length: 7\r\nConnection: close\r\n\r\ntrouble" % status
    )


@dataclass
class Outage:
    """What a session saw of one.

    Attributes
    ----------
    seconds : list[float]
        How long each round took in Flower's thread.
    drained : float
        Seconds from the recovery to the end of the session.
    rounds, steps : list[int]
        Of the versions, in order of their numbers; of the metric's points.
    status : str
        Of the MLflow run.
    """

    seconds: list[float] = field(default_factory=list)
    drained: float = 0.0
    rounds: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    status: str = ""


def session(
    proxy: OutageProxy, home: Path, name: str, *, fault: str, rounds: int, training: float = 0.0
) -> Outage:
    """Run a session whose registry fails from round 2 on, and is well again after the last one.

    Parameters
    ----------
    proxy : OutageProxy
        Between the session and MLflow; ``well`` before and after.
    home, name : Path, str
        Home and registered model of the session.
    fault : str
        One of `FAULTS`, or ``well``.
    rounds : int
        How many rounds.
    training : float
        Seconds that the nodes take in each of them.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    seen, marks = Outage(), [0.0]

    def respond(node_id: int, message: Message) -> Any:
        matrix = message.content["arrays"].to_numpy_ndarrays()[0]
        number = int(message.content["config"]["server-round"])
        first = node_id == min(grid.node_ids)
        if message.metadata.message_type == "train":
            if first and number == 2:
                proxy.be(fault)
            if first:
                time.sleep(training)
            return reply(ArrayRecord([matrix + np.float32(1)]), loss=1.0)
        return reply(accuracy=float(matrix.mean()) / 1000)

    def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 1000})

    grid = LocalGrid(respond)
    strategy = Timed(
        metric="accuracy",
        artifacts=[],
        home=home,
        store=ModelManager(proxy.address, name, home=home, experiment_name=name),
        tracker=FederatedLearningTracker(proxy.address, name, home=home),
    )
    strategy.seen, strategy.num_rounds = seen, rounds

    def recover() -> None:
        proxy.be("well")
        marks[0] = time.monotonic()

    strategy.recover = recover
    model = ArrayRecord([np.zeros((40, 50), np.float32)])
    strategy.start(grid, model, num_rounds=rounds, evaluate_fn=holdout)
    seen.drained = time.monotonic() - marks[0]
    look(seen, ModelManager(proxy.address, name, home=home), name)
    return seen


class Timed(LifecycleStrategy):
    """Measures what a round costs in Flower's thread, from one round's first message to the next.

    When its last round is closed it has the registry recover.
    """

    seen: Outage
    num_rounds: int
    recover: Callable[[], None]
    _began = 0.0

    def configure_train(self, server_round: int, *rest: Any) -> Any:
        self._began = time.monotonic()
        return super().configure_train(server_round, *rest)

    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        metrics = super().aggregate_evaluate(server_round, replies)
        self.seen.seconds.append(time.monotonic() - self._began)
        if server_round == self.num_rounds:
            self.recover()
        return metrics


def look(seen: Outage, store: ModelManager, name: str) -> None:
    """See what is in MLflow."""
    rows = sorted(store.list_all_versions(), key=lambda row: int(row["version"]))
    seen.rounds = [int(row["tags"]["round"]) for row in rows]
    experiment = store.client.get_experiment_by_name(name)
    runs = store.client.search_runs([experiment.experiment_id], "tags.session = '1'")
    seen.status = ", ".join(run.info.status for run in runs)
    history = store.client.get_metric_history(runs[0].info.run_id, "accuracy")
    seen.steps = sorted(point.step for point in history)


@contextlib.contextmanager
def proxied(address: str) -> Iterator[OutageProxy]:
    """A proxy in front of an address, for a block."""
    proxy = OutageProxy(address)
    try:
        yield proxy
    finally:
        proxy.close()
