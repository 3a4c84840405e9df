# SPDX-License-Identifier: Apache-2.0
"""What a route of the API is: a function of checked values, with their types and its answer's.

The routes are in `monitor.py`, `versions.py` and `production.py`. Flask calls them through
`add_endpoints`, and `openapi.py` describes them.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry

from fl_app.api.guard import Guard
from fl_app.api.idempotency import Answer, Once, idempotency_key, reply
from fl_app.api.parsing import parse
from fl_app.api.registry_calls import RegistryCalls
from fl_app.api.schemas import Query, Version
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.probation.probation import Probation
from fl_app.strategy.checkpoints.backlog import Backlog

B = TypeVar("B")
Q = TypeVar("Q", bound=Query)


@dataclass(frozen=True)
class Context:
    """What the routes work with.

    Attributes
    ----------
    manager : RetrainingManager
        The monitor.
    guard : Guard
        Who may send requests.
    once : Once
        Does the work of an ``Idempotency-Key`` once.
    metrics : CollectorRegistry
        The numbers for Prometheus.
    registry : RegistryCalls
        The registry, if there is one.
    probation : Probation | None
        Watches the version in production; there is one where there is a registry.
    backlog : Callable[[], Backlog] | None
        Counts closed rounds that are not yet in MLflow.
    """

    manager: RetrainingManager
    guard: Guard
    once: Once
    metrics: CollectorRegistry
    registry: RegistryCalls
    probation: Probation | None
    backlog: Callable[[], Backlog] | None


@dataclass(frozen=True)
class Change:
    """A request that changes something.

    Attributes
    ----------
    id : str
        32 hexadecimal digits, the same for the same ``Idempotency-Key``.
    version : str
        The version in the path; empty where there is none.
    """

    id: str
    version: str


@dataclass(frozen=True)
class Get(Generic[Q]):
    """A route that reads.

    Attributes
    ----------
    path : str
        As Flask writes it.
    answer : Any
        Type of the JSON answer.
    query : type[Q]
        Type of the query.
    handle : Callable[[Context, Q], Response]
        The function; its name is the operation's id, its docstring the summary.
    """

    path: str
    answer: Any
    query: type[Q]
    handle: Callable[[Context, Q], Response]

    def view(self, context: Context) -> Response:
        """Answer Flask's current request."""
        return self.handle(context, g.query)


@dataclass(frozen=True)
class Post(Generic[B]):
    """A route that changes something, once for each ``Idempotency-Key``.

    Attributes
    ----------
    path, answer
        As those of a `Get`.
    body : type[B]
        Type of the body.
    handle : Callable[[Context, B, Change], Answer]
        The function; its name is the operation's id, its docstring the summary.
    status : int
        HTTP status of the answer.
    repeatable : Callable[[B], bool]
        Whether the work may be repeated where a crash left open whether it was done.
    """

    path: str
    answer: Any
    body: type[B]
    handle: Callable[[Context, B, Change], Answer]
    status: int = 200
    repeatable: Callable[[B], bool] = lambda _: True
    query = Query

    def view(self, context: Context, version: str = "") -> Response:
        """Answer Flask's current request."""
        if version:  # rejected before the key is claimed
            parse(Version, version, part="version in the path")
        body: B = parse(self.body, g.body)
        key = idempotency_key(request.headers.get("Idempotency-Key"))

        def work(new_id: str) -> Answer:
            return self.handle(context, body, Change(new_id, version))

        if key is None:
            return reply(*work(uuid.uuid4().hex))
        return reply(
            *context.once(key, request.path, g.body, work, repeatable=self.repeatable(body))
        )


Endpoint = Get[Any] | Post[Any]


def add_endpoints(app: Flask, context: Context, endpoints: Sequence[Endpoint]) -> None:
    """Let Flask call the endpoints with this context."""
    for endpoint in endpoints:
        app.add_url_rule(
            endpoint.path,
            endpoint.handle.__name__,
            functools.partial(endpoint.view, context),
            methods=[type(endpoint).__name__.upper()],
        )
