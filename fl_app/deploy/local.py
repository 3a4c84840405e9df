# SPDX-License-Identifier: Apache-2.0
"""A deployment on this machine, from its start to its end."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event

from fl_app.deploy.data import check_data, generated_shares
from fl_app.deploy.errors import DeploymentError, require_package
from fl_app.deploy.flower_cli import NAME, Connection
from fl_app.deploy.folder import Layout, Settings
from fl_app.deploy.keys import make_keys
from fl_app.deploy.services import (
    HOST,
    free_port,
    mlflow_server,
    require_free,
    superlink,
    supernode,
)
from fl_app.deploy.supervisor import Processes, StoppedError, find
from fl_registry import StoreUnavailable
from fl_registry.mlflow.address import check_address, kind_of

START_SECONDS = 180.0  # MLflow creates its tables first
ONLINE_SECONDS = 240.0  # after a power failure, Flower refuses the SuperNodes' keys for a minute


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
        """
        classes = check_data(self.settings.data) if self.settings.data else ()
        self.layout.prepare()
        with self.layout.lock():
            processes = Processes(self.layout, self.say, self.ended)
            try:
                if left := find(self.layout.folder):
                    self.say(f"Ending {len(left)} processes of an earlier start.")
                    processes.stop()
                data = self._start(processes)
                self.say(self.instructions(data, classes))
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
        database = settings.database_url or f"sqlite:///{layout.database}"
        processes.start(mlflow_server(layout, settings.mlflow_port, database=database))
        processes.start(superlink(layout, settings.port, mlflow=self._mlflow))
        processes.wait_for(["superlink"], START_SECONDS)  # MLflow creates its tables meanwhile
        connection = Connection(f"{HOST}:{settings.port}", layout.keys.authority)
        connection.write()
        ids = self._register(connection)
        self.say("Starting the SuperNodes.")
        for number, file in enumerate(data, start=1):
            port, link = free_port(), settings.port
            processes.start(supernode(layout, number, port=port, superlink_port=link, data=file))
        names = [f"node-{number}" for number in range(1, settings.nodes + 1)]
        processes.wait_for(["mlflow", *names], START_SECONDS)

        def online() -> bool:
            status = connection.nodes()
            return all(status.get(one) == "online" for one in ids)

        processes.wait(online, ONLINE_SECONDS, "The connection of the SuperNodes")
        return data

    def _register(self, connection: Connection) -> Sequence[str]:
        """Register the SuperNodes that the SuperLink does not have; return the ids of all."""
        status = connection.nodes()
        ids = list(self.settings.node_ids)
        for index in range(self.settings.nodes):
            one = slice(index, index + 1)
            if [known for known in ids[one] if status.get(known, "unregistered") != "unregistered"]:
                continue
            public_key = self.layout.keys.node(index + 1).public
            ids[one] = [connection.register(public_key, f"node-{index + 1}")]
            self.layout.save(replace(self.settings, node_ids=tuple(ids)))
        return ids[: self.settings.nodes]

    @property
    def _mlflow(self) -> str:
        return f"http://{HOST}:{self.settings.mlflow_port}"

    def instructions(self, data: Sequence[str], classes: Sequence[str]) -> str:
        """Return the addresses of the deployment, and the commands to use it.

        Parameters
        ----------
        data : Sequence[str]
            Each SuperNode's ``data.yaml``.
        classes : Sequence[str]
            Names of their classes; empty for generated pictures, of which the server has its own.
        """
        layout, start = self.layout, "uv run " if "UV" in os.environ else ""
        config = (
            f' --run-config \'data="/absolute/path/of/the/holdout/data.yaml" '
            f"num-classes={len(classes)}'"
        )
        nodes = [f"  SuperNode {n}  {file}" for n, file in enumerate(data, start=1)]
        lines = [
            f"The deployment is up, in {layout.folder}:",
            f"  MLflow       {self._mlflow}",
            f"  SuperLink    {HOST}:{self.settings.port}, with TLS, for registered SuperNodes only",
            *nodes,
            f"  Logs         {layout.log('*')}",
            "In another terminal, in the app's folder:",
            f"  {start}flwr run . {NAME} --stream{config if classes else ''}",
            f"  export FL_APP_HOME={shlex.quote(str(layout.home))}",
            f"  export FL_APP_MLFLOW_TRACKING_URI={self._mlflow}",
            f"  {start}fl-app status",
            "Ctrl-C ends all of it; the next start in this folder continues with its data.",
        ]
        return "\n".join(lines)


def _check_database(address: str) -> None:
    """Raise `DeploymentError` if MLflow cannot use a database, or the database does not answer."""
    try:
        if kind_of(address) == "http":
            raise DeploymentError(
                "--database-url is the address of a server; name the database that MLflow's own "
                "server shall use, such as postgresql+psycopg://user:password@host/database."
            )
        if kind_of(address) == "postgresql":
            require_package("psycopg", "Python's driver of PostgreSQL")
        check_address(address)
    except StoreUnavailable as error:
        raise DeploymentError(str(error)) from None
