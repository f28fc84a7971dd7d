"""The prompt as the engine is to read it: it has a small language of its own, which users of a queue do not write.

A line that begins with ``#`` is a comment to it, one that begins with ``!`` sets variables, ``{…}`` is one of them (an
unknown one is an error), and ``[/…]`` commands its sliding windows. An empty prompt is refused there, also where an
image says all there is to say.
"""

from __future__ import annotations

import re

from wan2gp.handlers.wan_request import WanRequest

SILENT = "."
"""Stands for no prompt: nothing that a model could follow."""
CHANGED = "`prompt`: the engine takes `{}`, `[/`, and `#` or `!` at a line's start, for commands: they were taken out"
_SIGNS = re.compile(r"^[^\S\n]*(?:[#!][^\S\n]*)+", re.MULTILINE)
_COMMAND = re.compile(r"\[\s*/")
_BRACES = str.maketrans("{}", "()")


def prompt_of(request: WanRequest) -> tuple[str, list[str]]:
    """The prompt, and warnings for the row."""
    given = str(request.values.get("prompt", "")).replace("\r\n", "\n").replace("\r", "\n").strip()
    prompt = _COMMAND.sub("(/", _SIGNS.sub("", given)).translate(_BRACES).strip()
    warnings = [] if prompt == given else [CHANGED]
    return " ".join(part for part in (*_opening(request), prompt) if part) or SILENT, warnings


def _opening(request: WanRequest) -> list[str]:
    """What the LoRAs of `qwen_image_style` were taught to listen to."""
    values = request.values
    parts = ["In the style of this image,"] if values.get("style_reference_strength", 0) > 0 else []
    subject = " ".join(str(values.get("subject_description", "")).translate(_BRACES).split())
    if values.get("subject_strength", 0) > 0 and subject:
        scene = " in this scene" if values.get("in_this_scene") else ""
        parts.append(f"{'make' if parts else 'Make'} an image of this {subject}{scene}:")
    return parts
