# SPDX-License-Identifier: Apache-2.0
"""`fl-app`: look at the versions of the model, move them, and open MLflow's own page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_app.retraining import MonitorStore, Outcome, RetrainingManager
from fl_app.retraining.store import default_url
from registry import ModelManager, RegistryError, app_home

app = typer.Typer(
    help="The lifecycle of a federated model: versions, stages, rollback.",
    no_args_is_help=True,
    add_completion=False,
)
out = Console(highlight=False)

Uri = Annotated[
    str, typer.Option("--tracking-uri", help="MLflow to use; default: SQLite in FL_APP_HOME.")
]
Name = Annotated[str, typer.Option("--name", help="Name in the model registry.")]
By = Annotated[str, typer.Option("--by", help="Who decides; default: the account's name.")]
Note = Annotated[str, typer.Option("--note", help="Why; kept with the decision.")]
Monitor = Annotated[
    str, typer.Option("--monitor", help="SQLAlchemy URL of the monitor's memory; default: SQLite.")
]
DEFAULT_NAME = "fl-global-model"


@app.command()
def versions(*, uri: Uri = "", name: Name = DEFAULT_NAME) -> None:
    """List all versions, newest first."""
    rows = _manager(uri, name).list_all_versions()
    table = Table(box=None, pad_edge=False)
    for column in ("version", "stage", "round", "session", "score", "created (UTC)", "why"):
        table.add_column(column, overflow="fold", no_wrap=column in ("score", "created (UTC)"))
    for row in rows:
        tags = row["tags"]
        waits = " (pending approval)" if tags.get("approval") == "pending" else ""
        table.add_row(
            f"{row['version']}",
            f"{row['stage']}{waits}",
            tags.get("round", "-"),
            tags.get("session", "-"),
            escape(_score(row["metrics"], tags.get("metric", ""))),
            row["created"][:19].replace("T", " "),
            escape(tags.get("reason", "")),
        )
    if rows:
        out.print(table)
    else:
        out.print(f"No versions of {escape(name)} yet: `flwr run . --stream` makes some.")


@app.command()
def compare(first: str, second: str, *, uri: Uri = "", name: Name = DEFAULT_NAME) -> None:
    """Show two versions side by side, and by how much each metric differs."""
    result = _manager(uri, name).compare_versions(first, second)
    one, two = result["version1"], result["version2"]
    table = Table(box=None, pad_edge=False)
    for column in ("", f"version {first}", f"version {second}", "difference"):
        table.add_column(column)
    table.add_row("stage", str(one["stage"]), str(two["stage"]), "")
    for metric in sorted({**one["metrics"], **two["metrics"]}):
        values = [_number(side["metrics"].get(metric)) for side in (one, two)]
        table.add_row(escape(metric), *values, _number(result["differences"].get(metric), "+"))
    out.print(table)


@app.command()
def promote(
    version: str,
    *,
    to: Annotated[str, typer.Option(help="production or staging")] = "production",
    by: By = "",
    note: Note = "",
    uri: Uri = "",
    name: Name = DEFAULT_NAME,
) -> None:
    """Move a version to Production (or Staging); the old one there is archived."""
    manager = _manager(uri, name)
    if to not in ("production", "staging"):
        _fail(f"--to is {to!r}, expected 'production' or 'staging'.")
    move = manager.promote_to_production if to == "production" else manager.promote_to_staging
    move(version, actor=by or _account(), reason=note)
    if to == "production":
        manager.set_version_tags(version, {"approval": "approved"})
    out.print(f"Version {escape(version)} of {escape(name)} is in {to.capitalize()} now.")


@app.command()
def rollback(
    *,
    to: Annotated[str, typer.Option(help="Version; default: the one in Production before.")] = "",
    by: By = "",
    note: Note = "",
    uri: Uri = "",
    name: Name = DEFAULT_NAME,
) -> None:
    """Bring the version that was in Production before back."""
    version = _manager(uri, name).rollback(to or None, actor=by or _account(), reason=note)
    out.print(f"Version {escape(version)} of {escape(name)} is back in Production.")


@app.command()
def trigger(
    *,
    reason: Annotated[str, typer.Option(help="Why; it names the session that follows.")],
    monitor: Monitor = "",
    name: Name = DEFAULT_NAME,
) -> None:
    """Ask for a retraining session; a server that waits starts it, else the next run does."""
    manager = RetrainingManager(store=_memory(monitor, name))
    request = manager.manual_trigger(f"{reason} (asked by {_account()})")
    out.print(f"Request {request} waits for {escape(name)}.")


@app.command()
def history(*, monitor: Monitor = "", name: Name = DEFAULT_NAME) -> None:
    """List all retraining requests, newest last, with what became of them."""
    table = Table(box=None, pad_edge=False)
    for column in ("asked (UTC)", "by", "outcome", "reason", "why"):
        table.add_column(column, overflow="fold", no_wrap=column == "asked (UTC)")
    rows = _memory(monitor, name).history()
    for row in rows:
        asked = row["created"][:19].replace("T", " ")
        table.add_row(asked, row["kind"], row["outcome"], escape(row["reason"]), escape(row["why"]))
    if rows:
        out.print(table)
    else:
        out.print(f"Nobody has asked for retraining of {escape(name)} yet.")


@app.command()
def status(*, uri: Uri = "", monitor: Monitor = "", name: Name = DEFAULT_NAME) -> None:
    """What is in Production, what waits for approval, what the monitor has in hand."""
    rows = _manager(uri, name).list_all_versions()
    memory = _memory(monitor, name)
    table = Table(box=None, pad_edge=False, show_header=False)
    for stage in ("Production", "Staging"):
        found = [row for row in rows if row["stage"] == stage]
        table.add_row(stage, _version(found[0]) if found else "-")
    waits = [row["version"] for row in rows if row["tags"].get("approval") == "pending"]
    table.add_row("pending approval", ", ".join(waits) or "-")
    for outcome in (Outcome.RUNNING, Outcome.PENDING):
        request = memory.find(outcome)
        table.add_row(f"request {outcome}", escape(request.reason) if request else "-")
    out.print(table)


@app.command()
def ui(
    *, port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000, uri: Uri = ""
) -> None:
    """Open MLflow's own page on the app's store, until Ctrl-C."""
    tracking_uri = ModelManager(uri or None).tracking_uri
    if tracking_uri.startswith("http"):
        out.print(f"That MLflow has its own page: {escape(tracking_uri)}")
        return
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri]
    command += ["--default-artifact-root", f"file://{app_home()}/artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    out.print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise typer.Exit(subprocess.run(command, env={**os.environ, **quiet}, check=False).returncode)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(ctx: typer.Context) -> None:
    """As `flwr run . --stream`, but ends with 1 if the run failed; takes its options."""
    superlink = [ctx.args[0]] if ctx.args and not ctx.args[0].startswith("-") else []
    command = ["flwr", "run", ".", "--stream", *ctx.args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        run_id = ""
        for line in process.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            started = re.search(r"Successfully started run (\d+)", line)
            run_id = started.group(1) if started else run_id
    if process.returncode:
        raise typer.Exit(process.returncode)
    listed = ["flwr", "list", *superlink, "--run-id", run_id]
    status = subprocess.run(listed, capture_output=True, text=True, check=False).stdout
    if "finished:completed" not in status:
        _fail(f"Run {run_id} did not complete; the reason is in the lines above.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the registry's errors end it with one sentence and status 1."""
    try:
        app(arguments)
    except RegistryError as err:
        _fail(str(err))


def _manager(uri: str, name: str) -> ModelManager:
    manager = ModelManager(uri or None, name)
    manager.ping()
    return manager


def _memory(url: str, name: str) -> MonitorStore:
    return MonitorStore(url or default_url(app_home()), name)


def _version(row: dict[str, Any]) -> str:
    tags = row["tags"]
    return f"version {row['version']}  {escape(_score(row['metrics'], tags.get('metric', '')))}"


def _fail(sentence: str) -> None:
    Console(stderr=True, highlight=False).print(escape(sentence))
    sys.exit(1)


def _account() -> str:
    import getpass

    return getpass.getuser()


def _score(metrics: dict[str, float], metric: str) -> str:
    return f"{metric} {metrics[metric]:.4f}" if metric in metrics else "-"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


if __name__ == "__main__":
    main()
