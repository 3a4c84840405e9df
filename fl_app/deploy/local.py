# SPDX-License-Identifier: Apache-2.0
"""A deployment on this machine, from its start to its end, and `flwr`'s connection to it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from fl_app.deploy.errors import DeploymentError, explained
from fl_app.deploy.folder import Layout, Settings, check_data, generated_shares
from fl_app.deploy.keys import make_keys
from fl_app.deploy.processes import (
    HOST,
    Processes,
    StoppedError,
    environment,
    find,
    mlflow_server,
    require_free,
    superlink,
    supernode,
)
from fl_app.flower_internals import flower_home
from fl_registry.errors import require
from fl_registry.files.atomic import write_whole
from fl_registry.home import sqlite_address
from fl_registry.mlflow.address import check_address, kind_of
from fl_registry.redaction import one_line

START_SECONDS = 180.0  # MLflow creates its tables first
ONLINE_SECONDS = 240.0  # after a power failure, Flower refuses the SuperNodes' keys for a minute
NAME = "local-deployment"
_COMMAND_SECONDS = 90.0
_TABLE = rf"[ \t]*\[\s*superlink\s*\.\s*\"?{NAME}\"?\s*[.\]]"
_TABLES = re.compile(rf"^{_TABLE}.*\n?(?:^(?![ \t]*\[).*\n?)*", re.MULTILINE)
"""The connection's table and its sub-tables, each up to the next header."""


@dataclass(frozen=True)
class Deployment:
    """A deployment that is to run in a folder.

    Parameters
    ----------
    layout : Layout
        Paths of its files.
    settings : Settings
        Its options.
    say : Callable[[str], object]
        Takes one line for the user.
    ended : Event
        Set when all is to end.
    """

    layout: Layout
    settings: Settings
    say: Callable[[str], object]
    ended: Event

    def run(self) -> None:
        """Start all processes, keep them up until `ended` is set, and end them.

        Raises
        ------
        DeploymentError
            It cannot start; processes that had been started are ended.
        StoreUnavailable
            The database does not answer, or MLflow cannot use it.
        """
        config = []
        if self.settings.data:
            config.append('data="/absolute/path/of/the/holdout/data.yaml"')
            if not check_data(self.settings.data):
                config.append('unknown-classes="ignore-others"')
        self.layout.prepare()
        with self.layout.lock():
            processes = Processes(self.layout, self.say, self.ended)
            try:
                if left := find(self.layout.folder):
                    self.say(f"Ending {len(left)} processes of an earlier start.")
                    processes.stop()
                data = self._start(processes)
                self.say(self.instructions(data, config))
                processes.watch()
            except StoppedError:
                pass
            finally:
                self.say("Ending all processes.")
                processes.stop()

    def _start(self, processes: Processes) -> Sequence[str]:
        """Start all and wait until it answers; return the SuperNodes' data."""
        layout, settings = self.layout, self.settings
        require_free(settings.port, "--port")
        require_free(settings.mlflow_port, "--mlflow-port")
        if settings.database_url:
            _check_database(settings.database_url)
        make_keys(layout.keys.folder, nodes=settings.nodes)
        data = settings.data or generated_shares(layout, settings.nodes)
        layout.save(settings)
        self.say("Starting MLflow and the SuperLink.")
        database = settings.database_url or sqlite_address(layout.database)
        processes.start(mlflow_server(layout, settings.mlflow_port, database=database))
        processes.start(superlink(layout, settings.port, mlflow=self._mlflow))
        processes.wait_for(["superlink"], START_SECONDS)  # MLflow creates its tables meanwhile
        write_connection(f"{HOST}:{settings.port}", layout.keys.authority)
        ids = self._register()
        self.say("Starting the SuperNodes.")
        for number, file in enumerate(data, start=1):
            processes.start(supernode(layout, number, superlink_port=settings.port, data=file))
        names = [f"node-{number}" for number in range(1, settings.nodes + 1)]
        processes.wait_for(["mlflow", *names], START_SECONDS)

        def online() -> bool:
            states = _node_states()
            return all(states.get(one) == "online" for one in ids)

        processes.wait(online, ONLINE_SECONDS, "The connection of the SuperNodes")
        return data

    def _register(self) -> Sequence[str]:
        """Register the SuperNodes that the SuperLink does not have; return the ids of all."""
        states, ids = _node_states(), list(self.settings.node_ids)
        for index in range(self.settings.nodes):
            known = ids[index] if index < len(ids) else ""
            if states.get(known, "unregistered") == "unregistered":
                public_key = str(self.layout.keys.node(index + 1).public)
                reply = _flwr(
                    "supernode", "register", public_key, NAME, "--name", f"node-{index + 1}"
                )
                ids[index : index + 1] = [str(reply["node-id"])]
                self.layout.save(replace(self.settings, node_ids=tuple(ids)))
        return ids[: self.settings.nodes]

    @property
    def _mlflow(self) -> str:
        return f"http://{HOST}:{self.settings.mlflow_port}"

    def instructions(self, data: Sequence[str], config: Sequence[str]) -> str:
        """Return the addresses of the deployment, and the commands to use it.

        Parameters
        ----------
        data : Sequence[str]
            Each SuperNode's ``data.yaml``.
        config : Sequence[str]
            Settings that a run needs; none for generated pictures, of which the server has its own.
        """
        layout, start = self.layout, "uv run " if "UV" in os.environ else ""
        settings = f" --run-config '{' '.join(config)}'" if config else ""
        nodes = [f"  SuperNode {n}  {file}" for n, file in enumerate(data, start=1)]
        lines = [
            f"The deployment is up, in {layout.folder}:",
            f"  MLflow       {self._mlflow}",
            f"  SuperLink    {HOST}:{self.settings.port}, with TLS, for registered SuperNodes only",
            *nodes,
            f"  Logs         {layout.log('*')}",
            "In another terminal, in the app's folder:",
            f"  {start}flwr run . {NAME} --stream{settings}",
            f"  export FL_APP_HOME={shlex.quote(str(layout.home))}",
            f"  export FL_APP_MLFLOW_TRACKING_URI={self._mlflow}",
            f"  {start}fl-app status",
            "Ctrl-C ends all of it; the next start in this folder continues with its data.",
        ]
        return "\n".join(lines)


