"""The LoRAs of a generation task and their strengths: four ways to write them, one list in the end.

None is ever left out in silence: what cannot be read is refused here, what cannot be had before the GPU is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wan2gp.handlers.comfy_fields import bad, close
from wan2gp.lora_names import BadLora, checked, is_url

MOST_LORAS = 32
STRONGEST = 10.0
SOURCES = ("url", "path", "name")
STRENGTHS = ("multiplier", "strength", "scale", "weight")
_NUMBER = re.compile(r"[+-]?(\d{1,4}(\.\d{0,8})?|\.\d{1,8})")


@dataclass(frozen=True)
class Lora:
    """One LoRA. ``strength``: a number; several with ``,`` for the steps of a phase, with ``;`` for phases."""

    source: str
    """Its file's name in the engine's directory, or the URL of the file itself."""
    strength: str
    label: str
    """Where the row names it, for messages; empty: the type itself brings it."""

    @property
    def is_url(self) -> bool:
        """Whether it is fetched."""
        return is_url(self.source)

    @property
    def phases(self) -> int:
        """For how many phases strengths are given; 1: the same in all."""
        return self.strength.count(";") + 1


def read_loras(params: Mapping[str, Any]) -> list[Lora]:
    """All LoRAs that a row names, in order, each once. Raises ``TaskFailure`` with ``input.bad_params``."""
    return merged([*_activated(params), *_listed(params), *_additional(params)])


def merged(loras: list[Lora]) -> list[Lora]:
    """Each once; a second mention must agree with the first."""
    found: dict[str, Lora] = {}
    for lora in loras:
        known = found.setdefault(lora.source, lora)
        if known.strength != lora.strength:
            raise bad(
                f"`{known.label}` and `{lora.label}` name the same LoRA with the strengths "
                f"{known.strength} and {lora.strength}: give it once"
            )
    if len(found) > MOST_LORAS:
        raise bad(f"`loras` are {len(found)} in all: the most is {MOST_LORAS}")
    return list(found.values())


def one_lora(source: Any, strength: Any, label: str) -> Lora:
    """One LoRA as a row gives it."""
    if not isinstance(source, str):
        raise bad(f"`{label}` must be the name or URL of a LoRA, as text")
    try:
        return Lora(checked(source), read_strength(strength, label), label)
    except BadLora as error:
        raise bad(f"`{label}` {error}") from error


def read_strength(given: Any, label: str) -> str:
    """A number, or numbers with ``,`` and ``;`` between them, as the engine takes them."""
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        given = f"{given:.8f}".rstrip("0").rstrip(".") if abs(given) <= STRONGEST else str(given)
    if not isinstance(given, str) or not given.strip():
        raise bad(f"`{label}` has the strength {given!r:.60}: give a number, as 0.8, or 1;0 for two phases")
    phases = given.strip().split(";")
    if len(phases) > 3:
        raise bad(f"`{label}` has strengths for {len(phases)} phases: there are at most 3")
    for number in (one.strip() for phase in phases for one in phase.split(",")):
        if _NUMBER.fullmatch(number) is None or abs(float(number)) > STRONGEST:
            raise bad(f"`{label}` has the strength {number[:40]!r}: give a number from -{STRONGEST:g} to {STRONGEST:g}")
    return ";".join(",".join(one.strip() for one in phase.split(",")) for phase in phases)


def strengths_setting(loras: list[Lora]) -> str:
    """The engine's ``loras_multipliers``."""
    return " ".join(lora.strength for lora in loras)


# --- the four ways ---------------------------------------------------------------------------------------------------


def _activated(params: Mapping[str, Any]) -> Iterator[Lora]:
    names = params.get("activated_loras")
    strengths = _strengths(params.get("loras_multipliers"))
    if isinstance(names, str):
        names = [one for one in names.split(",") if one.strip()]
    if names is not None and not isinstance(names, list):
        raise bad("`activated_loras` must be a list of names and URLs")
    if strengths and len(strengths) != len(names or ()):
        raise bad(f"`loras_multipliers` has {len(strengths)} strengths for {len(names or ())} `activated_loras`")
    for index, name in enumerate(names or ()):
        yield one_lora(name, strengths[index] if strengths else "1", f"activated_loras[{index}]")


def _strengths(given: Any) -> list[Any]:
    """The engine's own notation: lines, comments that begin with ``#``, and one ``|`` that means a space."""
    if given is None:
        return []
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return [given]
    if isinstance(given, list):
        return given
    if not isinstance(given, str):
        raise bad("`loras_multipliers` must be text, as `1 0.8`, or a list")
    lines = (line for line in given.splitlines() if not line.lstrip().startswith("#"))
    return " ".join(lines).replace("|", " ").split()


def _listed(params: Mapping[str, Any]) -> Iterator[Lora]:
    given = params.get("loras")
    if given is None:
        return
    if not isinstance(given, list):
        raise bad("`loras` must be a list of names, URLs or {url, multiplier}")
    for index, entry in enumerate(given):
        label = f"loras[{index}]"
        yield entry_lora(entry, label) if isinstance(entry, dict) else one_lora(entry, "1", label)


def entry_lora(entry: Mapping[str, Any], label: str, more: tuple[str, ...] = ()) -> Lora:
    """A LoRA as an object: exactly one of :data:`SOURCES`, at most one of :data:`STRENGTHS`."""
    for key in entry:
        if key not in (*SOURCES, *STRENGTHS, *more):
            raise bad(f"`{label}` has no field `{str(key)[:60]}`{close(str(key), (*SOURCES, *STRENGTHS))}")
    sources = [entry[key] for key in SOURCES if entry.get(key) is not None]
    strengths = [entry[key] for key in STRENGTHS if entry.get(key) is not None]
    if len(sources) != 1 or len(strengths) > 1:
        raise bad(f"`{label}` needs exactly one of {', '.join(SOURCES)}, and at most one of {', '.join(STRENGTHS)}")
    return one_lora(sources[0], strengths[0] if strengths else "1", label)


def _additional(params: Mapping[str, Any]) -> Iterator[Lora]:
    given = params.get("additional_loras")
    if given is None:
        return
    if not isinstance(given, dict):
        raise bad("`additional_loras` must be an object, {url: strength}")
    for url, strength in given.items():
        yield one_lora(url, strength, f"additional_loras[{str(url)[:80]}]")
