# SPDX-License-Identifier: Apache-2.0
"""A store object asks whether a version was saved before only where somebody else can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.registry_faults import told

from fl_registry import ModelManager
from fl_registry.mlflow.known_saves import OwnSaves

MakeWeights = Callable[[float], Path]


class Register:
    """A model's versions as two store objects save them, each with what it knows."""

    def __init__(self) -> None:
        self.rows: list[tuple[str | None, str]] = []
        self.knows = [OwnSaves(), OwnSaves()]

    def save(self, who: int, run: str | None, key: str, *, fails: str) -> None:
        """Save as `ModelManager` does; it `fails` before or after the version is there.

        Where somebody else was first, who loses a reply looks, as `create_once` does.
        """
        own = self.knows[who]
        if not own.surely_new(run, key) and (run, key) in self.rows:
            return
        self.knows[who] = own.trying(run, key)
        if fails == "before":
            return
        overtaken = (run, key) in self.rows
        self.rows.append((run, key))
        version = str(len(self.rows))
        if fails == "after" and not overtaken:
            return
        look = self.newest_of(run) if own.must_look(version, run) else []
        if not own.is_next(version) and overtaken:
            version = str(self.rows.index((run, key)) + 1)  # and the echo is dropped
            self.rows[-1] = (None, "dropped")
        self.knows[who] = own.saved(version, run, key, newest_of_run=look)

    def newest_of(self, run: str | None) -> list[str]:
        return [str(n + 1) for n, row in enumerate(self.rows) if row[0] == run][::-1][:2]


SAVES = st.tuples(
    st.integers(0, 1),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from("123"),
    st.sampled_from(["", "", "before", "after"]),
)


@given(st.lists(SAVES, max_size=25))
def test_nothing_is_ever_saved_twice(saves: list[tuple[int, str | None, str, str]]) -> None:
    register = Register()
    for who, run, key, fails in saves:
        register.save(who, run, key, fails=fails)
        kept = [row for row in register.rows if row != (None, "dropped")]
        assert len(set(kept)) == len(kept)


def test_a_session_asks_at_its_first_save_only(manager: ModelManager, weights: MakeWeights) -> None:
    asked: list[str] = []
    told(manager, lambda name, when: asked.append(name) if when == "before" else None)
    counts = []
    for run in ("first session", "second session"):
        for number in range(1, 4):
            asked.clear()
            assert manager.save_model_version(weights(number), run, tags={"round": str(number)})
            counts.append(asked.count("search_model_versions") // 2)  # it passes two clients
    assert counts == [1, 0, 0, 2, 0, 0]


def test_what_another_saved_for_the_same_run_is_found(
    manager: ModelManager, weights: MakeWeights
) -> None:
    twin = ModelManager(manager.tracking_uri, manager.registered_model_name)
    for number in (1, 2):
        assert manager.save_model_version(weights(number), "run") == str(number)
    assert twin.save_model_version(weights(3), "run") == "3"
    assert manager.save_model_version(weights(4), "run") == "4"
    assert manager.save_model_version(weights(3), "run") == "3"
    assert len(manager.list_all_versions()) == 4
