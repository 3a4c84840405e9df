# SPDX-License-Identifier: Apache-2.0
"""One Flower for all end-to-end tests, and one trained home that several of them look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.flower import OWN_ENVIRONMENT, ROOT, Flower
from support.shipped_app import shipped_app

pytest.register_assert_rewrite("support.story")  # so that what it asserts is told as in a test


@pytest.fixture(scope="session")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower that runs apps in this test's environment; each test names its own ``home``."""
    flower = Flower(tmp_path_factory.mktemp("flower"), OWN_ENVIRONMENT)
    yield flower
    flower.stop()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Flower]:
    """A Flower of the test's own."""
    flower = Flower(tmp_path / "flower", OWN_ENVIRONMENT)
    yield flower
    flower.stop()


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped app, in a folder that Flower need not look through for seconds."""
    return shipped_app(tmp_path_factory.mktemp("apps") / "shipped")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Flower, str]]:
    """The main job, as the README has it: Flower builds the environment, eight rounds, one home.

    Gives that Flower and what it printed.
    """
    flower = Flower(tmp_path_factory.mktemp("main-job"))
    yield flower, flower.run(ROOT, cwd=ROOT)
    flower.stop()
