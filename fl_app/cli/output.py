# SPDX-License-Identifier: Apache-2.0
"""What commands of `fl-app` print, how they fail, and the signals that end them.

A terminal gets tables that fit its width. A program gets one line a row, its cells between tabs.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import NoReturn

from rich import table
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from fl_registry.redaction import printable

TEXT_WIDTH = 28
"""Columns that a text gets at least, if it is that long."""
GAP = 2
"""Spaces between two columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
        Its head.
    drop : int
        Columns with the highest number are the first to be left out of a narrow terminal; 0 stays.
    text : bool
        Whether its cells may be folded.
    """

    name: str
    drop: int = 0
    text: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of texts.

    Attributes
    ----------
    columns : Sequence[Column]
        Its columns.
    rows : Sequence[Sequence[str]]
        A text for each column.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def lines(self) -> Iterable[str]:
        """Return a line for each row, with all columns and a tab between them."""
        return ("\t".join(map(printable, row)) for row in self.rows)

    def fitted(self, width: int) -> RenderableType:
        """Return the table for a terminal, with the columns for which there is room.

        If even those that always stay are too wide, each row becomes a line, and its texts follow.
        """
        shown = list(range(len(self.columns)))
        for drop in sorted({column.drop for column in self.columns} - {0}, reverse=True):
            if self._width(shown) > width:
                shown = [place for place in shown if self.columns[place].drop != drop]
        if self._width(shown) > width:
            return self._stacked(shown)
        heads = any(column.name for column in self.columns)
        made = table.Table(box=None, pad_edge=False, show_header=heads)
        for column in (self.columns[place] for place in shown):
            made.add_column(column.name, no_wrap=not column.text, overflow="fold")
        for row in self.rows:
            made.add_row(*(Text(printable(row[place])) for place in shown))
        return made

    def _width(self, shown: Sequence[int]) -> int:
        total = GAP * (len(shown) - 1)
        for place in shown:
            column = self.columns[place]
            longest = max(cell_len(printable(text)) for text in self._cells(place))
            total += min(longest, TEXT_WIDTH) if column.text else longest
        return total

    def _cells(self, place: int) -> list[str]:
        return [self.columns[place].name, *(row[place] for row in self.rows)]

    def _stacked(self, shown: Sequence[int]) -> RenderableType:
        texts = [place for place in shown if self.columns[place].text]
        parts: list[RenderableType] = []
        for row in self.rows:
            cells = [printable(row[place]) for place in shown if place not in texts]
            parts.append(Text((" " * GAP).join(filter(None, cells)), overflow="fold"))
            for place in texts:
                head = f"{self.columns[place].name}: " if len(texts) > 1 else ""
                if row[place]:
                    text = Text(f"{head}{printable(row[place])}", overflow="fold")
                    parts.append(Padding(text, (0, 0, 0, GAP)))
        return Group(*parts)


def facts(rows: Iterable[Sequence[str]]) -> Table:
    """Return a table without heads whose last column is a text."""
    listed = list(rows)
    most = max(map(len, listed), default=1)
    return Table([*[Column("")] * (most - 1), Column("", text=True)], listed)


class Raw(str):
    """A text of many lines that is printed as it is."""

    __slots__ = ()


Part = str | Table
"""A part of what a command prints: a line, a table, or a `Raw` text."""


def show(*parts: Part) -> None:
    """Print lines and tables, for a terminal or for a program."""
    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        if isinstance(part, Raw):
            sys.stdout.write(part)
        elif console.is_terminal and isinstance(part, Table):
            console.print(part.fitted(console.width))
        elif console.is_terminal and isinstance(part, str):
            console.print(Text(printable(part), overflow="fold"))
        else:
            lines = [printable(part)] if isinstance(part, str) else part.lines()
            sys.stdout.writelines(f"{line}\n" for line in lines)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    sys.stdout.write(f"{json.dumps(value, indent=1, default=str)}\n")


def say(line: str) -> None:
    """Print a line at once."""
    with suppress(OSError):  # a terminal that was closed must not keep a command from cleaning up
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def note(line: str) -> None:
    """Print a line beside the output, where programs do not read it."""
    sys.stderr.write(f"{printable(line)}\n")


def stop_signals(*numbers: signal.Signals) -> Event:
    """Return an event that is set when this process gets one of these signals."""
    stopped = Event()
    for number in numbers:
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def fail(sentence: str) -> NoReturn:
    """End the command with a sentence and status 1."""
    sys.stderr.write(f"{printable(in_commands(sentence))}\n")
    raise SystemExit(1)


_VERSION = r"""\(['"]?(\w+)['"]?\)"""
IN_COMMANDS = {
    re.compile(rf"restore_version{_VERSION}"): r"`fl-app restore \1`",
    re.compile(r"list_all_versions\(\) returns"): "`fl-app versions` lists",
    re.compile(r"promote_to_staging\b(?!\()"): "`fl-app promote VERSION --to staging`",
    re.compile(r"name (one|a version) with to="): r"name \1 with --to",
    re.compile(r"save one with save_model_version\(\)"): "`fl-app run` makes some",
    # What no command does.
    re.compile(
        r"(?<![.\w])(save_model_version|load_arrays|adopt|compress_version|load_production_model)\b"
        r"(?:\(\))?"
    ): r"ModelManager.\1 in Python",
}
"""What errors of the registry call a function of Python is a command here."""


def in_commands(sentence: str) -> str:
    """Return an error's sentence with commands in the place of Python's functions."""
    for call, command in IN_COMMANDS.items():
        sentence = call.sub(command, sentence)
    return sentence
