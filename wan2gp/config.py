"""The configuration: one frozen value, read once from defaults < TOML file < environment < flags.

Every problem is reported at once, each with its key, its value and the remedy. Secrets print as ``***``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")
QUEUES = ("auto", "embedded", "postgres", "supabase", "edge")


class Secret:
    """A string that prints as ``***``; :meth:`reveal` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class ConfigError(Exception):
    """All that is wrong with the configuration; ``problems`` has one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Option:
    """Where one value of the configuration may come from."""

    key: str
    """Dotted name in the TOML file."""
    env: str | None
    default: Any
    parse: Callable[[str], Any]
    about: str


def _text(value: str) -> str:
    return value


def _secret(value: str) -> Secret:
    return Secret(value)


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 <= number < 1e7:
        raise ValueError("give seconds, 0 or more")
    return number


def _at_least(lowest: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        number = _seconds(value)
        if number < lowest:
            raise ValueError(f"give {lowest:g} seconds or more")
        return number

    return parse


def _port(value: str) -> int:
    number = int(value)
    if not 1 <= number <= 65535:
        raise ValueError("give a port from 1 to 65535")
    return number


def _count(value: str) -> int:
    number = int(value)
    if number < 0:
        raise ValueError("give a whole number, 0 or more")
    return number


def _flag(value: str) -> bool:
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("give 1 or 0")


def _names(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _directories(value: str) -> tuple[str, ...]:
    found = _names(value)
    if not all(name.startswith("/") for name in found):
        raise ValueError("give absolute paths")
    return found


def _flags(value: str) -> str:
    """A command line's worth of flags; they are split where they are used."""
    try:
        shlex.split(value)
    except ValueError as error:
        raise ValueError(f"it cannot be split into flags ({error}): mend its quotes") from error
    return value


def _server(value: str) -> str:
    """A base URL, or nothing."""
    if not value:
        return value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("give the server's address, as in http://10.0.0.7:8188")
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError("give one of " + ", ".join(choices))
        return value

    return parse


