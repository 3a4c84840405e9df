# SPDX-License-Identifier: Apache-2.0
"""The commands of `fl-app` about requests to retrain."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from fl_app.cli.options import By, Json, Monitor, Name, account, open_requests
from fl_app.cli.output import Column, Table, note, print_json, show
from fl_app.retraining import RetrainingManager
from fl_registry.home import DEFAULT_MODEL_NAME


def _given(reason: str) -> str:
    if not reason.strip():
        raise typer.BadParameter("it is empty; say why, in a sentence.")
    return reason.strip()


def trigger(
    *,
    reason: Annotated[
        str, typer.Option(help="Why; it names the session that follows.", callback=_given)
    ],
    by: By = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """Request a retraining session; a server that waits starts it, else the next run."""
    manager, new = RetrainingManager(store=open_requests(monitor, name)), uuid.uuid4().hex
    request = manager.manual_trigger(f"{reason} (asked by {account(by)})", request_id=new)
    joined = request != new
    if as_json:
        print_json({"request": request, "joined": joined})
    elif joined:
        show(f"It joined request {request}, which waits for {name} already.")
    else:
        show(f"Request {request} waits for {name}.")


def history(
    *,
    limit: Annotated[int, typer.Option(help="How many at most; 0: all.", min=0, max=10**9)] = 50,
    before: Annotated[str, typer.Option(help="Only those before the request with this id.")] = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """List requests to retrain with their outcomes, newest last."""
    found = open_requests(monitor, name).requests.history(limit + 1 if limit else None, before)
    rows = found[-limit:]
    if len(found) > len(rows):
        note(f"There are older ones: add --before {rows[0]['id']}, or --limit 0 for all.")
    if as_json:
        print_json(rows)
    elif not rows:
        show(f"Nobody has asked for retraining of {name} yet; `fl-app trigger` does.")
    else:
        columns = (
            Column("asked (UTC)"),
            Column("kind", drop=1),
            Column("outcome"),
            Column("reason", text=True),
            Column("why", text=True),
        )
        names = ("kind", "outcome", "reason", "why")
        listed = [
            (row["created"][:19].replace("T", " "), *(row[name] for name in names)) for row in rows
        ]
        show(Table(columns, listed))
