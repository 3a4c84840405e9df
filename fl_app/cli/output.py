# SPDX-License-Identifier: Apache-2.0
"""What commands of `fl-app` print, how they fail, and the signals that end them."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from threading import Event
from typing import NoReturn

from rich import markup
from rich.console import Console
from rich.table import Table

from fl_registry.redaction import printable

console = Console(highlight=False)


def table(*columns: str, no_wrap: tuple[str, ...] = ()) -> Table:
    """Return an empty table without lines; without columns it has no header either."""
    made = Table(box=None, pad_edge=False, show_header=bool(columns))
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column in no_wrap)
    return made


def escape(text: str) -> str:
    """Return text from outside as it is, for a terminal: no markup and no control characters."""
    return markup.escape(printable(text))


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
    sys.stderr.write(f"{printable(sentence)}\n")
    raise SystemExit(1)
