# SPDX-License-Identifier: Apache-2.0
"""`fl-app`: look at the versions of the model, move them, and open MLflow's own page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich import markup
from rich.console import Console
from rich.table import Table

from fl_app.api.page.registry_view import is_pending, score_text, why_text
from fl_app.cli.deploy import deploy_local, keys, supernode
from fl_app.cli.doctor import doctor
from fl_app.cli.options import DEFAULT_NAME, By, Json, Monitor, Name, Note, Uri
from fl_app.cli.serve import serve
from fl_app.retraining import MonitorStore, Outcome, Probation, RetrainingManager
from fl_app.retraining.memory.errors import MonitorStoreError, memory_errors
from fl_app.retraining.memory.store import default_url
from fl_app.retraining.probation.status import in_one_line
from fl_app.strategy.round.rejected_nodes import read_rejected
from fl_app.strategy.session.backlog import backlog
from fl_registry import ModelManager, RegistryError, StoreUnavailable, app_home
from fl_registry.redaction import printable, redact

app = typer.Typer(
    help="The lifecycle of a federated model: versions, stages, rollback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would show variables, and passwords among them
)
out = Console(highlight=False)


@app.command()
def versions(*, uri: Uri = "", name: Name = DEFAULT_NAME, as_json: Json = False) -> None:
    """List all versions, newest first."""
    manager = _manager(uri, name)
    rows = manager.list_all_versions()
    if as_json:
        return _print_json(rows)
    entries = manager.history()
    table = Table(box=None, pad_edge=False)
    for column in ("version", "stage", "round", "session", "score", "created (UTC)", "why"):
        table.add_column(column, overflow="fold", no_wrap=column in ("score", "created (UTC)"))
    for row in rows:
        tags = row["tags"]
        waits = " (pending approval)" if is_pending(row) else ""
        table.add_row(
            f"{row['version']}",
            f"{row['stage']}{waits}",
            tags.get("round", "-"),
            tags.get("session", "-"),
            escape(score_text(row) or "-"),
            row["created"][:19].replace("T", " "),
            escape(why_text(row, entries)),
        )
    if rows:
        out.print(table)
    else:
        out.print(f"No versions of {escape(name)} yet: `flwr run . --stream` makes some.")
    return None


@app.command()
def compare(
    first: str, second: str, *, uri: Uri = "", name: Name = DEFAULT_NAME, as_json: Json = False
) -> None:
    """Show two versions side by side, and what differs between them."""
    result = _manager(uri, name).compare_versions(first, second)
    if as_json:
        return _print_json(result)
    one, two = result["version1"], result["version2"]
    table = Table(box=None, pad_edge=False)
    for column in ("", f"version {first}", f"version {second}", "difference"):
        table.add_column(column)
    table.add_row("stage", str(one["stage"]), str(two["stage"]), "")
    for metric in sorted({**one["metrics"], **two["metrics"]}):
        values = [_number(side["metrics"].get(metric)) for side in (one, two)]
        table.add_row(escape(metric), *values, _number(result["differences"].get(metric), "+"))
    for param, values in (result["params"] or {}).items():
        table.add_row(escape(param), *(escape(str(value)) for value in values), "")
    data = result["data"]
    if data is not None:
        table.add_row("nodes", *map(str, data["num_nodes"]), "")
        table.add_row("examples", *(f"{count:g}" for count in data["num_examples"]), "")
    out.print(table)
    paired = result["paired"]
    if paired is not None:
        out.print(
            f"On {paired['examples']} examples that both were scored on, version {escape(second)} "
            f"is {paired['verdict']}."
        )
    return None


@app.command()
def promote(
    version: str,
    *,
    to: Annotated[str, typer.Option(help="production or staging")] = "production",
    by: By = "",
    note: Note = "",
    uri: Uri = "",
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Move a version to Production (or Staging); the old one there is archived."""
    manager = _manager(uri, name)
    if to not in ("production", "staging"):
        _fail(f"--to is {to!r}, expected 'production' or 'staging'.")
    move = manager.promote_to_production if to == "production" else manager.promote_to_staging
    move(version, actor=by or _account(), reason=note)
    _moved(version, name, to.capitalize(), "is in {} now", as_json)


