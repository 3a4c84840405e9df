# SPDX-License-Identifier: Apache-2.0
"""The contract of the monitor's memory, in memory, in a SQLite file and on PostgreSQL."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from support.monitor_children import DUE, at_once

from fl_app.retraining import MonitorStore, RetrainingManager, RetrainRequest, train_and_retrain
from fl_app.retraining.memory.errors import MonitorStoreError
from fl_app.retraining.requests import Outcome, TriggerKind

NOW = datetime(2026, 1, 4, 12, tzinfo=UTC)
POSTGRES = pytest.param("postgres", marks=pytest.mark.slow)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a database of the wanted kind."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_address"))
    return "sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path / 'monitor.db'}"


@pytest.fixture
def model() -> str:
    """Return a name of its own, since PostgreSQL's database is shared by all tests."""
    return f"model-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def store(url: str, model: str) -> Iterator[MonitorStore]:
    store = MonitorStore(url, model)
    yield store
    store.close()


all_kinds = pytest.mark.parametrize("url", ["memory", "sqlite", POSTGRES], indirect=True)
shared_kinds = pytest.mark.parametrize("url", ["sqlite", POSTGRES], indirect=True)


def new_request(
    reason: str = "new pictures", kind: TriggerKind = TriggerKind.MANUAL
) -> RetrainRequest:
    return RetrainRequest(kind, reason)


@all_kinds
def test_what_is_added_is_found_again_as_it_was(store: MonitorStore) -> None:
    request = new_request("quotes ' and \N{SNOWMAN}", TriggerKind.DRIFT)
    assert store.requests.add(request, Outcome.PENDING) is None
    assert store.requests.find(Outcome.PENDING) == request
    entry = store.requests.get(request.id)
    assert entry == store.requests.history()[0]
    assert entry is not None
    assert entry["reason"] == request.reason
    assert entry["created"] == request.created.isoformat()
    assert (entry["kind"], entry["started"], entry["ended"]) == ("drift", None, None)
    assert store.requests.get("0" * 32) is None
    assert store.requests.add(request, Outcome.PENDING) == request  # again: nothing changes
    assert len(store.requests.history()) == 1


@all_kinds
def test_one_waits_and_others_join_it(store: MonitorStore) -> None:
    first, second = new_request("first"), new_request("second")
    store.requests.add(first, Outcome.PENDING)
    assert store.requests.add(second, Outcome.PENDING) == first
    assert store.requests.counts() == {
        o: {"pending": 1, "joined": 1}.get(str(o), 0) for o in Outcome
    }
    assert first.id in store.requests.history()[-1]["why"]


@all_kinds
def test_history_is_read_in_pages(store: MonitorStore) -> None:
    requests = [new_request(f"{number}") for number in range(5)]
    for request in requests:
        store.requests.add(request, Outcome.SUPPRESSED, "why not")
    assert [e["reason"] for e in store.requests.history(2)] == ["3", "4"]
    assert [e["reason"] for e in store.requests.history(2, requests[3].id)] == ["1", "2"]
    assert store.requests.history(2, "0" * 32) == []


@all_kinds
def test_a_request_is_taken_once_and_ends_once(store: MonitorStore) -> None:
    assert store.requests.take(NOW) is None
    request = new_request(kind=TriggerKind.SCHEDULE)
    store.requests.add(request, Outcome.PENDING)
    taken = store.requests.take(NOW)
    assert taken == request
    store.requests.add(new_request("next"), Outcome.PENDING)
    assert store.requests.take(NOW) is None  # one is being served
    assert store.requests.taken_since(NOW) == 1
    assert store.requests.taken_since(NOW + timedelta(seconds=1)) == 0
    assert store.requests.last_taken() == NOW
    store.requests.finish(request.id, Outcome.DONE, NOW)
    store.requests.finish(request.id, Outcome.FAILED, NOW)
    entry = store.requests.get(request.id)
    assert entry is not None
    assert (entry["outcome"], entry["ended"]) == ("done", NOW.isoformat())
    following = store.requests.take(NOW)
    assert following is not None
    assert following.reason == "next"
    assert not following.cut_short


