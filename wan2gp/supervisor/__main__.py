"""``python -m wan2gp.supervisor``: reads the configuration, runs the worker, turns what went wrong into an exit code.

The console script starts it with the environment sealed; started directly, it seals the environment itself first.
"""

from __future__ import annotations

from wan2gp.processes import undumpable

if __name__ == "__main__":
    undumpable()  # before all other imports: it holds every credential, in a file that is open, since it began

# ruff: noqa: E402
import os
import sys
import traceback
from typing import Any, NoReturn

from wan2gp.entry import SEALED_FD_ENV, unseal
from wan2gp.entry import main as seal_and_execute
from wan2gp.options import supervisor_parser

CRASH, USAGE, IN_USE, DATABASE, FUNCTIONS = 1, 2, 4, 5, 6
LITTLE_MIB = 32
"""With less free space a start that fails says so: whatever failed, it may be for that."""


def main() -> int:
    """The exit code, as ``--help`` lists them."""
    undumpable()
    if SEALED_FD_ENV not in os.environ:
        return seal_and_execute()
    environ, secrets = unseal(dict(os.environ))
    del os.environ[SEALED_FD_ENV]
    arguments = supervisor_parser().parse_args()
    from wan2gp.config import ConfigError, describe, load_config

    try:
        config = load_config(flags=_flags(arguments), environ=environ, secrets=_by_field(secrets))
        if arguments.command == "check":
            return _check(config, describe(config))
        return _run(config, arguments)
    except ConfigError as error:
        for problem in error.problems:
            _say(problem)
        return USAGE


def _run(config: Any, arguments: Any) -> int:
    from wan2gp.rundir import FULL, DataDirBusy
    from wan2gp.supervisor.app import App, Order, WorkerIdBusy
    from wan2gp.supervisor.embedded import EmbeddedUnavailable
    from wan2gp.supervisor.queue import FunctionsMissing, QueueError
    from wan2gp.supervisor.registry import RegistryError

    try:
        App(config, Order(arguments.once, arguments.takeover)).run()
    except (DataDirBusy, WorkerIdBusy) as error:
        return _say(error, IN_USE)
    except FunctionsMissing as error:
        return _say(error, FUNCTIONS)
    except (EmbeddedUnavailable, QueueError) as error:
        return _say(f"{error}{_space_left(config.data_dir)}", DATABASE)
    except RegistryError as error:
        return _say(error, USAGE)
    except Exception as error:
        # One of two catch-alls: whatever nobody foresaw becomes an exit code, with its traceback for the report.
        from wan2gp.config import ConfigError

        if isinstance(error, ConfigError):
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            return _say(_full(error, config.data_dir), CRASH)
        traceback.print_exc()
        return CRASH
    return 0


def _full(error: OSError, data_dir: Any) -> str:
    place = error.filename or f"under {data_dir}"
    return (
        f"worker.disk_full: cannot write {place}: {error.strerror}. Free space there and start again: what waits to be "
        "delivered is still there, and tasks that were claimed go back to the queue"
    )


def _space_left(data_dir: Any) -> str:
    disk = os.statvfs(data_dir)
    free_mib = disk.f_bavail * disk.f_frsize >> 20
    return f". worker.disk_full: {free_mib} MiB are free under {data_dir}" if free_mib < LITTLE_MIB else ""


def _check(config: Any, shown: dict[str, str]) -> int:
    from wan2gp.supervisor.backends import chosen_kind
    from wan2gp.supervisor.registry import RegistryError, load_registry, unable_of

    kind = chosen_kind(config)
    try:
        registry = load_registry(config)
    except RegistryError as error:
        return _say(error, USAGE)
    for key, value in shown.items():
        sys.stdout.write(f"{key} = {value}\n")
    for warning in config.warnings:
        _say(f"warning: {warning}")
    for name, spec in registry.specs.items():
        reason, types = unable_of(spec, config)
        told = {f"handler {name}": reason} if reason else {f"tasks of type {kind}": why for kind, why in types.items()}
        for what, why in told.items():
            _say(f"warning: {what}: {why}")
    sys.stdout.write(f"ok: queue {kind}, handlers {', '.join(registry.specs)}\n")
    return 0


def _flags(arguments: Any) -> dict[str, Any]:
    return {
        "data_dir": arguments.data_dir,
        "config": arguments.config,
        "worker_id": arguments.worker,
        "queue": arguments.queue,
        "supabase_url": arguments.supabase_url,
        "poll_interval_s": arguments.poll_interval,
    }


def _by_field(secrets: dict[str, str]) -> dict[str, str]:
    names = {"--database-url": "database_url", "--supabase-access-token": "supabase_key"}
    return {names[flag]: value for flag, value in secrets.items()}


def _say(what: object, code: int = 0) -> int:
    sys.stderr.write(f"wan2gp-supervisor: {what}\n")
    return code


def _end(code: int) -> NoReturn:
    """Everything is closed by now. Not by way of the interpreter's own end, which gives signals their default meaning
    back while it goes on: one that comes then would turn a clean exit into a death."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _entry() -> NoReturn:
    """A signal that comes before there is anything to stop in order raises SystemExit: it must not wait either for
    whatever thread still hangs in a call."""
    try:
        code = main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else USAGE
    _end(code)


if __name__ == "__main__":
    _entry()
