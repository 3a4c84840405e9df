# SPDX-License-Identifier: Apache-2.0
"""`fl-app deploy-local`, `keys` and `supernode`."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_app.cli.output import fail, say, stop_signals
from fl_app.deploy.errors import DeploymentError
from fl_registry import StoreUnavailable, app_home

if TYPE_CHECKING:
    from fl_app.deploy.folder import Settings


def deploy_local(
    *,
    folder: Annotated[
        str, typer.Option(help="Folder of the deployment; default: deployment in FL_APP_HOME.")
    ] = "",
    nodes: Annotated[
        int | None,
        typer.Option(help="Number of SuperNodes; default: as before, at first 2.", min=1),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A SuperNode's data.yaml, or its folder; once for each node. Default: as before, "
            "at first generated pictures."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="The SuperLink's port; default: as before, at first 8000.", min=1, max=65535
        ),
    ] = None,
    mlflow_port: Annotated[
        int | None,
        typer.Option(help="MLflow's port; default: as before, at first 5000.", min=1, max=65535),
    ] = None,
    database_url: Annotated[
        str,
        typer.Option(
            envvar="FL_APP_DATABASE_URL",
            show_envvar=True,
            help="SQLAlchemy URL of MLflow's database; default: as before, at first SQLite in the "
            "folder.",
        ),
    ] = "",
) -> None:
    """MLflow, a SuperLink with TLS and its SuperNodes on this machine, until Ctrl-C."""
    from fl_app.deploy.folder import Layout
    from fl_app.deploy.local import Deployment

    if os.name != "posix":
        fail("deploy-local needs Linux or macOS; docs/deployment.md has the same steps by hand.")
    ended = stop_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        place = Path(folder).expanduser() if folder else app_home() / "deployment"
        layout = Layout(place.absolute())
        before = layout.settings()
        settings = replace(
            _with_data(before, nodes, data),
            port=port or before.port,
            mlflow_port=mlflow_port or before.mlflow_port,
            database_url=database_url or before.database_url,
        )
        Deployment(layout, settings, say, ended).run()
    except (DeploymentError, StoreUnavailable):
        if not ended.is_set():  # an error of a deployment that was asked to end is not reported
            raise


def keys(
    folder: Annotated[
        str, typer.Argument(help="Folder of the keys; default: keys in FL_APP_HOME.")
    ] = "",
    *,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or IP address of the SuperLink; once for each.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Number of key pairs for SuperNodes.", min=0)] = 2,
) -> None:
    """Create a SuperLink's certificate and its SuperNodes' keys, if they are missing."""
    from fl_app.deploy.keys import LOCAL_NAMES, make_keys

    place = Path(folder).expanduser() if folder else app_home() / "keys"
    written = make_keys(place, host or LOCAL_NAMES, nodes=nodes)
    for path in written:
        say(f"written: {path}")
    if not written:
        say(f"{place} is complete.")


def supernode(context: typer.Context) -> None:
    """Flower's SuperNode, with torch and Ultralytics loaded before the first message.

    Takes the arguments of `flower-supernode`.
    """
    if os.name != "posix":
        fail("fl-app supernode needs Linux or macOS; use flower-supernode itself.")
    from fl_app.deploy.fork_server import run_supernode
    from fl_app.deploy.processes import program

    raise SystemExit(run_supernode([program("flower-supernode"), *context.args]))


def _with_data(before: Settings, nodes: int | None, data: list[str] | None) -> Settings:
    """The last start's settings with the number of SuperNodes and their data as given."""
    from fl_app.deploy.folder import data_file

    files = tuple(data_file(one) for one in data) if data else before.data
    if nodes and data and nodes != len(files):
        fail(
            f"--data names {len(files)} data sets for --nodes {nodes}; name one for each node, or "
            "leave --nodes out."
        )
    if nodes and nodes != len(files):
        files = ()  # those of the last start are for another number of nodes
    return replace(before, nodes=len(files) or nodes or before.nodes, data=files)
