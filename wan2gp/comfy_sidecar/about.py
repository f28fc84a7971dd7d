"""What a server says of itself: its versions and its device, and the custom nodes that it started without."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

NOTABLE = re.compile(
    r"(IMPORT|PRESTARTUP) FAILED|module for custom nodes|Error while calling comfy_entrypoint in "
    r"|Permission denied|Operation not permitted|Read-only file system|Invalid cross-device link"
)
"""Lines that must not be lost, however much is printed after them: what did not load, and what was not allowed."""
_FAILED = re.compile(r"(?:IMPORT|PRESTARTUP) FAILED\)?: *(?P<path>.+?)\s*$")
_REASONS = (
    re.compile(r"Cannot import (?P<path>.+?) module for custom nodes: *(?P<reason>.*?)\s*$"),
    re.compile(r"Error while calling comfy_entrypoint in (?P<path>.+?): *(?P<reason>.*?)\s*$"),
    re.compile(r"Skip (?P<path>.+?) module for custom nodes due to (?P<reason>the lack of \w+)"),
)
_VERSION = re.compile(r"""^version\s*=\s*["']([^"']{1,40})["']""", re.MULTILINE)
_VHS = "videohelpersuite"
REASON_CHARS = 200


@dataclass(frozen=True)
class FailedCustomNode:
    """A file or folder of ``custom_nodes`` that did not load: the server runs without its classes."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def failed_custom_nodes(lines: Iterable[str]) -> tuple[FailedCustomNode, ...]:
    """From a server's output, in the order of its table. Empty for output that has no such table."""
    kept = list(lines)
    reasons: dict[str, str] = {}
    for line in kept:
        for pattern in _REASONS:
            if found := pattern.search(line):
                reasons[_name(found["path"])] = found["reason"][:REASON_CHARS]
    names = dict.fromkeys(_name(found["path"]) for line in kept if (found := _FAILED.search(line)))
    return tuple(FailedCustomNode(name, reasons.get(name, "")) for name in names)


def _name(path: str) -> str:
    return PurePath(path.strip()).name


def read_about(stats: Mapping[str, Any]) -> dict[str, str]:
    """From an answer of /system_stats: ``version``, ``python``, ``torch`` and ``device``, as far as it has them."""
    system, devices = stats.get("system"), stats.get("devices")
    known = system if isinstance(system, dict) else {}
    first = devices[0] if isinstance(devices, list) and devices and isinstance(devices[0], dict) else {}
    found = {
        "version": known.get("comfyui_version"),
        "python": str(known.get("python_version") or "").partition(" ")[0],
        "torch": known.get("pytorch_version"),
        "device": first.get("name"),
    }
    return {name: str(value)[:200] for name, value in found.items() if value}


def video_helper_version(checkout: Path) -> str:
    """The version of VideoHelperSuite in a checkout, or an empty string: not there, or it does not say."""
    with contextlib.suppress(OSError):
        for folder in sorted((checkout / "custom_nodes").iterdir()):
            if _VHS in folder.name.lower().replace("-", "").replace("_", ""):
                found = _VERSION.search((folder / "pyproject.toml").read_text(errors="replace"))
                return found[1] if found else ""
    return ""
