"""One value of a generation task's ``params``, made into what the engine takes, or refused by its parameter's name.

The engine itself passes over what it does not understand, takes a default for a wrong type, or fails in the middle of
a run with a sentence about its own insides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wan2gp.handlers.comfy_fields import bad, close
from wan2gp.handlers.wan_parameters import (
    FLAG,
    FPS,
    FRAMES,
    LETTERS,
    MODE,
    MOST_SECONDS,
    NUMBER,
    NUMBERS,
    OBJECT,
    SIZE,
    TEXT,
    WHOLE,
    Parameter,
)

MOST_NUMBERS = 200
_SECONDS = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*s\s*", re.IGNORECASE)
_SIZE = re.compile(r"\s*(\d{1,6})\s*[x×*]\s*(\d{1,6})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Seconds:
    """A length that depends on the model's pictures per second."""

    seconds: float


@dataclass(frozen=True)
class Pixels:
    """A picture's size."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def read_value(row: Parameter, given: Any, label: str) -> Any:
    """The value of one parameter. ``label``: the key that the row uses for it, for messages.

    Raises :class:`~wan2gp.handlers.api.TaskFailure` with ``input.bad_params``.
    """
    reader = _READERS.get(row.kind)
    return given if reader is None else reader(row, given, label)


def _whole(row: Parameter, given: Any, label: str) -> int:
    number = _plain_number(row, given, label)
    if number != int(number):
        raise bad(f"`{label}` must be a whole number{_unit(row)}, {_range(row)}: it is {given}")
    return int(_within(row, number, label))


def _number(row: Parameter, given: Any, label: str) -> float:
    return _within(row, _plain_number(row, given, label), label)


def _plain_number(row: Parameter, given: Any, label: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise bad(f"`{label}` must be a {row.kind}{_unit(row)}, {_range(row)}: it is {_shown(given)}")
    return given


def _within(row: Parameter, number: float, label: str) -> float:
    if (row.lowest is not None and number < row.lowest) or (row.highest is not None and number > row.highest):
        raise bad(f"`{label}` must be {_range(row)}{_unit(row)}: it is {number}")
    return number


def _range(row: Parameter) -> str:
    return f"from {row.lowest:g} to {row.highest:g}" if row.lowest is not None and row.highest is not None else "finite"


def _unit(row: Parameter) -> str:
    return f" ({row.unit})" if row.unit else ""


def _text(row: Parameter, given: Any, label: str) -> str:
    if not isinstance(given, str):
        raise bad(f"`{label}` must be text: it is {_shown(given)}")
    if row.choices and given not in row.choices:
        raise bad(
            f"`{label}` is {_shown(given)}, which it cannot be{close(given, [one for one in row.choices if one])}"
        )
    if row.highest is not None and not (row.lowest or 0) <= len(given) <= row.highest:
        raise bad(f"`{label}` has {len(given)} characters: it may have {row.lowest or 0:g} to {row.highest:g}")
    return given


def _mode(row: Parameter, given: Any, label: str) -> int | str:
    return given if isinstance(given, int) and not isinstance(given, bool) else _text(row, given, label)


def _flag(row: Parameter, given: Any, label: str) -> bool:
    if given not in (True, False):  # 0 and 1 too
        raise bad(f"`{label}` must be true or false: it is {_shown(given)}")
    return bool(given)


def _letters(row: Parameter, given: Any, label: str) -> str:
    if not isinstance(given, str) or len(given) > 2 * len(row.choices):
        raise bad(f"`{label}` must be letters of {''.join(row.choices)}: it is {_shown(given)}")
    for letter in given:
        if letter not in row.choices:
            raise bad(f"`{label}` has the letter {letter!r}: there are {' '.join(row.choices)}")
    return given


def _numbers(row: Parameter, given: Any, label: str) -> list[int]:
    if not isinstance(given, list) or len(given) > MOST_NUMBERS:
        raise bad(
            f"`{label}` must be a list of whole numbers, {_range(row)}, at most {MOST_NUMBERS}: it is {_shown(given)}"
        )
    return [_whole(row, one, f"{label}[{index}]") for index, one in enumerate(given)]


def _size(row: Parameter, given: Any, label: str) -> Pixels | str:
    found = _SIZE.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        if isinstance(given, str) and re.fullmatch(r"\d{1,2}:\d{1,2}", given.strip()):
            return given.strip()  # the name of a shape: types differ in which they have
        raise bad(f"`{label}` must be WIDTHxHEIGHT in pixels, as 832x480: it is {_shown(given)}")
    return Pixels(*(int(_within(row, int(side), label)) for side in found.groups()))


def _frames(row: Parameter, given: Any, label: str) -> int | Seconds:
    if not isinstance(given, str):
        return _whole(row, given, label)
    found = _SECONDS.fullmatch(given)
    if found is None:
        raise bad(f"`{label}` must be frames, {_range(row)}, or seconds as `5s`: it is {_shown(given)}")
    if not 0 < float(found[1]) <= MOST_SECONDS:
        raise bad(f"`{label}` must be more than 0 and at most {MOST_SECONDS:g} seconds: it is {_shown(given)}")
    return Seconds(float(found[1]))


def _fps(row: Parameter, given: Any, label: str) -> str:
    """The engine takes it as text, and for a rate that is not whole it silently takes the model's own."""
    if given in row.choices:
        return str(given)
    number = float(given) if isinstance(given, str) and re.fullmatch(r"\d{1,4}(\.\d{1,6})?", given) else given
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise bad(
            f"`{label}` must be a whole number{_unit(row)} or one of {', '.join(row.choices)}: it is {_shown(given)}"
        )
    if number != int(number):
        raise bad(f"`{label}` must be a whole number{_unit(row)}: it is {_shown(given)}")
    return str(int(_within(row, number, label)))


def _object(row: Parameter, given: Any, label: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise bad(f"`{label}` must be an object: it is {_shown(given)}")
    return given


def _shown(given: Any) -> str:
    if isinstance(given, (dict, list)):
        return "an object" if isinstance(given, dict) else "a list"
    return repr(given)[:60] if isinstance(given, str) else {True: "true", False: "false"}.get(given, str(given)[:60])


_READERS: Mapping[str, Callable[[Parameter, Any, str], Any]] = {
    WHOLE: _whole,
    NUMBER: _number,
    TEXT: _text,
    MODE: _mode,
    FLAG: _flag,
    LETTERS: _letters,
    NUMBERS: _numbers,
    SIZE: _size,
    FRAMES: _frames,
    FPS: _fps,
    OBJECT: _object,
}
