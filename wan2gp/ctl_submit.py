"""`wan2gp-ctl submit`: the params are checked here, the id is printed, and ``--wait`` follows the task to its end.

Standard output carries the id and, at the end, the place of the result; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from wan2gp.control import StatusReply, StatusRequest, SubmitReply, SubmitRequest, TaskReply
from wan2gp.ctl_exit import CtlError, Exit, harmless
from wan2gp.ctl_link import Link, connect
from wan2gp.ctl_output import error_screen, write_json, write_line
from wan2gp.ctl_progress import follow
from wan2gp.tasks import TaskStatus


def submit(args: argparse.Namespace) -> int:
    """The command."""
    params = read_params(args.params)
    with connect(args) as link:
        reply = link.ask(SubmitRequest(args.task_type, params, args.priority), SubmitReply)
        if not args.wait:
            _say(args, reply)
            return Exit.OK
        if not args.json:
            write_line(reply.task_id)
            sys.stdout.flush()  # whoever reads the pipe may act on the id at once
        return _wait(args, link, reply.task_id)


def _wait(args: argparse.Namespace, link: Link, task_id: str) -> int:
    _warn_unclaimable(args, link)
    try:
        end = follow(link, task_id, error_screen())
    except KeyboardInterrupt:
        sys.stderr.write(f"wan2gp-ctl: the task goes on: `wan2gp-ctl task {task_id}` shows it, `cancel` ends it\n")
        raise
    if args.json:
        write_json(end)
    return ending(end, quiet=args.json)


def _warn_unclaimable(args: argparse.Namespace, link: Link) -> None:
    """Nobody should watch a bar that cannot move without knowing why; another worker may still take the task."""
    for item in link.ask(StatusRequest(), StatusReply).worker.unclaimable:
        if item.task_type == args.task_type:
            sys.stderr.write(f"wan2gp-ctl: not claimed here: {harmless(item.reason)}\n")


def ending(end: TaskReply, *, quiet: bool = False) -> int:
    """Say how the task ended; the exit status for it. ``quiet``: the status alone, somebody else said it."""
    row = end.task
    if row.status == TaskStatus.COMPLETE.value:
        if not quiet:
            write_line(row.output_location or "complete, without a file")
        return Exit.OK
    if quiet:
        return Exit.FAILED
    raise CtlError(Exit.FAILED, f"the task is {row.status}: {row.error_message or 'no reason was given'}")


def _say(args: argparse.Namespace, reply: SubmitReply) -> None:
    if args.json:
        write_json(reply)
    else:
        write_line(reply.task_id)


def read_params(name: str) -> dict[str, Any]:
    """The JSON object in the file ``name`` (``-``: standard input), or :class:`CtlError` with one sentence."""
    shown = "standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CtlError(Exit.USAGE, f"cannot read {shown}: {error.strerror}") from error
    try:
        params = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise CtlError(
            Exit.USAGE, f"{shown} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}"
        ) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise CtlError(Exit.USAGE, f"{shown} is not JSON: {error.msg} at {where}") from error
    except (ValueError, RecursionError) as error:
        raise CtlError(Exit.USAGE, f"{shown} is not JSON: {error}") from error
    if not isinstance(params, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(params), f"a {type(params).__name__}")
        raise CtlError(Exit.USAGE, f"{shown} holds {kind}: params are a JSON object, {{…}}")
    return params


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is larger than any number here")
    return number