@all_kinds
def test_what_was_cut_short_comes_first_and_is_the_same_again(store: MonitorStore) -> None:
    request = new_request()
    store.requests.add(request, Outcome.PENDING)
    store.requests.take(NOW)
    store.requests.add(new_request("next"), Outcome.PENDING)
    store.requests.abandon()
    again = store.requests.take(NOW)
    assert again is not None
    assert (again.id, again.cut_short) == (request.id, True)


@pytest.mark.parametrize("url", [POSTGRES], indirect=True)
def test_what_is_abandoned_is_free_at_once(store: MonitorStore, url: str, model: str) -> None:
    """Also where PostgreSQL's process, which notices a closed connection, is late."""
    store.requests.add(new_request(), Outcome.PENDING)
    assert store.requests.take(NOW) is not None
    engine = create_engine(url)
    with engine.connect() as connection:
        locks = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        holders = connection.execute(text(locks)).scalars().all()
    engine.dispose()
    for pid in holders:
        os.kill(pid, signal.SIGSTOP)
    late = threading.Timer(0.5, lambda: [os.kill(pid, signal.SIGCONT) for pid in holders])
    late.start()
    try:
        store.requests.abandon()
        other = MonitorStore(url, model)
        assert other.requests.take(NOW) is not None
        other.close()
    finally:
        late.join()


@shared_kinds
def test_what_another_process_serves_is_not_cut_short(
    store: MonitorStore, url: str, model: str
) -> None:
    other = MonitorStore(url, model)
    elsewhere = MonitorStore(url, f"{model}-2")
    store.requests.add(new_request("first"), Outcome.PENDING)
    first = store.requests.take(NOW)
    store.requests.add(new_request("second"), Outcome.PENDING)
    elsewhere.requests.add(new_request("of another model"), Outcome.PENDING)
    assert first is not None
    assert other.requests.take(NOW) is None
    assert elsewhere.requests.take(NOW) is not None
    store.requests.finish(first.id, Outcome.DONE, NOW)
    second = other.requests.take(NOW)
    assert second is not None
    assert (second.reason, second.cut_short) == ("second", False)
    assert store.requests.take(NOW) is None
    other.close()
    elsewhere.close()


@all_kinds
def test_a_note_is_written_whole_over_any_revision(store: MonitorStore) -> None:
    note = store.note("n", dict[str, Any])
    assert note.read() == (0, None)
    for revision, record in enumerate(({"a": [1, 2.5, None]}, {"b": {"c": "d"}}), start=1):
        note.write(record)
        assert note.read() == (revision, record)


@all_kinds
@pytest.mark.parametrize(("kind", "place"), [(int, "the text"), (tuple[int, str], "0")])
def test_a_damaged_note_is_reported_with_what_to_do(
    store: MonitorStore, kind: type[Any], place: str
) -> None:
    store.note("n", list[str]).write(["x", "y"])
    with pytest.raises(MonitorStoreError, match=f"note 'n' of .*: {place}: .* from a backup"):
        store.note("n", kind).read()


@all_kinds
def test_a_key_is_claimed_once_and_its_answer_kept_for_a_day(store: MonitorStore) -> None:
    first = store.keys.claim("k", "digest", owner="a", now=NOW)
    assert (first.mine, first.status) == (True, None)
    again = store.keys.claim("k", "digest", owner="a", now=NOW)
    assert (again.mine, again.id, again.status) == (False, first.id, None)
    store.keys.answer("k", 202, '{"x": 1}')
    for owner in ("a", "b"):
        known = store.keys.claim("k", "another", owner=owner, now=NOW + timedelta(hours=23))
        assert not known.mine
        assert (known.digest, known.status, known.body) == ("digest", 202, '{"x": 1}')
    fresh = store.keys.claim("k", "another", owner="a", now=NOW + timedelta(hours=25))
    assert fresh.mine
    assert fresh.id != first.id


