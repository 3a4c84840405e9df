# SPDX-License-Identifier: Apache-2.0
"""The REST API as a page for people, from the OpenAPI document that requests are checked by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class FieldRow:
    """A parameter, or a field of a body or an answer."""

    name: str
    place: str
    type: str
    meaning: str
    required: bool = False


@dataclass(frozen=True)
class Route:
    """A route of the API, as the page shows it."""

    id: str
    method: str
    path: str
    summary: str
    more: str
    status: str
    takes: list[FieldRow]
    gives: list[FieldRow]
    example: str


def routes_of(document: Mapping[str, Any], base: str) -> list[Route]:
    """Return the routes of an OpenAPI document.

    Parameters
    ----------
    document : Mapping[str, Any]
        The document.
    base : str
        The server's address, for the examples.
    """
    schemas = document["components"]["schemas"]
    token = bool(document.get("security"))
    return [
        _route(schemas, path, method.upper(), operation, base=base, token=token)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def _route(
    schemas: Schema, path: str, method: str, operation: Mapping[str, Any], *, base: str, token: bool
) -> Route:
    status, done = next(iter(operation["responses"].items()))
    body = operation.get("requestBody", {}).get("content", {})
    sent: Schema = next((content["schema"] for content in body.values()), {})
    answer: Schema = next((content["schema"] for content in done["content"].values()), {})
    takes = [
        FieldRow(
            each["name"],
            each["in"],
            type_text(schemas, each["schema"]),
            each.get("description") or each["schema"].get("description", ""),
            each.get("required", False),
        )
        for each in operation["parameters"]
    ]
    takes += _fields(schemas, sent, "body")
    header = ' -H "Authorization: Bearer $FL_APP_API_TOKEN"'
    command = f"curl{header if token and operation.get('security') != [] else ''}"
    if method == "POST":
        example = json.dumps(example_of(schemas, sent))
        command += f" -H 'Content-Type: application/json' -d {quote(example)}"
    shown = path.replace("{version}", "3")
    return Route(
        operation["operationId"].replace("_", "-"),
        method,
        path,
        operation["summary"],
        operation.get("description", ""),
        status,
        takes,
        list(_fields(schemas, answer, "answer")),
        f"{command} {base}{shown}",
    )


def _fields(schemas: Schema, schema: Schema, place: str) -> Iterator[FieldRow]:
    schema = _resolved(schemas, schema)
    if schema.get("type") == "array":
        schema = _resolved(schemas, schema["items"])
    for name, field in schema.get("properties", {}).items():
        meaning = field.get("description", "")
        required = place == "body" and name in schema.get("required", ())
        yield FieldRow(name, place, type_text(schemas, field), meaning, required)


def _resolved(schemas: Schema, schema: Schema) -> Schema:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Schema = schemas.get(name, schema)
    return found


def type_text(schemas: Schema, schema: Schema) -> str:
    """Return a type in a few words."""
    if "$ref" in schema:
        return type_text(schemas, _resolved(schemas, schema))
    if "enum" in schema or "const" in schema:
        return " or ".join(str(each) for each in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema and "type" not in schema:
        kinds = (type_text(schemas, each) for each in schema["anyOf"])
        return " or ".join(dict.fromkeys(kinds))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {type_text(schemas, schema.get('items', {}))}"
    more = schema.get("format") or ("text such as 3" if schema.get("pattern") else "")
    limits = [f"{words} {schema[key]:g}" for key, words in _LIMITS.items() if key in schema]
    text = {"string": "text", "object": "object", "null": "null"}.get(kind, kind)
    return ", ".join(filter(None, (more if more == "text such as 3" else text, *limits)))


_LIMITS = {"minimum": "at least", "maximum": "at most", "maxLength": "characters at most"}


def example_of(schemas: Schema, schema: Schema) -> Any:
    """Return an example body: that of the schema, else of its fields that have one."""
    schema = _resolved(schemas, schema)
    if schema.get("examples"):
        return schema["examples"][0]
    fields = schema.get("properties", {})
    return {name: field["examples"][0] for name, field in fields.items() if "examples" in field}
