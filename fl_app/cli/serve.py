# SPDX-License-Identifier: Apache-2.0
"""`fl-app serve`: the page and the API of what is stored, without a training run."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from fl_app.api import ApiServer, create_trigger_api, serve_api
from fl_app.api.guard import LOOPBACK, read_token, require_token
from fl_app.cli.options import Monitor, Name, Uri, open_monitor, open_registry
from fl_app.cli.output import fail, say
from fl_app.retraining import RetrainingManager
from fl_app.strategy.checkpoints.folder import backlog
from fl_registry import app_home
from fl_registry.home import DEFAULT_MODEL_NAME

Host = Annotated[
    str, typer.Option("--host", help="Address; one that other machines can reach requires a token.")
]
Port = Annotated[int, typer.Option("--port", help="Port to listen on.", min=0, max=65535)]
TokenFile = Annotated[
    str, typer.Option("--token-file", help="File with the token; default: $FL_APP_API_TOKEN.")
]
Hosts = Annotated[
    str, typer.Option("--allowed-hosts", help="Host names that clients may use, with commas.")
]


def serve(
    *,
    host: Host = "127.0.0.1",
    port: Port = 5001,
    token_file: TokenFile = "",
    allowed_hosts: Hosts = "",
    uri: Uri = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
) -> None:
    """Serve the status page and the API until Ctrl-C; requests wait for the next run."""
    try:
        token = read_token(token_file)
        require_token(host, token)
        store = open_registry(uri, name)
        named = {part.strip() for part in allowed_hosts.split(",") if part.strip()}
        app = create_trigger_api(
            RetrainingManager(store=open_monitor(monitor, name)),
            store=store,
            token=token,
            allowed_hosts={*LOOPBACK, *named},
            waiting=lambda: backlog(app_home(), name),
        )
        server = serve_api(app, host=host, port=port)
    except ValueError as error:  # of the address, the token or the monitor's database
        fail(str(error))
    if server is None:
        fail(
            f"Port {port} of {host} cannot be opened: a run with continuous=true may have its "
            "page there; open that page, or choose another port with --port."
        )
    _serve_until_stopped(server, name)


def _serve_until_stopped(server: ApiServer, name: str) -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    host = f"[{server.host}]" if ":" in server.host else server.host
    say(f"The page of {name}: http://{host}:{server.port}/ (Ctrl-C ends it)")
    ended.wait()
    server.close()
