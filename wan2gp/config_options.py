"""Every setting: where it may come from, what it is without that, and how its text becomes a value.

:mod:`wan2gp.config` reads them; ``docs/configuration.md`` is made from the table.
"""

from __future__ import annotations

import shlex
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from wan2gp.secret import Secret as Secret
from wan2gp.storage_address import LONGEST_PATH

QUEUES = ("auto", "embedded", "postgres", "supabase", "edge")
PATH_FIELDS = frozenset({"task_id", "attempt", "lease", "filename", "task_type", "user_id", "project_id", "worker"})
"""What the template of a result's path in the bucket may name."""
_SAMPLE = {
    "task_id": "00000000-0000-4000-8000-000000000000",
    "attempt": 1,
    "lease": "0123abcd",
    "filename": "output.mp4",
    "task_type": "comfy",
    "user_id": "00000000-0000-4000-8000-000000000001",
    "project_id": "00000000-0000-4000-8000-000000000002",
    "worker": "w",
}
_SERVICES = frozenset({"rest", "auth", "storage", "functions", "realtime", "graphql", "v1", "dashboard"})
"""Parts of addresses within a project, or of pages about one, that are no part of the project's own address."""


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


def _share(value: str) -> float:
    number = float(value)
    if not 0.1 <= number <= 1:
        raise ValueError("give a share from 0.1 to 1")
    return number


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


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise ValueError("give a whole number, 1 or more")
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


def _model_sources(value: str) -> tuple[str, ...]:
    """Host and first parts of the path, each; ``http://`` in front where a mirror in the house has no TLS."""
    found = _names(value)
    for name in found:
        parts = _split((name if "://" in name else f"https://{name}").rstrip("/"))
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc
        if wrong or parts.query or parts.fragment or not {"", ".", ".."}.isdisjoint(parts.path.split("/")[1:]):
            raise ValueError("give hosts with an owner's name, as in huggingface.co/DeepBeepMeep")
    return tuple(name.rstrip("/") for name in found)


def _place(value: str) -> str:
    if value and not value.startswith("/"):
        raise ValueError("give an absolute path")
    return value.rstrip("/") or value


def command_flags(value: str) -> str:
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
    parts = _split(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("give the server's address, as in http://10.0.0.7:8188")
    return value


def _split(value: str) -> SplitResult:
    """Raises :class:`ValueError` for what is no URL, and for a port that there is not."""
    if any(character <= " " or not character.isprintable() for character in value):
        raise ValueError("it holds a blank or a control character: take that out")
    parts = urlsplit(value)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is no number from 1 to 65535: mend it, or leave it out")
    return parts


def _project_url(value: str) -> str:
    """The base URL of a Supabase project without a slash at its end, or nothing."""
    value = value.strip()
    if not value:
        return value
    parts = _split(value)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or "?" in value
        or "#" in value
    ):
        raise ValueError("give the project's address, as in https://abcdefghij.supabase.co")
    if not _SERVICES.isdisjoint(parts.path.lower().split("/")):
        raise ValueError(
            f"leave out {parts.path}: give the project's own address, as in https://abcdefghij.supabase.co"
        )
    return value.rstrip("/")


def _bucket_name(value: str) -> str:
    value = value.strip()
    if value in ("", ".", "..") or "/" in value or any(each.isspace() or not each.isprintable() for each in value):
        raise ValueError("give the name of one bucket, without slashes and blanks")
    return value


