"""A generation task's ``params``, read before anything is fetched or loaded: typed, complete, nothing left over."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wan2gp.handlers.comfy_fields import bad
from wan2gp.handlers.comfy_inputs import check_url
from wan2gp.handlers.wan_foreign_keys import CARRIED, GONE, GONE_PREFIX, GONE_SWITCH
from wan2gp.handlers.wan_loras import Lora, merged, read_loras
from wan2gp.handlers.wan_parameters import LORAS, MULTIPLIERS, PARAMETERS, allowed, names_for
from wan2gp.handlers.wan_phases import PhasePlan, read_phases
from wan2gp.handlers.wan_rules import Draft, first_broken
from wan2gp.handlers.wan_values import read_value
from wan2gp.wan_sources import MEDIA, MEDIA_NAMES, is_url, source_name
from wan2gp.wan_types import TYPES, TaskType

SHOWN = 5
"""How many names an error gives where none is near."""
NESTED = "orchestrator_details"
"""Rows of a larger order carry its parameters there; their own come first."""
_NAMES: Mapping[str, str] = {**{alias: row.name for row in PARAMETERS.values() for alias in row.aliases}, **MEDIA_NAMES}
"""Every other name of a parameter, with its own."""
_INSTEAD = {"image": "image_start", "mask": "video_mask"}
"""What types that start from no image have instead."""


@dataclass(frozen=True)
class WanFile:
    """One file that a row names. Exactly one of ``url`` and ``path`` is there; ``path`` is a path of this machine."""

    name: str
    parameter: str
    kind: str
    url: str = ""
    path: str = ""


@dataclass(frozen=True)
class WanRequest:
    """What a row asks for. ``values`` are by the parameters' own names, as their author meant them."""

    row: TaskType
    model: str
    values: Mapping[str, Any]
    files: tuple[WanFile, ...] = ()
    loras: tuple[Lora, ...] = ()
    phases: PhasePlan | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def own_model(self) -> bool:
        """Whether it is the model that the type's defaults were chosen for."""
        return self.model == self.row.model

    def has_files(self, parameter: str) -> bool:
        """Whether the row names files by this parameter."""
        return any(file.parameter == parameter for file in self.files)


def read_request(task_type: str, params: Any) -> WanRequest:
    """Raises :class:`~wan2gp.handlers.api.TaskFailure`: ``input.bad_params`` or ``input.bad_url``, naming the key."""
    row = TYPES.get(task_type)
    if row is None:
        near = difflib.get_close_matches(task_type, TYPES, n=1, cutoff=0.5)
        raise bad(f"there is no task type `{task_type[:60]}`" + (f": did you mean `{near[0]}`?" if near else ""))
    if not isinstance(params, dict):
        raise bad("`params` must be an object")
    given, labels, warnings = _own_keys(row, params)
    values = _values(given, labels)
    files = _files(given, labels)
    loras = read_loras(given)
    phases = read_phases(values["phase_config"]) if "phase_config" in values else None
    _check(Draft(row, values, frozenset(file.parameter for file in files), tuple(loras)))
    if phases is not None:
        warnings += _overruled(phases, values)
        loras = merged([*phases.loras, *(lora for lora in loras if not _in_phases(lora, phases))])
    model = str(values.get("model") or row.model)
    return WanRequest(row, model, values, tuple(files), tuple(loras), phases, tuple(warnings))


def _check(draft: Draft) -> None:
    broken = first_broken(draft)
    if broken is not None:
        raise bad(broken[1])


def _in_phases(lora: Lora, phases: PhasePlan) -> bool:
    """Web pages give the LoRAs of the phases once more, flat: the phases know more of them."""
    return any(lora.source == known.source for known in phases.loras)


def _overruled(phases: PhasePlan, values: Mapping[str, Any]) -> list[str]:
    names = [name for name, made in phases.settings.items() if name in values and values[name] != made]
    return [f"`phase_config` overrules {', '.join(f'`{name}`' for name in names)}"] if names else []


# --- keys ------------------------------------------------------------------------------------------------------------


