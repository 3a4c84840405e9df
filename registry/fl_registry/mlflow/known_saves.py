# SPDX-License-Identifier: Apache-2.0
"""What a store object knows of the versions of a run since it saved all of them itself. Pure.

A version is saved once for each key, however often that is tried, so whoever saves must know
whether it was saved before. A session saves a version each round under one run, and nobody else
does; then there is no need to ask each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class OwnSaves:
    """The saves of one store object, up to its newest.

    Attributes
    ----------
    run_id : str
        The run that it saved for last; empty for none.
    all_own : bool
        Whether it saved all versions of that run itself, as far as there were any at its newest.
    tried : frozenset[str]
        Keys under which it saved for that run, or tried to.
    newest : str
        The newest version that it saved.
    """

    run_id: str = ""
    all_own: bool = False
    tried: frozenset[str] = frozenset()
    newest: str = "0"

    def surely_new(self, run_id: str | None, key: str) -> bool:
        """Return whether there was nothing under a key when the newest version was saved."""
        return bool(run_id) and run_id == self.run_id and self.all_own and key not in self.tried

    def trying(self, run_id: str | None, key: str) -> OwnSaves:
        """Return what is known once a save was begun, which may fail."""
        if run_id == self.run_id:
            return replace(self, tried=self.tried | {key})
        return self

    def is_next(self, version: str) -> bool:
        """Return whether nobody saved anything between the newest version and this one.

        Numbers are given in order, so the call that made it was not repeated either.
        """
        return int(version) == int(self.newest) + 1

    def must_look(self, version: str, run_id: str | None) -> bool:
        """Return whether it takes a look at the run's versions to know what a save leads to."""
        if not run_id or version == "1":
            return False
        return run_id != self.run_id or (self.all_own and not self.is_next(version))

    def saved(
        self, version: str, run_id: str | None, key: str, *, newest_of_run: Sequence[str] = ()
    ) -> OwnSaves:
        """Return what is known after a version was saved.

        Parameters
        ----------
        version, run_id, key : str
            The version, its run and its key.
        newest_of_run : Sequence[str]
            The two newest versions of the run, newest first, if it took a look.
        """
        same = run_id == self.run_id
        all_own = self.all_own if same else version == "1"
        if newest_of_run:
            all_own = list(newest_of_run) == ([version, self.newest] if same else [version])
        tried = self.tried if same else frozenset()
        return OwnSaves(run_id or "", all_own, tried | {key}, version)