@all_kinds
def test_an_answer_that_never_came_is_left_to_another_owner(store: MonitorStore) -> None:
    first = store.keys.claim("k", "digest", owner="a", now=NOW)
    assert not store.keys.claim("k", "digest", owner="b", now=NOW, retake=False).mine
    assert not store.keys.claim("k", "another", owner="b", now=NOW).mine
    taken = store.keys.claim("k", "digest", owner="b", now=NOW)
    assert (taken.mine, taken.id) == (True, first.id)
    store.keys.answer("k", None)
    assert store.keys.claim("k", "another", owner="c", now=NOW).mine


@shared_kinds
def test_two_models_are_separate(store: MonitorStore, url: str, model: str) -> None:
    other = MonitorStore(url, f"{model}-2")
    store.requests.add(new_request(), Outcome.PENDING)
    store.keys.claim("k", "digest", owner="a", now=NOW)
    store.note("n", int).write(1)
    assert other.requests.history() == []
    assert other.note("n", int).read() == (0, None)
    assert other.requests.take(NOW) is None
    assert other.keys.claim("k", "digest", owner="a", now=NOW).mine
    other.close()


@all_kinds
def test_a_note_is_written_only_over_the_revision_that_was_read(store: MonitorStore) -> None:
    note = store.note("n", dict[str, Any])
    assert note.read() == (0, None)
    assert note.swap(0, {"first": "\N{SNOWMAN}"})
    assert not note.swap(0, {"late": 1})
    assert note.swap(1, {"second": [1, None]})
    assert not note.swap(1, {"late": 2})
    assert not note.swap(3, {"early": 3})
    assert note.read() == (2, {"second": [1, None]})
    assert store.note("due", datetime).swap(0, DUE)
    assert store.note("due", datetime).read() == (1, DUE)
    assert store.note("other", int).read() == (0, None)


@shared_kinds
@pytest.mark.slow
def test_of_several_processes_one_gets_what_there_is_one_of(url: str, model: str) -> None:
    assert at_once("state", url, model, 4) == [None] * 4  # the tables are made here, by all
    store = MonitorStore(url, model)
    assert len(set(at_once("add", url, model, 4))) == 1
    assert Counter(e["outcome"] for e in store.requests.history()) == {"pending": 1, "joined": 3}
    taken = at_once("take", url, model, 4)
    waiting = store.requests.history()[0]["id"]
    assert sorted(map(str, taken)) == sorted([waiting, "None", "None", "None"])
    store.note("weekly", datetime).write(DUE)
    assert sorted(at_once("claim", url, model, 4)) == [False, False, False, True]
    claims = at_once("key", url, model, 4)
    assert len({key for key, _ in claims}) == 1
    assert [mine for _, mine in claims].count(True) == 1
    at_once("count", url, model, 4)
    assert store.note("count", int).read() == (40, 40)
    store.close()


@shared_kinds
@pytest.mark.slow
def test_the_manager_and_the_loop_work_on_it(url: str, model: str) -> None:
    manager = RetrainingManager(store=MonitorStore(url, model))
    manager.start_from("1", 0.8)
    manager.update_metrics(0.79, 1)
    manager.manual_trigger("new pictures")
    served: list[str] = []
    train_and_retrain(
        lambda number, request: served.append("" if request is None else request.reason),
        manager,
        max_retrains=1,
    )
    manager.store.close()
    assert served == ["new pictures"]
    again = RetrainingManager(store=MonitorStore(url, model))
    assert (again.best_accuracy, again.current_accuracy) == (0.8, 0.79)
    assert [e["outcome"] for e in again.trigger_history] == ["done"]
    again.store.close()
