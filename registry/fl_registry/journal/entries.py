# SPDX-License-Identifier: Apache-2.0
"""The journal of stage moves: its entries, its hash chain and what they add up to. Pure.

What moves mean is in `fl_registry.stages`; a `fl_registry.backend.JournalStorage` stores entries.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from typing import TypeGuard

from fl_registry.errors import InvalidName, RegistryError
from fl_registry.journal.lease import Lease
from fl_registry.redaction import one_line
from fl_registry.stages import Move, State, Tally

_LONGEST_ACTOR, _LONGEST_REASON = 200, 2000  # keeps an entry below MLflow's 6,000 characters
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_INTO_PRODUCTION = (Move.PROMOTE, Move.ROLLBACK, Move.ADOPT)


class JournalError(RegistryError):
    """A journal whose entries do not follow from one another, or cannot be read.

    Attributes
    ----------
    before : tuple[Entry, ...]
        The entries before the fault, which do follow; what comes after it cannot be trusted.
    """

    before: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One move, committed once it has a place in the journal (see `new_entry`).

    Attributes
    ----------
    op : Move
        What was done.
    version : str
        The version that moved.
    displaced : str
        The version that left the stage for it; empty for none.
    actor, reason : str
        Who did it, and why.
    epoch : int
        The lease under which a server moved it by rule; 0 for every other move.
    approval : str
        "pending" if the version is put into staging to be approved, "rejected" if a person or a
        shadow evaluation refused it; empty for every other move.
    carried : str
        SHA-256 of the state that is stored beside it; empty but for `Move.CARRY`.
    number : int
        Its place in the journal, from 1.
    time : str
        When, in UTC, ISO-8601; never before that of the entry before.
    previous_hash : str
        SHA-256 of the stored text of the entry before; empty for the first.
    id : str
        Unique, also for two equal moves.
    """

    op: Move
    version: str = ""
    displaced: str = ""
    actor: str = ""
    reason: str = ""
    epoch: int = 0
    approval: str = ""
    carried: str = ""
    number: int = 0
    time: str = ""
    previous_hash: str = ""
    id: str = ""

    def encode(self) -> str:
        """Return the text that is stored, always the same, with a digest of itself.

        The chain of hashes shows an altered entry by the one after it; the newest has none, so it
        also has a digest of itself.
        """
        fields = vars(self)  # plain values: `asdict` would copy each, ten times as slowly
        return _line({**fields, "sha256": _digest(_line(fields))})


@dataclass(frozen=True)
class Page:
    """A stretch of the journal as stored; each but the first begins with what was before it.

    Attributes
    ----------
    texts : tuple[str, ...]
        The entries, oldest first.
    carried : str
        The state before them (see `State.encode`); empty on the first page.
    first : int
        The number of its first entry.
    """

    texts: tuple[str, ...] = ()
    carried: str = ""
    first: int = 1


@dataclass(frozen=True)
class Ledger:
    """A page that was read and checked.

    Attributes
    ----------
    entries : tuple[Entry, ...]
        Its entries.
    state : State
        The state they lead to.
    page : Page
        The page as stored.
    length : int
        How many entries the whole journal has up to here.
    """

    entries: tuple[Entry, ...] = ()
    state: State = field(default_factory=State)
    page: Page = field(default_factory=Page)
    length: int = 0


@dataclass(frozen=True)
class Mark:
    """The last entry of a journal that was checked: the next check may begin there.

    Attributes
    ----------
    number : int
        Its place; 0 if nothing was checked yet.
    sha256 : str
        Digest of its text.
    """

    number: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Tenure:
    """One stay of a version in production; the next one ends it.

    Attributes
    ----------
    id : str
        That of the journal's entry which began it.
    number : int
        The place of that entry in the journal.
    version : str
        The version.
    since : datetime
        When it began, in UTC.
    returned : bool
        Whether the version was brought back: by a rollback, or by an alias that was moved to it.
    displaced : str
        The version that left production for it; empty for the first.
    actor, reason : str
        Who put it there, and why.
    """

    id: str
    number: int
    version: str
    since: datetime
    returned: bool
    displaced: str = ""
    actor: str = ""
    reason: str = ""


