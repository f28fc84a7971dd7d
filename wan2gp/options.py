"""The command line of ``wan2gp-supervisor``, apart from its work so that ``--help`` costs nothing."""

from __future__ import annotations

import argparse

from wan2gp import __version__

EXIT_CODES = """exit status: 0 clean, 1 crash, 2 usage or configuration, 4 data directory or worker id in use,
5 database unreachable at start, 6 database functions missing"""


def add_shared(parser: argparse.ArgumentParser) -> None:
    """The options that both programs take, before any subcommand."""
    parser.add_argument(
        "--data-dir", metavar="DIR", help="logs, outputs and state (WAN2GP_DATA_DIR; default: the working directory)"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML configuration file (WAN2GP_CONFIG)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")


def supervisor_parser() -> argparse.ArgumentParser:
    """Options are optional: the environment and the configuration file may give all of them."""
    parser = argparse.ArgumentParser(
        prog="wan2gp-supervisor",
        description="Claims rows of a tasks table, runs each in a sandboxed process, and publishes the result.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviated secret option would not be hidden
    )
    add_shared(parser)
    parser.add_argument("command", nargs="?", choices=["check"], help="check: validate the configuration and exit")
    parser.add_argument("--worker", metavar="ID", help="name of this worker (WORKER_ID, RUNPOD_POD_ID, host name)")
    parser.add_argument(
        "--queue", metavar="KIND", help="auto, embedded, postgres, supabase or edge (WAN2GP_QUEUE; default auto)"
    )
    parser.add_argument("--database-url", metavar="URL", help="the Postgres with the tasks (DATABASE_URL)")
    parser.add_argument("--supabase-url", metavar="URL", help="the Supabase project (SUPABASE_URL)")
    parser.add_argument("--supabase-access-token", metavar="KEY", help="its service key (SUPABASE_SERVICE_ROLE_KEY)")
    parser.add_argument(
        "--poll-interval", metavar="SECONDS", help="seconds between polls of an idle queue (default 10)"
    )
    parser.add_argument("--once", action="store_true", help="drain the queue, then exit 0 even when tasks failed")
    parser.add_argument("--takeover", action="store_true", help="take the worker id from a worker that seems alive")
    return parser