def _own_keys(row: TaskType, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The values by the parameters' own names, what the row calls them, and what is not used."""
    names = names_for(row.name, row.makes, bool(row.image))
    given: dict[str, Any] = {}
    labels: dict[str, str] = {}
    unused: list[str] = []
    for key, value in params.items():
        if value is None or (isinstance(value, str) and value == "" and key in MEDIA_NAMES):
            continue
        if key not in names:
            unused += _not_ours(row, key, value, params, names)
            continue
        name = _NAMES.get(key, key)
        if name in given and given[name] != value:
            raise bad(f"`{labels[name]}` and `{key}` are the same parameter, with different values: give one")
        given[name], labels[name] = value, labels.get(name, key)
    _nested(params.get(NESTED), names, given, labels)
    return given, labels, unused


def _nested(details: Any, names: list[str], given: dict[str, Any], labels: dict[str, str]) -> None:
    """What the order that a row belongs to says, where the row itself says nothing. Its other keys are its own."""
    for key, value in details.items() if isinstance(details, dict) else ():
        name = _NAMES.get(key, key)
        # Files and models of an order belong to its own steps.
        if key in names and name not in given and name not in MEDIA and name != "model" and value is not None:
            given[name], labels[name] = value, f"{NESTED}.{key}"


def _not_ours(row: TaskType, key: str, value: Any, params: Mapping[str, Any], names: list[str]) -> list[str]:
    """A warning, nothing, or an error with the nearest name."""
    if key in CARRIED:
        return [f"`{key}` is not used: {CARRIED[key]}"] if CARRIED[key] else []
    if key in GONE:
        if value is False:
            return []
        raise bad(f"`{key}`: {GONE[key]}")
    if key.startswith(GONE_PREFIX) and not params.get(GONE_SWITCH):
        return [f"`{key}` is not used: `{GONE_SWITCH}` is not set"]
    raise bad(_unknown(row, str(key), names))


def _unknown(row: TaskType, key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.5)
    instead = (
        f": did you mean `{near[0]}`?"
        if near
        else f": there are {', '.join(f'`{name}`' for name in names[:SHOWN])} and more"
    )
    name = _NAMES.get(key, key)
    if name in _INSTEAD:
        return f"`{key}` is not for {row.name}: did you mean `{_INSTEAD[name]}`?"
    if name in PARAMETERS and not allowed(PARAMETERS[name], row.name, row.makes):
        types = PARAMETERS[name].types
        whose = ", ".join(types) if types else f"types that make a {PARAMETERS[name].makes}"
        return f"`{key}` is not for {row.name}, but for {whose}{instead}"
    return f"there is no parameter `{key[:100]}` for {row.name}{instead}"


# --- values and files ------------------------------------------------------------------------------------------------


def _values(given: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    rows = ((name, PARAMETERS[name]) for name in given if name in PARAMETERS)
    return {
        name: read_value(row, given[name], labels[name]) for name, row in rows if row.kind not in (LORAS, MULTIPLIERS)
    }


def _files(given: Mapping[str, Any], labels: Mapping[str, str]) -> list[WanFile]:
    return [file for name in given if name in MEDIA for file in _files_of(name, given[name], labels[name])]


def _files_of(name: str, given: Any, label: str) -> list[WanFile]:
    media = MEDIA[name]
    entries = given if isinstance(given, list) else [given]
    if not 1 <= len(entries) <= media.most:
        raise bad(
            f"`{label}` names {len(entries)} files: it may name 1" + (f" to {media.most}" if media.most > 1 else "")
        )
    return [_file(name, index, entry, label) for index, entry in enumerate(entries)]


def _file(name: str, index: int, entry: Any, label: str) -> WanFile:
    shown = label if MEDIA[name].most == 1 else f"{label}[{index}]"
    if not isinstance(entry, str) or not entry.strip():
        raise bad(f"`{shown}` must be a URL or a path, as text")
    if is_url(entry) or "://" in entry:
        return WanFile(source_name(name, index), name, MEDIA[name].kind, url=check_url(entry, shown))
    if not entry.startswith("/"):
        raise bad(f"`{shown}` is {entry[:100]!r}: give a URL, or the absolute path of a file in `inputs.allow_paths`")
    return WanFile(source_name(name, index), name, MEDIA[name].kind, path=entry)
