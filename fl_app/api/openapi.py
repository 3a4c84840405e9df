# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, made from the endpoints and the types that requests are checked by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from fl_app.api.endpoint import KEY, Endpoint
from fl_app.api.guard import OPEN_PATHS
from fl_app.api.parsing import Error, Version

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
            re.sub("<(.*?)>", r"{\1}", e.path): {e.method.lower(): _operation(e, contents)}
            for e in endpoints
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions["$defs"],
        },
        **({"security": [{"token": []}]} if token else {}),
    }


def _operation(endpoint: Endpoint, contents: Mapping[str, Any]) -> dict[str, Any]:
    summary, _, more = (endpoint.handle.__doc__ or "").partition("\n\n")
    content = contents[f"answer {endpoint.path}"]
    if endpoint.path == "/metrics":
        content = {**content, "text/plain": {"schema": {"type": "string"}}}
    error = {"description": "Rejected; nothing was done.", "content": contents["error"]}
    done = {"description": "Done.", "content": content}
    version = TypeAdapter(Version).json_schema()
    operation: dict[str, Any] = {
        "operationId": endpoint.handle.__name__,
        "summary": " ".join(summary.split()),
        "description": " ".join(more.split()),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": version}
            for name in re.findall("<(.*?)>", endpoint.path)
        ],
        "responses": {str(endpoint.status): done, "4XX": error, "503": error},
    }
    if endpoint.path in OPEN_PATHS:
        operation["security"] = []
    if endpoint.method == "POST":
        body = {"required": True, "content": contents[f"body {endpoint.path}"]}
        operation["requestBody"] = body
        operation["parameters"].append(KEY_PARAMETER)
        return operation
    for name, schema in endpoint.takes.model_json_schema().get("properties", {}).items():
        # A query cannot hold null, which is pydantic's default of an optional parameter.
        known = {k: v for k, v in schema.items() if (k, v) != ("default", None)}
        operation["parameters"].append({"name": name, "in": "query", "schema": known})
    return operation
