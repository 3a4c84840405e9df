# SPDX-License-Identifier: Apache-2.0
"""What this package uses of MLflow that MLflow does not document, in this file alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking._model_registry.client import ModelRegistryClient
from mlflow.utils import request_utils
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from requests.adapters import HTTPAdapter

__all__ = [
    "LOCATIONS",
    "TRANSIENT_CODES",
    "KeepAliveAdapter",
    "ModelRegistryClient",
    "ask",
    "get_artifact_repository",
    "lost",
    "mount",
    "registry_client",
    "system_metrics_monitor",
]

TRANSIENT_CODES: frozenset[int] = request_utils._TRANSIENT_FAILURE_RESPONSE_CODES
"""HTTP statuses after which MLflow's client repeats a request."""
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow notes where files are."""
KeepAliveAdapter = request_utils.TCPKeepAliveHTTPAdapter
_USUAL = (7, 2, 1.0, TRANSIENT_CODES, True, True)  # retry settings, any of which would do
_CACHE = "_cached_get_request_session"


def registry_client(client: MlflowClient) -> ModelRegistryClient:
    """Return the part of a client that writes to the model registry."""
    return client._get_registry_client()


def ask(uri: str, timeout: tuple[float, float]) -> requests.Response:
    """Send a server the shortest question that each MLflow answers, as MLflow's client would.

    That is with the credentials and certificates of MLflow's variables. ``/health`` is not asked:
    it needs no password, and a front may not pass it on.

    Parameters
    ----------
    uri : str
        The server's address.
    timeout : tuple[float, float]
        Seconds to wait for a connection, and for the reply.
    """
    reply: requests.Response = http_request(
        get_default_host_creds(uri),
        "/api/2.0/mlflow/experiments/search",
        "GET",
        params={"max_results": 1},
        timeout=timeout,
        max_retries=0,
        retry_codes=(),
        raise_on_status=False,
    )
    return reply


def system_metrics_monitor(run_id: str, tracking_uri: str) -> Any:
    """Return what logs a machine's load to a run; imported here, as few runs ask for it."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # With the run and the address given, it uses none of MLflow's globals for them.
    return SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracking_uri)


class _Sessions:
    """Takes the place of MLflow's function that returns its HTTP sessions.

    There is a session for each combination of retry settings, which differ by call and by version
    of MLflow (3.18 has other ones than 3.17), so that each gets the adapters when it is first used.
    """

    def __init__(self, cached: Callable[..., requests.Session]) -> None:
        self.cached = cached
        self.adapters: dict[str, Callable[[requests.Session], HTTPAdapter]] = {}
        self._lock = threading.Lock()

    def __call__(self, *settings: Any, **more: Any) -> requests.Session:
        session = self.cached(*settings, **more)
        with self._lock:
            for prefix in self.adapters.keys() - session.adapters.keys():
                session.mount(prefix, self.adapters[prefix](session))
        return session


def mount(prefix: str, adapter: Callable[[requests.Session], HTTPAdapter]) -> bool:
    """Have MLflow's client use an adapter for addresses with this prefix; return whether it does.

    Parameters
    ----------
    prefix : str
        The beginning of addresses; the first adapter that is mounted for it stays.
    adapter : Callable[[requests.Session], HTTPAdapter]
        Makes the adapter of a session.
    """
    sessions = getattr(request_utils, _CACHE, None)
    if sessions is None:
        return False
    if not isinstance(sessions, _Sessions):
        sessions = _Sessions(sessions)
        setattr(request_utils, _CACHE, sessions)
    sessions.adapters.setdefault(prefix, adapter)
    return prefix in request_utils._get_request_session(*_USUAL).adapters


def lost() -> tuple[str, ...]:
    """Return, in sentences, what does not work with this version of MLflow, though rounds do."""
    if mount("http://0.0.0.0/", lambda _: HTTPAdapter()):  # an address that nobody has
        return ()
    return (
        f"MLflow {version('mlflow')} makes its HTTP sessions in another way: a server that does "
        "not answer delays a round by minutes and not by seconds; install mlflow>=3.16,<3.19",
    )
