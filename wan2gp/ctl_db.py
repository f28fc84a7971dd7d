"""`wan2gp-ctl db migrate | sql | url`."""

from __future__ import annotations

import argparse
import sys

from wan2gp.config import Config, ConfigError, load_config
from wan2gp.ctl_exit import CtlError, Exit, harmless
from wan2gp.ctl_output import write_json, write_line


def db(args: argparse.Namespace) -> int:
    """The command."""
    if args.action == "sql":
        from wan2gp.supervisor.migrate import sql_text

        sys.stdout.write(sql_text())
        return Exit.OK
    url = database_url(load(args))
    if args.action == "url":
        if args.json:
            write_json({"url": url})
        else:
            write_line(url)
        return Exit.OK
    return _migrate(url)


def load(args: argparse.Namespace) -> Config:
    """The configuration, or :class:`CtlError` with all that is wrong with it."""
    flags = {"data_dir": args.data_dir, "config": args.config}
    secrets = {"database_url": args.database_url} if args.database_url else {}
    try:
        return load_config(flags=flags, secrets=secrets)
    except ConfigError as error:
        raise CtlError(Exit.USAGE, "\nwan2gp-ctl: ".join(error.problems)) from error


def database_url(config: Config) -> str:
    """The libpq URL of the configured Postgres, else of the embedded one that runs now."""
    if config.queue != "embedded" and config.database_url:
        return config.database_url.reveal()
    if config.queue == "postgres":
        raise CtlError(Exit.USAGE, "the queue is postgres but no database is named: set DATABASE_URL")
    if config.queue in ("supabase", "edge") or (config.queue == "auto" and config.supabase_url):
        raise CtlError(
            Exit.USAGE,
            "a Supabase project is configured, and its database has a URL of its own: set DATABASE_URL to it "
            "(Supabase: Connect), or paste the output of `wan2gp-ctl db sql` into its SQL editor",
        )
    from wan2gp.supervisor.embedded import EmbeddedUnavailable, url_of

    try:
        return url_of(config.data_dir).reveal()
    except EmbeddedUnavailable as error:
        raise CtlError(Exit.NO_SUPERVISOR, str(error)) from error


def _warn(sentence: str) -> None:
    sys.stderr.write(f"wan2gp-ctl: warning: {harmless(sentence)}\n")


def _migrate(url: str) -> int:
    from wan2gp.supervisor.migrate import MigrationFailed, migrate

    try:
        migrate(url, warn=_warn)
    except MigrationFailed as error:
        raise CtlError(Exit.FAILED, str(error)) from error
    write_line("the database is up to date")
    return Exit.OK
