"""``python -m tests.local_supabase -- COMMAND…``: run COMMAND with a Supabase project on this machine.

COMMAND gets SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY and WAN2GP_ALLOW_PRIVATE_URLS. The project is made of an embedded
Postgres, the real PostgREST, and stand-ins of Storage and functions; it ends with COMMAND, whose exit status is ours.
The database stays in ``--data-dir``, so that the next run goes on with it; the objects of the bucket do not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from tests.parts import PartMissing
from tests.postgrest import PostgrestFailed
from tests.supabase_roles import host_as_supabase
from tests.supabase_stack import Stack
from wan2gp.supervisor.embedded import EmbeddedPostgres, EmbeddedUnavailable
from wan2gp.supervisor.migrate import MigrationFailed, migrate

DEFAULT_DIRECTORY = Path(".demo") / "supabase"
STOP_S = 30.0
"""Seconds that COMMAND has to stop when we are told to."""


class _Stopped(Exception):
    """We were told to stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 128 + the signal when COMMAND was killed by one, 1 with a sentence when there is no project."""
    given = _parse(arguments)
    try:
        with _handled(signal.SIGTERM, _stop), local_supabase(given.data_dir.absolute()) as stack:
            _say(f"a Supabase project at {stack.url}, its database in {given.data_dir}")
            return run(given.command, {**os.environ, **variables(stack)})
    except (PartMissing, PostgrestFailed, EmbeddedUnavailable, MigrationFailed) as error:
        _say(f"no Supabase project here: {error}")
        return 1
    except _Stopped:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


@contextmanager
def local_supabase(directory: Path) -> Iterator[Stack]:
    """A project with our contract, whose database lies in ``directory``. From the main thread alone."""
    with ExitStack() as stack:
        run_dir = Path(tempfile.mkdtemp(prefix="w2g-"))  # short: a socket's path has 107 bytes
        stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
        server = EmbeddedPostgres(directory, run_dir)
        stack.callback(server.stop)
        server.start()
        url = server.url.reveal()
        host_as_supabase(url)
        migrate(url)
        shutil.rmtree(directory / "project", ignore_errors=True)
        yield stack.enter_context(Stack(url, directory / "project"))


def variables(stack: Stack) -> dict[str, str]:
    """What tells a worker of the project."""
    return {
        "SUPABASE_URL": stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.key,
        "WAN2GP_ALLOW_PRIVATE_URLS": "1",  # the project's own address is one
    }


def run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Its exit status, as a shell tells it. It is surely gone afterwards."""
    try:
        process = subprocess.Popen(command, env=environ)
    except OSError as error:
        _say(f"cannot run {command[0]}: {error.strerror}")
        return 127
    try:
        # A Ctrl-C is for COMMAND, which has it too; we end when it does.
        with _handled(signal.SIGINT, _leave_it):
            code = process.wait()
    finally:
        _end(process)
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _handled(number: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _leave_it(number: int, frame: FrameType | None) -> None:
    """A function and not SIG_IGN, which COMMAND would inherit."""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.local_supabase", description="Run a command with a Supabase project on this machine."
    )
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DIRECTORY, help="default: %(default)s")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --: what to run, with its arguments")
    return parser.parse_args(arguments)


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
