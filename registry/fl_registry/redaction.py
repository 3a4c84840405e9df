# SPDX-License-Identifier: Apache-2.0
"""Text from outside made fit to be shown: without secrets and without control characters."""

from __future__ import annotations

import base64
import os
import re
import traceback
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote, unquote

HIDDEN = "***"
_PASSWORD = re.compile(r"(://[^:/?#\s@]*):[^\s/]*@")  # to the last @: a password may have some
_USER_ONLY = re.compile(r"((?:https?|wss?|ftp)://)[^:/?#\s@]+@", re.IGNORECASE)
_TELLING = (
    r"[\w.-]{0,40}(?:pass(?:word|wd|phrase|code|key|(?![a-z]))|pwd|token|secret|credential|"
    r"signature|api[_-]?key|(?:access|account|private|shared)[_-]?key|odbc_connect)[\w.-]{0,40}"
)
_VALUE = r"""(?:(['"])(?:(?!\3)[^\r\n])*\3|[^&;\s'"]+)"""
_FIELD = re.compile(rf"(?i)(?<![\w.-])({_TELLING}|sig|auth)(=|%3D|:(?=\S)|['\"]\s*[:=]\s*){_VALUE}")
_HEADER = re.compile(
    r"(?i)\b((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(bearer|basic)\s+)?[^\s'\",]+"
)
_OTHER_HEADER = re.compile(
    r"(?i)(?<![\w-])((?:set-)?cookie|x-[\w-]{0,40}(?:key|token|secret|auth))"
    r"(['\"]?\s*[:=]\s*['\"]?)"
    r"[^\r\n'\"]+"
)
_BEARER = re.compile(r"(?i)\b(bearer)\s+[A-Za-z0-9._~+/=-]{8,}")
_VARIABLE = re.compile(rf"(?i){_TELLING}|\w+_(?:key|pat|sas|credentials)")
_SECRET_NAME = re.compile(
    r"(?i)(?:.*[^A-Za-z0-9])?(?:pass(?:word|wd|phrase)?|pwd|token|secret|credentials?|api[_-]?key|"
    r"(?:access|account|private|shared)[_-]?key)"
)
_LEAST = 6  # characters; shorter secrets occur in too many words that are none
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def known_secrets(uri: str = "") -> list[str]:
    """Return the secrets of `uri` and of the environment as it is now, the longest first."""
    known = {*_passwords(uri), *_environment_secrets(frozenset(os.environ.items()))}
    return sorted(known, key=len, reverse=True)


def redact(text: str, uri: str = "", *, known: Sequence[str] | None = None) -> str:
    """Return `text` with ``***`` in the place of secrets.

    These are passwords and tokens of `uri` and of any other address, what follows ``token=`` and
    the like, ``Authorization``, ``Cookie`` and ``X-Api-Key`` headers, and the values of environment
    variables whose names say that they are secret, such as ``MLFLOW_TRACKING_PASSWORD`` and
    ``AWS_SECRET_ACCESS_KEY``. For many texts at once `known_secrets` can be called once, and passed
    as `known`.
    """
    for secret in known_secrets(uri) if known is None else known:
        text = text.replace(secret, HIDDEN)
    text = _PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _USER_ONLY.sub(rf"\1{HIDDEN}@", text)
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    text = _OTHER_HEADER.sub(rf"\1\2{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _FIELD.sub(rf"\1\2\3{HIDDEN}\3", text)


@lru_cache(maxsize=1)
def _environment_secrets(environment: frozenset[tuple[str, str]]) -> set[str]:
    """Return the values of the variables whose names say that they are secret; no paths."""
    secrets = set()
    for name, value in environment:
        plain = value.strip()
        is_path = plain.startswith(("/", "~", "."))
        if len(plain) >= _LEAST and not is_path and _VARIABLE.fullmatch(name):
            secrets |= {value, plain, repr(plain)[1:-1], quote(plain, safe="")}
    variables = dict(environment)
    if password := variables.get("MLFLOW_TRACKING_PASSWORD"):
        secrets.add(_basic(variables.get("MLFLOW_TRACKING_USERNAME", ""), password))
    return secrets


def is_secret_name(name: str) -> bool:
    """Return whether what bears this name is a secret: ``api_key`` is one, ``tokenizer`` not."""
    return _SECRET_NAME.fullmatch(name) is not None


def printable(text: str) -> str:
    """Return text with control characters, and those that turn lines around, as escapes."""
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def one_line(text: object, limit: int = 200) -> str:
    """Return a text of others as one printable line of at most `limit` characters, no secrets."""
    line = printable(redact(str(text)[:10_000]))  # a node may send megabytes
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def trace(error: BaseException, secret: str = "") -> str:
    """Return an error with its traceback, for the log, without secrets, and without this one."""
    text = redact("".join(traceback.format_exception(error)))
    return text.replace(secret, HIDDEN) if secret else text


def _passwords(uri: str) -> list[str]:
    _, _, rest = uri.partition("://")
    user_info, at, _ = rest.partition("?")[0].rpartition("@")
    user, colon, password = user_info.partition(":")
    secret = password if colon else user if uri.lower().startswith("http") else ""
    if not at or not secret:
        return []
    return [secret, unquote(secret), _basic(unquote(user), unquote(password))]


def _basic(user: str, password: str) -> str:
    """Return the content of a basic authentication header; servers repeat it in their errors."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()