def _bucket_path(value: str) -> str:
    """A template of an object's path, or nothing."""
    if not value:
        return value
    try:
        fields = [found[1:] for found in string.Formatter().parse(value) if found[1] is not None]
    except ValueError as error:
        raise ValueError(f"it is no template ({error}): mend its braces") from error
    used = {str(name) for name, _, _ in fields}
    if unknown := sorted(used - PATH_FIELDS):
        raise ValueError(f"{{{unknown[0]}}} is unknown: use {', '.join(sorted(PATH_FIELDS))}")
    if plainer := [name for name, spec, conversion in fields if spec or conversion]:
        raise ValueError(f"{{{plainer[0]}}} stands as it is: take out what follows its name in the braces")
    if missing := sorted({"task_id", "attempt", "lease", "filename"} - used):
        raise ValueError(f"{{{missing[0]}}} must be in it, or one attempt could overwrite another's file")
    path = value.format(**_SAMPLE)
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or not path.isprintable():
        raise ValueError("give a path below the bucket: no slash at its ends, no empty part, no `.` or `..`")
    if len(path.encode()) > LONGEST_PATH // 2:
        raise ValueError(f"it makes paths of {len(path.encode())} bytes and more: at most {LONGEST_PATH} are possible")
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
    "supabase_url": Option("supabase_url", "SUPABASE_URL", "", _project_url, "URL of the Supabase project"),
    "supabase_key": Option(
        "supabase_access_token", "SUPABASE_SERVICE_ROLE_KEY", Secret(""), _secret, "service role key"
    ),
    "supabase_key_file": Option(
        "supabase_access_token_file", "SUPABASE_SERVICE_ROLE_KEY_FILE", "", _text, "file with that key"
    ),
    "finish_via": Option(
        "finish_via",
        "WAN2GP_FINISH_VIA",
        "auto",
        _one_of("auto", "sql", "complete_task"),
        "who completes a row: our SQL, or the predecessor's Edge Function (auto: where a row has a project)",
    ),
    "publish_to": Option(
        "publish.to",
        "WAN2GP_PUBLISH_TO",
        "auto",
        _one_of("auto", "local", "storage"),
        "where results go (auto: to Supabase Storage where a project and its key are given)",
    ),
    "storage_bucket": Option(
        "storage.bucket", "SUPABASE_VIDEO_BUCKET", "image_uploads", _bucket_name, "the bucket for results"
    ),
    "storage_path": Option(
        "storage.path", "WAN2GP_STORAGE_PATH", "", _bucket_path, "template of a result's path in the bucket"
    ),
    "storage_url": Option(
        "storage.url", "WAN2GP_STORAGE_URL", "public", _one_of("public", "signed"), "the kind of URL a row gets"
    ),
    "storage_signed_url_s": Option(
        "storage.signed_url_s", "WAN2GP_SIGNED_URL_S", 604800.0, _at_least(1.0), "how long a signed URL holds, seconds"
    ),
    "uploads": Option("publish.parallel", "WAN2GP_UPLOADS", 3, _positive, "uploads at once"),
    "allow_private_put_urls": Option(
        "publish.allow_private_put_urls",
        "WAN2GP_ALLOW_PRIVATE_PUT_URLS",
        False,
        _flag,
        "`put_url` may lead to private addresses, also without TLS",
    ),
    "ship_logs": Option(
        "logs.ship", "WAN2GP_SHIP_LOGS", True, _flag, "copy the worker's log to the table system_logs, if there is one"
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
    "memory_soft_mib": Option(
        "memory.soft_mib",
        "WAN2GP_MEMORY_SOFT_MIB",
        0,
        _count,
        "an engine that holds more memory after a task is replaced, MiB; 0: 85 % of what the machine or container has",
    ),
    "memory_hard_mib": Option(
        "memory.hard_mib",
        "WAN2GP_MEMORY_HARD_MIB",
        0,
        _count,
        "an engine that holds more memory during a task is ended, MiB; 0: 95 % of what the machine or container has",
    ),
    "memory_gpu_soft_mib": Option(
        "memory.gpu_soft_mib",
        "WAN2GP_MEMORY_GPU_SOFT_MIB",
        0,
        _count,
        "an engine that holds more GPU memory after a task is replaced, MiB; 0: no limit",
    ),
    "gpu_slot": Option(
        "gpu.slot",
        "WAN2GP_GPU_SLOT",
        "auto",
        _one_of("auto", "off"),
        "auto: one engine at a time has its models on the GPU; off: each keeps what it has, if all have room",
    ),
    "gpu_clear_s": Option(
        "gpu.clear_s",
        "WAN2GP_GPU_CLEAR_S",
        30.0,
        _at_least(0.1),
        "an engine that has not given the GPU's memory back for another so long after it was asked is stopped, seconds",
    ),
    "claim_fairness_claims": Option(
        "claim.fairness_claims",
        "WAN2GP_CLAIM_FAIRNESS_CLAIMS",
        8,
        _count,
        "tasks of the loaded model go before the oldest task at most so often; 0: tasks go by age",
    ),
    "claim_fairness_s": Option(
        "claim.fairness_s",
        "WAN2GP_CLAIM_FAIRNESS_S",
        120.0,
        _seconds,
        "and for at most so long, seconds; 0: tasks go by age",
    ),
    "disk_min_free_mib": Option(
        "disk.min_free_mib",
        "WAN2GP_DISK_MIN_FREE_MIB",
        512,
        _count,
        "with less free space under the data directory nothing is claimed, MiB; 0: no limit",
    ),
    "sandbox": Option(
        "sandbox.mode",
        "WAN2GP_SANDBOX",
        "best",
        _one_of("best", "require", "off"),
        "handlers get every protection that the kernel allows; `require`: no start without one of them",
    ),
    "sandbox_uid_base": Option(
        "sandbox.uid_base",
        "WAN2GP_SANDBOX_UID_BASE",
        65000,
        _count,
        "as root: handlers run under user ids counted from this one; 0: under the worker's own",
    ),
    "sandbox_processes": Option(
        "sandbox.processes", "WAN2GP_SANDBOX_PROCESSES", 4096, _positive, "most processes and threads of one handler"
    ),
    "sandbox_open_files": Option(
        "sandbox.open_files", "WAN2GP_SANDBOX_OPEN_FILES", 65536, _positive, "most open files of one process"
    ),
    "sandbox_file_mib": Option(
        "sandbox.file_mib", "WAN2GP_SANDBOX_FILE_MIB", 65536, _positive, "largest file that a handler may write, MiB"
    ),
    "sandbox_disk_mib": Option(
        "sandbox.disk_mib",
        "WAN2GP_SANDBOX_DISK_MIB",
        0,
        _count,
        "most disk that one handler's own files and its task's may take, MiB; 0: all but a tenth of what is free",
    ),
    "sandbox_read_paths": Option(
        "sandbox.read_paths", "WAN2GP_SANDBOX_READ_PATHS", (), _directories, "more paths that every handler may read"
    ),
    "prefetch": Option("prefetch", "WAN2GP_PREFETCH", 0, _count, "tasks claimed ahead per handler"),
    "prewarm": Option("prewarm", "WAN2GP_PREWARM", (), _names, "handlers started at boot"),
    "comfy_path": Option("comfy.path", "COMFY_PATH", "/workspace/ComfyUI", _text, "ComfyUI's checkout, or `builtin`"),
    "comfy_port": Option("comfy.port", "COMFY_PORT", 8188, _port, "ComfyUI's port, if it is free"),
    "comfy_python": Option("comfy.python", "COMFY_PYTHON", "", _text, "interpreter for ComfyUI"),
    "comfy_args": Option("comfy.args", "COMFY_ARGS", "", command_flags, "more flags for ComfyUI"),
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
        "comfy.stuck_s",
        "COMFY_STUCK_S",
        1800.0,
        _seconds,
        "limit without any progress of a prompt, seconds; four times as long at COMFY_URL without a websocket",
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
    "comfy_network": Option(
        "comfy.network",
        "COMFY_NETWORK",
        "own",
        _one_of("own", "open"),
        "ComfyUI connects to nothing, or, `open`, to the internet too, as API nodes need",
    ),
    "comfy_writable_paths": Option(
        "comfy.writable_paths",
        "COMFY_WRITABLE_PATHS",
        (),
        _directories,
        "directories that custom nodes may write to besides ComfyUI's own",
    ),
    "wan2gp_path": Option("wan2gp.path", "WAN2GP_PATH", "", _text, "Wan2GP's checkout"),
    "wan2gp_python": Option("wan2gp.python", "WAN2GP_PYTHON", "", _text, "interpreter for Wan2GP"),
    "wan_start_timeout_s": Option(
        "wan.start_timeout_s",
        "WAN2GP_START_TIMEOUT_S",
        180.0,
        _at_least(1.0),
        "limit for Wan2GP's start, seconds; the first one after an installation compiles for more than a minute",
    ),
    "wan_stuck_s": Option(
        "wan.stuck_s",
        "WAN2GP_STUCK_S",
        1800.0,
        _at_least(1.0),
        "limit without a sign of life of a generation, the load of its model included, seconds",
    ),
    "wan_cancel_grace_s": Option(
        "wan.cancel_grace_s",
        "WAN2GP_CANCEL_GRACE_S",
        60.0,
        _seconds,
        "how long a cancelled generation may go on before its process is ended, seconds; a load cannot be interrupted",
    ),
    "wan_idle_unload_s": Option(
        "wan.idle_unload_s",
        "WAN2GP_IDLE_UNLOAD_S",
        600.0,
        _seconds,
        "give the model's memory back after so long without work, seconds; 0: never",
    ),
    "wan_profile": Option(
        "wan.profile",
        "WAN2GP_PROFILE",
        "4",
        _one_of("1", "2", "3", "3.5", "4", "4.5", "5"),
        "Wan2GP's memory profile: 1 needs most memory and is fastest, 5 needs least",
    ),
    "wan_attention": Option(
        "wan.attention",
        "WAN2GP_ATTENTION",
        "sdpa",
        _one_of("auto", "sdpa", "sage", "sage2", "flash", "xformers"),
        "Wan2GP's attention; all but `sdpa` need a package in its environment",
    ),
    "wan_vram_coefficient": Option(
        "wan.vram_coefficient",
        "WAN2GP_VRAM_COEFFICIENT",
        0.8,
        _share,
        "share of the GPU's memory that Wan2GP plans with",
    ),
    "wan_interpolation": Option(
        "wan.interpolation",
        "WAN2GP_INTERPOLATION",
        "ask",
        _one_of("ask", "auto", "rife", "ffmpeg"),
        "what makes frames between frames for tasks that leave the choice: RIFE alone (`ask`); RIFE where it is, else "
        "ffmpeg (`auto`); ffmpeg; or `rife`, without which those tasks are not claimed",
    ),
    "wan_interpolation_device": Option(
        "wan.interpolation_device",
        "WAN2GP_INTERPOLATION_DEVICE",
        "cpu",
        _one_of("cpu", "cuda"),
        "where RIFE computes",
    ),
    "wan_download": Option(
        "wan.download", "WAN2GP_DOWNLOAD", True, _flag, "fetch weights that Wan2GP does not find, at their first use"
    ),
    "wan_model_sources": Option(
        "wan.model_sources",
        "WAN2GP_MODEL_SOURCES",
        ("huggingface.co/DeepBeepMeep",),
        _model_sources,
        "where weights may be fetched from; they can run code when they are loaded, so: only whom you trust",
    ),
    "wan_models_dir": Option(
        "wan.models_dir",
        "WAN2GP_MODELS_DIR",
        "",
        _place,
        "where LoRAs and weights are kept, also for several workers; else `models` in the data directory",
    ),
    "wan_weights_bytes": Option(
        "wan.weights_bytes",
        "WAN2GP_WEIGHTS_BYTES",
        500 * 1024**3,
        _positive,
        "disk for weights that were fetched, bytes; those put there by hand do not count",
    ),
    "wan_loras_bytes": Option(
        "wan.loras_bytes", "WAN2GP_LORAS_BYTES", 50 * 1024**3, _positive, "the same for LoRAs, bytes"
    ),
    "wan_lora_max_bytes": Option(
        "wan.lora_max_bytes", "WAN2GP_LORA_MAX_BYTES", 8 * 1024**3, _positive, "largest LoRA that is fetched, bytes"
    ),
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
    "input_max_pixels": Option(
        "inputs.max_pixels",
        "WAN2GP_INPUT_MAX_PIXELS",
        134_217_728,
        _count,
        "largest picture or frame of an input, pixels; all frames of an animated picture: 8 times that; 0: no limit",
    ),
    "input_max_frames": Option(
        "inputs.max_frames", "WAN2GP_INPUT_MAX_FRAMES", 500_000, _count, "most frames of an input; 0: no limit"
    ),
    "input_max_duration_s": Option(
        "inputs.max_duration_s",
        "WAN2GP_INPUT_MAX_DURATION_S",
        14400.0,
        _seconds,
        "longest film or sound as an input, seconds; 0: no limit",
    ),
    "input_allow_paths": Option(
        "inputs.allow_paths",
        "WAN2GP_INPUT_ALLOW_PATHS",
        (),
        _directories,
        "directories whose files tasks may name",
    ),
    "input_buckets": Option(
        "inputs.buckets",
        "WAN2GP_INPUT_BUCKETS",
        (),
        _names,
        "buckets whose files tasks may name as `storage://…`; none given: every bucket that the key opens",
    ),
}
