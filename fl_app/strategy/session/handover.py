# SPDX-License-Identifier: Apache-2.0
"""How a session hands its first steps, its closed rounds and its last steps to the worker."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from fl_app.health import Health
from fl_app.strategy.session.folder import Checkpoint
from fl_app.strategy.session.outbox import Outbox
from fl_app.strategy.session.state import Session

REGISTRY = "registry"
"""What fails while rounds wait, for whoever looks at the health."""


class Steps(Enum):
    """What comes before the first round, and what after the last one."""

    FIRST = "first"
    LAST = "last"


Item = Checkpoint | Steps
"""What is in the outbox."""


def hand_over(
    session: Session,
    finish_round: Callable[[Session, Checkpoint], None],
    steps: Callable[[Session, Steps], None],
    *,
    health: Health,
    pipeline: bool,
) -> Outbox[Item]:
    """Return the outbox for a session's rounds.

    While the registry is away rounds are evaluated all the same, and what was found is written
    down, so that they are finished quickly once it is back.
    """

    def finish(waiting: Item) -> None:
        if isinstance(waiting, Steps):
            steps(session, waiting)
        else:
            finish_round(session, waiting)

    def prepare(waiting: Item) -> None:
        if isinstance(waiting, Steps) or waiting.closed.round in session.rounds.lost:
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
    outbox = Outbox[Item](finish, prepare, tell, pipeline=pipeline)
    return outbox
