# SPDX-License-Identifier: Apache-2.0
"""The commands of `fl-app home`: is the app's folder its own, and its move to another place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fl_app.cli.options import Json, Uri
from fl_app.cli.output import facts, note, print_json, say, show
from fl_registry.home import app_home

if TYPE_CHECKING:
    from fl_registry.mlflow.home import HomeState

MAX_NAMED = 5
"""Files that are named; more are counted."""

home = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Check the app's folder, or move it."
)


@home.command()
def check(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="First note in MLflow that the home was moved here.")
    ] = False,
    uri: Uri = "",
    as_json: Json = False,
) -> None:
    """Check that the home has the files that its store names, and uses no others."""
    from fl_registry.mlflow.connection import Connection
    from fl_registry.mlflow.home import look

    connection = Connection(uri or None, app_home())
    if repair and (changed := connection.settle()):
        note(f"{changed} locations in MLflow name this folder now.")
    state = look(connection)
    rows = {"folder": _folder(state), "files": _files(state), "links": _links(state)}
    if as_json:
        print_json(asdict(state))
    else:
        told = (("ok" if ok else "WRONG", name, why) for name, (ok, why) in rows.items())
        show(facts(told))
    raise typer.Exit(0 if all(ok for ok, _ in rows.values()) else 1)


@home.command()
def move(
    to: Annotated[str, typer.Argument(help="The new folder; it must not exist, or be empty.")],
    *,
    uri: Uri = "",
    as_json: Json = False,
) -> None:
    """Move the home to another folder, and tell MLflow where its files are then."""
    from fl_registry.mlflow.home import move_home

    moved = move_home(uri or None, app_home(), Path(to))
    if as_json:
        print_json({"home": str(moved.home)})
        return
    say(f"The home is {moved.home} now; use it with: export FL_APP_HOME={quote(str(moved.home))}")


def _folder(state: HomeState) -> tuple[bool, str]:
    if state.served is not None:
        return True, (
            f"MLflow's server has its files in {state.served}; to move the home, end the server, "
            "and give `fl-app home move` its database as --tracking-uri"
        )
    if state.now is None:
        return True, "MLflow has no files in this home"
    if state.noted == state.now:
        return True, f"MLflow has its files in {state.now}"
    return False, (
        f"MLflow has noted its files in {state.noted}, those in {state.now} are used; if the home "
        "was copied or moved here, `fl-app home check --repair` notes that"
    )


def _files(state: HomeState) -> tuple[bool, str]:
    if state.now is None:
        return True, "`fl-app doctor --deep` asks the server for them" if state.served else "none"
    wrong = []
    if state.missing:
        wrong.append(f"missing, restore them from a backup: {_named(state.missing)}")
    if state.outside:
        wrong.append(f"outside of the folder, so not used: {_named(state.outside)}")
    return not wrong, "; ".join(wrong) or f"those of {state.versions} versions are there"


def _links(state: HomeState) -> tuple[bool, str]:
    if not state.links:
        return True, "none leads out of the home"
    return False, f"a copy would share what these lead to: {_named([*map(str, state.links)])}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
