# SPDX-License-Identifier: Apache-2.0
"""Each line of the table of what people and nodes can do names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHO = {
    "one node of ten",
    "three nodes of ten",
    "a local user of the server",
    "somebody on the network",
    "a person with the token",
}


def rows() -> list[list[str]]:
    """The cells of the table's lines."""
    text = (ROOT / "docs/security.md").read_text("utf-8")
    part = text.partition("## What each of them can do")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def names_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_everybody_has_lines_with_both_settings() -> None:
    assert {row[0] for row in rows()} == WHO
    assert all(len(row) == 5 and all(row) for row in rows())


def test_each_line_names_a_test_that_exists() -> None:
    for row in rows():
        found = re.fullmatch(r"`(tests/\S+\.py)::(test_\w+)`", row[4])
        assert found is not None, row
        assert found[2] in names_of(found[1]), row[4]