OPTIONS: dict[str, Option] = {
    "worker_id": Option(
        "worker", "WORKER_ID", "", _text, "name of this worker; else RUNPOD_POD_ID, else the host name"
    ),
    "queue": Option("queue", "WAN2GP_QUEUE", "auto", _one_of(*QUEUES), "where the tasks are"),
    "database_url": Option("database_url", "DATABASE_URL", Secret(""), _secret, "libpq URL of the Postgres"),
    "supabase_url": Option("supabase_url", "SUPABASE_URL", "", _text, "URL of the Supabase project"),
    "supabase_key": Option(
        "supabase_access_token", "SUPABASE_SERVICE_ROLE_KEY", Secret(""), _secret, "service role key"
    ),
    "run_dir": Option("run_dir", "WAN2GP_RUN_DIR", "", _text, "where the sockets are"),
    "poll_interval_s": Option("poll_interval_s", None, 10.0, _at_least(0.05), "seconds between polls of an idle queue"),
    "lease_s": Option("lease.duration_s", "WAN2GP_LEASE_S", 90.0, _at_least(2.0), "how long a claim holds, seconds"),
    "renew_s": Option(
        "lease.renew_s", "WAN2GP_RENEW_S", 20.0, _at_least(0.2), "seconds between renewals of the leases"
    ),
    "stop_grace_s": Option(
        "stop.grace_s", "WAN2GP_STOP_GRACE_S", 8.0, _seconds, "seconds work may go on after SIGTERM"
    ),
    "prefetch": Option("prefetch", "WAN2GP_PREFETCH", 0, _count, "tasks claimed ahead per handler"),
    "prewarm": Option("prewarm", "WAN2GP_PREWARM", (), _names, "handlers started at boot"),
    "comfy_path": Option("comfy.path", "COMFY_PATH", "/workspace/ComfyUI", _text, "ComfyUI's checkout, or `builtin`"),
    "comfy_port": Option("comfy.port", "COMFY_PORT", 8188, _port, "ComfyUI's port, if it is free"),
    "comfy_python": Option("comfy.python", "COMFY_PYTHON", "", _text, "interpreter for ComfyUI"),
    "comfy_args": Option("comfy.args", "COMFY_ARGS", "", _flags, "more flags for ComfyUI"),
    "comfy_url": Option("comfy.url", "COMFY_URL", "", _server, "an external ComfyUI server, not ours to restart"),
    "comfy_warmup_workflow": Option(
        "comfy.warmup_workflow",
        "COMFY_WARMUP_WORKFLOW",
        "",
        _text,
        "file with a graph (API format) that is run once after each start of ComfyUI",
    ),
    "comfy_start_timeout_s": Option(
        "comfy.start_timeout_s",
        "COMFY_START_TIMEOUT_S",
        600.0,
        _seconds,
        "limit for ComfyUI's start, seconds",
    ),
    "comfy_run_timeout_s": Option(
        "comfy.run_timeout_s", "COMFY_RUN_TIMEOUT_S", 0.0, _seconds, "limit for one prompt, seconds; 0: none"
    ),
    "comfy_stuck_s": Option(
        "comfy.stuck_s", "COMFY_STUCK_S", 1800.0, _seconds, "limit without any progress of a prompt, seconds"
    ),
    "comfy_idle_stop_s": Option(
        "comfy.idle_stop_s",
        "COMFY_IDLE_STOP_S",
        0.0,
        _seconds,
        "stop ComfyUI after so long without work; 0: never",
    ),
    "comfy_when_missing": Option(
        "comfy.when_missing",
        "COMFY_WHEN_MISSING",
        "fail",
        _one_of("fail", "leave"),
        "comfy tasks without a ComfyUI",
    ),
    "wan2gp_path": Option("wan2gp.path", "WAN2GP_PATH", "", _text, "Wan2GP's checkout"),
    "wan2gp_python": Option("wan2gp.python", "WAN2GP_PYTHON", "", _text, "interpreter for Wan2GP"),
    "allow_private_urls": Option(
        "inputs.allow_private_urls",
        "WAN2GP_ALLOW_PRIVATE_URLS",
        False,
        _flag,
        "inputs may come from private addresses",
    ),
    "allow_private_hosts": Option(
        "inputs.allow_private_hosts", None, (), _names, "hosts that may have a private address"
    ),
    "input_max_bytes": Option(
        "inputs.max_bytes", "WAN2GP_INPUT_MAX_BYTES", 4 * 1024**3, _count, "largest input, bytes"
    ),
    "input_total_s": Option("inputs.total_s", "WAN2GP_INPUT_TOTAL_S", 1800.0, _seconds, "longest download, seconds"),
    "input_idle_s": Option(
        "inputs.idle_s", "WAN2GP_INPUT_IDLE_S", 30.0, _seconds, "longest silence in a download, seconds"
    ),
    "input_cache_bytes": Option(
        "inputs.cache_bytes",
        "WAN2GP_INPUT_CACHE_BYTES",
        10 * 1024**3,
        _count,
        "disk for downloads that are kept, bytes; 0: none are",
    ),
    "input_allow_paths": Option(
        "inputs.allow_paths",
        "WAN2GP_INPUT_ALLOW_PATHS",
        (),
        _directories,
        "directories whose files tasks may name",
    ),
}


@dataclass(frozen=True)
class Config:
    """See :data:`OPTIONS` for what each field means; ``_s`` are seconds."""

    data_dir: Path
    worker_id: str
    queue: str
    database_url: Secret
    supabase_url: str
    supabase_key: Secret
    run_dir: str
    poll_interval_s: float
    lease_s: float
    renew_s: float
    stop_grace_s: float
    prefetch: int
    prewarm: tuple[str, ...]
    comfy_path: str
    comfy_port: int
    comfy_python: str
    comfy_args: str
    comfy_url: str
    comfy_warmup_workflow: str
    comfy_start_timeout_s: float
    comfy_run_timeout_s: float
    comfy_stuck_s: float
    comfy_idle_stop_s: float
    comfy_when_missing: str
    wan2gp_path: str
    wan2gp_python: str
    allow_private_urls: bool
    allow_private_hosts: tuple[str, ...]
    input_max_bytes: int
    input_total_s: float
    input_idle_s: float
    input_cache_bytes: int
    input_allow_paths: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def run_directory(self) -> Path:
        """Where the sockets are: short, since a socket's path has at most 107 bytes."""
        if self.run_dir:
            return Path(self.run_dir)
        base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()  # a place, not a setting
        mark = hashlib.sha256(str(self.data_dir).encode()).hexdigest()[:10]
        return Path(base) / f"wan2gp-{os.getuid()}-{mark}"


