# SPDX-License-Identifier: Apache-2.0
"""`fl-app doctor` as a command; what it looks at is in `fl_app.cli.checks`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_app.cli.checks import examine, mend
from fl_app.cli.options import DEFAULT_NAME, Json, Monitor, Name, Uri
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.store import default_url
from fl_registry import ModelManager, app_home
from fl_registry.redaction import printable

Repair = Annotated[
    bool, typer.Option("--repair", help="First remove leftovers, and bring aliases in line.")
]
Deep = Annotated[bool, typer.Option("--deep", help="Check the weights of all versions.")]


def doctor(
    *,
    repair: Repair = False,
    deep: Deep = False,
    uri: Uri = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Check store, ledger, weights, disk, clock and versions; ends with 1 if something is wrong."""
    manager = ModelManager(uri or None, name)
    checks = mend(manager) if repair else []
    checks += examine(
        manager, lambda: MonitorStore(monitor or default_url(app_home()), name), deep=deep
    )
    if as_json:
        rows = [check.as_row() for check in checks]
        sys.stdout.write(f"{json.dumps(rows, indent=1)}\n")
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for check in checks:
            said = escape(printable(check.detail))
            table.add_row("ok" if check.ok else "WRONG", check.name, said)
        Console(highlight=False).print(table)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)
