"""`wan2gp-ctl restart | free | drain | resume | publish`."""

from __future__ import annotations

import argparse
import sys
import time

from wan2gp.control import (
    DoneReply,
    DrainRequest,
    FreeRequest,
    PublishRequest,
    RestartRequest,
    ResumeRequest,
    StatusReply,
    StatusRequest,
)
from wan2gp.ctl_exit import CtlError, Exit
from wan2gp.ctl_link import Link, connect
from wan2gp.ctl_output import write_line

LOOK_S = 0.5
"""Seconds between two looks while draining."""


def restart(args: argparse.Namespace) -> int:
    """Replace a handler's process."""
    with connect(args) as link:
        write_line(link.ask(RestartRequest(args.handler), DoneReply).message)
    return Exit.OK


def free(args: argparse.Namespace) -> int:
    """Let a handler's engine give the GPU back."""
    with connect(args) as link:
        write_line(link.ask(FreeRequest(args.handler), DoneReply).message)
    return Exit.OK


def resume(args: argparse.Namespace) -> int:
    """Claim again."""
    with connect(args) as link:
        write_line(link.ask(ResumeRequest(), DoneReply).message)
    return Exit.OK


def publish(args: argparse.Namespace) -> int:
    """Send results that could not be published."""
    with connect(args) as link:
        write_line(link.ask(PublishRequest(args.task_id), DoneReply).message)
    return Exit.OK


def drain(args: argparse.Namespace) -> int:
    """Claim nothing more; with ``--wait`` until nothing runs and every outcome is in the database."""
    with connect(args) as link:
        write_line(link.ask(DrainRequest(), DoneReply).message)
        sys.stdout.flush()  # whoever reads the pipe may act on it at once
        if not args.wait:
            return Exit.OK
        withheld = _await_empty(link)
    if withheld:
        raise CtlError(
            Exit.FAILED,
            f"drained, but {withheld} result(s) that could not be published are on this machine alone: "
            "`wan2gp-ctl status` says why, `wan2gp-ctl publish retry` sends them",
        )
    write_line("drained: nothing runs, every outcome is recorded")
    return Exit.OK


def _await_empty(link: Link) -> int:
    """Returns when nothing runs and all is told; how many results are withheld then."""
    while True:
        worker = link.ask(StatusRequest(), StatusReply).worker
        if not worker.running and not worker.spool_depth:
            return sum(result.state == "withheld" for result in worker.publishing)
        if worker.state == "running":
            raise CtlError(Exit.FAILED, "somebody resumed the worker meanwhile: it claims tasks again")
        time.sleep(LOOK_S)
