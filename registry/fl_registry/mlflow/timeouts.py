# SPDX-License-Identifier: Apache-2.0
"""How long requests to one MLflow server wait, independent of the variables for others.

MLflow's client waits 120 seconds for a reply and sends each call up to eight times, creates
included. Its requests go through a session on which addresses can be given an adapter of their own,
and that is what the addresses of this app get. MLflow's environment variables would hold for the
whole process, and so for other servers that it uses.
"""

from __future__ import annotations

import logging
import os
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from fl_registry.mlflow.internals import TRANSIENT_CODES, KeepAliveAdapter, lost, mount
from fl_registry.patience import reply_seconds

logger = logging.getLogger("flwr.fl_app")

CONNECT_SECONDS = 4.0
BYTES_PER_SECOND = 1e6
"""A reply may take a second more for each so many bytes that were sent: files are stored first."""


class BriefAdapter(KeepAliveAdapter):  # type: ignore[misc]  # MLflow has no types
    """Sends a request once; a GET once more, and any if no connection came about.

    Writes in a `reply_within` block wait no longer than that says. A reply with a status such as
    503 is an error, as after MLflow's last attempt.
    """

    def __init__(self) -> None:
        super().__init__(max_retries=Retry(1, allowed_methods=("GET",), backoff_factor=0.1))

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, **options: Any
    ) -> requests.Response:
        """Send a request."""
        size = int(request.headers.get("Content-Length") or 0)
        limit = reply_seconds()
        if limit is not None and not _only_reads(request):
            options["timeout"] = (CONNECT_SECONDS, limit + size / BYTES_PER_SECOND)
        elif isinstance(usual := options.get("timeout"), int | float):
            options["timeout"] = (usual, usual + size / BYTES_PER_SECOND)
        reply: requests.Response = super().send(request, stream=stream, **options)
        if reply.status_code in TRANSIENT_CODES:
            raise requests.exceptions.RetryError(
                f"the server answers {reply.status_code}: {reply.text[:200]}"
            )
        return reply


def _only_reads(request: requests.PreparedRequest) -> bool:
    """Whether a request changes nothing; MLflow sends the conditions of a search by POST."""
    return request.method == "GET" or urlsplit(request.url or "").path.endswith("/search")


def limit_waits(uri: str) -> bool:
    """Have each POST to the server at `uri` sent once, and those of a round wait for seconds only.

    Environment variables for time-outs or retries win; returns whether the waits are limited.
    """
    chosen = {"MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"} & os.environ.keys()
    parts, adapter = urlsplit(uri), _without_jitter if chosen else lambda _: BriefAdapter()
    for place in {parts.netloc, parts.netloc.rpartition("@")[2]}:
        if not mount(f"{parts.scheme}://{place}{parts.path.rstrip('/')}/", adapter):
            logger.warning("%s", *lost())
            return False
    return not chosen


def _without_jitter(session: requests.Session) -> HTTPAdapter:
    """MLflow's own adapter, but for the jitter: that is drawn from Python's global generator."""
    retries: Retry = session.get_adapter("https://").max_retries  # type: ignore[attr-defined]
    made: HTTPAdapter = KeepAliveAdapter(max_retries=retries.new(backoff_jitter=0.0))
    return made
