# SPDX-License-Identifier: Apache-2.0
"""What tests of the strategy share."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from support.shadow_nodes import World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.INFO, logger="flwr.fl_app")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)
