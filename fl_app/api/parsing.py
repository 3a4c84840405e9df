# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a request to checked values, and the error of what cannot be accepted.

Pydantic checks bodies and queries by their types, and `endpoint.py` describes the API by them. What
all share is here: strict JSON, the base classes, the types of single fields. No Flask.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from itertools import accumulate
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from fl_registry.files.strict_json import read_strict_json
from fl_registry.redaction import printable

MAX_BODY = 64 * 1024
"""Bytes of a request's body."""
MAX_HEADERS = 16 * 1024
MAX_DEPTH = 8
DETAILS = {
    400: "The request cannot be read; check address and headers.",
    404: "There is nothing here; GET /openapi.json lists what there is.",
    405: "This method cannot be used here; see the header Allow.",
    413: f"The body is larger than {MAX_BODY // 1024} KiB; send a shorter one.",
    431: f"The headers are larger than {MAX_HEADERS // 1024} KiB; send shorter ones.",
    500: "Something went wrong here; the server's log has the error.",
}
"""The sentence of an error that has none of its own, by HTTP status; that of 400 for all others."""
VERSION = "^[1-9][0-9]{0,8}$"

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def check_version(text: str) -> str:
    """Return a text that can be a version; pydantic's error "no_version" becomes a 404."""
    if not re.fullmatch(VERSION.strip("^$"), text):
        raise PydanticCustomError("no_version", "versions are numbers such as 3")
    return text


def _digits(value: object) -> object:
    # pydantic would also read " 1", "+1", "1_0" and "1.0".
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,9}", value):
        raise PydanticCustomError("no_number", "it should be a whole number")
    return value


Version = Annotated[
    str, AfterValidator(check_version), WithJsonSchema({"type": "string", "pattern": VERSION})
]
RequestId = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
Limit = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_digits)]
Text = Annotated[str, Field(max_length=500), AfterValidator(printable)]
Moment = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


_NOTHING_UNKNOWN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Query(BaseModel):
    """The base of all queries; this one has no parameters."""

    model_config = _NOTHING_UNKNOWN


class Body(BaseModel):
    """The base of all bodies: no conversions."""

    model_config = ConfigDict(**_NOTHING_UNKNOWN, strict=True)


class Error(TypedDict):
    """A rejected request; nothing was done."""

    error: str
    detail: str


class ApiError(Exception):
    """A rejected request.

    Parameters
    ----------
    status : int
        HTTP status of the answer.
    detail : str
        One sentence for people; by default the status's own.
    **headers : str
        Headers of the answer, with underscores for hyphens.
    """

    def __init__(self, status: int, detail: str = "", **headers: str) -> None:
        self.status = status
        self.detail = printable(detail or DETAILS.get(status, DETAILS[400]))
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(self.detail)

    @property
    def answer(self) -> Error:
        """The body that all errors have: the status in words, and one sentence."""
        return {"error": HTTPStatus(self.status).phrase.lower(), "detail": self.detail}


def parse(kind: Any, value: object, *, part: str = "field", hints: Mapping[str, str] = {}) -> Any:
    """Return a value as a type that pydantic can check.

    Parameters
    ----------
    kind : Any
        The type.
    value : object
        What the request holds.
    part : str
        What its entries are called in an error.
    hints : Mapping[str, str]
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
    raise ApiError(status, hints.get(name, detail))


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
        brackets = re.findall(r"[\[\]{}]", _STRINGS.sub("", text))
        if max(accumulate(1 if b in "[{" else -1 for b in brackets), default=0) > MAX_DEPTH:
            raise ApiError(400, f"The body is nested more than {MAX_DEPTH} deep; send a flat one.")
        value = read_strict_json(text)
        # Written again, a lone surrogate fails, and 1e999, which Python has read as infinity.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeError:
        raise ApiError(400, "The body is not valid Unicode; send JSON in UTF-8.") from None
    except ValueError as error:  # also of an integer with more digits than Python converts
        reason = str(error)[:80]
        raise ApiError(400, f"The body is not JSON ({reason}); send one object, as {{}}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is JSON but not an object; send one, such as {}.")
    return value
