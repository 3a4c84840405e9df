# SPDX-License-Identifier: Apache-2.0
"""What the pages show of single versions: one version, two side by side, and the whole list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from fl_app.api.endpoint import Context
from fl_app.api.parsing import ApiError, Query, Version
from fl_app.api.registry import Day
from fl_app.versions.tags import Node, read_gates, read_nodes, read_rejected
from fl_app.versions.texts import Row, last_moves, score_metric
from fl_registry import RegistryError
from fl_registry.stages import Move

A_PAGE = 50
MOST_SORTED = 10_000
"""Versions that are read to sort them by their score."""
PICTURE_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
FIRST_PICTURES = ("predictions.png", "drift.png", "metrics.png")
"""What is looked for most, before the others."""


class VersionPageQuery(Query):
    """Which version."""

    version: Version


class PictureQuery(Query):
    """Which picture of which version's run."""

    version: Version
    name: str = Field(max_length=160)


class ComparePageQuery(Query):
    """Which two versions."""

    first: Version
    second: Version


class ListQuery(Query):
    """Which versions, in which order, and which part of the list."""

    stage: Literal["", "None", "Staging", "Production", "Archived"] = ""
    since: Literal[""] | Day = ""
    sort: Literal["newest", "oldest", "best", "worst"] = "newest"
    page: int = Field(1, ge=1, le=10_000)


def class_scores(row: Row) -> dict[str, float]:
    """Return the score of each class, which its metric's name is followed by."""
    start = f"{score_metric(row)}/"
    metrics = row["metrics"]
    return {n.removeprefix(start): v for n, v in metrics.items() if n.startswith(start)}


def other_metrics(row: Row) -> dict[str, float]:
    """Return the metrics that are none of a class."""
    start = f"{score_metric(row)}/"
    return {name: value for name, value in row["metrics"].items() if not name.startswith(start)}


def version_values(context: Context, version: str) -> dict[str, Any]:
    """Return what the page of a version shows."""
    with context.registry() as store:
        with store.one_reading():
            row = store.get_version(version).as_row()
            moves = store.allowed_moves(version)
            production = store.get_latest_version("Production")
            newest = store.get_latest_version()
        entries = store.history()
        links = store.links(version)
        pictures, problem = _pictures(store, version)
    pending = row["stage"] == "Staging" and row["tags"].get("approval") == "pending"
    return {
        "row": row,
        "entries": [e for e in entries if e.version == version],
        "moves_of": last_moves(entries),
        "nodes": read_nodes(row["tags"]),
        "gates": read_gates(row["tags"]),
        "rejected": read_rejected(row["tags"]),
        "classes": class_scores(row),
        "metrics": other_metrics(row),
        "moves_now": ["approve", "reject"] if pending else [str(move) for move in moves],
        "production": production if production != version else None,
        "newest": newest,
        "links": links,
        "pictures": pictures,
        "pictures_problem": problem,
    }


def _pictures(store: Any, version: str) -> tuple[Sequence[str], str]:
    """Return the pictures of a version's run, or why they cannot be listed."""
    try:
        names = store.pictures(version)
    except RegistryError as error:
        return (), str(error)
    first = [name for name in FIRST_PICTURES if name in names]
    return [*first, *(name for name in names if name not in first)], ""


def compare_values(context: Context, first: str, second: str) -> dict[str, Any]:
    """Return what the comparison of two versions shows."""
    with context.registry() as store:
        result = store.compare_versions(first, second)
        pictures = [_pictures(store, version)[0] for version in (first, second)]
    sides = [result["version1"], result["version2"]]
    return {
        "sides": sides,
        "metrics": list(_beside(*map(other_metrics, sides))),
        "classes": list(_beside(*map(class_scores, sides))),
        "nodes": list(_node_rows(*(read_nodes(side["tags"]) for side in sides))),
        "params": result["params"],
        "data": result["data"],
        "architecture": result["architecture"],
        "paired": result["paired"],
        "pictures": [name for name in pictures[0] if name in pictures[1]],
        "same_run": bool(sides[0]["run_id"]) and sides[0]["run_id"] == sides[1]["run_id"],
    }


def _beside(
    one: Mapping[str, float], two: Mapping[str, float]
) -> Iterator[tuple[str, float | None, float | None, float | None]]:
    for name in {**one, **two}:
        a, b = one.get(name), two.get(name)
        yield name, a, b, b - a if a is not None and b is not None else None


def _node_rows(
    one: Sequence[Node], two: Sequence[Node]
) -> Iterator[tuple[str, float | None, float | None, str]]:
    first, second = ({node["node_id"]: node for node in side} for side in (one, two))
    for node_id in {**first, **second}:
        a, b = first.get(node_id), second.get(node_id)
        data = ""
        digests = a and a.get("data_digest"), b and b.get("data_digest")
        if all(digests):
            data = "the same data" if digests[0] == digests[1] else "other data"
        yield node_id, a["num_examples"] if a else None, b["num_examples"] if b else None, data


def list_values(context: Context, query: ListQuery) -> dict[str, Any]:
    """Return a part of the list of versions."""
    start, stop = (query.page - 1) * A_PAGE, query.page * A_PAGE
    given = {"stage": query.stage or None, "since": query.since or None}
    with context.registry() as store:
        in_order = query.sort == "newest"
        rows = store.list_versions(limit=stop + 1 if in_order else MOST_SORTED, **given)
        if query.sort == "oldest":
            rows = rows[::-1]
        elif not in_order:
            scored = [row for row in rows if _score(row) is not None]
            scored.sort(key=_score, reverse=query.sort == "best")  # type: ignore[arg-type]
            rows = scored + [row for row in rows if _score(row) is None]
        moves = last_moves(store.history())
    return {
        "rows": rows[start:stop],
        "moves_of": moves,
        "query": query,
        "more": len(rows) > stop,
        "first": start + 1,
    }


def _score(row: Row) -> float | None:
    value = row["metrics"].get(score_metric(row))
    return None if value is None else float(value)


def picture_of(context: Context, query: PictureQuery) -> tuple[bytes, str]:
    """Return a picture and its media type, which its first bytes name."""
    with context.registry() as store:
        content = store.picture(query.version, query.name)
    for head, kind in PICTURE_TYPES.items():
        if content.startswith(head):
            return content, kind
    raise ApiError(404, "That file is no picture.")


MOVE_WORDS: Mapping[str, tuple[str, str]] = {
    "approve": ("Approve", "it goes to Production, and what is there is archived"),
    "reject": ("Reject", "it is archived"),
    str(Move.PROMOTE): ("Promote", "it goes to Production, and what is there is archived"),
    str(Move.STAGE): ("To Staging", "it goes to Staging, and what is there is archived"),
    str(Move.RESTORE): ("Restore", "it goes back to Staging, and what is there is archived"),
    str(Move.ROLLBACK): ("Roll back", "it goes back to Production, and what is there is archived"),
    str(Move.ARCHIVE): ("Archive", "it is not served and not compared any more"),
}
"""What a person may do with a version: the word, and what becomes of it."""
