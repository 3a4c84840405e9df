# SPDX-License-Identifier: Apache-2.0
"""What a route of the API is: a function of checked values, with their types and its answer's.

The routes are in `monitor.py` and `registry.py`. Flask calls their `Endpoint.view`, and
`openapi_document` describes them by the types that requests are checked by.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from flask import Response, g, request
from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter

from fl_app.api.guard import OPEN_PATHS, Guard
from fl_app.api.parsing import ApiError, Error, Query, Version, parse
from fl_app.api.people import Person
from fl_app.api.store_watch import StoreWatch
from fl_app.backlog import Backlog
from fl_app.progress import SessionProgress
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.probation.probation import Probation
from fl_registry import ModelStore, RegistryError, errors

Answer = Mapping[str, Any]
NOBODY = "api"
"""The name of who acts where none is given."""
KEY = r'^("[!#-\[\]-~]{1,255}"|[!#-\[\]-~]{1,255})$'
"""An ``Idempotency-Key``, quoted or not."""
KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key within 24 hours does the work once and gets the same answer.",
    "schema": {"type": "string", "pattern": KEY},
}
INFO = {
    "title": "fl-app retraining monitor",
    "version": "1",
    "description": "Request retraining, read the monitor, and move versions of the model.",
}
STATUSES: Mapping[type[RegistryError], int] = {
    errors.UnknownVersion: 404,
    errors.StageError: 409,
    errors.ArtifactError: 409,
    errors.InvalidName: 400,
    errors.MissingExtra: 409,
    errors.StoreUnavailable: 503,
    errors.Gone: 409,
    errors.RunPurged: 409,
}
"""HTTP status of the registry's errors; 500 for all others."""


