# SPDX-License-Identifier: Apache-2.0
"""The commands of `fl-app` that run the app, and end Flower's local SuperLink."""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Annotated, TextIO

import typer

from fl_app.cli.options import Json
from fl_app.cli.output import fail, print_json, say, show
from fl_registry.errors import require


def run(ctx: typer.Context) -> None:
    """Run `flwr run . --stream` with its options, and end with 1 if the run failed.

    If no other SuperLink is named, it starts Flower's local one if need be, for this environment.
    """
    from fl_app.deploy.local_superlink import LocalSuperLink, is_local
    from fl_app.flower_internals import run_flower

    named = ctx.args[0] if ctx.args and not ctx.args[0].startswith("-") else None
    if is_local(named):
        require("A run on one machine", "ray")
        LocalSuperLink.of_this_account().ensure(say)
    with redirect_stdout(_Watched(sys.stdout)) as printed:
        status = run_flower(["run", ".", "--stream", *ctx.args])
    if status:
        raise typer.Exit(status)
    # `flwr run --stream` ends with 0 even if the run failed; `flwr list` has the truth.
    with redirect_stdout(StringIO()) as listed:
        run_flower(["list", *([named] if named else []), "--run-id", printed.run])
    if "finished:completed" not in listed.getvalue():
        fail(f"Run {printed.run} did not complete; the reason is in the lines above.")


class _Watched(StringIO):
    """Passes on what Flower prints, line by line, and keeps the run's number."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self.run = ""

    def write(self, text: str) -> int:
        started = re.search(r"Successfully started run (\d+)", text)
        self.run = started.group(1) if started else self.run
        self._stream.write(text)
        self._stream.flush()
        return len(text)

    def isatty(self) -> bool:
        return self._stream.isatty()


def stop(
    *,
    force: Annotated[bool, typer.Option("--force", help="End a run in progress too.")] = False,
    as_json: Json = False,
) -> None:
    """End Flower's local SuperLink, which `fl-app run` and `flwr run` leave running."""
    from fl_app.deploy.local_superlink import LocalSuperLink, has_runs

    superlink = LocalSuperLink.of_this_account()
    process = superlink.process()
    if process is None:
        if superlink.answers():
            fail(superlink.foreign)
        _stopped(superlink.port, None, as_json=as_json)
        return
    if has_runs(process) and not force:
        fail(
            f"The SuperLink on port {superlink.port} (process {process.pid}) is busy with a run; "
            "wait for it, or end both with `fl-app stop --force`."
        )
    superlink.stop(process)
    _stopped(superlink.port, process.pid, as_json=as_json)


def _stopped(port: int, process: int | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"port": port, "process": process})
    elif process is None:
        show(f"No SuperLink of yours runs on port {port}.")
    else:
        show(f"The SuperLink on port {port} (process {process}) has ended.")
