# SPDX-License-Identifier: Apache-2.0
"""The checks of `fl-app doctor` of this machine: versions, disk, clock, leftovers, SuperLink.

Those of the registry and its files are in `fl_app.cli.doctor`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution
from importlib.metadata import version as installed
from pathlib import Path

from fl_registry.files.atomic import scratch_folder, unfinished, write_whole
from fl_registry.files.version_files import own_bytes
from fl_registry.redaction import one_line

MIN_FREE = 1 << 30
"""Free bytes in the app's home below which a session may not have room for its rounds."""
TESTED = {"flwr": "1.41", "mlflow": "3.17"}
"""Versions that this release was tested with."""
CLOCK_TOLERANCE = timedelta(minutes=1)
"""How much clocks may differ."""
ABANDONED_AFTER = timedelta(hours=1)
"""Age from which an unfinished file belongs to no process any more."""
ENVIRONMENT = ("fl-app", "flwr", "mlflow", "torch", "ultralytics")
"""Packages that a SuperLink has loaded since its start."""
PORT_VARIABLE, PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091"
"""Where Flower's local SuperLink listens."""
_LISTENS = "0A"  # the state of a socket in /proc/net/tcp


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes
    ----------
    name : str
        What was checked.
    ok : bool
        Whether it is in order.
    detail : str
        What was seen, in one sentence.
    """

    name: str
    ok: bool
    detail: str


def check_versions(tested: Mapping[str, str] = TESTED) -> Check:
    """Check that Flower and MLflow have versions that this release was tested with."""
    present = {name: installed(name) for name in tested}
    others = {name: v for name, v in present.items() if not v.startswith(f"{tested[name]}.")}
    detail = ", ".join(f"{name} {number}" for name, number in (others or present).items())
    if others:
        wanted = ", ".join(f"{name} {number}" for name, number in tested.items())
        detail = f"{detail}: tested with {wanted}"
    return Check("versions", not others, detail)


def check_disk(home: Path, min_free: int = MIN_FREE) -> Check:
    """Check that the app's home can be written and has ``min_free`` bytes left."""
    try:
        with scratch_folder(home / "tmp", name="doctor") as folder:
            write_whole(folder / "probe", b"a")
        free = shutil.disk_usage(home).free
    except OSError as error:
        why = one_line(error.strerror or error)
        return Check(
            "disk", False, f"{home} cannot be written ({why}); make room, or set its permissions"
        )
    return Check("disk", free >= min_free, f"{free / (1 << 30):.1f} GiB free in {home}")


def check_leftovers(home: Path, now: datetime) -> Check:
    """Check that killed processes have left no unfinished files."""
    left = unfinished(home, before=now - ABANDONED_AFTER)
    if not left:
        return Check("leftovers", True, "nothing unfinished")
    size = sum(own_bytes(p) if p.is_dir() else p.lstat().st_size for p in left)
    first = left[0].relative_to(home)
    return Check(
        "leftovers",
        False,
        f"{len(left)} unfinished, {size / 1e6:.1f} MB, such as {first}; --repair removes them",
    )


def check_clock(now: datetime, past: Mapping[str, datetime], server: datetime | None) -> Check:
    """Check that the clock is not behind past events, and agrees with the MLflow server's.

    Parameters
    ----------
    now : datetime
        This machine's time, in UTC.
    past : Mapping[str, datetime]
        Times of past events, by what happened then.
    server : datetime | None
        The server's time; None if there is no server, or it does not send one.
    """
    for what, moment in past.items():
        if moment > now + CLOCK_TOLERANCE:
            return Check(
                "clock", False, f"it says {now:%F %T} UTC, but {what} is of {moment:%F %T}; set it"
            )
    if server is not None and abs(server - now) > CLOCK_TOLERANCE:
        return Check(
            "clock", False, f"it says {now:%F %T} UTC, and MLflow's server {server:%F %T}; set one"
        )
    return Check("clock", True, f"{now:%F %T} UTC" + (", as MLflow's server" if server else ""))


def newest_file(home: Path) -> datetime | None:
    """When the newest file below a folder was written; None without any."""
    times = [path.lstat().st_mtime for path in _files(home)]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def check_superlink(
    last_change: Callable[[], tuple[str, datetime]] | None = None,
) -> Check:
    """Check that the local SuperLink is not older than the packages installed here.

    `flwr run` starts it and it stays up, so after an upgrade it runs the old packages.

    Parameters
    ----------
    last_change : Callable[[], tuple[str, datetime]] | None
        Returns the package that was installed last, and when; `last_installed` by default.
    """
    try:
        port = int(os.environ.get(PORT_VARIABLE, PORT))
        pid = _listener(port)
        started = None if pid is None else _started(pid)
    except (OSError, ValueError):
        return Check("superlink", True, "not checked on this system")
    if started is None:
        return Check("superlink", True, f"none runs on port {port}, or it is another account's")
    name, changed = (last_change or last_installed)()
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
    """Return the process of this account that listens on a local port; Linux only."""
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
    names = set()
    with suppress(OSError):  # it belongs to another account, or has ended
        for handle in (process / "fd").iterdir():
            names.add(str(handle.readlink()))
    return names


def _started(pid: int) -> datetime:
    """Return when a process was started; Linux only."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[19])
    booted = next(
        int(line.split()[1])
        for line in Path("/proc/stat").read_text("ascii").splitlines()
        if line.startswith("btime ")
    )
    return datetime.fromtimestamp(booted + ticks / os.sysconf("SC_CLK_TCK"), UTC)


def last_installed() -> tuple[str, datetime]:
    """Return which package of `ENVIRONMENT` was installed last, and when."""
    times: dict[str, float] = {}
    for name in ENVIRONMENT:
        try:
            folder = Path(str(distribution(name).locate_file("")))
        except PackageNotFoundError:
            continue
        for path in folder.glob(f"{name.replace('-', '_')}-*.dist-info"):
            times[path.name.partition("-")[0]] = path.stat().st_mtime
    name = max(times, key=lambda each: times[each], default="nothing")
    return name, datetime.fromtimestamp(times.get(name, 0.0), UTC)
