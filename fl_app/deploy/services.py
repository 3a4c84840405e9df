# SPDX-License-Identifier: Apache-2.0
"""The processes of a deployment: how each is started, and by what it is known to be well."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, Signals

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout

HOST = "127.0.0.1"
DATABASE_VARIABLE = "FL_APP_DATABASE_URL"
"""Where the address of a database may come from; no process but MLflow's is told it."""
FORGOTTEN = 65.0
"""Seconds after which Flower's SuperLink has given up a SuperNode that was killed.

Before that (two heartbeats of 30 seconds) it lets nobody in with the same key; and once the node is
back it would wait for replies that the node has forgotten.
"""
_ANSWER = 3.0


@dataclass(frozen=True)
class Service:
    """One process of a deployment.

    Parameters
    ----------
    name : str
        What it is called in messages, and its log.
    command : Sequence[str]
        Program and arguments; no secrets, since everybody on the machine may list them.
    is_well : Callable[[], bool]
        Whether it answers; takes a few seconds at most.
    environment : Mapping[str, str]
        All its environment variables.
    account : str | None
        Whose process it is; the starting account's by default.
    stop_signal : Signals
        What it is told to end by.
    again_after : float
        Seconds to wait before it is started again once it has ended by itself.
    ends_with : str
        What it ends at the same time as: all that say the same; else it ends by itself.
    """

    name: str
    command: Sequence[str]
    is_well: Callable[[], bool]
    environment: Mapping[str, str] = field(repr=False)
    account: str | None = None
    stop_signal: Signals = SIGTERM
    again_after: float = 2.0
    ends_with: str = ""


def mlflow_server(layout: Layout, port: int, *, database: str) -> Service:
    """MLflow's server: versions and runs in the database, their files through it (proxied)."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--serve-artifacts", "--artifacts-destination", str(layout.artifacts)]
    command += ["--default-artifact-root", "mlflow-artifacts:/", "--workers", "1"]
    own = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    address = f"http://{HOST}:{port}/health"
    return Service("mlflow", command, lambda: answers(address), environment(own))


def superlink(layout: Layout, port: int, *, mlflow: str) -> Service:
    """Flower's SuperLink with TLS, which lets registered SuperNodes in and starts ServerApps."""
    keys = layout.keys
    command = [_program("flower-superlink"), "--host", HOST, "--port", str(port)]
    command += ["--ssl-ca-certfile", str(keys.authority), "--ssl-certfile", str(keys.certificate)]
    command += ["--ssl-keyfile", str(keys.key), "--enable-supernode-auth"]
    command += ["--database", str(layout.superlink), "--disable-runtime-dependency-installation"]
    own = {"FL_APP_HOME": str(layout.home), "FL_APP_MLFLOW_TRACKING_URI": mlflow}
    address = f"https://{HOST}:{port}/health"
    return Service("superlink", command, lambda: answers(address, keys.authority), environment(own))


def supernode(layout: Layout, number: int, *, port: int, superlink_port: int, data: str) -> Service:
    """A warm SuperNode with a key and data of its own; `port` is for its own processes."""
    keys = layout.keys
    command = [_program("fl-app"), "supernode", "--superlink", f"{HOST}:{superlink_port}"]
    command += ["--root-certificates", str(keys.authority)]
    command += ["--auth-supernode-private-key", str(keys.node(number).private)]
    command += ["--node-config", f'data="{data}"', "--host", HOST, "--port", str(port)]
    own = {"FL_APP_HOME": str(layout.node(number) / "home")}
    address = f"http://{HOST}:{port}/health"
    return Service(
        f"node-{number}",
        command,
        lambda: answers(address),
        environment(own),
        again_after=FORGOTTEN,
        ends_with="nodes",
    )


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `own`, and this Python's programs found first."""
    programs = Path(sys.executable).parent
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    known = {key: value for key, value in os.environ.items() if key != DATABASE_VARIABLE}
    return {**known, "PATH": path, "PYTHONUNBUFFERED": "1", **own}


def answers(address: str, authority: Path | None = None) -> bool:
    """Whether a server answers 200; its certificate must be the authority's."""
    try:
        trusted = ssl.create_default_context(cafile=authority) if authority else None
        with urllib.request.urlopen(address, timeout=_ANSWER, context=trusted) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except OSError:
        return False


def require_free(port: int, option: str) -> None:
    """Raise `DeploymentError` if somebody listens on a port of this machine already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DeploymentError(
                f"Port {port} of this machine cannot be had ({error.strerror}); name another with "
                f"{option}."
            ) from error


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