@dataclass(frozen=True)
class Context:
    """What the routes work with.

    Attributes
    ----------
    manager : RetrainingManager
        The monitor.
    guard : Guard
        Who may send requests.
    metrics : CollectorRegistry
        The numbers for Prometheus.
    store : ModelStore | None
        The registry, if there is one; called by `registry`.
    slots : threading.BoundedSemaphore
        How many calls of it may be made at the same time.
    probation : Probation | None
        Watches the version in production; there is one where there is a registry.
    backlog : Callable[[], Backlog] | None
        Counts closed rounds that are not yet in MLflow.
    checkpoint : Callable[[Path, Path], None] | None
        Makes a checkpoint for Ultralytics, the second file, of a version's weights, the first.
    watch : StoreWatch | None
        Whether the registry answers; there is one where there is a registry.
    now : Callable[[], datetime]
        The wall clock, in UTC.
    live : Callable[[], SessionProgress | None]
        How far the session under way is.
    owner : str
        Names this process where it claims an ``Idempotency-Key``.
    making : threading.Lock
        Held while a checkpoint is made.
    """

    manager: RetrainingManager
    guard: Guard
    metrics: CollectorRegistry
    store: ModelStore | None
    slots: threading.BoundedSemaphore
    probation: Probation | None
    backlog: Callable[[], Backlog] | None
    checkpoint: Callable[[Path, Path], None] | None
    now: Callable[[], datetime]
    watch: StoreWatch | None = None
    live: Callable[[], SessionProgress | None] = lambda: None
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    making: threading.Lock = field(default_factory=threading.Lock)

    def failing(self, backlog: Backlog | None) -> dict[str, str]:
        """Return what does not work and why, by its part: here, and in the registry."""
        # Another process may hand over the rounds, and reports its trouble on disk only.
        backlog = backlog or Backlog()
        problems = () if self.watch is None else self.watch.problems()
        registry = " ".join(filter(None, (*problems, backlog.trouble)))
        return {
            **({"registry": registry} if registry else {}),
            **({"sessions": backlog.problem} if backlog.problem else {}),
            **self.manager.health.failing,
        }

    @contextmanager
    def registry(self) -> Iterator[ModelStore]:
        """Give the registry for the time of a call, and turn its errors into the API's.

        Raises
        ------
        ApiError
            404 without a registry, 503 if too many calls are made now; else for its error.
        """
        if self.store is None:
            raise ApiError(404, "This server has no registry; start it with one.")
        # Not a queue: a client that gets a 503 can decide itself whether to wait.
        if not self.slots.acquire(blocking=False):
            raise ApiError(503, "The registry is busy; try again.", Retry_After="1")
        try:
            yield self.store
        except RegistryError as error:
            raise ApiError(STATUSES.get(type(error), 500), str(error)) from error
        finally:
            self.slots.release()

    def once(
        self,
        key: str,
        content: object,
        work: Callable[[str], Answer],
        *,
        status: int = 200,
        repeatable: bool = True,
    ) -> tuple[int, Answer, Mapping[str, str]]:
        """Do the work of the current request, unless it was done; repeat its answer for 24 hours.

        The claim and the answer are on disk, so they outlive the process.

        Parameters
        ----------
        key : str
            The ``Idempotency-Key``.
        content : object
            What was sent, as JSON can hold it; the same for the same key.
        work : Callable[[str], Answer]
            Takes 32 hexadecimal digits that stay the same for the same key.
        status : int
            HTTP status where the work was done.
        repeatable : bool
            Whether it may be done again where a crash left open whether it was done.

        Returns
        -------
        tuple[int, Answer, Mapping[str, str]]
            Status, answer and headers; those of the first time where it was refused then.

        Raises
        ------
        ApiError
            409 or 422 if the key is in use; a 5xx of the work, which may be tried again.
        """
        keys, now = self.manager.store.keys, datetime.now(UTC)
        # Only the digest is stored: a request may hold what should not be kept.
        text = f"{request.path}\n{json.dumps(content, sort_keys=True)}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        claim = keys.claim(key, digest, owner=self.owner, now=now, retake=repeatable)
        if claim.digest != digest:
            raise ApiError(422, "This Idempotency-Key was used for another request; use a new one.")
        if not claim.mine and claim.status is None:
            raise ApiError(
                409,
                "A request with this Idempotency-Key is running, or a crash ended it; try again, "
                "and if it stays so, check what was done and use a new key.",
                Retry_After="1",
            )
        if claim.status is not None:
            return claim.status, json.loads(claim.body), {"Idempotency-Replayed": "true"}
        done, answer, headers = None, dict[str, Any](), dict[str, str]()
        try:
            answer = dict(work(claim.id))
            done = status
        except ApiError as error:
            if error.status >= 500:  # an outage: the same key may succeed later
                raise
            done, answer, headers = error.status, dict(error.answer), error.headers
        finally:  # without a status the key is free again
            keys.answer(key, done, json.dumps(answer))
        return done, answer, headers


