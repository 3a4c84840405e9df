# SPDX-License-Identifier: Apache-2.0
"""The commands of `fl-app` that list versions, compare them, move them and remove them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from fl_app.cli.options import (
    STAGES,
    By,
    Json,
    Name,
    Note,
    Uri,
    Version,
    VersionOrStage,
    VersionThatWaits,
    choice,
    open_registry,
)
from fl_app.cli.output import Column, Part, Raw, Table, fail, note, print_json, show
from fl_app.versions.card import model_card
from fl_app.versions.texts import is_pending, last_moves, score_text, why_text
from fl_registry import ModelManager, Stage
from fl_registry.files.atomic import write_whole
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.numbers import number_text

Answer = tuple[object, Callable[[], Sequence[Part]]]
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
            show(*text())

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
    limit: Annotated[int, typer.Option(help="How many at most; 0: all.", min=0, max=10**9)] = 50,
    stage: Annotated[
        str | None, typer.Option(help="Only those in this stage.", click_type=STAGES)
    ] = None,
    since: Annotated[
        str, typer.Option(help="Only those saved on that day, or at that moment in UTC, or later.")
    ] = "",
    before: Annotated[str, typer.Option(help="Only those before this version.")] = "",
) -> Answer:
    """List versions, newest first."""
    found = manager.list_versions(
        limit=limit + 1 if limit else None,
        stage=stage,
        since=since or None,
        before=before or None,
    )
    rows = found[:limit] if limit else found
    if len(found) > len(rows):
        note(f"There are more: add --before {rows[-1]['version']}, or --limit 0 for all.")

    def text() -> Sequence[Part]:
        if not rows:
            name, place = manager.registered_model_name, manager.backend.connection.place
            if stage or since or before:
                return [f"No such versions of {name}."]
            return [f"No versions of {name} yet in {place}: `fl-app run` makes some."]
        # The journal of a long life takes a while to read.
        told = (row["tags"].get("reason") and row["stage"] != "Archived" for row in rows)
        moves = last_moves(() if all(told) else manager.history())
        columns = (
            Column("version"),
            Column("stage"),
            Column("round", drop=3),
            Column("session", drop=4),
            Column("score", drop=1),
            Column("created (UTC)", drop=2),
            Column("why", text=True),
        )
        listed = [
            (
                f"{row['version']}",
                f"{row['stage']}{' (pending approval)' if is_pending(row) else ''}",
                row["tags"].get("round", "-"),
                row["tags"].get("session", "-"),
                score_text(row) or "-",
                row["created"][:19].replace("T", " "),
                why_text(row, moves),
            )
            for row in rows
        ]
        return [Table(columns, listed)]

    return rows, text


@of_registry
def compare(
    manager: ModelManager,
    first: Annotated[str, typer.Argument(help="A version's number.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another one's.", show_default=False)],
) -> Answer:
    """Show two versions side by side, and how they differ."""
    result = manager.compare_versions(first, second)

    def text() -> Sequence[Part]:
        one, two = result["version1"], result["version2"]
        rows: list[tuple[str, ...]] = [("stage", str(one["stage"]), str(two["stage"]), "")]
        for metric in sorted({**one["metrics"], **two["metrics"]}):
            values = [_number(side["metrics"].get(metric)) for side in (one, two)]
            more = result["differences"].get(metric)
            sign = "+" if more is not None and more >= 0 else ""
            rows.append((metric, *values, "" if more is None else f"{sign}{_number(more)}"))
        for param, values in (result["params"] or {}).items():
            rows.append((param, *("-" if value is None else str(value) for value in values), ""))
        data, paired = result["data"], result["paired"]
        if data is not None:
            rows.append(("nodes", *map(str, data["num_nodes"]), ""))
            rows.append(("examples", *(f"{count:,.0f}" for count in data["num_examples"]), ""))
        columns = (
            Column(""),
            Column(f"version {one['version']}", text=True),
            Column(f"version {two['version']}", text=True),
            Column("difference"),
        )
        shown: list[Part] = [Table(columns, rows)]
        if paired is not None:
            shown.append(
                f"On {paired['examples']} examples that both were scored on, version "
                f"{two['version']} is {paired['verdict']}."
            )
        return shown

    return result, text


@of_registry
def promote(
    manager: ModelManager,
    version: Version,
    to: Annotated[
        str, typer.Option(help="Where it goes.", click_type=choice("production", "staging"))
    ] = "production",
    by: By = "",
    note: Note = "",
) -> Answer:
    """Move a version to Production (or Staging); the present one there is archived."""
    if to == "production":
        move, stage = manager.promote_to_production, Stage.PRODUCTION
    else:
        move, stage = manager.promote_to_staging, Stage.STAGING
    return _moved(manager, move, version, stage, actor=by, reason=note)


@of_registry
def approve(
    manager: ModelManager, version: VersionThatWaits = "", by: By = "", note: Note = ""
) -> Answer:
    """Move a version that waits for approval to Production."""
    chosen = version or the_one_that_waits(manager.list_versions(stage=Stage.STAGING))
    move, did = manager.approve_version, "approved and "
    return _moved(manager, move, chosen, Stage.PRODUCTION, did=did, actor=by, reason=note)


@of_registry
def reject(
    manager: ModelManager, version: VersionThatWaits = "", by: By = "", note: Note = ""
) -> Answer:
    """Archive a version that waits for approval."""
    chosen = version or the_one_that_waits(manager.list_versions(stage=Stage.STAGING))
    move, did = manager.reject_version, "rejected and "
    return _moved(manager, move, chosen, Stage.ARCHIVED, did=did, actor=by, reason=note)


@of_registry
def archive(manager: ModelManager, version: Version, by: By = "", note: Note = "") -> Answer:
    """Archive a version that is not in Production."""
    move = manager.archive_version
    return _moved(manager, move, version, Stage.ARCHIVED, actor=by, reason=note)


@of_registry
def restore(manager: ModelManager, version: Version, by: By = "", note: Note = "") -> Answer:
    """Move an archived version back to Staging; the present one there is archived."""
    move = manager.restore_version
    return _moved(manager, move, version, Stage.STAGING, actor=by, reason=note)


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
    before = manager.get_latest_version(Stage.PRODUCTION)
    version = manager.rollback(to or None, actor=by, reason=note)
    result = "back in Production" if version != before else ""
    return _answer(manager, version, Stage.PRODUCTION, result)


@of_registry
def acknowledge(manager: ModelManager, version: Version, by: By = "", note: Note = "") -> Answer:
    """Record that the files of a version are lost and that this is known; `doctor` ends with 0."""
    manager.acknowledge(version, actor=by, reason=note)
    sentence = f"The loss of version {version} of {manager.registered_model_name} is acknowledged."
    return {"version": version, "acknowledged": True}, lambda: [sentence]


def _days(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number of days.")
    return value


@of_registry
def prune(
    manager: ModelManager,
    keep: Annotated[int, typer.Option(help="Newest versions that stay in any case.", min=0)] = 10,
    days: Annotated[
        float,
        typer.Option(
            help="Remove only versions older than this.", min=0, max=36500, callback=_days
        ),
    ] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--remove", help="Only print what would be removed.")
    ] = True,
    by: By = "",
) -> Answer:
    """Remove old versions that were never in Production, or print which would be removed."""
    report = manager.prune(keep=keep, older_than=timedelta(days=days), dry_run=dry_run, actor=by)

    def text() -> Sequence[Part]:
        verb, size = "would be removed" if dry_run else "were removed", report.freed / 1e6
        count = len(report.versions)
        if count == 1:
            verb = verb.replace("were", "was")
        noun = "version" if count == 1 else "versions"
        lines = [f"{count} {noun} {verb}, {size:.1f} MB; {len(report.kept)} stay."]
        if report.versions:
            lines.append(f"{noun.capitalize()} {', '.join(report.versions)}.")
        for version, why in report.left.items():
            lines.append(f"Version {version} was not removed completely: {why}")
        if dry_run and report.versions:
            lines.append("`fl-app prune --remove` removes them.")
        return lines

    return asdict(report), text


@of_registry
def card(
    manager: ModelManager,
    version: VersionOrStage,
    file: Annotated[
        Path | None, typer.Option(help="File to write, such as README.md; default: print it.")
    ] = None,
) -> Answer:
    """Write a version's model card in Markdown, from what registry and journal know."""
    text = model_card(manager, version, model_name=manager.registered_model_name)
    if file is not None:
        try:
            write_whole(file.expanduser().absolute(), text.encode())
        except OSError as error:
            fail(f"{file} cannot be written ({error.strerror or error}); name another with --file.")
        return {"version": version, "file": str(file)}, lambda: [f"The model card is in {file}."]
    return {"version": version, "card": text}, lambda: [Raw(text)]


