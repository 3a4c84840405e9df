# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands of `fl-app` that serve pages, and those that say who may use them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from fl_app.api.people import People, PeopleError, Role
from fl_app.backlog import backlog
from fl_app.cli.options import Json, Monitor, Name, Uri, open_monitor
from fl_app.cli.output import Column, Table, fail, note, print_json, say, show, stop_signals
from fl_app.progress import read_progress
from fl_app.yolo_versions import write_export
from fl_registry import ModelManager, RegistryError, app_home
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.redaction import redact


def ui(
    *,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
    uri: Uri = "",
) -> None:
    """Open MLflow's own page on the app's store, until Ctrl-C."""
    tracking_uri = ModelManager(uri or None).tracking_uri
    if tracking_uri.startswith("http"):
        show(f"This MLflow has its own page: {redact(tracking_uri, tracking_uri)}")
        return
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--default-artifact-root", f"file://{app_home()}/artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # In the environment: every account of the machine can list the arguments of a command.
    quiet["MLFLOW_BACKEND_STORE_URI"] = tracking_uri
    show(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(subprocess.run(command, env={**os.environ, **quiet}, check=False).returncode)


def serve(
    *,
    host: Annotated[
        str, typer.Option(help="Address; one that other machines can reach requires a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 5001,
    token_file: Annotated[
        str, typer.Option(help="File with the token; default: $FL_APP_API_TOKEN.")
    ] = "",
    allowed_hosts: Annotated[
        str, typer.Option(help="Host names that clients may use, with commas.")
    ] = "",
    trusted_proxies: Annotated[
        str, typer.Option(help="Addresses of proxies in front of it, with commas.")
    ] = "",
    uri: Uri = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
) -> None:
    """Serve the status page and the API until Ctrl-C; requests wait for the next run."""
    from fl_app.api import create_trigger_api, serve_api
    from fl_app.api.guard import LOOPBACK, read_token
    from fl_app.retraining import RetrainingManager

    try:
        everybody = People(app_home())
        token = read_token(token_file, host=host, people=everybody)
        store = ModelManager(uri or None, name)
        store.backend.connection.require_usable()
        named, proxies = (
            {part.strip() for part in given.split(",") if part.strip()}
            for given in (allowed_hosts, trusted_proxies)
        )
        app = create_trigger_api(
            RetrainingManager(store=open_monitor(monitor, name)),
            store=store,
            token=token,
            allowed_hosts={*LOOPBACK, *named},
            trusted_proxies=proxies,
            waiting=lambda: backlog(app_home(), name),
            checkpoint=write_export,
            people=everybody,
            live=lambda: read_progress(app_home(), name),
        )
        server = serve_api(app, host=host, port=port)
    except ValueError as error:  # of the address, the token or the monitor's database
        fail(str(error))
    if server is None:
        fail(
            f"Port {port} of {host} cannot be opened: a run with continuous=true may have its "
            "page there; open that page, or choose another port with --port."
        )
    stopped = stop_signals(signal.SIGINT, signal.SIGTERM)
    try:
        store.ping()
        app.extensions["fl_app_reader"].warm_up()
        trouble = ""
    except RegistryError as error:
        trouble = f"{error} Until it answers, the page shows what it can."
    address = f"[{server.host}]" if ":" in server.host else server.host
    say(f"The page of {name}: http://{address}:{server.port}/ (Ctrl-C ends it)")
    if trouble:
        say(trouble)
    stopped.wait()
    server.close()


people = typer.Typer(
    no_args_is_help=True, help="Make and revoke the tokens of people who use the page and the API."
)
PersonName = Annotated[str, typer.Argument(help="The person's name, as the journal shows it.")]


@people.command()
def add(
    name: PersonName,
    role: Annotated[
        Role, typer.Option(help="'read' sees everything; 'decide' also moves versions.")
    ] = "decide",
) -> None:
    """Make a token for a person and print it once; only its hash is stored."""
    try:
        token = People(app_home()).add(name, role)
    except PeopleError as error:
        fail(str(error))
    note(f"The token of {name}, who may {role}. It cannot be shown again:")
    say(token)


@people.command(name="list")
def list_(as_json: Json = False) -> None:
    """List who has a token."""
    try:
        known = People(app_home()).all()
    except PeopleError as error:
        fail(str(error))
    rows = {name: {**asdict(access)} for name, access in known.items()}
    for row in rows.values():
        row.pop("sha256")
    if as_json:
        print_json([{"name": name, **row} for name, row in rows.items()])
        return
    if not rows:
        say("Nobody has a token of their own yet: `fl-app people add NAME` makes one.")
        return
    columns = (Column("name", text=True), Column("role"), Column("since (UTC)", drop=1))
    listed = [(n, row["role"], f"{row['since']:%Y-%m-%d %H:%M}") for n, row in rows.items()]
    show(Table(columns, listed))


@people.command()
def revoke(name: PersonName) -> None:
    """Revoke a person's token; what they have open stops at once."""
    try:
        People(app_home()).revoke(name)
    except PeopleError as error:
        fail(str(error))
    say(f"The token of {name} is revoked.")
