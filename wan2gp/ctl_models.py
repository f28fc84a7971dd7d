"""`wan2gp-ctl models`: weights that are fetched before a task needs them."""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from wan2gp.control import ModelFile, ModelsReply, ModelsRequest
from wan2gp.ctl_exit import CtlError, Exit
from wan2gp.ctl_link import connect
from wan2gp.ctl_output import write_line

LOOK_S = 0.5
"""Seconds between two looks."""
UNDER_WAY = ("waiting", "fetching")


def fetch(args: argparse.Namespace) -> int:
    """Fetch what the models' definitions name, and wait for it; ctrl-c leaves it to the worker."""
    shown: dict[str, str] = {}
    with connect(args) as link:
        files = link.ask(ModelsRequest(tuple(args.models), fetch=True), ModelsReply).files
        while any(file.state in UNDER_WAY for file in files):
            if not args.json:
                _show(files, shown)
            time.sleep(LOOK_S)
            files = link.ask(ModelsRequest(tuple(args.models)), ModelsReply).files
    if args.json:
        write_line(msgspec.json.encode(ModelsReply(files)).decode())
    else:
        _show(files, shown)
    failed = [file for file in files if file.state == "failed"]
    if failed:
        raise CtlError(Exit.FAILED, f"{len(failed)} of {len(files)} file(s) cannot be had")
    return Exit.OK


def _show(files: tuple[ModelFile, ...], shown: dict[str, str]) -> None:
    """A line for whatever has changed."""
    for file in files:
        said = ": ".join(part for part in (file.state, file.error or file.detail) if part)
        if shown.get(file.file) != said:
            shown[file.file] = said
            write_line(f"{file.file}  {said}")
    sys.stdout.flush()
