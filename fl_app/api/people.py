# SPDX-License-Identifier: Apache-2.0
"""Who may use the API and the page: people with a name, a role, and a token stored as its hash."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fl_registry.files.atomic import write_whole
from fl_registry.redaction import printable

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger("flwr.fl_app")

PEOPLE_FILE = "people.json"
Role = Literal["read", "decide"]
"""``read`` sees everything and changes nothing; ``decide`` may do everything."""


class PeopleError(ValueError):
    """A person cannot be added or removed, or the file cannot be read; the text says why."""


@dataclass(frozen=True)
class Person:
    """Who sends a request.

    Attributes
    ----------
    name : str
        The name for the journal; empty for the shared token, and where none is needed.
    role : "read" | "decide"
        What the person may do.
    """

    name: str = ""
    role: Role = "decide"


@dataclass(frozen=True)
class Access:
    """What is stored of a person.

    Attributes
    ----------
    role : "read" | "decide"
        What the person may do.
    sha256 : str
        Digest of the token, whose 256 random bits nobody can guess from it.
    since : datetime
        When the token was made, in UTC.
    """

    role: Role
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    since: datetime


_PEOPLE = TypeAdapter(dict[str, Access])


class People:
    """The people of an app's home, read anew whenever the file changes.

    As long as the file exists a token is needed, also after the last one was revoked.

    Parameters
    ----------
    home : Path
        The app's folder.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / PEOPLE_FILE
        self._read: tuple[tuple[int, int, int], Mapping[str, Access]] = ((0, 0, 0), {})

    @property
    def exist(self) -> bool:
        """Whether people have tokens here, or had."""
        return self.path.exists()

    def all(self) -> Mapping[str, Access]:
        """Return everybody, by name.

        Raises
        ------
        PeopleError
            The file cannot be read.
        """
        try:
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._read[0]:
                self._read = stamp, _PEOPLE.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise PeopleError(
                f"{self.path} cannot be read ({type(error).__name__}); restore it from a backup, "
                "or delete it and make new tokens with `fl-app people add`."
            ) from error
        return self._read[1]

    def find(self, token: str) -> Person | None:
        """Return whose token it is; None if it is nobody's."""
        try:
            known = self.all()
        except PeopleError as error:  # then nobody comes in
            logger.warning("%s", error)
            return None
        digest = _digest(token)
        found = [n for n, access in known.items() if hmac.compare_digest(access.sha256, digest)]
        return Person(found[0], known[found[0]].role) if found else None

    def knows(self, person: Person) -> bool:
        """Return whether somebody who signed in earlier still has the same role here."""
        try:
            access = self.all().get(person.name)
        except PeopleError:
            return False
        return access is not None and access.role == person.role

    def add(self, name: str, role: Role) -> str:
        """Add a person and return the token, which is stored as its digest only.

        Raises
        ------
        PeopleError
            The name is empty, too long, not printable, or taken.
        """
        if not 0 < len(name) <= 100 or name != name.strip() or printable(name) != name:
            raise PeopleError(f"{name!r:.60} cannot be a name; use 1 to 100 printable characters.")
        token = f"flapp_{secrets.token_urlsafe(32)}"
        with self._alone():
            known = dict(self.all())
            if name in known:
                raise PeopleError(f"{name} has a token; revoke it first: `fl-app people revoke`.")
            known[name] = Access(role, _digest(token), datetime.now(UTC))
            self._write(known)
        return token

    def revoke(self, name: str) -> None:
        """Remove a person; a token and a page of theirs stop at once.

        Raises
        ------
        PeopleError
            There is nobody of that name.
        """
        with self._alone():
            known = dict(self.all())
            if known.pop(name, None) is None:
                there = ", ".join(known) or "nobody"
                raise PeopleError(f"Nobody is called {name!r:.60}; there is {there}.")
            self._write(known)

    def _alone(self) -> FileLock:
        from filelock import FileLock

        return FileLock(f"{self.path}.lock", timeout=10)

    def _write(self, people: dict[str, Access]) -> None:
        write_whole(self.path, _PEOPLE.dump_json(people, indent=1), mode=0o600)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
