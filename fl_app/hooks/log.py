# SPDX-License-Identifier: Apache-2.0
"""A hook that logs each event as one line of JSON."""

from __future__ import annotations

import json
import logging

from fl_app.events import Event, as_json

logger = logging.getLogger("flwr.fl_app.events")


def log_event(event: Event) -> None:
    """Log ``event`` at INFO as one line of JSON, in the form of `as_json`."""
    logger.info("%s", json.dumps(as_json(event), allow_nan=False))
