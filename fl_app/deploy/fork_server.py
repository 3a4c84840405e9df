# SPDX-License-Identifier: Apache-2.0
"""A SuperNode whose messages are run by forks of a process that has loaded torch and Ultralytics.

Flower starts `flwr-clientapp` for each message, by its name in PATH. Here that name is a script
that requests a fork of this process (`fork_client`), since Flower accepts only its own executors. A
fork ends with its message, so nothing is shared between runs, versions of an app or messages.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from socketserver import BaseRequestHandler, ForkingMixIn, UnixStreamServer
from tempfile import TemporaryDirectory
from typing import Any

from fl_app.deploy import fork_client
from fl_app.deploy.errors import explained
from fl_app.flower_internals import CLIENT_APP
from fl_registry.imports import uncollected

logger = logging.getLogger("flwr.fl_app")

PRELOAD = (
    "flwr.clientapp",
    CLIENT_APP.partition(":")[0],
    "yaml",
    "PIL.Image",
    "cv2",
    "scipy.sparse",
    "torch",
    "torchvision",
    "ultralytics.data",
    "ultralytics.models.yolo.detect",
)
"""Modules that a message of the shipped app needs and that are not part of an app."""
_PROGRAM = "flwr-clientapp"
_APP_PACKAGES = ("fl_app", "fl_models", "fl_registry")
_POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
_OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_supernode(
    command: Sequence[str], *, preload: Sequence[str] = PRELOAD, entry: str = CLIENT_APP
) -> int:
    """Run a SuperNode until it ends, with a fork of this process for each message.

    Parameters
    ----------
    command : Sequence[str]
        ``flower-supernode`` with its arguments.
    preload : Sequence[str]
        Modules to import first; those that are not installed are skipped.
    entry : str
        ``module:function`` that a fork runs in place of ``flwr-clientapp``.

    Returns
    -------
    int
        The SuperNode's exit code.

    Raises
    ------
    DeploymentError
        The command cannot be started, or the folder of temporary files cannot be used.
    """
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    with uncollected():
        for module in preload:
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(module)
    gc.freeze()  # otherwise the first collection in each fork copies all loaded objects
    try:
        with (
            explained(
                f"{command[0]} cannot be started with preloaded modules",
                "run it directly, or set TMPDIR to a folder of yours with a short path",
            ),
            TemporaryDirectory(prefix="fl-app-fork-") as folder,  # only this user may enter it
            _ForkServer(Path(folder, "socket"), entry) as server,
            _started(command, Path(folder)) as node,
        ):
            while node.poll() is None:
                server.handle_request()
                server.service_actions()  # collects forks that have ended
            return node.wait()
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _started(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the SuperNode with our script first in PATH, and forward signals to it."""
    real = Path(sys.executable).with_name(_PROGRAM)
    words = [sys.executable, "-I", "-S", fork_client.__file__, str(folder / "socket"), str(real)]
    script = folder / _PROGRAM
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o700)
    path = f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    node = subprocess.Popen(command, env={_POLL: "0.1", **os.environ, "PATH": path})
    before = {
        number: signal.signal(number, lambda number, _: node.send_signal(number))
        for number in _FORWARDED
    }
    try:
        yield node
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _ForkServer(ForkingMixIn, UnixStreamServer):
    """Runs a function in a fork for each connection; a client whose fork fails runs the program."""

    request_queue_size = 64
    timeout = 0.1  # seconds; the longest delay until the end of the SuperNode is seen
    max_children = sys.maxsize  # at its limit it would wait for children, of which one is the node
    block_on_close = False

    def __init__(self, address: Path, entry: str) -> None:
        super().__init__(str(address), BaseRequestHandler)
        self.entry = entry

    def finish_request(self, request: Any, client_address: object) -> None:
        """Run the requested program; called in the fork."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.socket.close()
        _, outputs, _, _ = socket.recv_fds(request, 1, 2)
        with request.makefile("r", encoding="utf-8") as lines:
            wanted = json.loads(lines.readline())
        for output, standard in zip(outputs, (1, 2), strict=True):
            os.dup2(output, standard)
        os.chdir(wanted["folder"])
        os.environ.clear()
        os.environ.update(wanted["environment"])
        _unload_app()
        _seed_generators()
        sys.argv = [_PROGRAM, *wanted["args"]]
        request.sendall(b"%d\n" % os.getpid())  # from here on, the client leaves it to this fork
        code = _exit_code(self.entry)
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            request.sendall(b"%d\n" % code)

    def handle_error(self, request: Any, client_address: object) -> None:
        """Log why a message has no fork of its own."""
        logger.warning("a message is run by a process of its own: %s", sys.exc_info()[1])


def _exit_code(entry: str) -> int:
    module, _, function = entry.partition(":")
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        logger.exception("the process of a message failed")
        return 1
    return 0


def _unload_app() -> None:
    # This module's own packages are those of the shipped app. A run has its own copy of them, which
    # may be of another version.
    for name in [name for name in sys.modules if name.partition(".")[0] in _APP_PACKAGES]:
        del sys.modules[name]


def _seed_generators() -> None:
    # Python seeds its own generator at a fork. The others would draw the same numbers in all forks.
    seed = int.from_bytes(os.urandom(4), "little")
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
