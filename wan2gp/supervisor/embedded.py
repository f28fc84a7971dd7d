"""The embedded Postgres: a cluster under the data directory, run as our child on a unix socket.

It stops with the supervisor, also with one killed by ``kill -9`` (the kernel then sends it SIGINT, its fast shutdown),
and its data survive even when both are killed so. One password, made once; no TCP, no user created, no mode changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from wan2gp.config_options import Secret
from wan2gp.supervisor.embedded_cluster import (
    DATABASE,
    MARK,
    PORT,
    Postmaster,
    check_version,
    cluster_url,
    create_cluster,
    disown_stale_pid,
    find_binaries,
    give_cluster,
    read_postmaster,
)
from wan2gp.supervisor.embedded_identity import EmbeddedUnavailable, Identity, choose_identity, clean_environment

__all__ = ["EmbeddedPostgres", "EmbeddedUnavailable", "url_of"]

_MAX_SOCKET_PATH = 107  # bytes, of sockaddr_un
_TICK_S = 0.005
_STOP_S = 10.0
_KEPT_LOG_BYTES = 1024 * 1024
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "shared_buffers": "32MB",
    "max_connections": "50",
    # What nothing here uses costs processes and memory: replication, parallel and asynchronous workers, compilation.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_worker_processes": "2",
    "io_method": "sync",
    "jit": "off",
    "huge_pages": "off",
    # In the cluster's own directory: /dev/shm is every handler's, and may be one of the same user.
    "dynamic_shared_memory_type": "mmap",
    "max_wal_size": "256MB",
    "update_process_title": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log stays small and free of statements: starts, stops and deaths only.
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
}


class EmbeddedPostgres:
    """One cluster, one server. ``data_dir`` holds ``pg/``, ``pg.lock`` and ``logs/postgres.log``; the socket lies in
    ``run_dir``, whose path must be short. ``settings`` go to the server beside ours."""

    def __init__(self, data_dir: Path, run_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self._data_dir = data_dir.absolute()
        self._run_dir = run_dir.absolute()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._cluster = self._data_dir / "pg"
        self._log = self._data_dir / "logs" / "postgres.log"
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir = self._run_dir

    @property
    def pid(self) -> int | None:
        """The postmaster's, while it was started and not stopped."""
        return self._process.pid if self._process else None

    @property
    def url(self) -> Secret:
        """The libpq URL of the database. Raises EmbeddedUnavailable before the first start."""
        return cluster_url(self._cluster, str(self._socket_dir))

    def url_for(self, database: str) -> Secret:
        """The same for another database of the cluster."""
        return cluster_url(self._cluster, str(self._socket_dir), database)

    def poll(self) -> int | None:
        """The postmaster's exit code (negative: signal) when it ended by itself, else None."""
        return self._process.poll() if self._process else None

    def start(self, deadline_s: float = 60.0) -> None:
        """Make the cluster if there is none, start the server, return when it answers.

        Call from the main thread: the kernel ends Postgres when the thread that started it ends. Raises
        :class:`EmbeddedUnavailable`, and leaves nothing running then.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start the embedded Postgres from the main thread: it dies with the thread")
        if self._process is not None:
            raise RuntimeError("the embedded Postgres was started already")
        try:
            self._start(time.monotonic() + deadline_s)
        except OSError as error:
            self.stop()
            raise EmbeddedUnavailable(f"cannot start the embedded Postgres: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self, fast: bool = True, deadline_s: float = _STOP_S) -> None:
        """End the server and give the lock back. ``fast``: break connections; else wait for them up to ``deadline_s``
        seconds first. Escalates to an immediate shutdown, from which the next start recovers. Safe to repeat."""
        process, self._process = self._process, None
        if process is not None:
            ladder = [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]
            for rung in ladder if fast else [signal.SIGTERM, *ladder]:
                if _ended(process, rung, deadline_s):
                    break
        if self._socket_dir != self._run_dir:
            with contextlib.suppress(OSError):  # a server that was killed left its socket; the next life clears it
                self._socket_dir.rmdir()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _start(self, deadline: float) -> None:
        binaries = find_binaries()
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._log.parent.mkdir(exist_ok=True)
        self._lock = _take_lock(self._data_dir / "pg.lock")
        self._end_orphan(deadline)
        exists = (self._cluster / "PG_VERSION").exists()
        if exists:
            check_version(self._cluster)
        owner = self._cluster.stat().st_uid if exists else None
        identity = choose_identity(binaries / "postgres", self._data_dir, owner)
        self._socket_dir = self._prepare_socket_dir(identity)
        if not exists:
            durable = self._settings.get("fsync") != "off"
            left_s = max(1.0, deadline - time.monotonic())
            create_cluster(self._cluster, binaries, identity, durable=durable, deadline_s=left_s)
        give_cluster(self._cluster, identity)
        self._spawn(binaries, identity)
        self._await_ready(deadline)
        self._ensure_database()

    def _end_orphan(self, deadline: float) -> None:
        """The lock is ours, so a server that we once started has lost its supervisor and is on its way out."""
        postmaster = read_postmaster(self._cluster)
        if postmaster is None:
            return
        if not postmaster.alive(self._cluster):
            disown_stale_pid(self._cluster)
            return
        if not postmaster.ours:
            raise EmbeddedUnavailable(
                f"a Postgres that this program did not start has {self._cluster} open (pid {postmaster.pid}): stop it"
            )
        _end_stranger(postmaster, self._cluster, deadline)

    def _prepare_socket_dir(self, identity: Identity) -> Path:
        if identity.foreign:
            # The run directory is ours alone, and its mode stays so.
            mark = hashlib.sha256(str(self._data_dir).encode()).hexdigest()[:10]
            folder = Path(tempfile.gettempdir()) / f"wan2gp-pg-{mark}"
        else:
            folder = self._run_dir
        socket = folder / f".s.PGSQL.{PORT}"
        if len(os.fsencode(socket)) > _MAX_SOCKET_PATH:
            raise EmbeddedUnavailable(f"the socket's path {socket} is longer than 107 bytes: set WAN2GP_RUN_DIR")
        if "," in str(socket):
            raise EmbeddedUnavailable(f"the socket's path {socket} has a comma, which no URL can: set WAN2GP_RUN_DIR")
        _private_folder(folder, identity)
        _clear_socket(socket, self._cluster)
        return folder

    def _spawn(self, binaries: Path, identity: Identity) -> None:
        _rotate(self._log)
        settings = {**self._settings, "unix_socket_directories": '"' + str(self._socket_dir).replace('"', '""') + '"'}
        flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        command: list[str | Path] = [binaries / "postgres", "-D", self._cluster, "-c", MARK, *flags]
        with self._log.open("ab") as log:
            # Its own session: a Ctrl-C in the terminal is for the supervisor, which stops us last.
            self._process = subprocess.Popen(
                identity.command(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                start_new_session=True,
            )

    def _await_ready(self, deadline: float) -> None:
        """First of: ready, exited, the deadline."""
        assert self._process is not None
        while True:
            postmaster = read_postmaster(self._cluster)
            if postmaster and postmaster.ready and postmaster.pid == self._process.pid:
                return
            code = self._process.poll()
            if code is not None:
                raise EmbeddedUnavailable(f"the embedded Postgres ended while starting (exit {code}): {self._words()}")
            if time.monotonic() > deadline:
                raise EmbeddedUnavailable(f"the embedded Postgres was not ready in time: {self._words()}")
            time.sleep(_TICK_S)

    def _words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        fatal = [line for line in lines if "FATAL" in line or "PANIC" in line]
        return " / ".join((fatal or lines)[-3:]) + f" (see {self._log})"

    def _ensure_database(self) -> None:
        """After ``initdb`` or a death right behind it the cluster is there and the database is not."""
        try:
            with psycopg.connect(self.url_for("postgres").reveal(), autocommit=True, connect_timeout=10) as connection:
                found = connection.execute("select from pg_database where datname = %s", (DATABASE,)).fetchone()
                if found is None:
                    connection.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
        except psycopg.Error as error:
            raise EmbeddedUnavailable(f"the embedded Postgres does not let us in: {error}") from error


def url_of(data_dir: Path) -> Secret:
    """The URL of the embedded database that runs now for ``data_dir``, started by whomever.

    Raises :class:`EmbeddedUnavailable` when none runs or its files cannot be read.
    """
    cluster = data_dir.absolute() / "pg"
    try:
        postmaster = read_postmaster(cluster)
    except PermissionError as error:
        raise EmbeddedUnavailable(f"cannot read {cluster}: it belongs to another user") from error
    if postmaster is None or not postmaster.alive(cluster):
        raise EmbeddedUnavailable(f"no embedded Postgres runs for {data_dir}: start wan2gp-supervisor there")
    return cluster_url(cluster, postmaster.socket_dir)


def _ended(process: subprocess.Popen[bytes], rung: signal.Signals, deadline_s: float) -> bool:
    process.send_signal(rung)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(deadline_s)
        return True
    return False


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        raise EmbeddedUnavailable(
            f"the embedded Postgres of {path.parent} is in use by another process: stop that worker, "
            "or give this one its own --data-dir"
        ) from error
    return descriptor


def _end_stranger(postmaster: Postmaster, cluster: Path, deadline: float) -> None:
    patience = time.monotonic() + (deadline - time.monotonic()) / 2
    with contextlib.suppress(ProcessLookupError):
        os.kill(postmaster.pid, signal.SIGINT)
    while postmaster.alive(cluster):
        now = time.monotonic()
        if now > deadline:
            raise EmbeddedUnavailable(f"an earlier embedded Postgres (pid {postmaster.pid}) does not end: kill it")
        if now > patience:
            patience = deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(postmaster.pid, signal.SIGQUIT)
        time.sleep(_TICK_S)


def _private_folder(folder: Path, identity: Identity) -> None:
    owner = identity.uid if identity.foreign else os.geteuid()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
        os.chown(folder, owner, -1)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o022:
        raise EmbeddedUnavailable(
            f"{folder} is not a directory of uid {owner} that only this user can write to: remove it, or set "
            "WAN2GP_RUN_DIR to another place"
        )


def _clear_socket(socket: Path, cluster: Path) -> None:
    """Remove what a killed server left, unless another cluster's live server has it."""
    lock = socket.with_name(socket.name + ".lock")
    with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
        lines = lock.read_text().splitlines()
        other = Postmaster(int(lines[0]), "", False)
        if other.alive(Path(lines[1])):
            raise EmbeddedUnavailable(
                f"{socket.parent} is in use by the Postgres of {lines[1]} (pid {lines[0]}): set another WAN2GP_RUN_DIR"
            )
    lock.unlink(missing_ok=True)
    socket.unlink(missing_ok=True)


def _rotate(log: Path) -> None:
    """Keep the life before this one, and of a long one its end only."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _KEPT_LOG_BYTES:
            with log.open("rb") as file:
                file.seek(-_KEPT_LOG_BYTES, os.SEEK_END)
                kept = file.read()
            log.write_bytes(kept)
        log.replace(log.with_name(log.name + ".1"))
