# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL cluster of the deployment's own, made with the programs of this machine.

It listens on this machine only, and asks for a password that is drawn once.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT

from fl_app.deploy.errors import DeploymentError, require_package
from fl_app.deploy.folder import Layout
from fl_app.deploy.services import HOST, Service, environment
from fl_registry.redaction import one_line

ACCOUNT = "postgres"
"""Who runs it where root starts the deployment: PostgreSQL refuses to run as root."""
USER, DATABASE = "fl_app", "mlflow"
PLACES = (("/usr/lib/postgresql", "*/bin"), ("/usr", "pgsql-*/bin"))
"""Where Linux distributions put its programs, by version; else they are on the PATH."""
_SECONDS = 120.0  # for each of PostgreSQL's programs
_INSTALL = (
    "install it (`apt-get install postgresql`, `brew install postgresql`), or name a database that "
    "is there with --database-url."
)


@dataclass(frozen=True)
class Cluster:
    """A cluster and the programs that run it.

    Parameters
    ----------
    layout : Layout
        Whose cluster it is.
    programs : Path
        Folder of PostgreSQL's programs.
    port : int
        TCP port on this machine.
    password : str
        Of its only user.
    """

    layout: Layout
    programs: Path
    port: int
    password: str

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.layout.postgres / "data"

    @property
    def address(self) -> str:
        """SQLAlchemy's address of MLflow's database, with the password."""
        return f"postgresql+psycopg://{USER}:{self.password}@{HOST}:{self.port}/{DATABASE}"

    def service(self) -> Service:
        """The server as a process."""
        command = [str(self.programs / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        command += ["-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]
        # An MLflow server that hangs within a transaction must not hold its rows for ever.
        command += ["-c", "idle_in_transaction_session_timeout=60s"]
        ready = [str(self.programs / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]
        return Service(
            "postgres",
            command,
            lambda: subprocess.run([*ready, "-t", "3"], check=False).returncode == 0,
            _clean(),
            account=_account(),
            stop_signal=SIGINT,  # "fast": SIGTERM would wait until MLflow has gone
        )

    def create_database(self) -> None:
        """Make MLflow's database, if it is not there."""
        import psycopg

        with psycopg.connect(
            host=HOST,
            port=self.port,
            user=USER,
            password=self.password,
            dbname="postgres",
            autocommit=True,
        ) as connection:
            known = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(known, [DATABASE]).fetchone() is None:
                connection.execute(f'CREATE DATABASE "{DATABASE}"')


def cluster(layout: Layout, port: int) -> Cluster:
    """Return the deployment's cluster, made now if it is not there yet.

    Raises
    ------
    DeploymentError
        PostgreSQL is not installed, of another version than the data, or cannot be run here.
    """
    require_driver()
    known = _version_of_data(layout.postgres / "data")
    programs = find_programs(known)
    password = layout.secret("postgres-password")
    if known is None:
        password = secrets.token_urlsafe(24)
        layout.keep_secret("postgres-password", password)
        _make(layout, programs, password)
    if not password:
        raise DeploymentError(
            f"The database in {layout.postgres} is there, and its password in "
            f"{layout.folder / 'secrets'} is not; bring that file back, or name another folder "
            "with --folder."
        )
    return Cluster(layout, programs, port, password)


def require_driver() -> None:
    """Raise `DeploymentError` where Python cannot talk to PostgreSQL."""
    require_package("psycopg", "Python's driver of PostgreSQL")


def find_programs(version: str | None = None) -> Path:
    """Return the folder of PostgreSQL's programs: the newest, or those of one major version.

    Raises
    ------
    DeploymentError
        There are none.
    """
    places = [place for folder, form in PLACES for place in Path(folder).glob(form)]
    found = shutil.which("initdb")
    if found:
        places.append(Path(found).resolve().parent)
    versions = {_version(place): place for place in places if (place / "initdb").exists()}
    if not versions:
        raise DeploymentError(f"PostgreSQL is not installed on this machine; {_INSTALL}")
    wanted = version or max(versions, key=float)
    if wanted not in versions:
        raise DeploymentError(
            f"The deployment's database is PostgreSQL {wanted}'s, and {', '.join(versions)} is "
            f"what is installed; install {wanted}, or bring the data over with pg_upgrade."
        )
    return versions[wanted]


def _version(programs: Path) -> str:
    told = subprocess.run(
        [programs / "postgres", "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"(\d+)", told)
    return found.group(1) if found else "0"


def _version_of_data(data: Path) -> str | None:
    file = data / "PG_VERSION"
    return file.read_text("ascii").strip() if file.exists() else None


def _make(layout: Layout, programs: Path, password: str) -> None:
    """Make an empty cluster; one whose making was cut short is made anew."""
    account = _account()
    layout.postgres.mkdir(mode=0o700, exist_ok=True)
    if account:
        _require_way(layout.postgres, account)
        shutil.chown(layout.postgres, account, account)
    draft = layout.postgres / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    with tempfile.NamedTemporaryFile("w", dir=layout.postgres, prefix=".password.") as file:
        file.write(password)
        file.flush()
        if account:
            shutil.chown(file.name, account, account)
        command = [str(programs / "initdb"), "-D", str(draft), "-U", USER, "--auth=scram-sha-256"]
        command += [f"--pwfile={file.name}", "--encoding=UTF8", "--no-locale"]
        _run(command, account, "The database cannot be made")
    draft.rename(layout.postgres / "data")


def _account() -> str | None:
    if os.geteuid() != 0:
        return None
    import pwd

    try:
        return pwd.getpwnam(ACCOUNT).pw_name
    except KeyError:
        raise DeploymentError(
            f"PostgreSQL does not run as root, and there is no account {ACCOUNT!r} for it; start "
            f"the deployment as another account, make that one, or {_INSTALL}"
        ) from None


def _require_way(folder: Path, account: str) -> None:
    """Raise `DeploymentError` if an account cannot get to a folder."""
    done = subprocess.run(
        ["test", "-d", str(folder)], user=account, group=account, extra_groups=[], check=False
    )
    if done.returncode:
        raise DeploymentError(
            f"The account {account!r} runs PostgreSQL, and cannot get to {folder}; name a folder "
            "with --folder to which others may go, such as one in /var/lib."
        )


def _run(command: Sequence[str], account: str | None, failed: str) -> None:
    done = subprocess.run(
        command,
        user=account,
        group=account,
        extra_groups=[] if account else None,
        env=dict(_clean()),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise DeploymentError(f"{failed}: {one_line(done.stderr or done.stdout, 400)}")


def _clean() -> Mapping[str, str]:
    """Return the environment without what would name another database."""
    return {key: value for key, value in environment({}).items() if not key.startswith("PG")}
