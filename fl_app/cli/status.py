# SPDX-License-Identifier: Apache-2.0
"""`fl-app status`: what is in Production, and what waits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fl_app.backlog import backlog, unfinished_sessions
from fl_app.cli.options import Json, Monitor, Name, Uri, open_monitor, open_registry
from fl_app.cli.output import facts, print_json, show
from fl_app.retraining import Outcome, Probation, RetrainingManager
from fl_app.retraining.probation.state import in_one_line
from fl_app.versions.tags import read_rejected
from fl_app.versions.texts import is_pending, score_text
from fl_registry import Gone, ModelManager, StoreUnavailable, UnknownVersion, app_home
from fl_registry.home import DEFAULT_MODEL_NAME


def status(
    *, uri: Uri = "", monitor: Monitor = "", name: Name = DEFAULT_MODEL_NAME, as_json: Json = False
) -> None:
    """Show what is in Production, what waits for approval, and the requests to retrain."""
    home = app_home()
    memory, waiting = open_monitor(monitor, name), backlog(home, name)
    try:
        manager = open_registry(uri, name)
        with manager.one_reading():
            present = map(manager.get_latest_version, ("Production", "Staging", None))
            production, staging, newest = (_row(manager, version) for version in present)
            losses = manager.losses()
    except (StoreUnavailable, Gone) as error:
        raise type(error)(f"{error} On disk and not handed over: {waiting}.") from None
    unfinished = unfinished_sessions(home, name)
    sessions = {
        **{each.id: f"set apart: {each.why}" for each in unfinished if each.apart},
        **{each: f"damaged, to be set apart: {why}" for each, why in damaged(home, name).items()},
    }
    probation = Probation(manager, RetrainingManager(store=memory)).status()
    staged = {"Production": production, "Staging": staging}
    pending = [row["version"] for row in staged.values() if row and is_pending(row)]
    requests = {
        outcome: memory.requests.find(outcome) for outcome in (Outcome.RUNNING, Outcome.PENDING)
    }
    rejected = read_rejected(newest["tags"]) if newest else []
    if as_json:
        print_json(
            {
                "production": production,
                "staging": staging,
                "pending_approval": pending,
                "probation": probation,
                "requests": {k: asdict(r) if r else None for k, r in requests.items()},
                "rejected": [asdict(each) for each in rejected],
                "backlog": asdict(waiting),
                "sessions": sessions,
                "losses": losses,
            }
        )
        return
    rows: list[tuple[str, str]] = []
    for stage, row in staged.items():
        score = "-" if row is None else f"version {row['version']}  {score_text(row) or '-'}"
        rows.append((stage, score))
    rows.append(("pending approval", ", ".join(pending) or "-"))
    rows.append(("probation", in_one_line(probation)))
    for outcome, request in requests.items():
        rows.append((f"request {outcome}", request.reason if request else "-"))
    rows.append(("backlog", str(waiting)))
    rows += [(f"session {session[:8]}", why) for session, why in sessions.items()]
    rows += [("lost", loss) for loss in losses]
    rows += [(f"node {each.node_id} rejected", each.as_line()) for each in rejected]
    show(facts(rows))


def damaged(home: Path, model: str) -> dict[str, str]:
    """Return what is damaged of sessions that wait for the next run, by their ids."""
    if all(each.apart for each in unfinished_sessions(home, model)):
        return {}
    from fl_app.strategy.session.start import damaged_sessions  # imports Flower

    return damaged_sessions(home, model)


def _row(manager: ModelManager, version: str | None) -> dict[str, Any] | None:
    with suppress(UnknownVersion, Gone):  # somebody has deleted it in MLflow
        return manager.get_version(version).as_row() if version else None
    return None
