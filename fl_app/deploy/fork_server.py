# SPDX-License-Identifier: Apache-2.0
"""A SuperNode whose messages find torch and Ultralytics loaded: each is served by a fork.

Flower starts `flwr-clientapp` anew for each message, found in PATH. Here that name leads to
`warm_launch.py`, which has this process fork instead. Nothing of an app itself is loaded before
the fork, so a run's own files are used, and nothing is kept from one message to the next.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
"""Modules that a message of the shipped app needs and that belong to no app."""
ENTRY = "flwr.supernode.cli.flwr_clientapp:flwr_clientapp"
_PROGRAM = "flwr-clientapp"
_OF_AN_APP = ("fl_app", "fl_models", "fl_registry")
_POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
_OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}


def run_warm(
    command: Sequence[str], *, preload: Sequence[str] = PRELOAD, entry: str = ENTRY
) -> int:
    """Run a SuperNode until it ends, serving its messages from forks; return its exit code.

    Parameters
    ----------
    command : Sequence[str]
        Such as ``flower-supernode`` with its arguments.
    preload : Sequence[str]
        Modules to import first; those that are not installed are left out.
    entry : str
        ``module:function`` that a fork runs in place of ``flwr-clientapp``.

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
    gc.freeze()  # else the first collection in each fork copies all that was loaded
    try:
        with _listening() as (listener, folder), _started(command, folder) as node:
            _serve(listener, node, entry)
            return node.wait()
    except OSError as error:
        raise DeploymentError(
            f"{command[0]} cannot be started with a warm process ({error}); start it by itself, or "
            "set TMPDIR to a folder of yours with a short path."
        ) from error
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _listening() -> Iterator[tuple[socket.socket, Path]]:
    """A socket in a folder that only this user may enter."""
    with (
        tempfile.TemporaryDirectory(prefix="fl-app-warm-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(str(Path(folder) / "socket"))
        listener.listen(64)
        listener.settimeout(0.1)  # how late the end of the SuperNode may be noticed
        yield listener, Path(folder)


@contextlib.contextmanager
def _started(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The SuperNode, which finds our program first and is told of our own signals."""
    real = Path(sys.executable).with_name(_PROGRAM)
    words = [sys.executable, "-I", "-S", fork_client.__file__, str(folder / "socket"), str(real)]
    program = folder / _PROGRAM
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o700)
    path = f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    node = subprocess.Popen(command, env={_POLL: "0.1", **os.environ, "PATH": path})
    handed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, _sender(node)) for number in handed_on}
    try:
        yield node
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sender(node: subprocess.Popen[bytes]) -> Callable[[int, Any], None]:
    return lambda number, frame: node.send_signal(number)


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
            except (OSError, ValueError) as error:  # the program starts itself then
                logger.warning("a message is served by a process of its own: %s", error)


@dataclass(frozen=True)
class _Order:
    args: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    outputs: Sequence[int]


def _fork(listener: socket.socket, connection: socket.socket, entry: str) -> int:
    order = _read(connection)
    try:
        fork = os.fork()
        if fork == 0:
            listener.close()
            connection.settimeout(None)
            _become(order, connection, entry)
    finally:
        for output in order.outputs:
            os.close(output)
    return fork


def _read(connection: socket.socket) -> _Order:
    _, outputs, _, _ = socket.recv_fds(connection, 1, 2)
    with connection.makefile("r", encoding="utf-8") as lines:
        told = json.loads(lines.readline())
    return _Order(told["args"], told["folder"], told["environment"], outputs)


def _become(order: _Order, connection: socket.socket, entry: str) -> None:
    """Be the program that was asked for, in a fork; never returns."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for output, standard in zip(order.outputs, (1, 2), strict=True):
            os.dup2(output, standard)
        connection.sendall(b"%d\n" % os.getpid())
        os.chdir(order.folder)
        os.environ.clear()
        os.environ.update(order.environment)
        _forget_the_app()
        _seed_anew()
        sys.argv = [_PROGRAM, *order.args]
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
        logger.exception("the process of a message has failed")
        return 1
    return 0


def _forget_the_app() -> None:
    # This module is of such an app too; the run has files of its own, perhaps of another version.
    for name in [name for name in sys.modules if name.partition(".")[0] in _OF_AN_APP]:
        del sys.modules[name]


def _seed_anew() -> None:
    # Python's own generator is seeded at a fork; else all messages would draw the same numbers.
    seed = int.from_bytes(os.urandom(4), "little")
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
