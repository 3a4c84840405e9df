# SPDX-License-Identifier: Apache-2.0
"""The commands of `fl-app` that list versions, compare them, move them and remove them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from fl_app.api.version_texts import is_pending, score_text, why_text
from fl_app.cli.options import By, Json, Name, Note, Uri, open_registry
from fl_app.cli.output import console, escape, fail, print_json, table
from fl_registry import ModelManager
from fl_registry.home import DEFAULT_MODEL_NAME


def versions(*, uri: Uri = "", name: Name = DEFAULT_MODEL_NAME, as_json: Json = False) -> None:
    """List all versions, newest first."""
    manager = open_registry(uri, name)
    rows = manager.list_all_versions()
    if as_json:
        print_json(rows)
    elif not rows:
        console.print(f"No versions of {escape(name)} yet: `flwr run . --stream` makes some.")
    else:
        entries = manager.history()
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
        console.print(listed)


def compare(
    first: str,
    second: str,
    *,
    uri: Uri = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """Show two versions side by side, and how they differ."""
    result = open_registry(uri, name).compare_versions(first, second)
    if as_json:
        print_json(result)
        return
    one, two = result["version1"], result["version2"]
    shown = table("", f"version {first}", f"version {second}", "difference")
    shown.add_row("stage", str(one["stage"]), str(two["stage"]), "")
    for metric in sorted({**one["metrics"], **two["metrics"]}):
        values = [_number(side["metrics"].get(metric)) for side in (one, two)]
        shown.add_row(escape(metric), *values, _number(result["differences"].get(metric), "+"))
    for param, values in (result["params"] or {}).items():
        shown.add_row(escape(param), *(escape(str(value)) for value in values), "")
    data = result["data"]
    if data is not None:
        shown.add_row("nodes", *map(str, data["num_nodes"]), "")
        shown.add_row("examples", *(f"{count:g}" for count in data["num_examples"]), "")
    console.print(shown)
    paired = result["paired"]
    if paired is not None:
        console.print(
            f"On {paired['examples']} examples that both were scored on, version {escape(second)} "
            f"is {paired['verdict']}."
        )


def promote(
    version: str,
    *,
    to: Annotated[str, typer.Option(help="production or staging")] = "production",
    by: By = "",
    note: Note = "",
    uri: Uri = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """Move a version to Production (or Staging); the present one there is archived."""
    manager = open_registry(uri, name)
    if to == "production":
        manager.promote_to_production(version, actor=by, reason=note)
    elif to == "staging":
        manager.promote_to_staging(version, actor=by, reason=note)
    else:
        fail(f"--to is {to!r}, expected 'production' or 'staging'.")
    _print_move(version, name, to.capitalize(), "is in {} now", as_json)


def _decision(
    decide: Callable[..., object], stage: str, sentence: str, meaning: str
) -> Callable[..., None]:
    """Return a command that decides on a version that waits for approval."""

    def command(
        version: str,
        *,
        by: By = "",
        note: Note = "",
        uri: Uri = "",
        name: Name = DEFAULT_MODEL_NAME,
        as_json: Json = False,
    ) -> None:
        decide(open_registry(uri, name), version, actor=by, reason=note)
        _print_move(version, name, stage, sentence, as_json)

    command.__doc__ = meaning
    return command


def rollback(
    *,
    to: Annotated[
        str, typer.Option(help="Version or date; default: the version in Production before.")
    ] = "",
    by: By = "",
    note: Note = "",
    uri: Uri = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """Move the version that was in Production before back to Production."""
    version = open_registry(uri, name).rollback(to or None, actor=by, reason=note)
    _print_move(version, name, "Production", "is back in {}", as_json)


def prune(
    *,
    keep: Annotated[int, typer.Option(help="Newest versions that are never removed.")] = 10,
    days: Annotated[float, typer.Option(help="Remove only versions older than this.")] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--remove", help="Only print what would be removed.")
    ] = True,
    by: By = "",
    uri: Uri = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """Remove old versions that were never in Production, or print which would be removed."""
    report = open_registry(uri, name).prune(
        keep=keep, older_than=timedelta(days=days), dry_run=dry_run, actor=by
    )
    if as_json:
        print_json(asdict(report))
        return
    verb, size = "would be removed" if dry_run else "were removed", report.freed / 1e6
    console.print(
        f"{len(report.versions)} versions {verb}, {size:.1f} MB; {len(report.kept)} stay."
    )
    if report.versions:
        console.print(f"Versions {', '.join(report.versions)}.")
    for version, why in report.left.items():
        console.print(f"Version {version} was not removed completely: {escape(why)}")
    if dry_run and report.versions:
        console.print("`fl-app prune --remove` removes them.")


def _print_move(version: str, name: str, stage: str, sentence: str, as_json: bool) -> None:
    if as_json:
        print_json({"version": version, "stage": stage})
    else:
        console.print(f"Version {escape(version)} of {escape(name)} {sentence.format(stage)}.")


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


COMMANDS: dict[str, Callable[..., None]] = {
    "versions": versions,
    "compare": compare,
    "promote": promote,
    "approve": _decision(
        ModelManager.approve_version,
        "Production",
        "is approved and in {} now",
        "Move a version that waits for approval to Production.",
    ),
    "reject": _decision(
        ModelManager.reject_version,
        "Archived",
        "is rejected and {} now",
        "Archive a version that waits for approval.",
    ),
    "rollback": rollback,
    "prune": prune,
}
