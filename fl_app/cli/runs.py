# SPDX-License-Identifier: Apache-2.0
"""The commands of `fl-app` that run the app, and end Flower's local SuperLink."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Annotated

import typer

from fl_app.cli.options import Json
from fl_app.cli.output import fail, print_json, say, show
from fl_registry.errors import require


def run(ctx: typer.Context) -> None:
    """Run `flwr run . --stream` with its options, and end with 1 if the run failed.

    If no other SuperLink is named, it starts Flower's local one if need be, for this environment.
    """
    from fl_app.deploy.local_superlink import LocalSuperLink, is_local
    from fl_app.deploy.processes import environment, program

    named = ctx.args[0] if ctx.args and not ctx.args[0].startswith("-") else None
    if is_local(named):
        require("A run on one machine", "ray")
        LocalSuperLink.of_this_account().ensure(say)
    flwr, env = program("flwr"), environment({})
    command = [flwr, "run", ".", "--stream", *ctx.args]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        run_id = ""
        for line in process.stdout or ():
            sys.stdout.write(line)
            sys.stdout.flush()
            started = re.search(r"Successfully started run (\d+)", line)
            run_id = started.group(1) if started else run_id
    if process.returncode:
        raise typer.Exit(process.returncode)
    # `flwr run --stream` ends with 0 even if the run failed; `flwr list` has the truth.
    listed = [flwr, "list", *([named] if named else []), "--run-id", run_id]
    status = subprocess.run(listed, env=env, capture_output=True, text=True, check=False).stdout
    if "finished:completed" not in status:
        fail(f"Run {run_id} did not complete; the reason is in the lines above.")


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