def load_config(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
) -> Config:
    """Read everything once. ``flags`` and ``secrets`` are by field name; None values count as not given.

    ``flags`` may also hold ``data_dir`` and ``config`` (the TOML file). Raises :class:`ConfigError`.
    """
    env = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    problems: list[str] = []
    warnings: list[str] = []
    data_dir = Path(str(given.pop("data_dir", None) or env.get("WAN2GP_DATA_DIR") or ".")).expanduser().absolute()
    file_name = given.pop("config", None) or env.get("WAN2GP_CONFIG")
    table = _read_toml(Path(str(file_name)), problems) if file_name else {}
    values: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        raw, origin = _pick(name, option, given, env, secrets or {}, table)
        if raw == "" and (name in given or name in (secrets or {})):
            # An unset variable in a command line must not turn a production worker into one on an empty database.
            problems.append(f"{origin} was given without a value: give one, or leave the option out")
            raw = None
        if raw is None:
            values[name] = option.default
            continue
        values[name] = _parsed(name, option, raw, origin, env, problems, warnings)
    unknown = sorted(set(table) - {option.key for option in OPTIONS.values()})
    problems += [f"{key} in the configuration file is not a setting: remove it or mend its spelling" for key in unknown]
    values["worker_id"] = values["worker_id"] or env.get("RUNPOD_POD_ID") or socket.gethostname()
    if values["renew_s"] * 2 > values["lease_s"]:
        problems.append(
            f"lease.renew_s = {values['renew_s']:g} is more than half of lease.duration_s = {values['lease_s']:g}: "
            "renew at least twice in a lease"
        )
    warm = values["comfy_warmup_workflow"]
    if warm and not Path(warm).expanduser().is_file():
        warnings.append(f"COMFY_WARMUP_WORKFLOW = {warm} is no file now: without it ComfyUI starts cold")
    if problems:
        raise ConfigError(problems)
    return Config(data_dir=data_dir, warnings=tuple(warnings), **values)


def _flag_of(name: str) -> str:
    known = {"worker_id": "--worker", "poll_interval_s": "--poll-interval", "supabase_key": "--supabase-access-token"}
    return known.get(name) or "--" + name.replace("_", "-")


def _pick(
    name: str,
    option: Option,
    flags: Mapping[str, Any],
    env: Mapping[str, str],
    secrets: Mapping[str, str],
    table: Mapping[str, Any],
) -> tuple[Any, str]:
    if name in flags:
        return flags[name], _flag_of(name)
    if name in secrets:
        return secrets[name], _flag_of(name)
    if option.env and env.get(option.env):
        return env[option.env], option.env
    if option.key in table:
        return table[option.key], f"{option.key} in the configuration file"
    return None, ""


def _parsed(
    name: str,
    option: Option,
    raw: Any,
    origin: str,
    env: Mapping[str, str],
    problems: list[str],
    warnings: list[str],
) -> Any:
    text = _as_text(raw, option)
    if text.startswith("$") and text[1:].isidentifier():
        # An exec-form CMD does not expand variables; the name is what its author meant.
        warnings.append(f"{origin} was the literal {text}: read from the environment")
        text = env.get(text[1:], "")
        if not text:
            problems.append(f"{origin} names the variable {raw}, which is not set: set it, or give the value")
            return option.default
    try:
        return option.parse(text)
    except ValueError as error:
        shown = "***" if isinstance(option.default, Secret) else repr(text)
        problems.append(f"{origin} = {shown} cannot be used: {error}")
        return option.default


def _as_text(raw: Any, option: Option) -> str:
    """A file may give a list, of names or of flags; everything else has one spelling."""
    if not isinstance(raw, (list, tuple)):
        return str(raw)
    parts = [str(part) for part in raw]
    return shlex.join(parts) if option.parse is _flags else ",".join(parts)


def _read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            return _flatten(tomllib.load(file))
    except OSError as error:
        problems.append(f"cannot read the configuration file {path}: {error.strerror}")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"cannot read the configuration file {path}: {error}")
    return {}


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def describe(config: Config) -> dict[str, str]:
    """The configuration as shown to a person; secrets are ``***`` when set."""
    shown = {field.name: str(getattr(config, field.name)) for field in fields(config) if field.name != "warnings"}
    return {name: _PASSWORD.sub(r"\1***@", value) for name, value in shown.items()}