@dataclass(frozen=True)
class Endpoint:
    """A route.

    Attributes
    ----------
    method, path : str
        As Flask writes them. A ``POST`` is done once for each ``Idempotency-Key``.
    takes : Any
        Type of the query, or of the body of a ``POST``.
    answer : Any
        Type of the answer.
    handle : Callable[..., Any]
        The function; its name is the operation's id, its docstring the summary. It takes the
        `Context`, what was sent and what is in the path, and returns the answer. Before the
        latter, a ``POST`` takes 32 hexadecimal digits, the same for the same ``Idempotency-Key``.
    status : int
        HTTP status of the answer.
    repeatable : Callable[[Any], bool]
        Whether the work may be repeated where a crash left open whether it was done.
    media : str
        Media type of the answer.
    """

    method: Literal["GET", "POST"]
    path: str
    takes: Any
    answer: Any
    handle: Callable[..., Any]
    status: int = 200
    repeatable: Callable[[Any], bool] = lambda _: True
    media: str = "application/json"

    def view(self, context: Context, **path: str) -> Response:
        """Answer Flask's current request."""
        for version in path.values():  # rejected before a key is claimed
            parse(Version, version, part="version in the path")
        if self.method == "GET":
            answer = self.handle(context, g.query, **path)
            return answer if isinstance(answer, Response) else reply(200, answer)
        body = parse(self.takes, g.body)
        key = request.headers.get("Idempotency-Key")
        if key is not None and not re.fullmatch(KEY.strip("^$"), key):
            raise ApiError(400, "Idempotency-Key must be 1 to 255 visible ASCII characters.")

        def work(new_id: str) -> Answer:
            answer: Answer = self.handle(context, body, new_id, **path)
            return answer

        if key is None:
            return reply(self.status, work(uuid.uuid4().hex))
        repeatable = self.repeatable(body)
        return reply(
            *context.once(key.strip('"'), g.body, work, status=self.status, repeatable=repeatable)
        )

    def described(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        """Return the operation in OpenAPI, given the contents that ``openapi_document`` names."""
        summary, _, more = (self.handle.__doc__ or "").partition("\n\n")
        content = {self.media: contents[f"answer {self.path}"]["application/json"]}
        if self.path == "/metrics":
            content = {**content, "text/plain": {"schema": {"type": "string"}}}
        error = {"description": "Rejected; nothing was done.", "content": contents["error"]}
        done = {"description": "Done.", "content": content}
        version = TypeAdapter(Version).json_schema()
        operation: dict[str, Any] = {
            "operationId": self.handle.__name__,
            "summary": " ".join(summary.split()),
            "description": " ".join(more.split()),
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": version}
                for name in re.findall("<(.*?)>", self.path)
            ],
            "responses": {str(self.status): done, "4XX": error, "503": error},
        }
        if self.path in OPEN_PATHS:
            operation["security"] = []
        if self.method == "POST":
            body = {"required": True, "content": contents[f"body {self.path}"]}
            operation["requestBody"] = body
            operation["parameters"].append(KEY_PARAMETER)
            return operation
        for name, schema in self.takes.model_json_schema().get("properties", {}).items():
            # A query cannot hold null, which is pydantic's default of an optional parameter.
            known = {k: v for k, v in schema.items() if (k, v) != ("default", None)}
            operation["parameters"].append({"name": name, "in": "query", "schema": known})
        return operation


def openapi_document(endpoints: Sequence[Endpoint], *, token: bool) -> dict[str, Any]:
    """Describe endpoints in OpenAPI 3.1.

    Parameters
    ----------
    endpoints : Sequence[Endpoint]
        All routes.
    token : bool
        Whether they need a token, but for those that are open.
    """
    types: dict[str, Any] = {"error": Error}
    types |= {f"answer {e.path}": e.answer for e in endpoints}
    types |= {f"body {e.path}": e.takes for e in endpoints if e.method == "POST"}
    made, definitions = TypeAdapter.json_schemas(
        [(key, "validation", TypeAdapter(kind)) for key, kind in types.items()],
        ref_template="#/components/schemas/{model}",
    )
    contents = {key: {"application/json": {"schema": schema}} for (key, _), schema in made.items()}
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "paths": {
            re.sub("<(.*?)>", r"{\1}", e.path): {e.method.lower(): e.described(contents)}
            for e in endpoints
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"],
        },
        **({"security": [{"token": []}]} if token else {}),
    }


def acting(by: str) -> str:
    """Return who acts: the person whose token it is, else the name that was given.

    Raises
    ------
    ApiError
        403 if it is another name than the person's.
    """
    person: Person = g.person
    if person.name and by not in ("", NOBODY, person.name):
        raise ApiError(403, f"This token is {person.name}'s; leave out the name {by!r:.60}.")
    return person.name or by


def reply(status: int, answer: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer as JSON."""
    return Response(json.dumps(answer), status, headers, mimetype="application/json")


def part_of_list(query: Query, rows: Sequence[Any], *, before: str) -> Response:
    """Return a part of a list; ``before`` begins the next one, and is empty for the last one."""
    given = query.model_dump(exclude_none=True, exclude={"before"})
    following = f"{request.path}?{urlencode({**given, 'before': before})}"
    return reply(200, rows, {"Link": f'<{following}>; rel="next"'} if before else None)
