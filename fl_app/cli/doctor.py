# SPDX-License-Identifier: Apache-2.0
"""`fl-app doctor`: is what the app stores complete, does it agree with itself, is this machine fit?

A check returns whether its part is in order, and what was seen, in one sentence.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import requires
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement

from fl_app.backlog import unfinished_sessions
from fl_app.cli.options import Json, Monitor, Name, Uri, missing_model, open_monitor
from fl_app.cli.output import facts, in_commands, print_json, show
from fl_app.cli.status import damaged
from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.local_superlink import LocalSuperLink, flower_of, newest_package
from fl_app.flower_internals import lost
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.errors import MonitorStoreError, memory_errors
from fl_registry import Gone, ModelManager, RegistryError, Stage, StoreUnavailable, app_home
from fl_registry.files import sqlite
from fl_registry.files.artifacts import own_bytes
from fl_registry.files.atomic import abandoned, remove_abandoned, scratch_folder, write_whole
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.journal.entries import as_moment, tenures
from fl_registry.mlflow.address import server_time
from fl_registry.redaction import one_line

MAX_NAMED = 3
"""Damaged versions that are named; more are counted."""
MIN_FREE = 1 << 30
"""Free bytes in the app's home below which a session may not have room for its rounds."""
CLOCK_TOLERANCE = timedelta(minutes=1)
"""How much clocks may differ."""
TESTED = ("flwr", "mlflow")
"""Packages whose versions are checked."""
END_IT = "end it with `fl-app stop`; the next run starts a new one"

