# SPDX-License-Identifier: Apache-2.0
"""The commands of `fl-app` about requests to retrain."""

from __future__ import annotations

from typing import Annotated

import typer

from fl_app.cli.options import Json, Monitor, Name, account, open_monitor
from fl_app.cli.output import console, escape, note, print_json, table
from fl_app.retraining import RetrainingManager
from fl_registry.home import DEFAULT_MODEL_NAME


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
    *,
    limit: Annotated[int, typer.Option(help="How many at most; 0: all.", min=0)] = 50,
    before: Annotated[str, typer.Option(help="Only those before the request with this id.")] = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """List requests to retrain with their outcomes, newest last."""
    found = open_monitor(monitor, name).requests.history(limit + 1 if limit else None, before)
    rows = found[-limit:]
    if len(found) > len(rows):
        note(f"There are older ones: add --before {rows[0]['id']}, or --limit 0 for all.")
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
