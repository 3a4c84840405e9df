# SPDX-License-Identifier: Apache-2.0
"""What a request to the API may say: strict JSON, plain text, numbers; pure, without Flask."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NoReturn

from fl_registry.redaction import printable

MAX_BODY = 64 * 1024
"""Bytes of a request's body."""
MAX_DEPTH = 8
MAX_TEXT = 500
"""Characters of a reason or a note."""

MAX_NUMBER = 1e300
"""Far from what a float or a database cannot hold."""

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_KEY = re.compile(r'\A(?:"([!#-\[\]-~]{1,255})"|([!#-\[\]-~]{1,255}))\Z')


class ApiError(Exception):
    """A request that is refused, with its HTTP status and one sentence for people."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def answer(self) -> dict[str, str]:
        """The body of the answer."""
        return error_answer(self.status, self.detail)


def error_answer(status: int, detail: str) -> dict[str, str]:
    """Return the one form that all errors have."""
    return {"error": HTTPStatus(status).phrase.lower(), "detail": printable(detail)}


def json_object(data: bytes) -> dict[str, Any]:
    """Read a body that must be one JSON object, and must mean the same to every reader.

    Raises
    ------
    ApiError
        400 for anything else: not UTF-8, not JSON, NaN, a key that comes twice, half a surrogate
        pair, nesting without end.
    """
    try:
        text = data.decode("utf-8")
        if _depth(text) > MAX_DEPTH:
            raise ApiError(400, f"The body is nested more than {MAX_DEPTH} deep; send a flat one.")
        value = json.loads(
            text,
            object_pairs_hook=_once_each,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise ApiError(400, "The body is not valid Unicode; send JSON in UTF-8.") from None
    except ValueError:  # a number may be too long as well
        raise ApiError(400, "The body is not JSON; send one object, such as {}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is JSON but not an object; send one, such as {}.")
    return value


def checked_fields(body: Mapping[str, Any], **expected: type) -> None:
    """Refuse fields that are not expected or have the wrong type (float: any number).

    Raises
    ------
    ApiError
        400, naming the first of them.
    """
    names = {str: "text", bool: "true or false", float: "a number", dict: "an object"}
    for name, value in body.items():
        if name not in expected:
            known = ", ".join(sorted(expected))
            raise ApiError(400, f"The field {name[:80]!r} is not known; known are {known}.")
        kind = expected[name]
        right = is_number(value) if kind is float else kind is object or type(value) is kind
        if not right:
            raise ApiError(400, f"The field {name!r} must be {names[kind]}.")


def is_number(value: object) -> bool:
    """Return whether a value is a number of sensible size, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_NUMBER


def text_field(body: Mapping[str, Any], name: str, default: str = "", limit: int = MAX_TEXT) -> str:
    """Return a field as one printable line.

    Raises
    ------
    ApiError
        400 if it is too long.
    """
    text = str(body.get(name, default))
    if len(text) > limit:
        raise ApiError(
            400, f"The field {name!r} has {len(text)} characters; at most {limit} are taken."
        )
    return printable(text)


def number_argument(arguments: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Return a whole number, 1 or more, from a query.

    Raises
    ------
    ApiError
        400 if it is anything else.
    """
    text = arguments.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise ApiError(400, f"?{name}= must be a whole number from 1 to {most}.")
    return int(text)


def idempotency_key(header: str | None) -> str | None:
    """Return the value of an ``Idempotency-Key`` header, quoted or not; None without one.

    Raises
    ------
    ApiError
        400 if it cannot be a key.
    """
    if header is None:
        return None
    found = _KEY.match(header)
    if found is None:
        raise ApiError(400, "Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return found.group(1) or found.group(2)


def wants_prometheus(accept: str, named: str | None) -> bool:
    """Return whether metrics are wanted as Prometheus text rather than as JSON.

    Text is what ``?format=prometheus`` asks for, or an ``Accept`` header that names ``text/plain``
    or OpenMetrics with a higher weight than ``application/json``; a ``*/*`` names neither.

    Raises
    ------
    ApiError
        400 for an unknown format.
    """
    if named is not None:
        if named not in ("json", "prometheus"):
            raise ApiError(400, "?format= must be 'json' or 'prometheus'.")
        return named == "prometheus"
    weights = {"text/plain": 0.0, "application/openmetrics-text": 0.0, "application/json": 0.0}
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if kind in weights:
            weights[kind] = max(weights[kind], _weight(parameters))
    wanted_json = weights.pop("application/json")
    return max(weights.values()) > wanted_json


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if re.fullmatch(r"q=[01](\.[0-9]{0,3})?", parameter, re.ASCII):
            return float(parameter[2:])
    return 1.0


def _depth(text: str) -> int:
    depth = deepest = 0
    for sign in re.findall(r"[\[\]{}]", _STRINGS.sub("", text)):
        depth += 1 if sign in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ApiError(400, f"The field {name[:80]!r} is there twice; send it once.")
        found[name] = value
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ApiError(400, f"The number {text[:20]} is too large; send a smaller one.")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ApiError(400, f"{name} is not JSON; leave the field out where there is no number.")
