# SPDX-License-Identifier: Apache-2.0
"""Secrets that must never be seen again, and where to look for them."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

USER = "ada"
PASSWORD = "canary-of-the-address/1"  # noqa: S105 - what must never be seen
CANARIES = {
    "MLFLOW_TRACKING_TOKEN": "canary-tracking-token-2",
    "MLFLOW_TRACKING_PASSWORD": "canary-tracking-password-3",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+secret/4",
    "AWS_SESSION_TOKEN": "canary-aws-session-5",
    "FL_APP_API_TOKEN": "canary-api-token-from-env-6",
    "FL_APP_WEBHOOK_SECRET": "canary-webhook-secret-from-env-7",
    "PGPASSWORD": "canary-postgres-8",
}
IN_QUERY, IN_FILE, IN_PATH = "canary-in-a-query-9", "canary-token-of-a-file-10", "canary-path-11"
ALL = (PASSWORD, *CANARIES.values(), IN_QUERY, IN_FILE, IN_PATH)


def address(scheme: str, where: str, *, query: str = "") -> str:
    """An address with a user and a password in it."""
    return f"{scheme}://{USER}:{quote(PASSWORD, safe='')}@{where}{query}"


def found_in(text: str | bytes, canaries: Iterable[str] = ALL) -> list[str]:
    """The canaries in a text, as they are or as headers and addresses write them."""
    content = text.encode() if isinstance(text, str) else text
    return [
        canary
        for canary in canaries
        if any(
            form.encode() in content for form in {canary, quote(canary, safe=""), *_coded(canary)}
        )
    ]


def files_with(folder: Path, canaries: Iterable[str] = ALL) -> list[str]:
    """The files below a folder that hold a canary, or are called so."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if found_in(str(path), canaries)
        or (path.is_file() and found_in(path.read_bytes(), canaries))
    ]


def everything_of(error: BaseException | None) -> str:
    """Return all that an error and what led to it say, hidden or not."""
    seen: list[BaseException] = []
    texts = []
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        texts += [str(one), repr(one), repr(one.args), *getattr(one, "__notes__", [])]
        todo += [one.__cause__, one.__context__]
    return "\n".join([*texts, "".join(traceback.format_exception(error))] if error else texts)


def _coded(canary: str) -> set[str]:
    return {base64.b64encode(f"{user}:{canary}".encode()).decode() for user in ("", USER)}
