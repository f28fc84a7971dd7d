"""How long and how large a result becomes: what was asked, on the grid of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wan2gp.handlers.comfy_fields import bad
from wan2gp.handlers.wan_frames import at_most, frames_of, of_area, on_grid
from wan2gp.handlers.wan_models import ModelFacts
from wan2gp.handlers.wan_request import WanRequest
from wan2gp.handlers.wan_values import Pixels, Seconds
from wan2gp.wan_types import VIDEO


@dataclass(frozen=True)
class Shape:
    """The engine's settings, and for the result what was asked and made."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)


def shape_of(
    request: WanRequest, facts: ModelFacts, values: Mapping[str, Any], input_size: Pixels | None = None
) -> Shape:
    """Raises :class:`~wan2gp.handlers.api.TaskFailure` with ``input.bad_params``."""
    settings: dict[str, Any] = {}
    made: dict[str, Any] = {}
    size = _asked_size(request, input_size)
    if size is not None:
        fitting = on_grid(at_most(size, request.row.size.longest), facts.block)
        settings["resolution"] = str(fitting)
        made["resolution"] = _told(request, "resolution", str(fitting))
    if request.row.makes == VIDEO and "video_length" in values:
        asked = frames_of(values["video_length"], _fps(values, facts))
        frames = facts.frames.nearest(asked)
        if facts.locked_frames and frames != facts.locked_frames:
            if "video_length" in request.values:
                raise bad(
                    f"`video_length`: the model {facts.name} makes {facts.locked_frames} frames and no other count"
                )
            frames = facts.locked_frames
        settings["video_length"] = frames
        made["frames"] = _told(request, "video_length", frames)
    return Shape(settings, made)


def _asked_size(request: WanRequest, input_size: Pixels | None) -> Pixels | None:
    """None: as the model has it."""
    size = request.row.size
    asked = request.values.get("resolution")
    if "image_size" in request.values and size.area:  # `auto` comes before a resolution that the row has as well
        asked = None
    if isinstance(asked, str):
        asked = pixels(size.shapes[asked])
    if asked is not None:
        return Pixels(asked.width, asked.height)
    if size.area and input_size is not None:
        return of_area(input_size, size.area)
    return pixels(size.default) if size.default and request.own_model else None


def pixels(text: str) -> Pixels:
    """``WIDTHxHEIGHT``."""
    width, _, height = text.partition("x")
    return Pixels(int(width), int(height))


def _fps(values: Mapping[str, Any], facts: ModelFacts) -> float:
    rate = values.get("force_fps", "")
    return float(rate) if rate.isdigit() else facts.fps


def _told(request: WanRequest, name: str, made: int | str) -> dict[str, int | str]:
    """What is made, and what the row asked for if it did."""
    given = request.values.get(name)
    if given is None:
        return {"made": made}
    asked = f"{given.seconds:g}s" if isinstance(given, Seconds) else given if isinstance(given, int) else str(given)
    return {"asked": asked, "made": made}
