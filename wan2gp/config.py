"""The configuration: one frozen value, read once from defaults < TOML file < environment < flags.

Every problem is reported at once, each with its key, its value and the remedy. Secrets print as ``***``.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import shlex
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wan2gp.addresses import is_public
from wan2gp.config_options import OPTIONS, Option, Secret, command_flags

_LOCAL = ("localhost", "local", "internal")
"""Names below these never lead to the open internet."""
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")
HANDLER_SECRET = "WAN2GP_SECRET_"
"""Begins the names of variables that hold a handler's own token."""
HANDLER_SECRETS = "secrets."
"""Begins the keys of the same in the file."""


class ConfigError(Exception):
    """All that is wrong with the configuration; ``problems`` has one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Config:
    """See :data:`OPTIONS` for what each field means; ``_s`` are seconds."""

    data_dir: Path
    worker_id: str
    queue: str
    database_url: Secret
    supabase_url: str
    supabase_key: Secret
    supabase_key_file: str
    finish_via: str
    publish_to: str
    storage_bucket: str
    storage_path: str
    storage_url: str
    storage_signed_url_s: float
    uploads: int
    allow_private_put_urls: bool
    ship_logs: bool
    run_dir: str
    poll_interval_s: float
    lease_s: float
    renew_s: float
    stop_grace_s: float
    memory_soft_mib: int
    memory_hard_mib: int
    memory_gpu_soft_mib: int
    gpu_slot: str
    gpu_clear_s: float
    claim_fairness_claims: int
    claim_fairness_s: float
    disk_min_free_mib: int
    sandbox: str
    sandbox_uid_base: int
    sandbox_processes: int
    sandbox_open_files: int
    sandbox_file_mib: int
    sandbox_disk_mib: int
    sandbox_read_paths: tuple[str, ...]
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
    comfy_network: str
    comfy_writable_paths: tuple[str, ...]
    wan2gp_path: str
    wan2gp_python: str
    wan_start_timeout_s: float
    wan_stuck_s: float
    wan_cancel_grace_s: float
    wan_idle_unload_s: float
    wan_profile: str
    wan_attention: str
    wan_vram_coefficient: float
    wan_interpolation: str
    wan_interpolation_device: str
    wan_download: bool
    wan_model_sources: tuple[str, ...]
    wan_models_dir: str
    wan_weights_bytes: int
    wan_loras_bytes: int
    wan_lora_max_bytes: int
    allow_private_urls: bool
    allow_private_hosts: tuple[str, ...]
    input_max_bytes: int
    input_total_s: float
    input_idle_s: float
    input_cache_bytes: int
    input_max_pixels: int
    input_max_frames: int
    input_max_duration_s: float
    input_allow_paths: tuple[str, ...]
    input_buckets: tuple[str, ...]
    handler_secrets: Mapping[str, Secret] = field(default_factory=dict)
    """Tokens for handlers, by name in lower case: each handler gets those that its spec asks for, and no other."""
    warnings: tuple[str, ...] = ()
    config_file: str = ""
    """The TOML file that was read, absolute, or empty: it may hold keys."""

    @property
    def publishes_to_storage(self) -> bool:
        """True when results go to Supabase Storage, False when they stay on this machine."""
        given = bool(self.supabase_url and self.supabase_key)
        return self.publish_to == "storage" or (self.publish_to == "auto" and given and self.queue != "embedded")

    def models_directory(self) -> Path:
        """Where LoRAs and weights are kept for all tasks, each in a directory of its kind."""
        return Path(self.wan_models_dir) if self.wan_models_dir else self.data_dir / "models"

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
    tokens = _handler_secrets(env, table)
    known = {option.key for option in OPTIONS.values()} | {HANDLER_SECRETS + name for name in tokens}
    unknown = sorted(set(table) - known)
    problems += [f"{key} in the configuration file is not a setting: remove it or mend its spelling" for key in unknown]
    _read_key_file(values, problems)
    values["worker_id"] = values["worker_id"] or env.get("RUNPOD_POD_ID") or socket.gethostname()
    if values["renew_s"] * 2 > values["lease_s"]:
        problems.append(
            f"lease.renew_s = {values['renew_s']:g} is more than half of lease.duration_s = {values['lease_s']:g}: "
            "renew at least twice in a lease"
        )
    if 0 < values["memory_hard_mib"] < values["memory_soft_mib"]:
        problems.append(
            f"memory.soft_mib = {values['memory_soft_mib']} is more than "
            f"memory.hard_mib = {values['memory_hard_mib']}: give a soft limit below the hard one"
        )
    if values["publish_to"] == "storage" and not (values["supabase_url"] and values["supabase_key"]):
        problems.append("publish.to = storage needs SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY")
    if values["publish_to"] == "storage" and values["queue"] == "embedded":
        problems.append(
            "publish.to = storage does not go with queue = embedded, whose results stay on this machine: set "
            "publish.to to local, or queue to the one of the project"
        )
    if _in_clear(values["supabase_url"]):
        warnings.append(
            f"SUPABASE_URL = {values['supabase_url']} is not https: anybody on the way can read the key and the "
            "results. Give the project's https address"
        )
    warm = values["comfy_warmup_workflow"]
    if warm and not Path(warm).expanduser().is_file():
        warnings.append(f"COMFY_WARMUP_WORKFLOW = {warm} is no file now: without it ComfyUI starts cold")
    if problems:
        raise ConfigError(problems)
    origin = str(Path(str(file_name)).absolute()) if file_name else ""
    return Config(data_dir=data_dir, handler_secrets=tokens, warnings=tuple(warnings), config_file=origin, **values)


def _handler_secrets(env: Mapping[str, str], table: Mapping[str, Any]) -> dict[str, Secret]:
    """Tokens that only handlers know the use of; a variable wins over the file."""
    filed = {
        key.removeprefix(HANDLER_SECRETS): str(each) for key, each in table.items() if key.startswith(HANDLER_SECRETS)
    }
    given = {name[len(HANDLER_SECRET) :].lower(): each for name, each in env.items() if name.startswith(HANDLER_SECRET)}
    return {name: Secret(each) for name, each in {**filed, **given}.items() if name and each}


def _in_clear(url: str) -> bool:
    """Whether requests to it leave this network unencrypted, as far as the name alone tells."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http":
        return False
    try:
        return is_public(ipaddress.ip_address(host))
    except ValueError:
        return "." in host.rstrip(".") and host.rpartition(".")[2] not in _LOCAL


def _read_key_file(values: dict[str, Any], problems: list[str]) -> None:
    """The key itself, where only the file that holds it is named (a mounted secret, say)."""
    if values["supabase_key"] or not values["supabase_key_file"]:
        return
    path = Path(values["supabase_key_file"]).expanduser()
    try:
        values["supabase_key"] = Secret(path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError) as error:
        problems.append(f"SUPABASE_SERVICE_ROLE_KEY_FILE = {path} cannot be read: {getattr(error, 'strerror', error)}")
        return
    if not values["supabase_key"]:
        problems.append(f"SUPABASE_SERVICE_ROLE_KEY_FILE = {path} is empty: put the key into it")


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
        shown = "***" if isinstance(option.default, Secret) else repr(_PASSWORD.sub(r"\1***@", text))
        problems.append(f"{origin} = {shown} cannot be used: {error}")
        return option.default


def _as_text(raw: Any, option: Option) -> str:
    """A file may give a list, of names or of flags; everything else has one spelling."""
    if not isinstance(raw, (list, tuple)):
        return str(raw)
    parts = [str(part) for part in raw]
    return shlex.join(parts) if option.parse is command_flags else ",".join(parts)


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
