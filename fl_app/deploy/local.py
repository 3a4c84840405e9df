# SPDX-License-Identifier: Apache-2.0
"""The deployment on this machine, from start to end: the one place that joins its parts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import SIGINT
from threading import Event

from fl_app.deploy.data import checked, generated_shares
from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.flower_cli import NAME, Connection
from fl_app.deploy.folder import Layout, Settings
from fl_app.deploy.keys import make_keys
from fl_app.deploy.postgres import cluster, require_driver
from fl_app.deploy.services import (
    HOST,
    free_port,
    mlflow_server,
    require_free,
    superlink,
    supernode,
)
from fl_app.deploy.supervisor import Processes, StoppedError, end, find
from fl_registry import StoreUnavailable
from fl_registry.mlflow.address import check_address, kind_of

START_SECONDS = 180.0
"""How long a process may take to answer: MLflow makes its tables first."""
ONLINE_SECONDS = 240.0
"""How long SuperNodes may take; those of a machine that went down wait for a minute."""

_ORDER = ("node-*", "superlink", "mlflow", "*")  # SuperNodes take their leave of the SuperLink


@dataclass(frozen=True)
class Deployment:
    """A deployment that is to run in a folder.

    Parameters
    ----------
    layout : Layout
        Where it keeps what.
    settings : Settings
        What was chosen.
    say : Callable[[str], object]
        Takes one line for whoever looks on.
    ended : Event
        Set when all is to end.
    """

    layout: Layout
    settings: Settings
    say: Callable[[str], object]
    ended: Event

    def run(self, database_url: str = "") -> None:
        """Start all, keep it up until the end is asked for, and end all.

        Parameters
        ----------
        database_url : str
            A database that is there; empty: that of the start before, else PostgreSQL in the
            folder.

        Raises
        ------
        DeploymentError
            It cannot start; what had been started is ended.
        """
        classes = checked(self.settings.data) if self.settings.data else ()
        self.layout.prepare()
        with self.layout.lock():
            processes = Processes(self.layout, self.say, self.ended)
            try:
                self._end_leftovers()
                data = self._start(processes, database_url)
                self.say(self.told(data, classes))
                processes.watch()
            except StoppedError:
                pass
            finally:
                self.say("Ending all processes.")
                processes.stop()

    def _start(self, processes: Processes, database_url: str) -> Sequence[str]:
        """Start all and wait until it is well; return the SuperNodes' data."""
        layout, chosen = self.layout, self.settings
        require_free(chosen.port, "--port")
        require_free(chosen.mlflow_port, "--mlflow-port")
        make_keys(layout.keys.folder, nodes=chosen.nodes)
        data = chosen.data or generated_shares(layout, chosen.nodes)
        database = self._database(processes, database_url)
        layout.keep(chosen)
        self.say("Starting MLflow and the SuperLink.")
        processes.start(mlflow_server(layout, chosen.mlflow_port, database=database))
        processes.start(superlink(layout, chosen.port, mlflow=self._mlflow))
        processes.wait_for(["superlink"], START_SECONDS)  # MLflow makes its tables meanwhile
        connection = Connection(f"{HOST}:{chosen.port}", layout.keys.authority.absolute())
        connection.write()
        self._start_nodes(processes, connection, data)
        return data

    def _database(self, processes: Processes, given: str) -> str:
        """Return the database's address, once PostgreSQL runs if it is the deployment's own."""
        address = given or self.layout.secret("database-url")
        if address:
            _require_database(address)
            self.layout.keep_secret("database-url", address)
            return address
        self.say("Starting PostgreSQL.")
        own = cluster(self.layout, free_port())
        processes.start(own.service())
        processes.wait_for(["postgres"], START_SECONDS)
        own.create_database()
        return own.address

    def _start_nodes(
        self, processes: Processes, connection: Connection, data: Sequence[str]
    ) -> None:
        self.say("Starting the SuperNodes.")
        names = []
        known = connection.nodes()
        ids = [self._registered(connection, n, known) for n in range(1, self.settings.nodes + 1)]
        for number, file in enumerate(data, start=1):
            service = supernode(
                self.layout,
                number,
                port=free_port(),
                superlink_port=self.settings.port,
                data=file,
            )
            processes.start(service)
            names.append(service.name)
        processes.wait_for(["mlflow", *names], START_SECONDS)

        def online() -> bool:
            status = connection.nodes()
            return all(status.get(one) == "online" for one in ids)

        processes.wait(online, ONLINE_SECONDS, "The connection of the SuperNodes")

    def _registered(self, connection: Connection, number: int, known: dict[str, str]) -> str:
        """Return a SuperNode's id, which it keeps as long as the SuperLink's state is there."""
        name = f"node-{number}-id"
        found = self.layout.secret(name)
        if known.get(found, "unregistered") == "unregistered":
            public = self.layout.keys.node(number).public
            found = connection.register(public, f"node-{number}")
            self.layout.keep_secret(name, found)
        return found

    def _end_leftovers(self) -> None:
        left = find(self.layout.folder)
        if left:
            self.say(f"Ending {len(left)} processes that an earlier start has left.")
        for pattern in _ORDER:
            end(find(self.layout.folder, pattern), SIGINT)

    @property
    def _mlflow(self) -> str:
        return f"http://{HOST}:{self.settings.mlflow_port}"

    def told(self, data: Sequence[str], classes: Sequence[str]) -> str:
        """Return what to open, and what to type.

        Parameters
        ----------
        data : Sequence[str]
            Each SuperNode's ``data.yaml``.
        classes : Sequence[str]
            Names of their classes; empty for generated pictures, of which the server has its own.
        """
        layout, start = self.layout, "uv run " if "UV" in os.environ else ""
        nodes = [f"  SuperNode {n}  {file}" for n, file in enumerate(data, start=1)]
        lines = [
            f"The deployment is up, in {layout.folder}:",
            f"  MLflow       {self._mlflow}",
            f"  SuperLink    {HOST}:{self.settings.port}, by TLS, for registered SuperNodes only",
            *nodes,
            f"  Logs         {layout.log('*')}",
            "In another terminal, in the app's folder:",
            f"  {start}flwr run . {NAME} --stream{_run_config(classes)}",
            f"  export FL_APP_HOME={shlex.quote(str(layout.home))}",
            f"  export FL_APP_MLFLOW_TRACKING_URI={self._mlflow}",
            f"  {start}fl-app status",
            "Ctrl-C ends all of it; the next start in this folder goes on.",
        ]
        return "\n".join(lines)


def _require_database(address: str) -> None:
    """Raise `DeploymentError` if MLflow cannot be kept at an address, or nobody answers there."""
    try:
        if kind_of(address) == "http":
            raise DeploymentError(
                "--database-url is the address of a server; name the database that MLflow's own "
                "server shall use, such as postgresql://user:password@host/database."
            )
        if kind_of(address) == "postgresql":
            require_driver()
        check_address(address)
    except StoreUnavailable as error:
        raise DeploymentError(str(error)) from None


def _run_config(classes: Sequence[str]) -> str:
    """What a run needs to know of data that are not generated: the server's own to score on."""
    if not classes:
        return ""
    return (
        f' --run-config \'data="/absolute/path/of/the/holdout/data.yaml" '
        f"num-classes={len(classes)}'"
    )
