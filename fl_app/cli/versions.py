# SPDX-License-Identifier: Apache-2.0
"""The commands of `fl-app` that list versions, compare them, move them and remove them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from fl_app.api.version_texts import is_pending, score_text, why_text
from fl_app.cli.options import By, Json, Name, Note, Uri, open_registry
from fl_app.cli.output import console, escape, fail, note, print_json, table
from fl_registry import ModelManager
from fl_registry.home import DEFAULT_MODEL_NAME

Answer = tuple[object, Callable[[], RenderableType]]
"""What a command prints: for programs, as JSON; and what makes the text for people."""


def of_registry(work: Callable[..., Answer]) -> Callable[..., None]:
    """Make a command of a function whose first argument is the registry.

    The command's parameters are the function's others, and the options of all these commands: which
    registry, and in which form the answer is printed.
    """

    def command(
        *, uri: Uri = "", name: Name = DEFAULT_MODEL_NAME, as_json: Json = False, **given: Any
    ) -> None:
        value, text = work(open_registry(uri, name), **given)
        if as_json:
            print_json(value)
        else:
            console.print(text())

    _, *own = inspect.signature(work, eval_str=True).parameters.values()
    *options, _ = inspect.signature(command, eval_str=True).parameters.values()
    # Typer reads the signature to know a command's arguments and options.
    as_typer_sees_it: Any = command
    as_typer_sees_it.__signature__ = inspect.Signature([*own, *options])
    command.__name__, command.__doc__ = work.__name__, work.__doc__
    return command


@of_registry
def versions(
    manager: ModelManager,
    limit: Annotated[int, typer.Option(help="How many at most; 0: all.", min=0)] = 50,
    stage: Annotated[
        str, typer.Option(help="Only those in None, Staging, Production or Archived.")
    ] = "",
    since: Annotated[
        str, typer.Option(help="Only those saved on that day, or at that moment in UTC, or later.")
    ] = "",
    before: Annotated[str, typer.Option(help="Only those before this version.")] = "",
) -> Answer:
    """List versions, newest first."""
    found = manager.list_versions(
        limit=limit + 1 if limit else None,
        stage=stage or None,
        since=since or None,
        before=before or None,
    )
    rows = found[:limit] if limit else found
    if len(found) > len(rows):
        note(f"There are more: add --before {rows[-1]['version']}, or --limit 0 for all.")

    def text() -> RenderableType:
        if not rows:
            name, place = manager.registered_model_name, manager.backend.connection.place
            if stage or since or before:
                return escape(f"No such versions of {name}.")
            return escape(f"No versions of {name} yet in {place}: ") + (
                "`flwr run . --stream` makes some."
            )
        # The journal of a long life takes a while to read.
        needed = not all(row["tags"].get("reason") for row in rows)
        entries = manager.history() if needed else ()
        columns = ("version", "stage", "round", "session", "score", "created (UTC)", "why")
        listed = table(*columns, no_wrap=("score", "created (UTC)"))
        for row in rows:
            tags = row["tags"]
            listed.add_row(
                f"{row['version']}",
                f"{row['stage']}{' (pending approval)' if is_pending(row) else ''}",
                tags.get("round", "-"),
                tags.get("session", "-"),
                escape(score_text(row) or "-"),
                row["created"][:19].replace("T", " "),
                escape(why_text(row, entries)),
            )
        return listed

    return rows, text


@of_registry
def compare(manager: ModelManager, first: str, second: str) -> Answer:
    """Show two versions side by side, and how they differ."""
    result = manager.compare_versions(first, second)

    def text() -> RenderableType:
        one, two = result["version1"], result["version2"]
        shown = table("", f"version {first}", f"version {second}", "difference")
        shown.add_row("stage", str(one["stage"]), str(two["stage"]), "")
        for metric in sorted({**one["metrics"], **two["metrics"]}):
            values = [_number(side["metrics"].get(metric)) for side in (one, two)]
            shown.add_row(escape(metric), *values, _number(result["differences"].get(metric), "+"))
        for param, values in (result["params"] or {}).items():
            shown.add_row(escape(param), *(escape(str(value)) for value in values), "")
        data, paired = result["data"], result["paired"]
        if data is not None:
            shown.add_row("nodes", *map(str, data["num_nodes"]), "")
            shown.add_row("examples", *(f"{count:g}" for count in data["num_examples"]), "")
        if paired is None:
            return shown
        sentence = (
            f"On {paired['examples']} examples that both were scored on, version {escape(second)} "
            f"is {paired['verdict']}."
        )
        return Group(shown, sentence)

    return result, text


@of_registry
def promote(
    manager: ModelManager,
    version: str,
    to: Annotated[str, typer.Option(help="production or staging")] = "production",
    by: By = "",
    note: Note = "",
) -> Answer:
    """Move a version to Production (or Staging); the present one there is archived."""
    if to == "production":
        manager.promote_to_production(version, actor=by, reason=note)
    elif to == "staging":
        manager.promote_to_staging(version, actor=by, reason=note)
    else:
        fail(f"--to is {to!r}, expected 'production' or 'staging'.")
    return _moved(manager, version, to.capitalize(), f"is in {to.capitalize()} now")


@of_registry
def approve(manager: ModelManager, version: str, by: By = "", note: Note = "") -> Answer:
    """Move a version that waits for approval to Production."""
    manager.approve_version(version, actor=by, reason=note)
    return _moved(manager, version, "Production", "is approved and in Production now")


@of_registry
def reject(manager: ModelManager, version: str, by: By = "", note: Note = "") -> Answer:
    """Archive a version that waits for approval."""
    manager.reject_version(version, actor=by, reason=note)
    return _moved(manager, version, "Archived", "is rejected and Archived now")


@of_registry
def rollback(
    manager: ModelManager,
    to: Annotated[
        str, typer.Option(help="Version or date; default: the version in Production before.")
    ] = "",
    by: By = "",
    note: Note = "",
) -> Answer:
    """Move the version that was in Production before back to Production."""
    version = manager.rollback(to or None, actor=by, reason=note)
    return _moved(manager, version, "Production", "is back in Production")


@of_registry
def acknowledge(manager: ModelManager, version: str, by: By = "", note: Note = "") -> Answer:
    """Record that the files of a version are lost and that this is known; `doctor` ends with 0."""
    manager.acknowledge(version, actor=by, reason=note)
    name = escape(manager.registered_model_name)
    sentence = f"The loss of version {escape(version)} of {name} is acknowledged."
    return {"version": version, "acknowledged": True}, lambda: sentence


@of_registry
def prune(
    manager: ModelManager,
    keep: Annotated[int, typer.Option(help="Newest versions that are never removed.")] = 10,
    days: Annotated[float, typer.Option(help="Remove only versions older than this.")] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--remove", help="Only print what would be removed.")
    ] = True,
    by: By = "",
) -> Answer:
    """Remove old versions that were never in Production, or print which would be removed."""
    report = manager.prune(keep=keep, older_than=timedelta(days=days), dry_run=dry_run, actor=by)

    def text() -> RenderableType:
        verb, size = "would be removed" if dry_run else "were removed", report.freed / 1e6
        lines = [f"{len(report.versions)} versions {verb}, {size:.1f} MB; {len(report.kept)} stay."]
        if report.versions:
            lines.append(f"Versions {', '.join(report.versions)}.")
        for version, why in report.left.items():
            lines.append(f"Version {version} was not removed completely: {escape(why)}")
        if dry_run and report.versions:
            lines.append("`fl-app prune --remove` removes them.")
        return "\n".join(lines)

    return asdict(report), text


def _moved(manager: ModelManager, version: str, stage: str, result: str) -> Answer:
    name = escape(manager.registered_model_name)
    sentence = f"Version {escape(version)} of {name} {result}."
    return {"version": version, "stage": stage}, lambda: sentence


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"
