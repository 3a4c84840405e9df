# SPDX-License-Identifier: Apache-2.0
"""`fl-app recover`: sessions on disk that are not over, handed to MLflow or discarded by hand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fl_app.backlog import UnfinishedSession, unfinished_sessions
from fl_app.cli.options import Json, Name, Uri, open_registry
from fl_app.cli.output import Column, Part, Table, fail, note, print_json, show
from fl_app.strategy.errors import CheckpointError, ResumeError
from fl_registry import FederatedLearningTracker, app_home
from fl_registry.home import DEFAULT_MODEL_NAME


def recover(
    session: Annotated[str, typer.Argument(help="A session; without one, all are listed.")] = "",
    *,
    discard: Annotated[
        bool, typer.Option("--discard", help="Delete it, with its rounds, for good.")
    ] = False,
    uri: Uri = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """List sessions that are not over; hand one's rounds to MLflow, or discard it.

    Versions that are handed over are in no stage: promote by hand what is good.
    """
    from fl_app.strategy.session import recover as recovery

    found = unfinished_sessions(app_home(), name)
    if not session:
        if as_json:
            print_json([asdict(each) for each in found])
        else:
            show(*(_listed(found) if found else [f"No session of {name} is unfinished."]))
        return
    chosen = next((each for each in found if each.id.startswith(session)), None)
    if chosen is None:
        fail(f"There is no unfinished session {session!r}; `fl-app recover` lists them.")
    store = open_registry(uri, name)
    tracker = FederatedLearningTracker(uri or None)
    try:
        if discard:
            recovery.discard(chosen, tracker)
            sentence = f"Session {chosen.id} is deleted, with {chosen.rounds} rounds."
        else:
            rounds = recovery.hand_over(chosen, store, tracker, app_home())
            sentence = f"{rounds} rounds of session {chosen.id} are in MLflow now."
    except (ResumeError, CheckpointError) as error:
        fail(str(error))
    if as_json:
        print_json(asdict(chosen))
    else:
        show(sentence)


def _listed(sessions: list[UnfinishedSession]) -> list[Part]:
    columns = (Column("session"), Column("rounds"), Column("state", text=True))
    rows = [
        (
            each.id,
            str(each.rounds),
            "set apart" if each.apart else "waits for the next run, or runs",
            each.why or "-",
        )
        for each in sessions
    ]
    note("`fl-app recover SESSION` hands its rounds to MLflow; with --discard it is deleted.")
    return [Table((*columns, Column("why", text=True)), rows)]
