"""From the command line to the running supervisor: lock, socket and token; and clear words when there is none."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TypeVar

from wan2gp.config import load_config
from wan2gp.control import AnyRequest, ControlRefused, Reply
from wan2gp.control_client import REPLY_S, ControlClient, ControlSilent, turns_away
from wan2gp.ctl_exit import CtlError, Exit
from wan2gp.processes import may_be_below
from wan2gp.rundir import DataDirError, Holder, RunInfo, control_endpoint, holder_of, read_run, read_token

START_S = 10.0
"""Seconds a supervisor that has its lock may take until its socket is there: an embedded database starts meanwhile."""

_TICK_S = 0.05
_SHUT_OUT = (
    "the supervisor (process {pid}) does not let this process in: it was started below the supervisor, as handlers "
    "are. The supervisor itself is well: ask from another shell, with --data-dir {directory}"
)

R = TypeVar("R", bound=Reply)


def data_dir(args: argparse.Namespace) -> Path:
    """The data directory alone: a bad setting elsewhere must not keep anybody from looking at a worker."""
    named = {name: value for name, value in os.environ.items() if name == "WAN2GP_DATA_DIR"}
    return load_config(flags={"data_dir": args.data_dir}, environ=named).data_dir


class Link:
    """A connection to the supervisor of a data directory; a context manager."""

    def __init__(self, directory: Path) -> None:
        """Raises :class:`CtlError` when no supervisor can be asked."""
        self.data_dir = directory
        self._info = _running(directory)
        self._endpoint = control_endpoint(self._info.run_dir)
        self._client = ControlClient(self._endpoint, _token(directory))
        self._looked_at_door = False

    def ask(self, request: AnyRequest, expected: type[R], timeout_s: float = REPLY_S) -> R:
        """The reply. Raises :class:`CtlError` when it is refused or does not come."""
        try:
            return self._client.call(request, expected, timeout_s, self._alive)
        except ControlRefused as refused:
            raise CtlError(Exit.FAILED, str(refused)) from refused
        except ControlSilent as silent:
            raise CtlError(Exit.NO_SUPERVISOR, self._silence(silent)) from silent

    def _alive(self) -> bool:
        """Asked while nothing comes. Raises :class:`CtlError` when nothing can come."""
        if not self._looked_at_door:
            self._looked_at_door = True
            if may_be_below(os.getpid(), self._info.pid) and turns_away(self._endpoint):
                raise CtlError(Exit.FAILED, _SHUT_OUT.format(pid=self._info.pid, directory=self.data_dir))
        return self._holds_lock()

    def _holds_lock(self) -> bool:
        holder = holder_of(self.data_dir)
        return holder is not None and holder.pid in (None, self._info.pid)

    def _silence(self, silent: ControlSilent) -> str:
        if not self._holds_lock():
            return f"the supervisor of {self.data_dir} stopped meanwhile: start it again, its queue is kept"
        return f"{silent} (process {self._info.pid}): look at {self.data_dir / 'logs' / 'worker.log'}, or restart it"

    def close(self) -> None:
        """Give the socket back."""
        self._client.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(args: argparse.Namespace) -> Link:
    """A link to the supervisor that the command line names."""
    return Link(data_dir(args))


def _running(directory: Path) -> RunInfo:
    """The run of the supervisor that holds the lock, waited for while it starts."""
    deadline = time.monotonic() + START_S
    while True:
        holder = _holder(directory)
        if holder is None:
            raise CtlError(Exit.NO_SUPERVISOR, _nobody(directory))
        info = read_run(directory)
        # A run.json of another process is what a killed supervisor left; the one that has the lock writes its own soon.
        if info is not None and info.pid == holder.pid:
            return info
        if time.monotonic() > deadline:
            raise CtlError(
                Exit.NO_SUPERVISOR,
                f"the supervisor of {directory} (process {holder.pid}) starts but does not answer yet: try again",
            )
        time.sleep(_TICK_S)


def _holder(directory: Path) -> Holder | None:
    try:
        return holder_of(directory)
    except DataDirError as error:
        raise CtlError(Exit.USAGE, str(error)) from error


def _nobody(directory: Path) -> str:
    return (
        f"no supervisor runs for the data directory {directory}: start one there with `wan2gp-supervisor`, "
        "or name the directory of the one that runs with --data-dir or WAN2GP_DATA_DIR"
    )


def _token(directory: Path) -> str:
    try:
        return read_token(directory)
    except PermissionError as error:
        raise CtlError(
            Exit.FAILED, f"cannot read the control token in {directory}: run wan2gp-ctl as the supervisor's user"
        ) from error
    except OSError as error:
        raise CtlError(Exit.NO_SUPERVISOR, f"no control token in {directory}: the supervisor is stopping") from error
