"""`wan2gp-ctl`: looks at a worker and steers it. This file is the command line alone, so that ``--help`` costs nothing;
each command's module is imported when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TypeAlias

from wan2gp.ctl_exit import CtlError, Exit
from wan2gp.options import add_shared

EXIT_CODES = """exit status: 0 done, 1 the task failed or the supervisor refused, 2 usage, 3 no supervisor runs"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit status."""
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`). The interpreter flushes once more at its end: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    module, _, function = args.runs.partition(":")
    try:
        status: int = getattr(importlib.import_module(module), function)(args)
        return status
    except CtlError as error:
        sys.stdout.flush()
        sys.stderr.write(f"wan2gp-ctl: {error}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wan2gp-ctl", description="Looks at a wan2gp worker and steers it.", epilog=EXIT_CODES, allow_abbrev=False
    )
    add_shared(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_task_commands(commands)
    _add_worker_commands(commands)
    _add_database_commands(commands)
    demo = commands.add_parser("demo", help="run the whole path once: a row becomes a video, on this machine")
    demo.add_argument(
        "--queue",
        choices=["embedded", "supabase"],
        default="embedded",
        help="where the row goes: a database of its own (default), or the project of SUPABASE_URL, whose other tasks "
        "the demo's worker may take too",
    )
    demo.set_defaults(runs="wan2gp.demo:run")
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: _Commands, name: str, runs: str, about: str, *, json: bool = False) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False)
    parser.set_defaults(runs=runs)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON (docs/ctl-json.md)")
    return parser


def _add_task_commands(commands: _Commands) -> None:
    submit = _command(commands, "submit", "wan2gp.ctl_submit:submit", "insert a task and print its id", json=True)
    submit.add_argument("task_type", metavar="TYPE", help="task type, `comfy` for a ComfyUI graph")
    submit.add_argument("--params", metavar="FILE", required=True, help="JSON object with the params; - is stdin")
    submit.add_argument("--priority", type=int, metavar="N", help="larger goes first")
    submit.add_argument("--wait", action="store_true", help="show progress; end 0 when it is complete, 1 when not")
    task = _command(commands, "task", "wan2gp.ctl_tasks:task", "show a task with its history", json=True)
    task.add_argument("task_id", metavar="ID")
    tasks = _command(commands, "tasks", "wan2gp.ctl_tasks:tasks", "list tasks, newest first", json=True)
    tasks.add_argument("--status", help="queued, in-progress, complete, failed or cancelled")
    tasks.add_argument("--type", dest="task_type", metavar="TYPE", help="only this task type")
    tasks.add_argument("--limit", type=_positive, default=50, metavar="N", help="at most so many (default 50)")
    cancel = _command(commands, "cancel", "wan2gp.ctl_tasks:cancel", "cancel a task, also a running one", json=True)
    cancel.add_argument("task_id", metavar="ID")
    retry = _command(commands, "retry", "wan2gp.ctl_tasks:retry", "queue a finished task again", json=True)
    retry.add_argument("task_id", metavar="ID")


def _add_worker_commands(commands: _Commands) -> None:
    _command(commands, "status", "wan2gp.ctl_status:status", "show the worker, its handlers and its queue", json=True)
    about = "say whether the worker would take a task now: exit status 0, or 1 and the reasons"
    _command(commands, "ready", "wan2gp.ctl_status:ready", about, json=True)
    about = (
        "show the sandbox: what this machine allows, what handlers may and what they were denied; 1: a layer is missing"
    )
    _command(commands, "doctor", "wan2gp.ctl_doctor:doctor", about, json=True)
    restart = _command(
        commands, "restart", "wan2gp.ctl_worker:restart", "replace a handler's process and let it try again"
    )
    restart.add_argument("handler", metavar="HANDLER")
    free = _command(
        commands,
        "free",
        "wan2gp.ctl_worker:free",
        "let a handler's engine give the GPU's memory back; its process stays",
    )
    free.add_argument("handler", metavar="HANDLER")
    drain = _command(commands, "drain", "wan2gp.ctl_worker:drain", "claim nothing more; what runs goes on")
    drain.add_argument("--wait", action="store_true", help="return when nothing runs any more")
    _command(commands, "resume", "wan2gp.ctl_worker:resume", "claim tasks again")
    publish = _command(commands, "publish", "wan2gp.ctl_worker:publish", "send results that could not be published")
    publish.add_argument("action", choices=["retry"], help="retry: send them now")
    publish.add_argument("task_id", nargs="?", metavar="ID", help="only this task's (default: all)")
    about = "fetch the weights that a model's definition names, before a task needs them"
    models = _command(commands, "models", "wan2gp.ctl_models:fetch", about, json=True)
    models.add_argument("action", choices=["fetch"], help="fetch: those that are not here, and wait for them")
    models.add_argument("models", nargs="+", metavar="MODEL", help="name of a model of Wan2GP")
    logs = _command(commands, "logs", "wan2gp.ctl_logs:logs", "show the worker's log, a handler's or a task's")
    logs.add_argument("of", nargs="?", metavar="TASK|HANDLER", help="a task's id or a handler's name")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written")
    logs.add_argument(
        "-n",
        "--lines",
        type=_natural,
        default=100,
        metavar="N",
        help="begin with the last N lines (default 100; 0: all)",
    )
    logs.add_argument("--json", action="store_true", help="print one JSON object per line")


def _add_database_commands(commands: _Commands) -> None:
    about = "install the database's functions, print them, or print the database's URL"
    parser = _command(commands, "db", "wan2gp.ctl_db:db", about)
    parser.add_argument(
        "action",
        choices=["migrate", "sql", "url"],
        help="migrate: install or update; sql: print what migrate would run; url: print the URL alone",
    )
    parser.add_argument("--database-url", metavar="URL", help="the Postgres with the tasks (DATABASE_URL)")
    parser.add_argument("--json", action="store_true", help="with url: print it as a JSON object")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give a whole number, 1 or more")
    return number


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("give a whole number, 0 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
