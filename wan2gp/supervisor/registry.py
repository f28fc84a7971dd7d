"""Which handlers there are, as data: no engine is imported here, only named.

Other packages add theirs through the entry-point group ``wan2gp.handlers``: the entry point names a
:class:`HandlerSpec`, in a module that imports no engine (it is imported by the supervisor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from wan2gp import comfy_sources, media_sources, wan_sources
from wan2gp.config import Config, ConfigError
from wan2gp.model_places import FOLDERS
from wan2gp.protocol import Source
from wan2gp.supervisor.comfy_needs import comfy_needs
from wan2gp.supervisor.lifecycle import Patience
from wan2gp.supervisor.media_needs import media_needs, media_unable, rife_store
from wan2gp.supervisor.memory_watch import memory_limits
from wan2gp.supervisor.needs import Needs
from wan2gp.supervisor.wan_able import NOTICE, wan_unable, wan_unable_types
from wan2gp.supervisor.wan_needs import wan_needs
from wan2gp.supervisor.wanted import MayFetch
from wan2gp.wan_types import OWN_URLS, TYPES

GROUP = "wan2gp.handlers"
COURIER = "courier"

PHASE_LIMITS_S: Mapping[str, float] = {
    "start": 120.0,
    "download": 3600.0,
    "load": 1800.0,
    "step": 1800.0,
    "decode": 1800.0,
    "publish": 1800.0,
}
"""How long a phase may go on without any progress before the handler counts as hung, seconds."""

CANCEL_GRACE_S = 15.0
START_SPARE_S, STUCK_SPARE_S = 30.0, 60.0
"""Over a handler's own limits for its engine, which end the engine and not the handler."""
SILENCE_S = 60.0
"""One C call that keeps the interpreter's lock can silence the beats for seconds: only so long a silence kills."""


def _always(config: Config) -> str | None:
    return None


def _every_type(config: Config) -> Mapping[str, str]:
    return {}


def _no_secrets(config: Config) -> Mapping[str, str]:
    return {}


def _nothing(params: Any) -> Mapping[str, Source]:
    return {}


def _only_what_stands_in_params(config: Config) -> MayFetch:
    return MayFetch()


def _needs_nothing(config: Config) -> Needs:
    return Needs()


@dataclass(frozen=True)
class HandlerSpec:
    """One handler, by name. Everything callable here is pure and quick."""

    name: str
    target: str
    """``module:Class`` of a :class:`wan2gp.handlers.api.Handler`, imported in the child only."""
    task_types: tuple[str, ...]
    settings: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    """What the child gets to know of the configuration: JSON values, no secrets."""
    secrets: Callable[[Config], Mapping[str, str]] = _no_secrets
    """The tokens that it needs, by a name of its own choice: mostly some of ``config.handler_secrets``, revealed."""
    unable: Callable[[Config], str | None] = _always
    """Why this worker cannot run it (its types are not claimed then), or None."""
    unable_types: Callable[[Config], Mapping[str, str]] = _every_type
    """Those of its types that this worker cannot serve, each with the reason: only the others are claimed."""
    notice: str = ""
    """What people must be told of its engine where it is at work; `wan2gp-ctl status` shows it."""
    early_inputs: Callable[[Any], Mapping[str, Source]] = _nothing
    """From ``params``: what the courier may fetch while the engine still runs the task before. The names and sources
    must be those that the handler asks for."""
    start_s: float = 60.0
    """Limit from spawn to hello, seconds."""
    warm_start_s: Callable[[Config], float] = lambda config: 600.0
    """The same when the engine is started first, seconds."""
    limits_s: Mapping[str, float] = field(default_factory=dict)
    """Phases whose limit differs from :data:`PHASE_LIMITS_S`, seconds."""
    prefetch: bool = True
    """Whether the worker's `prefetch` applies to it."""
    patience: Patience = field(default_factory=Patience)
    """How it is started again after a death, and when it counts as broken."""
    cancel_grace_s: float = CANCEL_GRACE_S
    """How long a cancelled run may take to end before the process is killed, seconds."""
    silence_s: float = SILENCE_S
    """How long the process may show no sign of life at all, seconds."""
    may_fetch: Callable[[Config], MayFetch] = _only_what_stands_in_params
    """What the courier may fetch for it besides the URLs in its tasks' params."""
    gpu: Callable[[Config], bool] = lambda config: False
    """Whether its engine puts models on this machine's GPU, in ``run`` and in ``warm`` (never in ``load``): such
    handlers take turns, and the one before is asked to unload."""
    models: Mapping[str, str] = field(default_factory=dict)
    """By task type: the model that a task needs whose ``params.model`` names none, for a handler that tells what it has
    loaded (``engine_state(…, model=…)``): tasks of that model are preferred."""
    needs: Callable[[Config], Needs] = _needs_nothing
    """What its sandbox must allow besides the common; asked once, when the worker starts."""


