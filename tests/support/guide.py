# SPDX-License-Identifier: Apache-2.0
"""Reading and running the user guide's snippets (guide_snippets.md) as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SNIPPETS = Path(__file__).with_name("guide_snippets.md")
Names = dict[str, Any]


def snippet(title: str, language: str = "python") -> str:
    """Return the code below a title."""
    pattern = rf"^## {title}\n[^#]*?^```{language}\n(.*?)^```"
    (code,) = re.findall(pattern, SNIPPETS.read_text(), re.DOTALL | re.MULTILINE)
    return str(code)


def run(title: str, given: Names, *, address: str = "") -> Names:
    """Run a snippet with the names that its reader has by then, and return all of them."""
    code = snippet(title)
    if address:  # the one thing that is the reader's own
        code = code.replace("http://localhost:5000", address)
    exec(compile(code, f"guide: {title}", "exec"), given)  # noqa: S102 - that is the test
    return given