def read_page(page: Page, known: Ledger | None = None) -> Ledger:
    """Decode a page and check that each entry follows from the one before.

    Parameters
    ----------
    page : Page
        What is stored.
    known : Ledger | None
        An earlier reading; what has not changed since is not decoded again.

    Raises
    ------
    JournalError
        An entry is unreadable, out of place, or does not name the hash of the one before.
    """
    if known is None or page.texts[: len(known.page.texts)] != known.page.texts:
        known = Ledger()
    entries, tally = list(known.entries), Tally(known.state)
    try:
        for place, text in enumerate(page.texts[len(entries) :], start=len(entries)):
            entry = decode(text, number=page.first + place)
            if place:
                _check_link(entry, page.first + place, _digest(page.texts[place - 1]))
                _add(tally, entry)
            else:
                tally = Tally(_start(entry, page))
            entries.append(entry)
    except JournalError as error:
        error.before = tuple(entries)
        raise
    return Ledger(tuple(entries), tally.state(), page, entries[-1].number if entries else 0)


def read_chain(pages: Sequence[Page], before: Ledger | None = None) -> tuple[Ledger, ...]:
    """Decode pages that follow one another, and check that they do.

    Parameters
    ----------
    pages : Sequence[Page]
        What is stored, oldest first.
    before : Ledger | None
        The page before them; None if the first of them has the journal's first entry, or if what
        was before it is not to be checked.

    Raises
    ------
    JournalError
        See `read_page`; the message names the first entry that does not follow.
    """
    read: list[Ledger] = []
    last = before or Ledger()
    for page in pages:
        try:
            ledger = read_page(page)
            _check_page(last, ledger)
        except JournalError as error:
            error.before = (*(entry for each in read for entry in each.entries), *error.before)
            raise
        if ledger.entries:
            read.append(ledger)
            last = ledger
    return tuple(read)


def check_since(ledgers: Sequence[Ledger], mark: Mark) -> None:
    """Check that an entry is the one that it was when the journal was checked the last time.

    Raises
    ------
    JournalError
        It is another one, or is not there.
    """
    for ledger in ledgers:
        place = mark.number - ledger.page.first
        texts = ledger.page.texts
        if 0 <= place < len(texts) and _digest(texts[place]) == mark.sha256:
            return
    raise JournalError(
        f"Entry {mark.number} of the journal is not the one that was checked before: the journal "
        "was changed from outside, or comes from an older backup. Run `fl-app doctor --deep`, "
        "which checks it from its first entry on, and notes the result."
    )


def mark_at_end(ledger: Ledger) -> Mark:
    """Return what to note of a journal that was checked up to here."""
    return Mark(ledger.length, _digest(ledger.page.texts[-1]) if ledger.page.texts else "")


def fold(entries: Iterable[Entry]) -> State:
    """Return the state that a journal leads to, read from its first entry."""
    tally = Tally(State())
    for entry in entries:
        _add(tally, entry)
    return tally.state()


def production_at(entries: Iterable[Entry], moment: datetime) -> str | None:
    """Return the version that was in production at `moment`, or None."""
    earlier = (entry for entry in entries if datetime.fromisoformat(entry.time) <= moment)
    return fold(earlier).production


def tenures(entries: Iterable[Entry]) -> tuple[Tenure, ...]:
    """Return all stays in production, oldest first; the last one has not ended."""
    stays: list[Tenure] = []
    been: set[str] = set()
    for entry in entries:
        if entry.op not in _INTO_PRODUCTION or (stays and stays[-1].version == entry.version):
            continue
        again = entry.op is Move.ROLLBACK or (entry.op is Move.ADOPT and entry.version in been)
        stays.append(
            Tenure(
                id=entry.id,
                number=entry.number,
                version=entry.version,
                since=datetime.fromisoformat(entry.time),
                returned=again,
                displaced=entry.displaced,
                actor=entry.actor,
                reason=entry.reason,
            )
        )
        been.add(entry.version)
    return tuple(stays)


def touched(entries: Iterable[Entry]) -> list[str]:
    """Return the versions that entries moved, in the order of their numbers."""
    named = {version for entry in entries for version in (entry.version, entry.displaced)}
    return sorted(filter(None, named), key=int)


def is_date(value: object) -> TypeGuard[date | str]:
    """Return whether a value means a day or a moment, and not a version."""
    return isinstance(value, date) or (isinstance(value, str) and bool(_DATE.match(value.strip())))


