# SPDX-License-Identifier: Apache-2.0
"""`fl-app`: the command with its verbs, each of which is imported when it is used.

Errors end it with one sentence and status 1.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

COMMANDS = {
    "status": (
        "status",
        "Show what is in Production, what waits for approval, and the requests to retrain.",
    ),
    "versions": ("versions", "List versions, newest first."),
    "compare": ("versions", "Show two versions side by side, and how they differ."),
    "promote": (
        "versions",
        "Move a version to Production (or Staging); the present one there is archived.",
    ),
    "approve": ("versions", "Move a version that waits for approval to Production."),
    "reject": ("versions", "Archive a version that waits for approval."),
    "archive": ("versions", "Archive a version that is not in Production."),
    "restore": (
        "versions",
        "Move an archived version back to Staging; the present one there is archived.",
    ),
    "rollback": ("versions", "Move the version that was in Production before back to Production."),
    "prune": (
        "versions",
        "Remove old versions that were never in Production, or print which would be removed.",
    ),
    "acknowledge": (
        "versions",
        "Record that the files of a version are lost and that this is known; `doctor` ends with 0.",
    ),
    "card": (
        "versions",
        "Write a version's model card in Markdown, from what registry and journal know.",
    ),
    "export": (
        "yolo",
        "Write a version to a file for Ultralytics, which needs no fl-app to use it.",
    ),
    "evaluate": (
        "yolo",
        "Score a version on another data set, as sessions score it on the server's.",
    ),
    "trigger": (
        "requests",
        "Request a retraining session; a server that waits starts it, else the next run.",
    ),
    "history": ("requests", "List requests to retrain with their outcomes, newest last."),
    "recover": (
        "recover",
        "List sessions that are not over; hand one's rounds to MLflow, or discard it.",
    ),
    "ui": ("pages", "Open MLflow's own page on the app's store, until Ctrl-C."),
    "run": (
        "runs",
        "Run `flwr run . --stream` with its options, and end with 1 if the run failed.",
    ),
    "stop": (
        "runs",
        "End Flower's local SuperLink, which `fl-app run` and `flwr run` leave running.",
    ),
    "doctor": (
        "doctor",
        "Check store, ledger, weights, disk, clock and versions; ends with 1 if something is "
        "wrong.",
    ),
    "serve": (
        "pages",
        "Serve the status page and the API until Ctrl-C; requests wait for the next run.",
    ),
    "people": ("pages", "Make and revoke the tokens of people who use the page and the API."),
    "deploy-local": (
        "deploy",
        "MLflow, a SuperLink with TLS and its SuperNodes on this machine, until Ctrl-C.",
    ),
    "keys": (
        "deploy",
        "Create a SuperLink's certificate and its SuperNodes' keys, if they are missing.",
    ),
    "supernode": (
        "deploy",
        "Flower's SuperNode, with torch and Ultralytics loaded before the first message.",
    ),
    "home": ("home", "Check the app's folder, or move it."),
}
"""By name: the module in `fl_app.cli`, and the first sentence of the function's docstring."""
LASTING = {"deploy-local", "run", "serve", "supernode", "ui"}
"""Commands that go on until they are ended."""
HELP = {"help_option_names": ["-h", "--help"]}
"""For all commands."""
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands whose arguments are Flower's."""


def load(name: str) -> Any:
    """Return a command, with what it imports."""
    function = getattr(import_module(f"fl_app.cli.{COMMANDS[name][0]}"), name.replace("-", "_"))
    if isinstance(function, typer.Typer):
        return _with_help(get_command(function))
    alone = typer.Typer(add_completion=False)
    settings = PASSED_ON if name in ("run", "supernode") else {}
    alone.command(name, context_settings={**HELP, **settings})(function)
    return _with_help(get_command(alone))


def _with_help(command: Any) -> Any:
    """Return a command whose arguments have their help: Typer loses it with a Click from 8.5 on."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _with_help(each)
        return command
    own = inspect.signature(command.callback, eval_str=True).parameters
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            annotated: Any = own[parameter.name].annotation
            parameter.help = annotated.__metadata__[0].help
    return command


class Commands(TyperGroup):
    """Lists all commands, and imports the one that is used: `--help` needs none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return what the list shows of a command."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is used."""
        try:
            name, command, left = super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], COMMANDS) if args else []
            if not near:
                raise
            sentence = f"No such command {args[0]!r}; did you mean {' or '.join(near)}?"
            raise click.UsageError(sentence, ctx) from error
        return name, command and load(str(name)), left


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,  # they would show variables, and passwords among them
)


def _show_versions(wanted: bool) -> None:
    if wanted:
        from fl_app.cli.output import say

        say(", ".join(f"{name} {version(name)}" for name in ("fl-app", "flwr", "mlflow")))
        raise typer.Exit


@app.callback()
def _of_all_commands(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_versions, is_eager=True, help="Show versions."),
    ] = False,
) -> None:
    """The lifecycle of a federated model: versions, stages, retraining, deployment."""


def program() -> None:
    """Run the command line in a process of its own.

    The garbage collector is off, but for commands that go on: a million objects of MLflow's import
    stay to the end, and to look through them takes a second of three.
    """
    if not LASTING.intersection(sys.argv[1:2]):
        gc.disable()
        atexit.register(gc.freeze)  # nor does Python look through them as it ends
    main()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if any(not word.isascii() and re.search("[\ud800-\udfff]", word) for word in words):
        # Python's stand-ins for bytes that are no text; databases refuse them.
        from fl_app.cli.output import fail

        fail("An argument is not UTF-8; type it again, or set LANG to a UTF-8 locale.")
    try:
        app(words, prog_name="fl-app")
    except Exception as error:
        from fl_app.cli.output import fail
        from fl_app.deploy.errors import DeploymentError
        from fl_app.retraining.memory.errors import MonitorStoreError, memory_errors
        from fl_registry import RegistryError

        if isinstance(error, RegistryError | MonitorStoreError | DeploymentError):
            fail(str(error))
        if isinstance(error, memory_errors()):
            fail(
                f"The monitor's database does not answer ({type(error).__name__}); check --monitor."
            )
        if isinstance(error, OSError):
            what = f"{error.filename}: " if error.filename else ""
            fail(f"{what}{error.strerror or type(error).__name__}.")
        raise
