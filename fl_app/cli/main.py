# SPDX-License-Identifier: Apache-2.0
"""`fl-app`: the command with its verbs; those of versions, deployments and the doctor are beside.

Errors end it with one sentence and status 1.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

import typer

from fl_app.api import create_trigger_api, serve_api
from fl_app.api.guard import LOOPBACK, read_token
from fl_app.api.version_texts import is_pending, score_text
from fl_app.cli.deploy import deploy_local, keys, supernode
from fl_app.cli.doctor import doctor
from fl_app.cli.options import Json, Monitor, Name, Uri, account, open_monitor, open_registry
from fl_app.cli.output import console, escape, fail, print_json, say, stop_signals, table
from fl_app.cli.recover import recover
from fl_app.cli.versions import (
    acknowledge,
    approve,
    compare,
    promote,
    prune,
    reject,
    rollback,
    versions,
)
from fl_app.deploy.errors import DeploymentError
from fl_app.retraining import Outcome, Probation, RetrainingManager
from fl_app.retraining.memory.errors import MonitorStoreError, memory_errors
from fl_app.retraining.probation.state import in_one_line
from fl_app.strategy.checkpoints.folder import backlog
from fl_app.strategy.round.state import read_rejected
from fl_registry import Gone, ModelManager, RegistryError, StoreUnavailable, app_home
from fl_registry.errors import require
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.redaction import redact


def status(
    *, uri: Uri = "", monitor: Monitor = "", name: Name = DEFAULT_MODEL_NAME, as_json: Json = False
) -> None:
    """Show what is in Production, what waits for approval, and the requests to retrain."""
    memory, waiting = open_monitor(monitor, name), backlog(app_home(), name)
    try:
        manager = open_registry(uri, name)
        rows, losses = manager.list_all_versions(), manager.losses()
    except (StoreUnavailable, Gone) as error:
        raise type(error)(f"{error} On disk and not handed over: {waiting}.") from None
    probation = Probation(manager, RetrainingManager(store=memory)).status()
    staged = {row["stage"]: row for row in rows if row["stage"] in ("Production", "Staging")}
    pending = [row["version"] for row in staged.values() if is_pending(row)]
    requests = {
        outcome: memory.requests.find(outcome) for outcome in (Outcome.RUNNING, Outcome.PENDING)
    }
    rejected = read_rejected(rows[0]["tags"]) if rows else []
    if as_json:
        print_json(
            {
                "production": staged.get("Production"),
                "staging": staged.get("Staging"),
                "pending_approval": pending,
                "probation": probation,
                "requests": {k: asdict(r) if r else None for k, r in requests.items()},
                "rejected": [asdict(each) for each in rejected],
                "backlog": asdict(waiting),
                "losses": losses,
            }
        )
        return
    shown = table()
    for stage in ("Production", "Staging"):
        row = staged.get(stage)
        score = "-" if row is None else f"version {row['version']}  {score_text(row) or '-'}"
        shown.add_row(stage, escape(score))
    shown.add_row("pending approval", ", ".join(pending) or "-")
    shown.add_row("probation", escape(in_one_line(probation)))
    for outcome, request in requests.items():
        shown.add_row(f"request {outcome}", escape(request.reason) if request else "-")
    shown.add_row("backlog", escape(str(waiting)))
    for loss in losses:
        shown.add_row("lost", escape(loss))
    for each in rejected:
        shown.add_row(f"node {each.node_id} rejected", escape(each.as_line()))
    console.print(shown)


def trigger(
    *,
    reason: Annotated[str, typer.Option(help="Why; it names the session that follows.")],
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """Request a retraining session; a server that waits starts it, else the next run."""
    manager = RetrainingManager(store=open_monitor(monitor, name))
    request = manager.manual_trigger(f"{reason} (asked by {account()})")
    if as_json:
        print_json({"request": request})
    else:
        console.print(f"Request {request} waits for {escape(name)}.")


def history(
    *, monitor: Monitor = "", name: Name = DEFAULT_MODEL_NAME, as_json: Json = False
) -> None:
    """List all requests to retrain with their outcomes, newest last."""
    rows = open_monitor(monitor, name).requests.history()
    if as_json:
        print_json(rows)
    elif not rows:
        console.print(f"Nobody has asked for retraining of {escape(name)} yet.")
    else:
        columns = ("asked (UTC)", "by", "outcome", "reason", "why")
        listed = table(*columns, no_wrap=("asked (UTC)",))
        for row in rows:
            created = row["created"][:19].replace("T", " ")
            texts = (escape(row["reason"]), escape(row["why"]))
            listed.add_row(created, row["kind"], row["outcome"], *texts)
        console.print(listed)


def ui(
    *, port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000, uri: Uri = ""
) -> None:
    """Open MLflow's own page on the app's store, until Ctrl-C."""
    tracking_uri = ModelManager(uri or None).tracking_uri
    if tracking_uri.startswith("http"):
        console.print(f"This MLflow has its own page: {escape(redact(tracking_uri, tracking_uri))}")
        return
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--default-artifact-root", f"file://{app_home()}/artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # In the environment: every account of the machine can list the arguments of a command.
    quiet["MLFLOW_BACKEND_STORE_URI"] = tracking_uri
    console.print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(subprocess.run(command, env={**os.environ, **quiet}, check=False).returncode)


def run(ctx: typer.Context) -> None:
    """Run `flwr run . --stream` with its options, and end with 1 if the run failed.

    If no other SuperLink is named, it starts Flower's local one if need be, for this environment.
    """
    from fl_app.deploy.local_superlink import LocalSuperLink, is_local
    from fl_app.deploy.processes import environment, program

    named = ctx.args[0] if ctx.args and not ctx.args[0].startswith("-") else None
    if is_local(named):
        require("A run on one machine", "ray")
        LocalSuperLink.of_this_account().ensure(say)
    flwr, env = program("flwr"), environment({})
    command = [flwr, "run", ".", "--stream", *ctx.args]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        run_id = ""
        for line in process.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            started = re.search(r"Successfully started run (\d+)", line)
            run_id = started.group(1) if started else run_id
    if process.returncode:
        raise typer.Exit(process.returncode)
    # `flwr run --stream` ends with 0 even if the run failed; `flwr list` has the truth.
    listed = [flwr, "list", *([named] if named else []), "--run-id", run_id]
    status = subprocess.run(listed, env=env, capture_output=True, text=True, check=False).stdout
    if "finished:completed" not in status:
        fail(f"Run {run_id} did not complete; the reason is in the lines above.")


def stop(
    *, force: Annotated[bool, typer.Option("--force", help="End a run in progress too.")] = False
) -> None:
    """End Flower's local SuperLink, which `fl-app run` and `flwr run` leave running."""
    from fl_app.deploy.local_superlink import LocalSuperLink, has_runs

    superlink = LocalSuperLink.of_this_account()
    process = superlink.process()
    if process is None:
        if superlink.answers():
            fail(superlink.foreign)
        console.print(f"No SuperLink of yours runs on port {superlink.port}.")
        return
    if has_runs(process) and not force:
        fail(
            f"The SuperLink on port {superlink.port} (process {process.pid}) is busy with a run; "
            "wait for it, or end both with `fl-app stop --force`."
        )
    superlink.stop(process)
    console.print(f"The SuperLink on port {superlink.port} (process {process.pid}) has ended.")


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
    uri: Uri = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
) -> None:
    """Serve the status page and the API until Ctrl-C; requests wait for the next run."""
    try:
        token = read_token(token_file, host=host)
        store = ModelManager(uri or None, name)
        store.backend.connection.require_usable()
        named = {part.strip() for part in allowed_hosts.split(",") if part.strip()}
        app = create_trigger_api(
            RetrainingManager(store=open_monitor(monitor, name)),
            store=store,
            token=token,
            allowed_hosts={*LOOPBACK, *named},
            waiting=lambda: backlog(app_home(), name),
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
    address = f"[{server.host}]" if ":" in server.host else server.host
    say(f"The page of {name}: http://{address}:{server.port}/ (Ctrl-C ends it)")
    try:
        store.ping()
        store.get_latest_version()  # MLflow takes seconds to open, which no visitor must wait for
    except RegistryError as error:
        say(f"{error} Until it answers, the page shows what it can.")
    stopped.wait()
    server.close()


COMMANDS: tuple[Callable[..., None], ...] = (
    *(status, versions, compare, promote, approve, reject, rollback, prune, acknowledge),
    *(trigger, history, recover, ui, run, stop, doctor, serve, deploy_local, keys, supernode),
)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands whose arguments are Flower's."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would show variables, and passwords among them
)


def _show_versions(wanted: bool) -> None:
    if wanted:
        say(", ".join(f"{name} {version(name)}" for name in ("fl-app", "flwr", "mlflow")))
        raise typer.Exit


@app.callback()
def _of_all_commands(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_versions, is_eager=True, help="Show versions."),
    ] = False,
) -> None:
    """The lifecycle of a federated model: versions, stages, retraining, deployment."""


for command in COMMANDS:
    app.command(context_settings=PASSED_ON if command in (run, supernode) else None)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    try:
        app(arguments)
    except (RegistryError, MonitorStoreError, DeploymentError) as error:
        fail(str(error))
    except memory_errors() as error:
        fail(f"The monitor's database does not answer ({type(error).__name__}); check --monitor.")
