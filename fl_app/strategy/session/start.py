# SPDX-License-Identifier: Apache-2.0
"""Opening a session: a new one, one that goes on, or one of which only the end is left."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord

from fl_app.health import Health
from fl_app.strategy.errors import CheckpointError, ResumeError
from fl_app.strategy.finish.evaluation import EvaluateFn
from fl_app.strategy.finish.score_sources import score_source
from fl_app.strategy.records import DataUsed, Origin
from fl_app.strategy.session.backlog import CHECKPOINTS
from fl_app.strategy.session.closed_round import ClosedRound
from fl_app.strategy.session.folder import Checkpoint, SessionFolder
from fl_app.strategy.session.plain_json import NotPlainError, encode
from fl_app.strategy.session.record import SessionRecord
from fl_app.strategy.session.resume import Found
from fl_app.strategy.session.round_store import KeptRounds
from fl_app.strategy.session.state import Session
from fl_app.strategy.session.strategy_state import InnerMemory
from fl_app.wire.schema import array_rows, fits, schema_of
from fl_registry import Tracker
from fl_registry.tracking_checks import logged_texts

logger = logging.getLogger("flwr.fl_app")

FOLDER_TAG = "checkpoint"
"""Tag of a session's MLflow run: the name of its folder."""


@dataclass(frozen=True)
class Opening:
    """What ``start()`` was given to open a session with.

    Attributes
    ----------
    tracker : Tracker
        Where its MLflow run is started, or continued.
    memory : InnerMemory
        What the inner strategy remembers.
    model : Mapping[str, object]
        What the model is.
    arrays : ArrayRecord
        The first global arrays of a new session.
    configs : Mapping[str, ConfigRecord]
        The configs for ``train`` and ``evaluate`` messages.
    evaluate_fn : EvaluateFn | None
        What scores the holdout.
    health : Health
        Where it is noted what does not work.
    """

    tracker: Tracker
    memory: InnerMemory
    model: Mapping[str, object]
    arrays: ArrayRecord
    configs: Mapping[str, ConfigRecord]
    evaluate_fn: EvaluateFn | None
    health: Health

    def record(
        self,
        model: str,
        origin: Origin,
        *,
        num_rounds: int,
        tags: Mapping[str, str],
        params: Mapping[str, object],
        holdout: DataUsed | None,
    ) -> SessionRecord:
        """Who the session is, if it begins anew."""
        texts = logged_texts(params)  # the file stays for as long as the session waits
        settings = {
            **{f"strategy{place}": value for place, value in self.memory.settings.items()},
            **{f"{name}-config": encode(config) for name, config in self.configs.items()},
            **texts,
        }
        return SessionRecord(
            model=model,
            origin=origin,
            num_rounds=num_rounds,
            chain=self.memory.chain,
            arrays=array_rows(schema_of(self.arrays)),
            settings=settings,
            tags=tags,
            params={**texts, "num-server-rounds": str(num_rounds)},
            holdout=None if holdout is None else astuple(holdout),
            source=score_source(self.evaluate_fn, holdout),
            run_name=f"flower-{tags['flower_run_id']}-session-{origin.session}",
        )

    def begin(self, home: Path, record: SessionRecord) -> Session:
        """Begin a session: its folder first, so that a crash leaves no run that nobody knows.

        Raises
        ------
        CheckpointError
            The disk does not take it.
        RegistryError
            MLflow does not answer, or refuses.
        """
        place = home / CHECKPOINTS / uuid.uuid4().hex
        folder = SessionFolder.create(place, record.to_json())
        closed, files = ClosedRound(0, arrays=self.arrays), {}
        try:
            with ThreadPoolExecutor(1) as beside:  # the disk takes as long as MLflow
                writing = beside.submit(folder.save_arrays, self.arrays, 0, self.model)
                tags = {**record.tags, FOLDER_TAG: folder.path.name}
                run = self.tracker.start_run(record.run_name, tags=tags)
            with suppress(CheckpointError):  # keeping the round tries again, and tells
                files["arrays"] = writing.result()
        except BaseException:
            folder.release()
            raise
        first = Checkpoint(closed, "done", self.memory.take(), files=files)
        session = self._session(folder, record, first)
        session.note(run_id=str(run.info.run_id))  # before there is a round to go on from
        session.keep(closed, "done")
        return session

    def go_on(self, found: Found, flower_run_id: str) -> Session:
        """Go on with a session: its MLflow run, its arrays, and what its strategy remembers.

        Raises
        ------
        CheckpointError
            Its files have changed.
        ResumeError
            What its strategy remembered is of another strategy.
        """
        newest, record = found.rounds[-1], found.record
        inner = found.folder.with_inner_arrays(newest)
        arrays = found.folder.arrays(newest)
        try:
            self.memory.put_back(inner)
        except NotPlainError as error:
            raise ResumeError(
                f"The session in {found.folder.path} cannot go on ({error}); use resume='fresh'."
            ) from error
        for name, config in newest.configs.items():
            self.configs[name].clear()
            self.configs[name].update(config)
        whole = replace(newest, inner=inner, closed=replace(newest.closed, arrays=arrays))
        session = self._session(found.folder, record, whole)
        session.tags = {**record.tags, "flower_run_id": flower_run_id}
        session.recall(found.rounds)
        if newest.phase == "aggregated":
            session.restored = whole
        session.offset = newest.closed.round - (newest.phase == "aggregated")
        tag = {f"resumed_after_round.{session.offset}": flower_run_id}
        self.tracker.start_run(run_id=record.run_id, tags=tag)
        logger.info(
            "going on with the session of MLflow run %s, which was cut short in round %d of %d",
            record.run_id,
            min(session.offset + 1, record.num_rounds),
            record.num_rounds,
        )
        return session

    def left(self, found: Found, source: str) -> Session:
        """A session of which rounds wait, for whoever finishes them; nothing is started.

        Its model is scored only if it has the arrays of the present one, and on the same data.
        """
        newest = found.rounds[-1]
        arrays = found.folder.arrays(newest)
        without_model = not (self.arrays or found.record.arrays)  # both began so
        comparable = without_model or fits(arrays, schema_of(self.arrays))
        comparable = comparable and found.record.source == source
        opening = self if comparable else replace(self, evaluate_fn=None)
        session = opening._session(
            found.folder,
            found.record,
            replace(newest, closed=replace(newest.closed, arrays=arrays)),
        )
        session.recall(found.rounds)
        return session

    def take_up(self, found: Found) -> bool:
        """Make the MLflow run of an earlier session the tracker's; False if it has none."""
        if found.record.run_id:
            self.tracker.start_run(run_id=found.record.run_id)
            return True
        return self.tracker.adopt_run({FOLDER_TAG: found.folder.path.name}) is not None

    def _session(self, folder: SessionFolder, record: SessionRecord, newest: Checkpoint) -> Session:
        arrays = newest.closed.arrays or self.arrays
        return Session(
            record=record,
            rounds=KeptRounds(
                folder, self.memory, self.configs, newest, model=self.model, health=self.health
            ),
            tags=record.tags,
            schema=schema_of(arrays),
            evaluate_fn=self.evaluate_fn,
            sent=arrays,
        )
