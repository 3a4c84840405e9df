# SPDX-License-Identifier: Apache-2.0
"""The connection by which `flwr` reaches the deployment, and what is asked by that command."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.supercore.utils import get_flwr_home

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.services import environment
from fl_registry.files.atomic import write_whole
from fl_registry.redaction import one_line

NAME = "local-deployment"
_SECONDS = 90.0  # for a command
_HEADER = re.compile(r"\s*\[")


@dataclass(frozen=True)
class Connection:
    """A SuperLink as `flwr` knows it.

    Parameters
    ----------
    address : str
        Its host and port.
    authority : Path
        Certificate of the authority that its own is checked by; absolute.
    name : str
        What it is called in Flower's configuration.
    """

    address: str
    authority: Path
    name: str = NAME

    def write(self) -> Path:
        """Put it into Flower's configuration, of which all else stays as it is; return the file.

        Raises
        ------
        DeploymentError
            The file is no TOML, or cannot be written.
        """
        file = Path(get_flwr_home()) / "config.toml"
        if not file.exists():
            _flwr("config", "list")  # makes Flower's own
        try:
            text = file.read_text("utf-8")
            before = tomllib.loads(text)
            if _section(before, self.name) != self._entries():
                write_whole(file, self._put_into(text).encode(), mode=file.stat().st_mode & 0o777)
        except tomllib.TOMLDecodeError as error:
            raise DeploymentError(
                f"Flower's configuration {file} is no TOML ({one_line(error)}); mend it."
            ) from error
        except OSError as error:
            raise DeploymentError(
                f"Flower's configuration {file} cannot be written ({error.strerror}); let "
                "FLWR_HOME name a folder that you may write to."
            ) from error
        return file

    def register(self, public_key: Path, name: str) -> str:
        """Let the SuperNode with this key in; return the id that Flower gives it.

        Raises
        ------
        DeploymentError
            The SuperLink refuses.
        """
        told = _flwr("supernode", "register", str(public_key), self.name, "--name", name)
        return str(told["node-id"])

    def nodes(self) -> dict[str, str]:
        """Return the status of each registered SuperNode by its id: ``online``, ``offline``, …"""
        told = _flwr("supernode", "list", self.name)
        return {str(node["node-id"]): str(node["status"]) for node in told["nodes"]}

    def _entries(self) -> dict[str, str]:
        return {"address": self.address, "root-certificates": str(self.authority)}

    def _put_into(self, text: str) -> str:
        """Replace the section of this name in Flower's configuration, or add it."""
        entries = [f"{key} = {json.dumps(value)}" for key, value in self._entries().items()]
        kept = _without(text.splitlines(), self.name)
        while kept and not kept[-1].strip():
            kept.pop()
        return "\n".join([*kept, "", f"[superlink.{self.name}]", *entries, ""])


def _section(config: dict[str, object], name: str) -> object:
    links = config.get("superlink")
    return links.get(name) if isinstance(links, dict) else None


def _without(lines: Sequence[str], name: str) -> list[str]:
    """Return the lines of a TOML file without the table of a SuperLink and its sub-tables."""
    mine = re.compile(rf"\s*\[\s*superlink\s*\.\s*\"?{re.escape(name)}\"?\s*[.\]]")
    kept, within = [], False
    for line in lines:
        if _HEADER.match(line):
            within = mine.match(line) is not None
        if not within:
            kept.append(line)
    return kept


def _flwr(*words: str) -> dict[str, Any]:
    """Run a `flwr` command and return what it tells as JSON."""
    command = ["flwr", *words, "--format", "json"]
    try:
        done = subprocess.run(
            command,
            env=environment({"NO_COLOR": "1"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            start_new_session=True,
            check=False,
        )
        told = json.loads(done.stdout[done.stdout.index("{") :])
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise DeploymentError(f"`{' '.join(command)}` failed ({type(error).__name__}).") from error
    if done.returncode or not told.get("success", True):
        why = one_line(told.get("error-message") or done.stderr, 400)
        raise DeploymentError(f"`{' '.join(command)}` failed: {why}")
    return dict(told)