Finding = tuple[bool, str]
"""Whether a part is in order, and what was seen."""


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes
    ----------
    name : str
        What was checked.
    ok : bool | None
        Whether it is in order; None if it was not looked at.
    detail : str
        What was seen, or why nothing was, in one sentence.
    """

    name: str
    ok: bool | None
    detail: str


def doctor(
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="First remove leftovers and set aliases right.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Check the weights of all versions.")
    ] = False,
    uri: Uri = "",
    monitor: Monitor = "",
    name: Name = DEFAULT_MODEL_NAME,
    as_json: Json = False,
) -> None:
    """Check store, ledger, weights, disk, clock and versions; ends with 1 if something is wrong."""
    manager = ModelManager(uri or None, name)
    checks = repaired(manager) if repair else []
    checks += examine(manager, lambda: open_monitor(monitor, name), deep=deep)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        words = {True: "ok", False: "WRONG", None: "-"}
        show(facts((words[check.ok], check.name, check.detail) for check in checks))
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def examine(
    manager: ModelManager, open_memory: Callable[[], MonitorStore], *, deep: bool = False
) -> list[Check]:
    """Check everything and change nothing.

    Parameters
    ----------
    manager : ModelManager
        The registry.
    open_memory : Callable[[], MonitorStore]
        Opens the monitor's memory.
    deep : bool
        Check the files of all versions, and not only of those in Staging and of those that are or
        were in Production.
    """
    home, now = app_home(), datetime.now(UTC)
    checks: dict[str, Callable[[], Finding]] = {
        "versions": check_versions,
        "internals": check_internals,
        "disk": lambda: check_disk(home),
        "leftovers": lambda: check_leftovers(home, now),
        "sessions": lambda: check_sessions(home, manager.registered_model_name),
        "superlink": check_superlink,
        "monitor": lambda: check_monitor(open_memory, home / "monitor.db"),
    }
    past, uri = last_written(home), manager.tracking_uri
    in_store: dict[str, Callable[[], Finding]] = {
        "ledger": lambda: (True, f"{manager.verify(whole=deep)} entries follow one another"),
        "losses": lambda: check_losses(manager),
        "aliases": lambda: check_aliases(manager),
        "artifacts": lambda: check_artifacts(manager, deep=deep),
    }
    unread, file = list[Check](), manager.backend.connection.file
    try:
        if file is not None and (damage := sqlite.problem(file)):
            raise StoreUnavailable(damage)
        manager.ping()
        # Opens MLflow, which a database of another version refuses.
        next(iter(manager.backend.versions(at_once=1)), None)
    except RegistryError as error:
        reason = str(error)
        checks |= {"clock": lambda: check_clock(now, past), "store": lambda: (False, reason)}
        unread = [Check(name, None, "not looked at, see store") for name in in_store]
    else:
        checks |= {
            "clock": lambda: check_clock(now, past | last_entry(manager), server_time(uri)),
            "store": lambda: check_model(manager),
            **in_store,
        }
    return [*(_checked(name, check) for name, check in checks.items()), *unread]


def repaired(manager: ModelManager) -> list[Check]:
    """Remove leftovers and set aliases and stages right; return what was done and what failed."""
    removed = remove_abandoned(app_home(), now=datetime.now(UTC))
    done = [Check("repair", True, f"{len(removed)} leftovers removed")] if removed else []

    def reconcile() -> Finding:
        staged = manager.get_latest_version(Stage.STAGING)
        if staged is not None and is_gone(manager, staged):
            manager.archive_version(staged, actor="doctor", reason="it was deleted in MLflow")
        moved = manager.drift()
        manager.reconcile()
        were = f"; {'; '.join(map(str, moved[:MAX_NAMED]))}" if moved else ""
        return True, f"aliases, tags and stages are in line, {len(moved)} were not{were}"

    return [*done, _checked("repair", reconcile)]


def _checked(name: str, check: Callable[[], Finding]) -> Check:
    """Return the result of a check; an error of the part that it looks at is its failure."""
    try:
        return Check(name, *check())
    except (DeploymentError, RegistryError, MonitorStoreError) as error:
        return Check(name, False, in_commands(str(error)))


def check_versions(present: Mapping[str, str] | None = None) -> Finding:
    """Check that Flower and MLflow have versions that this release was tested with.

    Parameters
    ----------
    present : Mapping[str, str] | None
        Versions by package; by default those of `TESTED` that are installed.
    """
    core = (need for need in map(Requirement, requires("fl-app") or ()) if need.marker is None)
    ranges = {need.name: need.specifier for need in core}
    present = present or {name: installed(name) for name in TESTED}
    others = {name: v for name, v in present.items() if v not in ranges[name]}
    detail = ", ".join(f"{name} {number}" for name, number in (others or present).items())
    if others:
        wanted = ", ".join(f"{name}{ranges[name]}" for name in others)
        detail = f"{detail}: tested with {wanted}"
    return not others, detail


def check_internals() -> Finding:
    """Check that Flower and MLflow have what this package uses of them without documentation."""
    from fl_registry.mlflow import internals

    reasons = "; ".join((*lost(), *internals.lost()))
    return (
        not reasons,
        reasons or "the undocumented parts of Flower and MLflow are there",
    )


def check_disk(home: Path, min_free: int = MIN_FREE) -> Finding:
    """Check that the app's home can be written and has ``min_free`` bytes left.

    Whether other accounts can read it is told, and no fault: a volume of a container often is so.
    """
    try:
        with scratch_folder(home / "tmp", name="doctor") as folder:
            write_whole(folder / "probe", b"a")
        free = shutil.disk_usage(home).free
    except OSError as error:
        why = one_line(error.strerror or error)
        return False, f"{home} cannot be written ({why}); make room, or set its permissions"
    open_to_others = home.stat().st_mode & 0o077
    read = f"; other accounts can read it: chmod 700 {home}" if open_to_others else ""
    return free >= min_free, f"{free / (1 << 30):.1f} GiB free in {home}{read}"


def check_leftovers(home: Path, now: datetime) -> Finding:
    """Check that killed processes have left no unfinished files."""
    left = abandoned(home, now=now)
    if not left:
        return True, "nothing unfinished"
    size = sum(own_bytes(p) if p.is_dir() else p.lstat().st_size for p in left)
    first = left[0].relative_to(home)
    return (
        False,
        f"{len(left)} unfinished, {size / 1e6:.1f} MB, such as {first}; --repair removes them",
    )


def check_sessions(home: Path, model: str) -> Finding:
    """Check that no session is damaged or was set apart, so that rounds are in no registry."""
    apart = [each for each in unfinished_sessions(home, model) if each.apart]
    damage = damaged(home, model)
    if damage:
        session, what = next(iter(damage.items()))
        return False, (
            f"{len(damage)} damaged, such as {session} ({what}); the next run hands over what is "
            "whole, sets the rest apart and starts a new session"
        )
    if not apart:
        return True, "none is damaged or set apart"
    first = apart[0]
    return False, (
        f"{len(apart)} set apart, such as {first.id} with {first.rounds} rounds "
        f"({first.why or 'for an unknown reason'}); `fl-app recover {first.id}` hands them over, "
        "with --discard deletes them"
    )


def check_model(manager: ModelManager) -> Finding:
    """Check that the store has the model, if it has any."""
    missing, place = missing_model(manager), manager.backend.connection.place
    return not missing, missing or f"{manager.registered_model_name} can be read in {place}"


def is_gone(manager: ModelManager, version: str) -> bool:
    """Whether a version that the ledger knows was deleted in MLflow."""
    try:
        manager.get_version(version)
    except Gone:
        return True
    return False


def check_losses(manager: ModelManager) -> Finding:
    """Check that nobody has deleted or renamed what is in use."""
    losses = " ".join(manager.losses())
    return not losses, losses or "nothing that is in use was deleted or renamed in MLflow"


def check_clock(
    now: datetime, past: Mapping[str, datetime], server: datetime | None = None
) -> Finding:
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
            return False, f"it says {now:%F %T} UTC, but {what} is of {moment:%F %T}; set it"
    if server is not None and abs(server - now) > CLOCK_TOLERANCE:
        return False, f"it says {now:%F %T} UTC, and MLflow's server {server:%F %T}; set one"
    return True, f"{now:%F %T} UTC" + (", as MLflow's server" if server else "")


def last_written(home: Path) -> dict[str, datetime]:
    """Return when the newest file below a folder was written; empty without any."""
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    newest = max((path.lstat().st_mtime for path in files), default=None)
    what = "the newest file of the app's folder"
    return {} if newest is None else {what: datetime.fromtimestamp(newest, UTC)}


def last_entry(manager: ModelManager) -> dict[str, datetime]:
    """Return when the journal's last entry was written; empty without any."""
    try:
        entries = manager.history()
    except RegistryError:  # the check of the ledger reports it
        return {}
    return {"the ledger's last entry": as_moment(entries[-1].time)} if entries else {}


