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
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_app.deploy import fork_client
from fl_app.deploy.errors import DeploymentError

logger = logging.getLogger("flwr.fl_app")

PRELOAD = (
    "flwr.clientapp",
    "flwr.supernode.cli.flwr_clientapp",
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
ENTRY = "flwr.supernode.cli.flwr_clientapp:flwr_clientapp"
_PROGRAM = "flwr-clientapp"
_APP_PACKAGES = ("fl_app", "fl_models", "fl_registry")
_POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
_OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_supernode(
    command: Sequence[str], *, preload: Sequence[str] = PRELOAD, entry: str = ENTRY
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
    for module in preload:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    gc.freeze()  # otherwise the first collection in each fork copies all loaded objects
    try:
        with _listening() as (listener, folder), _started(command, folder) as node:
            _serve(listener, node, entry)
            return node.wait()
    except OSError as error:
        raise DeploymentError(
            f"{command[0]} cannot be started with preloaded modules ({error}); run it directly, or "
            "set TMPDIR to a folder of yours with a short path."
        ) from error
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _listening() -> Iterator[tuple[socket.socket, Path]]:
    """Listen on a socket in a folder that only this user may enter."""
    with (
        tempfile.TemporaryDirectory(prefix="fl-app-fork-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(str(Path(folder) / "socket"))
        listener.listen(64)
        listener.settimeout(0.1)  # the longest delay until the end of the SuperNode is seen
        yield listener, Path(folder)


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


def _serve(listener: socket.socket, node: subprocess.Popen[bytes], entry: str) -> None:
    forks: set[int] = set()
    while node.poll() is None:
        forks = {fork for fork in forks if os.waitpid(fork, os.WNOHANG)[0] == 0}
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            connection.settimeout(5)
            try:
                forks.add(_fork(listener, connection, entry))
            except (OSError, ValueError) as error:  # the client then runs the program itself
                logger.warning("a message is run by a process of its own: %s", error)


@dataclass(frozen=True)
class _Request:
    """What a client sends: how to run the program, and its standard output and error."""

    args: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    outputs: Sequence[int]


def _fork(listener: socket.socket, connection: socket.socket, entry: str) -> int:
    request = _read(connection)
    try:
        fork = os.fork()
        if fork == 0:
            listener.close()
            connection.settimeout(None)
            _run_request(request, connection, entry)
    finally:
        for output in request.outputs:
            os.close(output)
    return fork


def _read(connection: socket.socket) -> _Request:
    _, outputs, _, _ = socket.recv_fds(connection, 1, 2)
    with connection.makefile("r", encoding="utf-8") as lines:
        return _Request(**json.loads(lines.readline()), outputs=outputs)


def _run_request(request: _Request, connection: socket.socket, entry: str) -> None:
    """Run the requested program in a fork; never returns."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for output, standard in zip(request.outputs, (1, 2), strict=True):
            os.dup2(output, standard)
        connection.sendall(b"%d\n" % os.getpid())
        os.chdir(request.folder)
        os.environ.clear()
        os.environ.update(request.environment)
        _unload_app()
        _seed_generators()
        sys.argv = [_PROGRAM, *request.args]
        code = _exit_code(entry)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(b"%d\n" % code)
        os._exit(code)


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
