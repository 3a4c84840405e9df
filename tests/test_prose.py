# SPDX-License-Identifier: Apache-2.0
"""Sentences are short: in the README, in docs, in help texts and in messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import click
import pytest
from test_house import MODULES

from fl_app.cli.main import COMMANDS, load

ROOT = Path(__file__).parents[1]
LONGEST, MEAN = 35, 16
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
SAID = {"debug", "info", "warning", "error", "exception", "critical", "say", "fail", "Verdict"}
"""Functions whose texts a person reads: of a logger, of the command line, and gates' reasons."""


def sentences(text: str) -> list[str]:
    """The sentences of paragraphs: one ends at a full stop, a question mark or the paragraph."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        parts = re.split(r"(?<=[.!?])[)\"'*_]*\s+(?=[\"'(*_\[]*[A-Z0-9\[])", paragraph)
        found += [" ".join(part.split()) for part in parts if re.search(r"\w", part)]
    return found


def words(sentence: str) -> int:
    return len(re.findall(r"\S*\w\S*", sentence))


def prose(markdown: str) -> str:
    """A page without code, tables, headings, pictures and addresses; an item is a paragraph."""
    text = re.sub(r"^---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^( *)(```|~~~).*?^\1\2 *$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "\n", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"``.+?``|`[^`]+`", "X", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^ *(\||#|:::|\[[^\]]+\]:|<).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^ *([-*+]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    return re.sub(r"^(!!!|\?\?\?|> ?)", "\n", text, flags=re.MULTILINE)


def literal(node: ast.expr) -> str:
    """The text of a string in the source, with a word in place of each value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(\.\d+)?[sdrfg]", "X", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(v) if isinstance(v, ast.Constant) else "X" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{literal(node.left) or 'X'}{literal(node.right) or 'X'}"
    return ""


def name_of(function: ast.expr) -> str:
    """The last part of a called name."""
    return str(getattr(function, "attr", getattr(function, "id", "")))


def messages() -> Iterator[tuple[str, str]]:
    """What is logged, what errors say and what commands print, with the file and line."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts = node.exc.args
            elif isinstance(node, ast.Call) and name_of(node.func) in SAID:
                texts = node.args
            else:
                continue
            for text in texts:
                yield f"{module}:{text.lineno}", literal(text)


def helps(command: click.Command, name: str = "fl-app") -> Iterator[tuple[str, str]]:
    """The help of a command, of what it takes, and of the commands in it."""
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
    for sub in getattr(command, "commands", {}).values():
        yield from helps(sub, f"{name} {sub.name}")


def too_long(texts: list[tuple[str, str]]) -> list[str]:
    """Each sentence over the limit, with where it is and its number of words."""
    found = [(where, words(s), s) for where, text in texts for s in sentences(text)]
    return [f"{where}: {n} words: {s}" for where, n, s in found if n > LONGEST]


def mean_length(texts: list[tuple[str, str]]) -> float:
    return mean([words(s) for _, text in texts for s in sentences(text)] or [0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_written_in_short_sentences(page: Path) -> None:
    texts = [(page.name, prose(page.read_text()))]
    assert too_long(texts) == []
    assert mean_length(texts) <= MEAN


def test_messages_are_short() -> None:
    texts = list(messages())
    assert len(texts) > 300
    assert too_long(texts) == []
    assert mean_length(texts) <= MEAN


def test_help_texts_are_short() -> None:
    texts = [text for name in COMMANDS for text in helps(load(name), f"fl-app {name}")]
    assert len(texts) > 50
    assert too_long(texts) == []
    assert mean_length(texts) <= MEAN


def test_a_sentence_is_measured_without_its_code() -> None:
    page = "# Title\n\nRun `a b c`. Then\nlook.\n\n- one thing\n- [two](x.md) and `q`\n\n"
    page += "```bash\nx\n```\n"
    assert sentences(prose(page)) == ["Run X.", "Then look.", "one thing", "two and X"]
    assert too_long([("here", "word " * 36)]) == [f"here: 36 words: {('word ' * 36).strip()}"]
