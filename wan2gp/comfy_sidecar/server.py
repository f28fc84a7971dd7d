"""A ComfyUI of our own: its command line, its directories, its port, and when it counts as ready."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan2gp.comfy_sidecar.about import (
    NOTABLE,
    FailedCustomNode,
    failed_custom_nodes,
    read_about,
    video_helper_version,
)
from wan2gp.comfy_sidecar.client import ComfyClient
from wan2gp.comfy_sidecar.errors import ApiError, NotInstalled, NotReady, StartAbandoned, StartFailed, Unreachable
from wan2gp.comfy_sidecar.manager_config import disarm_manager
from wan2gp.comfy_sidecar.watchdog import describe_exit
from wan2gp.engine_process.process import DrainedProcess, monotonic

HOST = "127.0.0.1"
BUILTIN = "builtin"
FIRST_LOOK_S, LONGEST_LOOK_S = 0.02, 0.5
"""Between two looks whether it answers: short at first, for an engine that starts in a fraction of a second."""
PROBE_S = 5.0
SHOWN_LINES, SHOWN_CHARS = 15, 1400
"""Of its last words. A row's message is cut at 2,000 characters, and the last line says most."""
IN_USE = "address already in use"
WORKER_DIED = re.compile(r"Exception in thread .*prompt.worker")
"""HTTP goes on without that thread, and no prompt is ever run again."""


@dataclass(frozen=True)
class Installation:
    """Where ComfyUI is and how it is called. ``path`` is a checkout or ``builtin``; ``args`` are a user's flags."""

    path: str
    python: str = ""
    args: str = ""
    port: int = 8188
    spare_ports: tuple[int, ...] = ()
    """Others that it may use, where it may not use every port."""
    connects: bool = True
    """Whether it may connect to others by TCP; where not, it listens and nothing else."""

    @property
    def builtin(self) -> bool:
        return self.path == BUILTIN

    @property
    def name(self) -> str:
        return BUILTIN if self.builtin else "comfyui"

    @property
    def folder(self) -> Path:
        return Path(self.path).expanduser().absolute()

    def check(self) -> None:
        """Raises :class:`NotInstalled` when there is nothing to start."""
        if not self.builtin and not (self.folder / "main.py").is_file():
            raise NotInstalled(f"there is no main.py in {self.folder}")

    def interpreter(self) -> str:
        """The one asked for, else the checkout's own environment, else ours."""
        if self.python:
            return self.python
        if not self.builtin:
            for name in ("venv", ".venv"):
                candidate = self.folder / name / "bin" / "python"
                if os.access(candidate, os.X_OK):
                    return str(candidate)
        return sys.executable

    def keeps_database(self) -> bool:
        """Whether this version has a database; one from before it would end over the flag."""
        try:
            return "--database-url" in (self.folder / "comfy" / "cli_args.py").read_text(errors="replace")
        except OSError:
            return False

    def command(self, folders: Folders, port: int) -> list[str]:
        """A user's flags come first, so that ours win. Raises :class:`StartFailed` when they cannot be split."""
        try:
            given = shlex.split(self.args)
        except ValueError as error:
            raise StartFailed(f"COMFY_ARGS cannot be read: {error}") from error
        program = ["-m", "wan2gp.comfy_sidecar.builtin"] if self.builtin else [str(self.folder / "main.py")]
        ours = ["--listen", HOST, "--port", str(port), *folders.flags(), "--disable-auto-launch"]
        if self.keeps_database():
            ours += ["--database-url", f"sqlite:///{folders.user / 'comfyui.db'}"]
        return [self.interpreter(), *program, *given, *ours]


@dataclass(frozen=True)
class Folders:
    """The server's own directories below ``home``; the temp one is new for each life of a server.

    Two servers on one temp directory delete each other's files, and its name in the command line is also how an
    answer on the port is known to be ours.
    """

    home: Path
    life: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def input(self) -> Path:
        return self.home / "input"

    @property
    def output(self) -> Path:
        return self.home / "output"

    @property
    def user(self) -> Path:
        return self.home / "user"

    @property
    def temp_parent(self) -> Path:
        return self.home / "temp" / self.life

    @property
    def temp(self) -> Path:
        """ComfyUI makes a folder ``temp`` in what it is given."""
        return self.temp_parent / "temp"

    def by_type(self, kind: str) -> Path | None:
        return {"input": self.input, "output": self.output, "temp": self.temp}.get(kind)

    def make(self) -> None:
        """What an earlier server laid in the place of a directory is removed: it would stop every start."""
        for folder in (self.home, self.home / "temp", self.input, self.output, self.user, self.temp_parent):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                folder.unlink()
            folder.mkdir(parents=True, exist_ok=True)

    def flags(self) -> list[str]:
        places = {"input": self.input, "output": self.output, "temp": self.temp_parent, "user": self.user}
        return [part for name, place in places.items() for part in (f"--{name}-directory", str(place))]


