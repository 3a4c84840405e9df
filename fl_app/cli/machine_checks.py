# SPDX-License-Identifier: Apache-2.0
"""What `fl-app doctor` looks at on this machine: versions, disk, clock, leftovers, the SuperLink.

The registry and its files are in `fl_app.cli.checks`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from fl_registry.files.atomic import scratch_folder, unfinished, write_whole
from fl_registry.files.version_files import own_bytes
from fl_registry.redaction import one_line

MIN_FREE = 1 << 30
"""Bytes on the disk of the app's home below which a session may not find room for its rounds."""
TESTED = {"flwr": "1.41", "mlflow": "3.17"}
"""Versions that this release was tested with."""
SLACK = timedelta(minutes=1)
"""What clocks may differ by."""
LEFT = timedelta(hours=1)
"""Time after which nobody works any more on what is unfinished."""
ENVIRONMENT = ("fl-app", "flwr", "mlflow", "torch", "ultralytics")
"""Packages that a SuperLink has from when it was started."""
PORT_VARIABLE, PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091"
"""Where Flower's local SuperLink listens."""
_LISTENS = "0A"  # the state of a socket in /proc/net/tcp


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what it is, whether it is well, and what was seen."""

    name: str
    ok: bool
    detail: str

    def as_row(self) -> dict[str, Any]:
        """Return it as a plain dictionary."""
        return asdict(self)


def check_versions() -> Check:
    """Whether Flower and MLflow are of versions that this release was tested with."""
    found = {name: installed(name) for name in TESTED}
    strange = [
        f"{name} {found[name]}" for name, v in TESTED.items() if not found[name].startswith(f"{v}.")
    ]
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    wanted = ", ".join(f"{name} {number}" for name, number in TESTED.items())
    detail = f"{', '.join(strange)}: tested with {wanted}" if strange else told
    return Check("versions", not strange, detail)


def check_disk(home: Path) -> Check:
    """Whether the app's home can be written, and has room."""
    try:
        with scratch_folder(home / "tmp", name="doctor") as folder:
            write_whole(folder / "probe", b"a")
        free = shutil.disk_usage(home).free
    except OSError as error:
        said = one_line(error.strerror or error)
        return Check(
            "disk", False, f"{home} cannot be written ({said}); make room, or the right to"
        )
    return Check("disk", free >= MIN_FREE, f"{free / (1 << 30):.1f} GiB free in {home}")


def check_leftovers(home: Path, now: datetime) -> Check:
    """Whether killed processes left something unfinished."""
    found = unfinished(home, before=now - LEFT)
    if not found:
        return Check("leftovers", True, "nothing unfinished")
    size = sum(own_bytes(p) if p.is_dir() else p.lstat().st_size for p in found)
    first = found[0].relative_to(home)
    return Check(
        "leftovers",
        False,
        f"{len(found)} unfinished, {size / 1e6:.1f} MB, such as {first}; --repair removes them",
    )


def check_clock(now: datetime, past: Mapping[str, datetime], server: datetime | None) -> Check:
    """Whether the clock is behind what has happened, or differs from the MLflow server's.

    Parameters
    ----------
    now : datetime
        What the clock says, in UTC.
    past : Mapping[str, datetime]
        Moments that have passed, by what happened then.
    server : datetime | None
        What the server's clock says; None where there is none to ask.
    """
    for what, moment in past.items():
        if moment > now + SLACK:
            return Check(
                "clock", False, f"it says {now:%F %T} UTC, but {what} is of {moment:%F %T}; set it"
            )
    if server is not None and abs(server - now) > SLACK:
        return Check(
            "clock", False, f"it says {now:%F %T} UTC, and MLflow's server {server:%F %T}; set one"
        )
    return Check("clock", True, f"{now:%F %T} UTC" + (", as MLflow's server" if server else ""))


def newest_file(home: Path) -> datetime | None:
    """When the newest file below a folder was written; None without any."""
    times = [path.lstat().st_mtime for path in _files(home)]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def check_superlink() -> Check:
    """Whether the local SuperLink, which stays up, is older than the packages installed here."""
    try:
        port = int(os.environ.get(PORT_VARIABLE, PORT))
        pid = _listener(port)
        started = None if pid is None else _started(pid)
    except (OSError, ValueError):
        return Check("superlink", True, "not looked at on this system")
    if started is None:
        return Check("superlink", True, f"none runs on port {port}, or it is another account's")
    name, changed = _last_change()
    if changed > started:
        return Check(
            "superlink",
            False,
            f"process {pid} has been up since {started:%F %T} UTC, and {name} was installed at "
            f"{changed:%F %T}; end it, and the next `flwr run` starts a new one",
        )
    return Check("superlink", True, f"process {pid}, up since {started:%F %T} UTC")


def _files(home: Path) -> Iterable[Path]:
    for place, _, names in os.walk(home):
        for name in names:
            path = Path(place, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _listener(port: int) -> int | None:
    """Return the process of this account that listens on a port of this machine; Linux only."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            rows = [row.split() for row in Path(table).read_text("ascii").splitlines()[1:]]
            inodes |= {
                row[9]
                for row in rows
                if row[3] == _LISTENS and int(row[1].split(":")[1], 16) == port
            }
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and sockets & _open_files(process):
            return int(process.name)
    return None


def _open_files(process: Path) -> set[str]:
    found = set()
    try:
        for handle in (process / "fd").iterdir():
            found.add(str(handle.readlink()))
    except OSError:  # another account's, or it has ended
        pass
    return found


def _started(pid: int) -> datetime:
    """Return when a process was started; Linux only."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[19])
    booted = next(
        int(line.split()[1])
        for line in Path("/proc/stat").read_text("ascii").splitlines()
        if line.startswith("btime ")
    )
    return datetime.fromtimestamp(booted + ticks / os.sysconf("SC_CLK_TCK"), UTC)


def _last_change() -> tuple[str, datetime]:
    """Return which package of the environment was installed last, and when."""
    found: dict[str, float] = {}
    for name in ENVIRONMENT:
        try:
            about = distribution(name).locate_file("")
            marks = [*Path(str(about)).glob(f"{name.replace('-', '_')}-*.dist-info")]
        except PackageNotFoundError:
            continue
        found |= {path.name.partition("-")[0]: path.stat().st_mtime for path in marks}
    name = max(found, key=lambda one: found[one], default="nothing")
    return name, datetime.fromtimestamp(found.get(name, 0.0), UTC)
