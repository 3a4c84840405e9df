# SPDX-License-Identifier: Apache-2.0
"""How a session hands its closed rounds, and then its last steps, to the worker."""

from __future__ import annotations

from collections.abc import Callable

from fl_app.health import Health
from fl_app.strategy.outbox import Outbox
from fl_app.strategy.session import Session
from fl_app.strategy.session_folder import Checkpoint

LAST_STEPS = None
"""What follows the last round in the outbox."""
REGISTRY = "registry"
"""What fails while rounds wait, for whoever looks at the health."""


def hand_over(
    session: Session,
    finish_round: Callable[[Session, Checkpoint], None],
    last_steps: Callable[[Session], None],
    *,
    health: Health,
    pipeline: bool,
) -> Outbox[Checkpoint | None]:
    """Return the outbox for a session's rounds.

    While the registry is away rounds are evaluated all the same, and what was found is written
    down, so that they are finished quickly once it is back.
    """

    def finish(waiting: Checkpoint | None) -> None:
        if waiting is LAST_STEPS:
            last_steps(session)
        else:
            finish_round(session, waiting)

    def prepare(waiting: Checkpoint | None) -> None:
        if waiting is LAST_STEPS or waiting.closed.round in session.rounds.lost:
            return
        if not waiting.closed.problem:
            session.scored(waiting)
            if outbox.trouble:
                session.keep_scores()

    def tell(why: str) -> None:
        session.folder.note_trouble(why)
        if why:
            health.fails(REGISTRY, f"{why} (rounds wait on disk until they can be handed over)")
            session.keep_scores()
        else:
            health.works(REGISTRY)

    health.works(REGISTRY)  # it has just let the session begin
    outbox = Outbox[Checkpoint | None](finish, prepare, tell, pipeline=pipeline)
    return outbox
