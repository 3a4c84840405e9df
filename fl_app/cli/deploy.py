# SPDX-License-Identifier: Apache-2.0
"""`fl-app deploy-local`, `keys` and `supernode`: what they do is in `fl_app.deploy`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from fl_app.deploy.folder import Layout, Settings

Folder = Annotated[
    str,
    typer.Option(
        "--folder",
        help="Where all of it is kept; default: deployment in FL_APP_HOME or ~/.fl-app, for root "
        "/var/lib/fl-app/deployment.",
    ),
]
Nodes = Annotated[
    int | None, typer.Option("--nodes", help="SuperNodes; default: as before, 2 at first.", min=1)
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="A SuperNode's data.yaml, or its folder; once for each node. Default: as before, "
        "generated pictures at first.",
    ),
]
Port = Annotated[
    int | None,
    typer.Option("--port", help="Of the SuperLink; default: as before, 8000.", min=1, max=65535),
]
MlflowPort = Annotated[
    int | None,
    typer.Option("--mlflow-port", help="Default: as before, 5000.", min=1, max=65535),
]
DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="FL_APP_DATABASE_URL",
        show_envvar=True,
        help="A database that is there, instead of PostgreSQL of its own; kept for later starts.",
    ),
]
KeyFolder = Annotated[str, typer.Argument(help="Where they go; default: keys in FL_APP_HOME.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="Name or IP address of the SuperLink; more than once for more."),
]


def deploy_local(
    *,
    folder: Folder = "",
    nodes: Nodes = None,
    data: Data = None,
    port: Port = None,
    mlflow_port: MlflowPort = None,
    database_url: DatabaseUrl = "",
) -> None:
    """MLflow on PostgreSQL, a SuperLink with TLS and its SuperNodes, until Ctrl-C."""
    from fl_app.deploy.errors import DeploymentError
    from fl_app.deploy.folder import Layout, default_folder
    from fl_app.deploy.local import Deployment

    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    try:
        _require_system()
        layout = Layout(Path(folder).expanduser().absolute() if folder else default_folder())
        settings = _chosen(layout, nodes, data, port, mlflow_port)
        Deployment(layout, settings, _say, ended).run(database_url)
    except DeploymentError as error:
        if not ended.is_set():  # what failed because all was to end is no failure
            _fail(str(error))


def keys(
    folder: KeyFolder = "",
    *,
    host: Hosts = None,
    nodes: Annotated[int, typer.Option("--nodes", help="Key pairs for SuperNodes.", min=0)] = 2,
) -> None:
    """Make what is missing of a SuperLink's certificate and its SuperNodes' keys."""
    from fl_app.deploy.errors import DeploymentError
    from fl_app.deploy.keys import LOCAL_NAMES, make_keys
    from fl_registry import app_home

    place = Path(folder).expanduser() if folder else app_home() / "keys"
    try:
        written = make_keys(place, host or LOCAL_NAMES, nodes=nodes)
    except DeploymentError as error:
        _fail(str(error))
    for path in written:
        _say(f"written: {path}")
    if not written:
        _say(f"{place} has all that is needed.")


def supernode(context: typer.Context) -> None:
    """Flower's SuperNode, whose messages find torch and Ultralytics loaded already.

    Takes the arguments of `flower-supernode`.
    """
    from fl_app.deploy.errors import DeploymentError
    from fl_app.deploy.fork_server import run_warm

    if os.name != "posix":
        _fail("fl-app supernode needs Linux or macOS; use flower-supernode itself.")
    program = str(Path(sys.executable).with_name("flower-supernode"))
    try:
        raise SystemExit(run_warm([program, *context.args]))
    except DeploymentError as error:
        _fail(str(error))


def _chosen(
    layout: Layout,
    nodes: int | None,
    data: list[str] | None,
    port: int | None,
    mlflow_port: int | None,
) -> Settings:
    """What the options say, and for the rest what was chosen at the last start."""
    from fl_app.deploy.data import data_file

    before = layout.settings()
    files = tuple(data_file(one) for one in data) if data else before.data
    if nodes is not None and data and nodes != len(files):
        _fail(
            f"--data names {len(files)} data sets for --nodes {nodes}; name one for each node, or "
            "leave --nodes out."
        )
    if nodes is not None and nodes != len(files):
        files = ()  # those of the last start are for another number of nodes
    return replace(
        before,
        nodes=len(files) or nodes or before.nodes,
        data=files,
        port=port or before.port,
        mlflow_port=mlflow_port or before.mlflow_port,
    )


def _require_system() -> None:
    from fl_app.deploy.errors import DeploymentError, require_package

    if os.name != "posix":
        raise DeploymentError(
            "deploy-local needs Linux or macOS; docs/deployment.md tells how to do it by hand."
        )
    require_package("psutil", "by which processes are found and ended")


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal may have been closed, and all has to end then
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    raise SystemExit(1)