def choose_port(wanted: Sequence[int]) -> int:
    """The first where nobody listens now; 0 is any. ComfyUI looks only after its whole start."""
    for port in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StartFailed(f"no port is free of {', '.join(map(str, wanted))}")


class ComfyServer:
    """One life of one process. Made by :meth:`start`, from the main thread; :meth:`stop` leaves nothing behind."""

    def __init__(self, installation: Installation, folders: Folders, port: int, process: DrainedProcess) -> None:
        self.installation = installation
        self.folders = folders
        self.port = port
        self.process = process
        self.started_s = monotonic()
        self.ready_s: float | None = None
        self.about: dict[str, str] = {}
        """Once it is ready: ``version``, ``python``, ``torch``, ``device`` and ``vhs``, as far as they are known."""
        self.client = ComfyClient(f"http://{HOST}:{port}", alive=lambda: process.exit_code() is None)

    @classmethod
    def start(cls, installation: Installation, home: Path, *, other_port: bool = False) -> ComfyServer:
        """Raises :class:`NotInstalled` or :class:`StartFailed`. Does not wait for it to be ready. ``other_port``: the
        first one was somebody else's."""
        installation.check()
        folders = Folders(home)
        spare = installation.spare_ports or (0,)
        port = choose_port(spare if other_port else (installation.port, *spare))
        command = installation.command(folders, port)
        try:
            folders.make()
            if not installation.builtin:
                disarm_manager(folders.user, installation.folder)
            where = folders.home if installation.builtin else installation.folder
            environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
            only_port = 0 if installation.connects else port
            process = DrainedProcess(command, cwd=where, environ=environ, notable=NOTABLE, only_port=only_port)
        except OSError as error:
            raise StartFailed(f"cannot start {command[0]}: {error}") from error
        return cls(installation, folders, port, process)

    def wait_ready(self, timeout_s: float, abandoned: Callable[[], bool]) -> None:
        """First of: it answers and is ours, it exited, the time since its start is up, nobody waits any more.

        Raises :class:`StartFailed`, :class:`NotReady` or :class:`StartAbandoned`; the process is left to the caller.
        """
        look_s = FIRST_LOOK_S
        while self.ready_s is None:
            if self.process.wait(look_s) is not None:
                raise StartFailed(self.obituary())
            if self._answers():
                self.ready_s = monotonic()
            elif abandoned():
                raise StartAbandoned
            elif monotonic() - self.started_s > timeout_s:
                raise NotReady(f"no answer on port {self.port} within {timeout_s:g} s; {self._last_words()}")
            look_s = min(look_s * 1.5, LONGEST_LOOK_S)

    def exit_code(self) -> int | None:
        return self.process.exit_code()

    def obituary(self) -> str:
        """How it ended, with its last lines; for a person."""
        code = self.process.exit_code()
        self.process.drained()
        return f"{'it runs' if code is None else describe_exit(code)}; {self._last_words()}"

    @property
    def port_was_taken(self) -> bool:
        """It ended because somebody else was quicker."""
        return self.exit_code() is not None and any(IN_USE in line.lower() for line in self.process.lines())

    def failed_custom_nodes(self) -> tuple[FailedCustomNode, ...]:
        """Custom nodes that did not load: graphs that use their classes will be refused."""
        return failed_custom_nodes(self.process.noted)

    def failed_imports(self) -> list[str]:
        """The same, each as words for a person."""
        return [str(node) for node in self.failed_custom_nodes()]

    @property
    def version(self) -> str:
        """ComfyUI's own; empty until it is ready."""
        return self.about.get("version", "")

    def worker_died(self, printed: int) -> bool:
        """Whether, after ``printed`` lines, it said that the thread that runs prompts ended."""
        return any(WORKER_DIED.search(line) for line in self.process.lines_since(printed))

    def lived_s(self) -> float:
        """Seconds since it was ready; 0 when it never was."""
        return 0.0 if self.ready_s is None else monotonic() - self.ready_s

    def stop(self, grace_s: float = 1.0) -> None:
        """End the process and its children, and take its temp directory away."""
        self.client.close()
        self.process.stop(grace_s)
        shutil.rmtree(self.folders.temp_parent, ignore_errors=True)

    def _answers(self) -> bool:
        """Somebody answers, and by its command line it is this very process."""
        try:
            stats = self.client.system_stats(PROBE_S)
        except (Unreachable, ApiError):
            return False
        system: Any = stats.get("system")
        if not isinstance(system, dict) or str(self.folders.temp_parent) not in (system.get("argv") or ()):
            return False
        self.about = read_about(stats)
        if not self.installation.builtin and (vhs := video_helper_version(self.installation.folder)):
            self.about["vhs"] = vhs
        return True

    def _last_words(self) -> str:
        said = "\n".join(self.process.lines(SHOWN_LINES))[-SHOWN_CHARS:]
        return f"its last lines:\n{said}" if said else "it printed nothing"