def _check_database(address: str) -> None:
    """Raise an error if MLflow cannot use a database, or the database does not answer."""
    if kind_of(address) == "http":
        raise DeploymentError(
            "--database-url is the address of a server; name the database that MLflow's own "
            "server shall use, such as postgresql+psycopg://user:password@host/database."
        )
    if kind_of(address) == "postgresql":
        require("A PostgreSQL database", "psycopg")
    check_address(address)


def write_connection(address: str, authority: Path) -> None:
    """Write the SuperLink into Flower's configuration as `NAME`; all else there stays as it is.

    Flower's own function would remove the user's comments.

    Parameters
    ----------
    address : str
        The SuperLink's host and port.
    authority : Path
        Certificate of the authority that issued the SuperLink's; absolute.

    Raises
    ------
    DeploymentError
        The file is not TOML, or cannot be written.
    """
    file = flower_home() / "config.toml"
    if not file.exists():
        _flwr("config", "list")  # writes Flower's defaults
    entries = {"address": address, "root-certificates": str(authority)}
    what = f"Flower's configuration {file}"
    with (
        explained(f"{what} cannot be written", "set FLWR_HOME to a folder that you may write to"),
        explained(f"{what} is not TOML", "correct it", tomllib.TOMLDecodeError),
    ):
        text = file.read_text("utf-8")
        if tomllib.loads(text).get("superlink", {}).get(NAME) != entries:
            lines = [f"{key} = {json.dumps(value)}" for key, value in entries.items()]
            others = _TABLES.sub("", text).rstrip()
            text = "\n".join([others, "", f"[superlink.{NAME}]", *lines, ""])
            write_whole(file, text.encode(), mode=file.stat().st_mode & 0o777)


def _node_states() -> dict[str, str]:
    """Return the state of each registered SuperNode by its id: ``online``, ``offline``, …"""
    nodes = _flwr("supernode", "list", NAME)["nodes"]
    return {str(node["node-id"]): str(node["status"]) for node in nodes}


def _flwr(*words: str) -> dict[str, Any]:
    """Run a `flwr` command and return its JSON output."""
    command = ["flwr", *words, "--format", "json"]
    try:
        done = subprocess.run(
            command,
            env=environment({"NO_COLOR": "1"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            start_new_session=True,
            check=False,
        )
        reply = json.loads(done.stdout[done.stdout.index("{") :])
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise DeploymentError(f"`{' '.join(command)}` failed ({type(error).__name__}).") from error
    if done.returncode or not reply.get("success", True):
        why = one_line(reply.get("error-message") or done.stderr, 400)
        raise DeploymentError(f"`{' '.join(command)}` failed: {why}")
    return dict(reply)
