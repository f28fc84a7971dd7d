"""The real PostgREST as a child, on a loopback port; configured by its environment alone."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests import parts
from tests.supabase_roles import authenticator_url

_LAUNCHER = Path(__file__).with_name("postgrest_launch.py")
READY_S = 30.0
STOP_S = 5.0
ATTEMPTS = 3
MAX_ROWS = 1000
"""Rows in one answer at most, as hosted projects have it by default."""


class PostgrestFailed(Exception):
    """It did not start; the message has its last words."""


class Postgrest:
    """``database_url`` is a superuser's, of a database that has the roles (see ``supabase_roles``).

    ``address`` is ``http://127.0.0.1:<port>`` while it runs; its log is ``postgrest.log`` in ``directory``.
    """

    def __init__(self, database_url: str, jwt_secret: str, directory: Path) -> None:
        self._settings = {
            "PGRST_DB_URI": authenticator_url(database_url),
            "PGRST_DB_SCHEMAS": "public",
            "PGRST_DB_EXTRA_SEARCH_PATH": "public, extensions",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": str(MAX_ROWS),
            "PGRST_DB_POOL": "10",
            "PGRST_JWT_SECRET": jwt_secret,
            "PGRST_LOG_LEVEL": "error",
        }
        self._log = directory / "postgrest.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Returns when it serves. Call from the main thread: the kernel ends it when the thread that started it ends.

        Raises :class:`PostgrestFailed`, :class:`tests.parts.PartMissing`; then nothing is left running.
        """
        assert threading.current_thread() is threading.main_thread(), "PostgREST dies with the thread that started it"
        assert self._process is None, "it runs already"
        for attempt in range(ATTEMPTS):
            try:
                return self._start()
            except PostgrestFailed as error:  # another process may have taken the port in between
                if "in use" not in str(error) or attempt == ATTEMPTS - 1:
                    raise

    def stop(self) -> None:
        """Safe to repeat."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()

    def _start(self) -> None:
        port, admin_port = free_ports()
        self._spawn(port, admin_port)
        try:
            self._await_ready(admin_port)
        except BaseException:
            self.stop()
            raise
        self.address = f"http://127.0.0.1:{port}"

    def _spawn(self, port: int, admin_port: int) -> None:
        place = {
            "PGRST_SERVER_HOST": "127.0.0.1",
            "PGRST_SERVER_PORT": str(port),
            "PGRST_ADMIN_SERVER_PORT": str(admin_port),
        }
        command = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(parts.postgrest())]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={"PATH": os.defpath, **self._settings, **place},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _await_ready(self, admin_port: int) -> None:
        """First of: ready, exited, the deadline."""
        assert self._process is not None
        deadline = time.monotonic() + READY_S
        while not _answers(admin_port):
            code = self._process.poll()
            if code is not None:
                raise PostgrestFailed(f"PostgREST ended while starting (exit {code}): {self._words()}")
            if time.monotonic() > deadline:
                raise PostgrestFailed(f"PostgREST was not ready after {READY_S:.0f} s: {self._words()}")
            time.sleep(0.01)

    def _words(self) -> str:
        return " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-5:])


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def _answers(admin_port: int) -> bool:
    """Whether it has its connections and its picture of the schema."""
    connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=1)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
