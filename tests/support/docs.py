# SPDX-License-Identifier: Apache-2.0
"""The pages for users and the code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    """Return the text of a page in docs, or of the README."""
    return (ROOT / name if name == "README.md" else ROOT / "docs" / name).read_text()


def blocks(text: str, language: str = "python") -> list[str]:
    """Return the fenced blocks of a text, without an item's indent."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def block(name: str, within: str, language: str = "python") -> str:
    """Return the one block of a page that has a text in it."""
    (found,) = [code for code in blocks(page(name), language) if within in code]
    return found


def run_block(name: str, within: str) -> dict[str, Any]:
    """Run the one Python block of a page that has a text in it; return its names."""
    names: dict[str, Any] = {}
    exec(compile(block(name, within), name, "exec"), names)  # noqa: S102 - our own page
    return names