def check_monitor(open_memory: Callable[[], MonitorStore], file: Path | None = None) -> Finding:
    """Check that the monitor's database can be read, and that its SQLite file is whole."""
    if file is not None and (damage := sqlite.problem(file)):
        return False, damage
    try:
        return True, f"{len(open_memory().requests.history())} requests on record"
    except memory_errors() as error:
        return False, f"its database cannot be read ({type(error).__name__})"


def check_aliases(manager: ModelManager) -> Finding:
    """Check that MLflow's aliases and stages are as the journal says."""
    moved = "; ".join(str(each) for each in manager.drift())
    return not moved, f"{moved}; --repair" if moved else "as the ledger says"


def check_artifacts(manager: ModelManager, *, deep: bool) -> Finding:
    """Check that the weights of versions are complete and unchanged."""
    if deep:  # versions that other tools have registered have no digest
        rows = manager.list_all_versions()
        which, versions = "all versions", {r["version"] for r in rows if r["tags"].get("sha256")}
    else:
        which = "Staging and all that were in Production; --deep looks at the others"
        present = map(manager.get_latest_version, (Stage.PRODUCTION, Stage.STAGING))
        served = {stay.version for stay in tenures(manager.history())}
        versions = served | {version for version in present if version}
    errors, known = [], manager.acknowledged()
    for version in sorted(versions - known, key=int, reverse=True):
        try:
            manager.weights_path(version)
        except RegistryError as error:
            errors.append(str(error))
    if errors:
        more = f" And {len(errors) - MAX_NAMED} more." if len(errors) > MAX_NAMED else ""
        way = " `fl-app acknowledge VERSION` records that one is lost for good."
        return False, " ".join(errors[:MAX_NAMED]) + more + way
    lost = f"; {len(versions & known)} are lost, which was acknowledged" if versions & known else ""
    whole = len(versions - known)
    return True, f"the weights of {whole} versions are whole ({which}){lost}"


def check_superlink(
    superlink: LocalSuperLink | None = None,
    last_change: Callable[[], tuple[str, datetime]] = newest_package,
) -> Finding:
    """Check that the local SuperLink is this account's, as new as this environment, and can start.

    It stays up after a run, so after an upgrade it runs the packages that it was started with.

    Parameters
    ----------
    superlink : LocalSuperLink | None
        The SuperLink; the one that Flower's variables name by default.
    last_change : Callable[[], tuple[str, datetime]]
        Returns the package that was installed last, and when.
    """
    superlink = superlink or LocalSuperLink.of_this_account()
    process = superlink.process()
    if process is None:
        problem = superlink.foreign if superlink.answers() else superlink.database_problem()
        return not problem, problem or f"none runs on port {superlink.port}"
    began = datetime.fromtimestamp(process.create_time(), UTC)
    shown = f"process {process.pid}, up since {began:%F %T} UTC"
    name, changed = last_change()
    if (other := flower_of(process)) not in {"", installed("flwr")}:
        return False, f"{shown}, runs Flower {other}, not {installed('flwr')}; {END_IT}"
    if changed > began:
        return False, f"{shown}, is older than {name}, installed at {changed:%F %T}; {END_IT}"
    return True, shown
