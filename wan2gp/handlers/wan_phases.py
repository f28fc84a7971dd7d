"""``phase_config``: how many steps each phase of the sampling has, with which guidance and which LoRAs.

The engine changes phase where the noise falls below a threshold, not after a count of steps. So the noise levels of
the steps are worked out as its samplers do (``sigma' = shift·sigma / (1 + (shift − 1)·sigma)``), and each threshold is
put half-way between the last step of one phase and the first of the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wan2gp.handlers.comfy_fields import bad, close
from wan2gp.handlers.wan_loras import STRENGTHS, Lora, entry_lora
from wan2gp.handlers.wan_parameters import NUMBER, TEXT, WHOLE, Parameter
from wan2gp.handlers.wan_values import read_value

KEYS = (
    "num_phases",
    "steps_per_phase",
    "flow_shift",
    "sample_solver",
    "model_switch_phase",
    "phases",
    "svi2pro",
    "mode",
)
PHASE_KEYS = ("phase", "guidance_scale", "loras")
SOLVERS = ("euler", "unipc", "dpm++")
GUIDANCE = (3.0, 1.0, 1.0)
SCALES = ("guidance_scale", "guidance2_scale", "guidance3_scale")
MOST_STEPS = 100
TRAINED = 1000
"""Noise levels that the models were trained on."""
_SHIFT = Parameter("flow_shift", NUMBER, "", "", 0.01, 100)
_SOLVER = Parameter("sample_solver", TEXT, "", choices=SOLVERS)
_STEPS = Parameter("steps_per_phase", WHOLE, "", "steps", 1, MOST_STEPS)
_SCALE = Parameter("guidance_scale", NUMBER, "", "", 0, 30)
_SWITCH = Parameter("model_switch_phase", WHOLE, "", "phase", 1, 2)


@dataclass(frozen=True)
class PhasePlan:
    """What becomes of a ``phase_config``."""

    settings: Mapping[str, Any]
    """The engine's."""
    loras: tuple[Lora, ...]
    continuous: bool
    """It wants a model that continues a video without end (SVI)."""


def read_phases(given: Mapping[str, Any]) -> PhasePlan:
    """Raises ``TaskFailure`` with ``input.bad_params``."""
    _check_keys(given, KEYS, "phase_config")
    steps, phases = _steps(given), _phases(given)
    if len(steps) != len(phases):
        raise bad(f"`phase_config.steps_per_phase` has {len(steps)} entries for {len(phases)} `phase_config.phases`")
    shift = float(_read(_SHIFT, given, 5.0))
    solver = str(_read(_SOLVER, {**given, "sample_solver": given.get("sample_solver") or "euler"}, "euler"))
    levels = noise_levels(solver, sum(steps), shift)
    settings: dict[str, Any] = {
        "num_inference_steps": sum(steps),
        "guidance_phases": len(phases),
        "flow_shift": shift,
        "sample_solver": solver,
        # With two phases there is one place to change the model, whatever the row says.
        "model_switch_phase": min(int(_read(_SWITCH, given, 2)), len(phases) - 1),
        "switch_threshold": _between(levels, steps[0]),
    }
    if len(phases) == 3:
        settings["switch_threshold2"] = _between(levels, steps[0] + steps[1])
    for index, phase in enumerate(phases):
        settings[SCALES[index]] = _read(_SCALE, phase, GUIDANCE[index], f"phase_config.phases[{index}].")
    return PhasePlan(settings, tuple(_loras(phases, steps)), bool(given.get("svi2pro")))


def noise_levels(solver: str, steps: int, shift: float) -> list[float]:
    """The noise at each step, 0 to 1000, falling, as the engine's sampler of that name sets it."""
    if solver == "euler":
        sigmas = _spread(1.0, 1 / TRAINED, steps)
    else:  # the last of these belongs to no step
        sigmas = _spread(1.0, 0.001 if solver == "unipc" else 0.0, steps + 1)[:-1]
    return [TRAINED * shift * sigma / (1 + (shift - 1) * sigma) for sigma in sigmas]


def _spread(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * index / max(1, count - 1) for index in range(count)]


def _between(levels: Sequence[float], first: int) -> float:
    """Half-way between the step ``first`` and the one before it."""
    return round((levels[first - 1] + levels[first]) / 2, 3)


def _read(row: Parameter, given: Mapping[str, Any], default: Any, where: str = "phase_config.") -> Any:
    found = given.get(row.name)
    return default if found is None else read_value(row, found, f"{where}{row.name}")


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], label: str) -> None:
    for key in given:
        if key not in known:
            raise bad(f"`{label}` has no field `{str(key)[:60]}`{close(str(key), known)}")


def _steps(given: Mapping[str, Any]) -> list[int]:
    found = given.get("steps_per_phase", [2, 2, 2])
    if not isinstance(found, list) or not 2 <= len(found) <= 3:
        raise bad("`phase_config.steps_per_phase` must be a list of 2 or 3 counts")
    steps = [read_value(_STEPS, one, f"phase_config.steps_per_phase[{index}]") for index, one in enumerate(found)]
    if sum(steps) > MOST_STEPS:
        raise bad(f"`phase_config.steps_per_phase` makes {sum(steps)} steps: the most is {MOST_STEPS}")
    return steps


def _phases(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = given.get("phases")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise bad("`phase_config.phases` must be a list of objects, one for each phase")
    if not 2 <= len(found) <= 3:
        raise bad(f"`phase_config.phases` has {len(found)} phases: there may be 2 or 3")
    for index, phase in enumerate(found):
        _check_keys(phase, PHASE_KEYS, f"phase_config.phases[{index}]")
    return found


# --- LoRAs -----------------------------------------------------------------------------------------------------------


def _loras(phases: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> list[Lora]:
    """Each LoRA once, with its strength in every phase; 0 where the phase does not name it."""
    strengths: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for index, phase in enumerate(phases):
        for lora in _of_phase(phase, index, steps[index]):
            row = strengths.setdefault(lora.source, ["0"] * len(phases))
            if row[index] != "0":
                raise bad(f"`{lora.label}` names a LoRA that its phase has already")
            row[index] = lora.strength
            labels.setdefault(lora.source, lora.label)
    return [Lora(source, ";".join(row), labels[source]) for source, row in strengths.items()]


def _of_phase(phase: Mapping[str, Any], index: int, steps: int) -> list[Lora]:
    given = phase.get("loras") or []
    where = f"phase_config.phases[{index}].loras"
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise bad(f"`{where}` must be a list of {{url, multiplier}}")
    # An empty form row of a web page: it names nothing, and nothing is lost with it.
    named = [(number, one) for number, one in enumerate(given) if one.get("url") != ""]
    found = [entry_lora(one, f"{where}[{number}]") for number, one in named]
    for lora in found:
        count = lora.strength.count(",") + 1
        if lora.phases > 1 or count not in (1, steps):
            raise bad(f"`{lora.label}` needs one strength ({', '.join(STRENGTHS)}), or {steps}, one for each step")
    return found
