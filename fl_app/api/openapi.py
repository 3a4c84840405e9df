# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, made from the endpoints and the types that requests are checked by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from fl_app.api.endpoint import Endpoint, Post
from fl_app.api.guard import OPEN_PATHS
from fl_app.api.idempotency import KEY
from fl_app.api.schemas import Error, Version

KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key within 24 hours does the work once and gets the same answer.",
    "schema": {"type": "string", "pattern": KEY},
}
JSON = "application/json"


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
    types |= {f"body {e.path}": e.body for e in endpoints if isinstance(e, Post)}
    made, definitions = TypeAdapter.json_schemas(
        [(key, "validation", TypeAdapter(kind)) for key, kind in types.items()],
        ref_template="#/components/schemas/{model}",
    )
    schemas = {key: schema for (key, _), schema in made.items()}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "fl-app retraining monitor",
            "version": "1",
            "description": "Request retraining, read the monitor, and move versions of the model.",
        },
        "paths": {
            re.sub("<(.*?)>", r"{\1}", endpoint.path): {
                type(endpoint).__name__.lower(): _operation(endpoint, schemas)
            }
            for endpoint in endpoints
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"],
        },
    }
    if token:
        document["security"] = [{"token": []}]
    return document


def _operation(endpoint: Endpoint, schemas: Mapping[str, Any]) -> dict[str, Any]:
    summary, _, more = (endpoint.handle.__doc__ or "").partition("\n\n")
    status = endpoint.status if isinstance(endpoint, Post) else 200
    content = {JSON: {"schema": schemas[f"answer {endpoint.path}"]}}
    if endpoint.path == "/metrics":
        content["text/plain"] = {"schema": {"type": "string"}}
    error = {
        "description": "Rejected; nothing was done.",
        "content": {JSON: {"schema": schemas["error"]}},
    }
    operation = {
        "operationId": endpoint.handle.__name__,
        "summary": " ".join(summary.split()),
        "description": " ".join(more.split()),
        "parameters": _parameters(endpoint),
        "responses": {
            str(status): {"description": "Done.", "content": content},
            "4XX": error,
            "503": error,
        },
    }
    if endpoint.path in OPEN_PATHS:
        operation["security"] = []
    if isinstance(endpoint, Post):
        schema = schemas[f"body {endpoint.path}"]
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    parameters = []
    for name, schema in endpoint.query.model_json_schema().get("properties", {}).items():
        # A query cannot hold null, which is pydantic's default of an optional parameter.
        known = {k: v for k, v in schema.items() if (k, v) != ("default", None)}
        parameters.append({"name": name, "in": "query", "schema": known})
    for name in re.findall("<(.*?)>", endpoint.path):
        schema = TypeAdapter(Version).json_schema()
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    if isinstance(endpoint, Post):
        parameters.append(KEY_PARAMETER)
    return parameters