def as_moment(when: date | str, *, end: bool = True) -> datetime:
    """Return a moment in UTC; a day without a time means its `end`, a time without a zone UTC.

    Raises
    ------
    InvalidName
        It is not a date.
    """
    try:
        if isinstance(when, str):
            text = when.strip()
            parse = date.fromisoformat if _DATE.fullmatch(text) else datetime.fromisoformat
            when = parse(text)
        moment = (
            when
            if isinstance(when, datetime)
            else datetime.combine(when, time.max if end else time.min)
        )
    except (ValueError, TypeError) as error:
        raise InvalidName(
            f"{when!r:.60} is not a date; expected one such as '2026-11-23' or "
            "'2026-11-23T14:00:00+00:00'."
        ) from error
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:  # at either end of the calendar zones make no difference
        return moment.replace(tzinfo=UTC)


def new_entry(ledger: Ledger, draft: Entry) -> Entry:
    """Return the entry that a draft would be right after `ledger`; too long a reason is cut."""
    last = ledger.entries[-1] if ledger.entries else None
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return replace(
        draft,
        actor=_clean(draft.actor, _LONGEST_ACTOR),
        reason=_clean(draft.reason, _LONGEST_REASON),
        number=ledger.length + 1,
        # Clocks of several machines differ; the journal's own order is the one that counts.
        time=max(now, last.time) if last else now,
        previous_hash=_digest(ledger.page.texts[-1]) if last else "",
        id=uuid.uuid4().hex,
    )


def appended(ledger: Ledger, entry: Entry) -> Ledger:
    """Return `ledger` with the entry that follows it."""
    page = replace(ledger.page, texts=(*ledger.page.texts, entry.encode()))
    return Ledger((*ledger.entries, entry), _after(ledger.state, entry), page, entry.number)


def carried_over(ledger: Ledger) -> Page:
    """Return the page that continues a full one: the state so far, and an entry with its digest."""
    state = ledger.state.encode()
    entry = new_entry(ledger, Entry(Move.CARRY, carried=_digest(state)))
    return Page((entry.encode(),), state, entry.number)


def decode(text: str, *, number: int) -> Entry:
    """Return the entry that a text holds; `number` is the one it should have, for the message."""
    try:
        fields = json.loads(text)
        del fields["sha256"]
        entry = Entry(**{**fields, "op": Move(fields["op"])})
        datetime.fromisoformat(entry.time)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JournalError(
            f"Entry {number} of the journal cannot be read: it was changed from outside, "
            "or a newer version of the app wrote it; restore the registry's database from a "
            "backup, or update the app."
        ) from error
    if entry.encode() != text:
        raise _damage(
            f"Entry {number} of the journal was changed from outside: the digest in it is that of "
            "another text"
        )
    return entry


def _check_page(before: Ledger, ledger: Ledger) -> None:
    """Check that a page follows from the one before it."""
    if not before.entries or not ledger.entries:
        return
    first = ledger.entries[0]
    _check_link(first, before.length + 1, _digest(before.page.texts[-1]))
    if ledger.page.carried != before.state.encode():
        raise _damage(
            f"Entry {first.number} of the journal carries another state than the entries before "
            "it lead to: it was changed from outside"
        )


def _after(state: State, entry: Entry) -> State:
    """Return the state after an entry that follows."""
    tally = Tally(state)
    _add(tally, entry)
    return tally.state()


def _add(tally: Tally, entry: Entry) -> None:
    if entry.op is Move.LEASE:
        tally.lease(Lease(entry.number, entry.actor))
    else:
        tally.move(entry.op, entry.version, entry.approval)


def _start(entry: Entry, page: Page) -> State:
    """Return the state after the first entry of a page."""
    if entry.op is not Move.CARRY:
        _check_link(entry, 1, "")
        return _after(State(), entry)
    try:
        if _digest(page.carried) == entry.carried:
            return State.decode(page.carried)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    number = entry.number
    raise _damage(f"The state that entry {number} of the journal carries was changed from outside")


def _check_link(entry: Entry, number: int, previous: str) -> None:
    if entry.number != number or entry.previous_hash != previous:
        raise _damage(
            f"Entry {number} of the journal does not follow from entry {number - 1}: it was "
            "changed from outside"
        )


def _damage(what: str) -> JournalError:
    return JournalError(f"{what}; restore the registry's database from a backup.")


def _line(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _clean(text: str, limit: int) -> str:
    return one_line(" ".join(text.split()), limit) if text else ""