def the_one_that_waits(staged: Sequence[Mapping[str, Any]]) -> str:
    """Return the version that waits for approval; end the command if there is none, or several."""
    waiting = [str(row["version"]) for row in staged if is_pending(row)]
    if not waiting:
        fail("No version waits for approval; `fl-app versions` lists all.")
    if len(waiting) > 1:
        fail(f"Versions {', '.join(waiting)} wait for approval; name one of them.")
    return waiting[0]


def _moved(
    manager: ModelManager,
    move: Callable[..., None],
    version: str,
    stage: Stage,
    *,
    did: str = "",
    **by: str,
) -> Answer:
    """Move a version and tell whether it was in that stage already."""
    before = manager.get_version(version)
    move(before.version, **by)
    moved = before.stage is not stage
    return _answer(manager, before.version, stage, f"{did}{_place(stage)} now" if moved else "")


def _answer(manager: ModelManager, version: str, stage: Stage, result: str) -> Answer:
    """Return the answer of a move; an empty result says that nothing was to be moved."""
    told = result or f"{_place(stage)} already; nothing was moved"
    sentence = f"Version {version} of {manager.registered_model_name} is {told}."
    answer = {"version": version, "stage": str(stage), "moved": bool(result)}
    return answer, lambda: [sentence]


def _place(stage: Stage) -> str:
    return str(stage) if stage is Stage.ARCHIVED else f"in {stage}"


def _number(value: float | None) -> str:
    return "-" if value is None else number_text(value)
