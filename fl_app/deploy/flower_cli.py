# SPDX-License-Identifier: Apache-2.0
"""The deployment's connection in Flower's configuration, and the `flwr` commands that use it."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.supercore.utils import get_flwr_home

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.services import environment
from fl_registry.files.atomic import write_whole
from fl_registry.redaction import one_line

NAME = "local-deployment"
_COMMAND_SECONDS = 90.0
_TABLE = rf"[ \t]*\[\s*superlink\s*\.\s*\"?{NAME}\"?\s*[.\]]"
_TABLES = re.compile(rf"^{_TABLE}.*\n?(?:^(?![ \t]*\[).*\n?)*", re.MULTILINE)
"""The connection's table and its sub-tables, each up to the next header."""


@dataclass(frozen=True)
class Connection:
    """A SuperLink in Flower's configuration, where it is called `NAME`.

    Parameters
    ----------
    address : str
        Its host and port.
    authority : Path
        Certificate of the authority that issued the SuperLink's; absolute.
    """

    address: str
    authority: Path

    def write(self) -> None:
        """Write the connection into Flower's configuration, of which all else stays as it is.

        Flower's own function would remove the user's comments.

        Raises
        ------
        DeploymentError
            The file is not TOML, or cannot be written.
        """
        file = Path(get_flwr_home()) / "config.toml"
        if not file.exists():
            _flwr("config", "list")  # writes Flower's defaults
        entries = {"address": self.address, "root-certificates": str(self.authority)}
        try:
            text = file.read_text("utf-8")
            if tomllib.loads(text).get("superlink", {}).get(NAME) != entries:
                lines = [f"{key} = {json.dumps(value)}" for key, value in entries.items()]
                others = _TABLES.sub("", text).rstrip()
                text = "\n".join([others, "", f"[superlink.{NAME}]", *lines, ""])
                write_whole(file, text.encode(), mode=file.stat().st_mode & 0o777)
        except tomllib.TOMLDecodeError as error:
            raise DeploymentError(
                f"Flower's configuration {file} is not TOML ({one_line(error)}); correct it."
            ) from error
        except OSError as error:
            raise DeploymentError(
                f"Flower's configuration {file} cannot be written ({error.strerror}); set "
                "FLWR_HOME to a folder that you may write to."
            ) from error

    def register(self, public_key: Path, name: str) -> str:
        """Register the SuperNode with this key; return the id that Flower gives it.

        Raises
        ------
        DeploymentError
            The SuperLink refuses.
        """
        reply = _flwr("supernode", "register", str(public_key), NAME, "--name", name)
        return str(reply["node-id"])

    def nodes(self) -> dict[str, str]:
        """Return the status of each registered SuperNode by its id: ``online``, ``offline``, …"""
        reply = _flwr("supernode", "list", NAME)
        return {str(node["node-id"]): str(node["status"]) for node in reply["nodes"]}


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