class RegistryError(Exception):
    """Two handlers claim the same name or task type, or a plug-in cannot be loaded."""


class Registry:
    """The handlers of this worker, by name and by task type."""

    def __init__(self, specs: Iterable[HandlerSpec]) -> None:
        self.specs: dict[str, HandlerSpec] = {}
        self._by_type: dict[str, HandlerSpec] = {}
        for spec in specs:
            if spec.name in self.specs:
                raise RegistryError(f"two handlers are named {spec.name}: uninstall one of the packages")
            self.specs[spec.name] = spec
            for task_type in spec.task_types:
                other = self._by_type.setdefault(task_type, spec)
                if other is not spec:
                    raise RegistryError(f"handlers {other.name} and {spec.name} both take task type {task_type}")

    def for_type(self, task_type: str) -> HandlerSpec | None:
        """The handler that takes this type, if there is one."""
        return self._by_type.get(task_type)


Found = tuple[str | None, Mapping[str, str]]
"""Why a handler can serve nothing, if so; else which of its types it cannot serve, and why."""


def looks_around(spec: HandlerSpec) -> bool:
    """Whether there is anything to find out by :func:`unable_of`."""
    return spec.unable is not _always or spec.unable_types is not _every_type


def unable_of(spec: HandlerSpec, config: Config) -> Found:
    """Looks at the disk."""
    reason = spec.unable(config)
    if reason is not None:
        return reason, {}
    found = {name: why for name, why in spec.unable_types(config).items() if name in spec.task_types}
    if spec.task_types and len(found) == len(spec.task_types):
        return f"none of its types can be served: {next(iter(found.values()))}", {}
    return None, found


def load_registry(config: Config) -> Registry:
    """The built-in handlers and those of installed packages. Raises :class:`RegistryError`, and
    :class:`~wan2gp.config.ConfigError` when `prewarm` names none of them."""
    registry = Registry([comfy_spec(), wan_spec(config), media_spec(), *_plugins()])
    unknown = [name for name in config.prewarm if name not in registry.specs]
    if unknown:
        known = ", ".join(registry.specs)
        raise ConfigError([f"prewarm names {name}, which is no handler: there are {known}" for name in unknown])
    return registry


def _plugins() -> Iterable[HandlerSpec]:
    for entry in entry_points(group=GROUP):
        try:
            spec = entry.load()
        except Exception as error:
            # Somebody else's module: whatever it raises at import is a wrong installation, and said as one.
            raise RegistryError(f"cannot load the handler {entry.name} ({entry.value}): {error}") from error
        if not isinstance(spec, HandlerSpec):
            raise RegistryError(f"cannot load the handler {entry.name}: {entry.value} is no HandlerSpec")
        yield spec


def comfy_spec() -> HandlerSpec:
    """ComfyUI, by its sidecar."""
    return HandlerSpec(
        name="comfy",
        target="wan2gp.handlers.comfy:ComfyHandler",
        task_types=("comfy",),
        settings=_comfy_settings,
        unable=_comfy_unable,
        early_inputs=comfy_sources.sources_of,
        warm_start_s=_comfy_warm_start_s,
        limits_s={},
        needs=comfy_needs,
        gpu=_comfy_on_gpu,
    )


def _comfy_settings(config: Config) -> dict[str, Any]:
    memory = memory_limits(config)
    return {
        "path": config.comfy_path,
        "port": config.comfy_port,
        "python": config.comfy_python,
        "args": config.comfy_args,
        "url": config.comfy_url,
        "warmup_workflow": _absolute(config.comfy_warmup_workflow),
        "start_timeout_s": config.comfy_start_timeout_s,
        "run_timeout_s": config.comfy_run_timeout_s,
        "stuck_s": config.comfy_stuck_s,
        "idle_stop_s": config.comfy_idle_stop_s,
        "when_missing": config.comfy_when_missing,
        "allow_paths": list(config.input_allow_paths),
        "input_max_bytes": config.input_max_bytes,
        "max_pixels": config.input_max_pixels,
        "max_frames": config.input_max_frames,
        "max_duration_s": config.input_max_duration_s,
        "storage": bool(config.supabase_url and config.supabase_key),
        "posters": config.publishes_to_storage,
        "memory_bytes": memory.soft,
        "memory_hard_bytes": memory.hard,
    }


def _absolute(path: str) -> str:
    """As seen from where the supervisor was started: a child works elsewhere."""
    return str(Path(path).expanduser().absolute()) if path else ""


def _comfy_warm_start_s(config: Config) -> float:
    """The warm-up workflow has the same limit as the start itself."""
    return config.comfy_start_timeout_s * (2 if config.comfy_warmup_workflow else 1) + 30.0


def _comfy_on_gpu(config: Config) -> bool:
    """The built-in engine has no models; what another server has on its GPU is not ours to ask for."""
    return config.comfy_path != "builtin" and not config.comfy_url and "--cpu" not in config.comfy_args.split()


