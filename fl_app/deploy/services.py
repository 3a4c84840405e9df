# SPDX-License-Identifier: Apache-2.0
"""The processes of a deployment: the command, the environment and the health check of each."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout

HOST = "127.0.0.1"
DATABASE_VARIABLE = "FL_APP_DATABASE_URL"
"""May hold the address of MLflow's database; other processes than MLflow do not get it."""
END_ORDER = ("node-*", "superlink", "mlflow", "*")
"""Patterns of names in the order in which services end: SuperNodes sign off at the SuperLink."""
_HEALTH_SECONDS = 3.0


@dataclass(frozen=True)
class Service:
    """One process of a deployment.

    Parameters
    ----------
    name : str
        Its name in messages, and of its log.
    command : Sequence[str]
        Program and arguments; no secrets, since every user of the machine may list them.
    is_healthy : Callable[[], bool]
        Whether it answers; takes a few seconds at most.
    environment : Mapping[str, str]
        All its environment variables.
    restart_after : float
        Seconds to wait before it is started again after it has ended.
    """

    name: str
    command: Sequence[str]
    is_healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(repr=False)
    restart_after: float = 2.0


def mlflow_server(layout: Layout, port: int, *, database: str) -> Service:
    """MLflow's server: records in the database, files of versions and runs behind its proxy."""
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
    """Flower's SuperLink with TLS, for registered SuperNodes only; it starts ServerApps.

    These run in the environment of this process: the one that Flower would build for each run would
    be the same, 20 seconds later.
    """
    keys = layout.keys
    command = [_program("flower-superlink"), "--host", HOST, "--port", str(port)]
    command += ["--ssl-ca-certfile", str(keys.authority), "--ssl-certfile", str(keys.certificate)]
    command += ["--ssl-keyfile", str(keys.key), "--enable-supernode-auth"]
    command += ["--database", str(layout.superlink), "--disable-runtime-dependency-installation"]
    # MLflow's address is not in the run config, which shows all values: it may hold a password.
    own = {"FL_APP_HOME": str(layout.home), "FL_APP_MLFLOW_TRACKING_URI": mlflow}
    address = f"https://{HOST}:{port}/health"
    return Service("superlink", command, lambda: answers(address, keys.authority), environment(own))


def supernode(layout: Layout, number: int, *, port: int, superlink_port: int, data: str) -> Service:
    """A SuperNode with a key and data of its own; only its own processes use `port`."""
    keys = layout.keys
    command = [_program("fl-app"), "supernode", "--superlink", f"{HOST}:{superlink_port}"]
    command += ["--root-certificates", str(keys.authority)]
    command += ["--auth-supernode-private-key", str(keys.node(number).private)]
    command += ["--node-config", f'data="{data}"', "--host", HOST, "--port", str(port)]
    address = f"http://{HOST}:{port}/health"
    # Flower's SuperLink gives up a killed SuperNode after two missed heartbeats of 30 seconds.
    # Before that it refuses the key, and a node that came back at that very moment would have the
    # round wait for replies that the new process does not know of.
    return Service(
        f"node-{number}",
        command,
        lambda: answers(address),
        environment({"FL_APP_HOME": str(layout.node(number) / "home")}),
        restart_after=65.0,
    )


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `own`, and this Python's programs first in PATH."""
    inherited = {key: value for key, value in os.environ.items() if key != DATABASE_VARIABLE}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **own}


def answers(address: str, authority: Path | None = None) -> bool:
    """Whether a server answers with status 200; with an authority, it must have its certificate."""
    try:
        trusted = ssl.create_default_context(cafile=authority) if authority else None
        with urllib.request.urlopen(address, timeout=_HEALTH_SECONDS, context=trusted) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except OSError:
        return False


def require_free(port: int, option: str) -> None:
    """Raise `DeploymentError` if a port of this machine is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DeploymentError(
                f"Port {port} of this machine cannot be used ({error.strerror}); name another with "
                f"{option}."
            ) from error


def free_port() -> int:
    """Return a TCP port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
