"""`wan2gp-ctl demo`: the whole path, once, on this machine: a row by plain SQL becomes a file that decodes.

Nothing is staged: the supervisor, its embedded Postgres, its children and the engine are those of production. Only the
input video is made here and served from this process, and private addresses are allowed for it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import psycopg
from rich.console import Console
from rich.text import Text

from wan2gp.config import load_config
from wan2gp.control import CancelRequest, ChangeReply, StatusReply, StatusRequest, TaskReply
from wan2gp.ctl_exit import CtlError, Exit
from wan2gp.ctl_link import Link
from wan2gp.ctl_output import plain, screen
from wan2gp.ctl_progress import follow
from wan2gp.ctl_tasks import show_task
from wan2gp.demo_queue import DemoQueue, demo_queue
from wan2gp.demo_stage import DemoFailed, DemoSupervisor, InputServer, Video, make_video, read_video
from wan2gp.rundir import Holder, holder_of
from wan2gp.supervisor.embedded import EmbeddedUnavailable
from wan2gp.tasks import TaskStatus

RUN_S = 120.0
"""Seconds the task may take with the built-in engine; a real ComfyUI has its own start-up limit on top."""

LOOK_S = 1.0
"""Seconds between two looks at the handlers."""

LOG_LINES = 15
"""Lines of the log shown after a failure."""


def run(args: argparse.Namespace) -> int:
    """The command. Exit status 0 only when the row is Complete and its file decodes to what went in."""
    directory = demo_dir(args)
    console = screen()
    with ExitStack() as stack:
        try:
            _play(console, directory, demo_queue(args.queue, directory), stack)
        except (DemoFailed, CtlError, EmbeddedUnavailable, psycopg.Error, OSError) as error:
            _lament(console, directory)
            raise CtlError(Exit.FAILED, f"the demo failed: {error}") from error
    return Exit.OK


def demo_dir(args: argparse.Namespace) -> Path:
    """``--data-dir`` or WAN2GP_DATA_DIR, else ``.demo`` in the working directory."""
    named = args.data_dir or os.environ.get("WAN2GP_DATA_DIR")
    return Path(named or ".demo").expanduser().absolute()


def _play(console: Console, directory: Path, queue: DemoQueue, stack: ExitStack) -> None:
    holder = holder_of(directory)
    if holder is not None:
        raise DemoFailed(_occupied(directory, holder))
    (directory / "demo").mkdir(parents=True, exist_ok=True)
    (directory / "demo" / "supervisor.out").unlink(missing_ok=True)  # an earlier demo's words explain nothing
    _say(console, "data directory", str(directory))
    comfy_path, start_s = _engine(console)
    source = make_video(directory / "demo" / "input.mp4")
    began = time.monotonic()
    # Before any thread is there: the kernel stops the supervisor when the thread that started it ends.
    supervisor = stack.enter_context(
        DemoSupervisor(directory, queue.kind, {**queue.settings(), "COMFY_PATH": comfy_path})
    )
    server = stack.enter_context(InputServer(source.path))
    _say(console, "input", f"{_facts(source)}, at {server.url}")
    supervisor.await_ready()
    _say(console, "supervisor", f"process {supervisor.pid}, ready after {time.monotonic() - began:.1f} s")
    task_id = queue.insert(server.url)
    _say(console, "row", f"{task_id}, {queue.how}")
    with Link(directory) as link, _withdrawn_unless_final(link, task_id):
        end = follow(link, task_id, console, alive=_Watch(supervisor, link, RUN_S + start_s).check)
    supervisor.stop()
    _say(console, "supervisor", "stopped")
    console.print()
    # Without the params: the file is at the end of the screen, not below a graph.
    show_task(console, msgspec.structs.replace(end, task=msgspec.structs.replace(end.task, params=None)))
    console.print()
    _check(console, end, queue, source)


@contextmanager
def _withdrawn_unless_final(link: Link, task_id: str) -> Iterator[None]:
    """A demo that is broken off takes its row back: the next one would run it first, and its input is gone by then."""
    try:
        yield
    except BaseException:
        with suppress(CtlError):  # it is final, or the supervisor is gone
            link.ask(CancelRequest(task_id), ChangeReply, timeout_s=2.0)
        raise


class _Watch:
    """Gives up when the supervisor is gone, when the time is over, or when a handler died: in a demo nothing may."""

    def __init__(self, supervisor: DemoSupervisor, link: Link, limit_s: float) -> None:
        self._supervisor = supervisor
        self._link = link
        self._limit_s = limit_s
        self._deadline = time.monotonic() + limit_s
        self._next_look = 0.0

    def check(self) -> None:
        self._supervisor.check()
        now = time.monotonic()
        if now > self._deadline:
            raise DemoFailed(f"the task is not finished after {self._limit_s:g} s")
        if now > self._next_look:
            self._next_look = now + LOOK_S
            self._look()

    def _look(self) -> None:
        worker = self._link.ask(StatusRequest(), StatusReply).worker
        for code, sentence in worker.obstacles.items():
            raise DemoFailed(f"the worker takes no task: {code}: {sentence}")
        for handler in worker.handlers:
            if handler.last_cause:
                raise DemoFailed(f"handler {handler.name} gave up: {handler.last_cause}")


def _engine(console: Console) -> tuple[str, float]:
    """The engine to use, and how long it may take to start, seconds; says so when it is the built-in one."""
    config = load_config(environ={name: value for name, value in os.environ.items() if name.startswith("COMFY_")})
    if config.comfy_url or (Path(config.comfy_path) / "main.py").is_file():
        return config.comfy_path, config.comfy_start_timeout_s
    if config.comfy_path != "builtin":
        _say(console, "engine", f"no ComfyUI at {config.comfy_path} (COMFY_PATH): the built-in one runs the graph")
    return "builtin", 0.0


def _check(console: Console, end: TaskReply, queue: DemoQueue, source: Video) -> None:
    row = end.task
    if row.status != TaskStatus.COMPLETE.value:
        raise DemoFailed(f"the row is {row.status}: {row.error_message}")
    if not row.output_location:
        raise DemoFailed("the row is Complete and has no output_location")
    made = read_video(queue.fetch(row.output_location))
    if (made.frames, made.width, made.height) != (source.frames, source.width, source.height):
        raise DemoFailed(f"the result has {_facts(made)}, the input had {_facts(source)}")
    _say(console, "decoded", f"{_facts(made)}, {made.path.stat().st_size:,} bytes")
    if str(made.path) != row.output_location:
        _say(console, "URL", row.output_location)
    _say(console, "file", str(made.path))


def _facts(video: Video) -> str:
    return f"{video.frames} frames of {video.width}x{video.height}"


def _say(console: Console, name: str, words: str) -> None:
    console.print(Text.assemble((f"{name:<16}", "bold"), words))


def _occupied(directory: Path, holder: Holder) -> str:
    return f"a supervisor (process {holder.pid}) already runs in {directory}: stop it, or give another --data-dir"


def _lament(console: Console, directory: Path) -> None:
    """The last lines of what the supervisor wrote, before the sentence that says what went wrong."""
    path = directory / "demo" / "supervisor.out"
    with suppress(FileNotFoundError):
        console.print(Text(f"last lines of {path}:", style="bold"))
        for line in path.read_text(errors="replace").splitlines()[-LOG_LINES:]:
            console.print(plain(f"  {line}"))