@app.command()
def approve(
    version: str,
    *,
    by: By = "",
    note: Note = "",
    uri: Uri = "",
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Let a version that waits for approval go to Production."""
    _manager(uri, name).approve_version(version, actor=by or _account(), reason=note)
    _moved(version, name, "Production", "is approved and in {} now", as_json)


@app.command()
def reject(
    version: str,
    *,
    by: By = "",
    note: Note = "",
    uri: Uri = "",
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Archive a version that waits for approval."""
    _manager(uri, name).reject_version(version, actor=by or _account(), reason=note)
    _moved(version, name, "Archived", "is rejected and {} now", as_json)


@app.command()
def rollback(
    *,
    to: Annotated[
        str, typer.Option(help="Version or date; default: the one in Production before.")
    ] = "",
    by: By = "",
    note: Note = "",
    uri: Uri = "",
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Bring the version that was in Production before back."""
    version = _manager(uri, name).rollback(to or None, actor=by or _account(), reason=note)
    _moved(version, name, "Production", "is back in {}", as_json)


@app.command()
def prune(
    *,
    keep: Annotated[int, typer.Option(help="Newest versions that stay in any case.")] = 10,
    days: Annotated[float, typer.Option(help="Only versions older than this go.")] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--remove", help="Only tell what would go.")
    ] = True,
    by: By = "",
    uri: Uri = "",
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Remove old versions that were never in Production, or tell which would go."""
    report = _manager(uri, name).prune(
        keep=keep, older_than=timedelta(days=days), dry_run=dry_run, actor=by or _account()
    )
    if as_json:
        return _print_json(asdict(report))
    verb, size = "would be removed" if dry_run else "were removed", report.freed / 1e6
    out.print(f"{len(report.versions)} versions {verb}, {size:.1f} MB; {len(report.kept)} stay.")
    if report.versions:
        out.print(f"Versions {', '.join(report.versions)}.")
    for version, why in report.left.items():
        out.print(f"Of version {version} something is left: {escape(why)}")
    if dry_run and report.versions:
        out.print("`fl-app prune --remove` removes them.")
    return None


@app.command()
def trigger(
    *,
    reason: Annotated[str, typer.Option(help="Why; it names the session that follows.")],
    monitor: Monitor = "",
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Ask for a retraining session; a server that waits starts it, else the next run does."""
    manager = RetrainingManager(store=_memory(monitor, name))
    request = manager.manual_trigger(f"{reason} (asked by {_account()})")
    if as_json:
        return _print_json({"request": request})
    return out.print(f"Request {request} waits for {escape(name)}.")


@app.command()
def history(*, monitor: Monitor = "", name: Name = DEFAULT_NAME, as_json: Json = False) -> None:
    """List all retraining requests, newest last, with what became of them."""
    rows = _memory(monitor, name).requests.history()
    if as_json:
        return _print_json(rows)
    table = Table(box=None, pad_edge=False)
    for column in ("asked (UTC)", "by", "outcome", "reason", "why"):
        table.add_column(column, overflow="fold", no_wrap=column == "asked (UTC)")
    for row in rows:
        asked = row["created"][:19].replace("T", " ")
        table.add_row(asked, row["kind"], row["outcome"], escape(row["reason"]), escape(row["why"]))
    if rows:
        out.print(table)
    else:
        out.print(f"Nobody has asked for retraining of {escape(name)} yet.")
    return None


@app.command()
def status(
    *, uri: Uri = "", monitor: Monitor = "", name: Name = DEFAULT_NAME, as_json: Json = False
) -> None:
    """What is in Production, what waits for approval, what the monitor has in hand."""
    memory, waiting = _memory(monitor, name), backlog(app_home(), name)
    try:
        manager = _manager(uri, name)
        rows = manager.list_all_versions()
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{error} On disk and not handed over: {waiting}.") from None
    stands = Probation(manager, RetrainingManager(store=memory)).status()
    staged = {row["stage"]: row for row in rows if row["stage"] in ("Production", "Staging")}
    waits = [row["version"] for row in staged.values() if is_pending(row)]
    requests = {
        outcome: memory.requests.find(outcome) for outcome in (Outcome.RUNNING, Outcome.PENDING)
    }
    bad = read_rejected(rows[0]["tags"]) if rows else []
    if as_json:
        return _print_json(
            {
                "production": staged.get("Production"),
                "staging": staged.get("Staging"),
                "pending_approval": waits,
                "probation": stands,
                "requests": {k: asdict(r) if r else None for k, r in requests.items()},
                "rejected": [asdict(one) for one in bad],
                "backlog": asdict(waiting),
            }
        )
    table = Table(box=None, pad_edge=False, show_header=False)
    for stage in ("Production", "Staging"):
        table.add_row(stage, _version(staged[stage]) if stage in staged else "-")
    table.add_row("pending approval", ", ".join(waits) or "-")
    table.add_row("probation", escape(in_one_line(stands)))
    for outcome, request in requests.items():
        table.add_row(f"request {outcome}", escape(request.reason) if request else "-")
    table.add_row("backlog", escape(str(waiting)))
    for one in bad:
        table.add_row(f"node {one.node_id} rejected", escape(one.told()))
    return out.print(table)


@app.command()
def ui(
    *, port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000, uri: Uri = ""
) -> None:
    """Open MLflow's own page on the app's store, until Ctrl-C."""
    tracking_uri = ModelManager(uri or None).tracking_uri
    if tracking_uri.startswith("http"):
        out.print(f"That MLflow has its own page: {escape(redact(tracking_uri, tracking_uri))}")
        return
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--default-artifact-root", f"file://{app_home()}/artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet["MLFLOW_BACKEND_STORE_URI"] = tracking_uri  # everybody may list a command's arguments
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


app.command()(deploy_local)
app.command()(keys)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(supernode)
app.command()(doctor)
app.command()(serve)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the registry's errors end it with one sentence and status 1."""
    try:
        app(arguments)
    except (RegistryError, MonitorStoreError) as err:
        _fail(str(err))
    except memory_errors() as err:
        _fail(f"The monitor's memory does not answer ({type(err).__name__}); check --monitor.")


def escape(text: str) -> str:
    """Return a text of others as it is, for a terminal: no markup, and nothing that moves about."""
    return markup.escape(printable(text))


def _manager(uri: str, name: str) -> ModelManager:
    manager = ModelManager(uri or None, name)
    manager.ping()
    return manager


def _memory(url: str, name: str) -> MonitorStore:
    return MonitorStore(url or default_url(app_home()), name)


def _moved(version: str, name: str, stage: str, said: str, as_json: bool) -> None:
    if as_json:
        return _print_json({"version": version, "stage": stage})
    return out.print(f"Version {escape(version)} of {escape(name)} {said.format(stage)}.")


def _print_json(value: object) -> None:
    sys.stdout.write(f"{json.dumps(value, indent=1, default=str)}\n")


def _version(row: dict[str, Any]) -> str:
    return f"version {row['version']}  {escape(score_text(row) or '-')}"


def _fail(sentence: str) -> None:
    Console(stderr=True, highlight=False).print(escape(sentence))
    sys.exit(1)


def _account() -> str:
    import getpass

    return getpass.getuser()


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


if __name__ == "__main__":
    main()
