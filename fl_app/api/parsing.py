# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a request to checked values, and the error of what cannot be accepted.

Strict JSON here, the shape of each body and query in `schemas.py`. No Flask.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from fl_registry.redaction import printable

MAX_BODY = 64 * 1024
"""Bytes of a request's body."""
MAX_DEPTH = 8

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


class ApiError(Exception):
    """A rejected request.

    Parameters
    ----------
    status : int
        HTTP status of the answer.
    detail : str
        One sentence for people.
    **headers : str
        Headers of the answer, with underscores for hyphens.
    """

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers

    @property
    def answer(self) -> dict[str, str]:
        """The body of the answer."""
        return error_answer(self.status, self.detail)


def error_answer(status: int, detail: str) -> dict[str, str]:
    """Return the form that all errors have: the status in words, and one sentence."""
    return {"error": HTTPStatus(status).phrase.lower(), "detail": printable(detail)}


def parse(
    kind: Any, value: object, *, part: str = "field", hints: Mapping[str, str] | None = None
) -> Any:
    """Return a value as a type of `schemas.py`.

    Parameters
    ----------
    kind : Any
        The type.
    value : object
        What the request holds.
    part : str
        What its entries are called in an error.
    hints : Mapping[str, str] | None
        Sentences for entries that are wrong, by name.

    Raises
    ------
    ApiError
        400 with the first error, or 404 where a text cannot be a version.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(map(str, first["loc"]))[:80]
    reason = first["msg"][0].lower() + first["msg"][1:120]  # a limit may have 300 digits
    detail = f"The {part} {name!r} is wrong: {reason}; GET /openapi.json describes it."
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(_adapter(kind).json_schema().get("properties", {})))
        expected = f"known are {known}" if known else "leave it out"
        detail = f"The {part} {name!r} is not known; {expected}."
    status = 404 if first["type"] == "no_version" else 400
    raise ApiError(status, (hints or {}).get(name, detail))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def json_object(data: bytes) -> dict[str, Any]:
    """Read a body that must be one JSON object and mean the same to every JSON parser.

    Parsers differ in what they do with NaN, repeated keys, lone surrogates and numbers out of
    range, so that these are rejected here, before the values are checked.

    Raises
    ------
    ApiError
        400 for anything else.
    """
    try:
        text = data.decode("utf-8")
        if _depth(text) > MAX_DEPTH:
            raise ApiError(400, f"The body is nested more than {MAX_DEPTH} deep; send a flat one.")
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_reject_constant,
            parse_float=_finite,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails on a lone surrogate
    except UnicodeError:
        raise ApiError(400, "The body is not valid Unicode; send JSON in UTF-8.") from None
    except ValueError:  # also of an integer with more digits than Python converts
        raise ApiError(400, "The body is not JSON; send one object, such as {}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is JSON but not an object; send one, such as {}.")
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", _STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ApiError(400, f"The field {name[:80]!r} is there twice; send it once.")
        unique[name] = value
    return unique


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ApiError(400, f"The number {text[:20]} is too large; send a smaller one.")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ApiError(400, f"{name} is not JSON; leave the field out where there is no number.")
