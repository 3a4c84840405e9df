# SPDX-License-Identifier: Apache-2.0
"""A store object asks whether a version was saved before only where somebody else can have."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.fake_mlflow import FakeMlflow
from support.registry_faults import told

from fl_registry import ModelManager

MakeWeights = Callable[[float], Path]


class Crash(BaseException):
    """The process ends here."""


SAVES = st.tuples(
    st.integers(0, 1),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from("123"),
    st.sampled_from(["", "", "before", "after"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(SAVES, max_size=12))
def test_nothing_is_ever_saved_twice(saves: list[tuple[int, str | None, str, str]]) -> None:
    """Two store objects save to one model; some saves fail before or after the version is there."""
    with tempfile.TemporaryDirectory() as name:
        folder, fails = Path(name), ""

        def hook(call: str, when: str) -> None:
            if call == "create_model_version" and when == fails:
                raise Crash

        fake = FakeMlflow()
        fake.hook = hook
        stores = [fake.manager(folder / "home") for _ in range(2)]
        for who, run, key, fails in saves:  # noqa: B007 - the hook reads it
            path = folder / f"{key}.safetensors"
            save_file({"a": np.full(2, int(key), np.float32)}, path)
            with contextlib.suppress(Crash):
                stores[who].save_model_version(path, run)
        rows = [(row["run_id"], row["sha256"]) for row in stores[0].list_all_versions()]
        assert len(set(rows)) == len(rows)
        expected = {(run, key) for _, run, key, how in saves if how != "before"}
        assert len(rows) >= len(expected)


def test_a_session_asks_at_its_first_save_only(manager: ModelManager, weights: MakeWeights) -> None:
    asked: list[str] = []
    told(
        manager.backend.connection,
        lambda name, when: asked.append(name) if when == "before" else None,
    )
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