def _comfy_unable(config: Config) -> str | None:
    if config.comfy_when_missing == "fail" or config.comfy_url or config.comfy_path == "builtin":
        return None
    if (Path(config.comfy_path) / "main.py").is_file():
        return None
    return f"no ComfyUI at {config.comfy_path} (COMFY_PATH), and COMFY_WHEN_MISSING=leave"


def wan_spec(config: Config) -> HandlerSpec:
    """Wan2GP, by its sidecar."""
    return HandlerSpec(
        name="wan",
        target="wan2gp.handlers.wan:WanHandler",
        task_types=tuple(TYPES),
        settings=_wan_settings,
        unable=wan_unable,
        unable_types=wan_unable_types,
        notice=NOTICE,
        early_inputs=wan_sources.sources_of,
        warm_start_s=lambda config: config.wan_start_timeout_s + START_SPARE_S,
        limits_s={phase: config.wan_stuck_s + STUCK_SPARE_S for phase in ("load", "step", "decode")},
        # The engine's process is ended first, and the handler lives on.
        cancel_grace_s=config.wan_cancel_grace_s + CANCEL_GRACE_S,
        may_fetch=wan_may_fetch,
        gpu=lambda config: True,
        models={name: row.model for name, row in TYPES.items()},
        needs=wan_needs,
    )


def _wan_settings(config: Config) -> dict[str, Any]:
    return {
        "path": _absolute(config.wan2gp_path),
        "python": config.wan2gp_python,
        "profile": config.wan_profile,
        "attention": config.wan_attention,
        "vram_coefficient": config.wan_vram_coefficient,
        "start_timeout_s": config.wan_start_timeout_s,
        "stuck_s": config.wan_stuck_s,
        "cancel_grace_s": config.wan_cancel_grace_s,
        "idle_unload_s": config.wan_idle_unload_s,
        "models_dir": str(config.models_directory()),
        "download": config.wan_download,
        "allow_paths": list(config.input_allow_paths),
        "input_max_bytes": config.input_max_bytes,
        "max_pixels": config.input_max_pixels,
        "max_frames": config.input_max_frames,
        "max_duration_s": config.input_max_duration_s,
        "storage": bool(config.supabase_url and config.supabase_key),
        "posters": config.publishes_to_storage,
    }


def media_spec() -> HandlerSpec:
    """Frames between frames: by Wan2GP's RIFE, or by ffmpeg."""
    return HandlerSpec(
        name="media",
        target="wan2gp.handlers.media:MediaHandler",
        task_types=media_sources.TYPES,
        settings=_media_settings,
        unable=media_unable,
        early_inputs=media_sources.sources_of,
        limits_s={},
        may_fetch=wan_may_fetch,
        needs=media_needs,
        gpu=lambda config: config.wan_interpolation_device != "cpu",
    )


def _media_settings(config: Config) -> dict[str, Any]:
    return {
        "checkout": _absolute(config.wan2gp_path),
        "python": config.wan2gp_python,
        "stores": [rife_store(config), str(config.models_directory())],
        "interpolation": config.wan_interpolation,
        "download": config.wan_download,
        "device": config.wan_interpolation_device,
        "start_timeout_s": config.wan_start_timeout_s,
        "allow_paths": list(config.input_allow_paths),
        "input_max_bytes": config.input_max_bytes,
        "max_pixels": config.input_max_pixels,
        "max_frames": config.input_max_frames,
        "max_duration_s": config.input_max_duration_s,
        "storage": bool(config.supabase_url and config.supabase_key),
        "posters": config.publishes_to_storage,
    }


def courier_settings(config: Config) -> dict[str, Any]:
    """What the courier gets to know."""
    return {
        "allow_private_urls": config.allow_private_urls,
        "allow_private_hosts": list(config.allow_private_hosts),
        "max_bytes": config.input_max_bytes,
        "total_s": config.input_total_s,
        "idle_s": config.input_idle_s,
        "cache_bytes": config.input_cache_bytes,
        "models_dir": str(config.models_directory()),
        "weights_bytes": config.wan_weights_bytes,
        "loras_bytes": config.wan_loras_bytes,
        "lora_max_bytes": config.wan_lora_max_bytes,
    }


def courier_needs(config: Config) -> Needs:
    """It is there to reach the network, by names too, and to keep the files of models."""
    return Needs(write=model_folders(config), tcp=None, udp=True)


def model_folders(config: Config) -> tuple[str, ...]:
    """Where the courier keeps LoRAs and weights."""
    return tuple(str(config.models_directory() / name) for name in FOLDERS.values())


def wan_may_fetch(config: Config) -> MayFetch:
    """The LoRAs that belong to a type, and weights from those whom the operator trusts: what the engine asks for may
    be anything that a file of its checkout says."""
    return MayFetch(OWN_URLS, config.wan_model_sources if config.wan_download else (), models=True)
