"""What a prompt's history entry says: how it ended, and which files it made."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan2gp.comfy_sidecar.errors import BadOutput

Json = dict[str, Any]
_NUMBERED = re.compile(r"%0?\d*d")
TRACEBACK_LINES = 12
MESSAGE_CHARS = 600


@dataclass(frozen=True)
class OutputFile:
    """A file as history names it; ``kind`` is ``output``, ``temp`` or ``input``."""

    node_id: str
    filename: str
    subfolder: str
    kind: str

    def query(self) -> dict[str, str]:
        """The parameters of GET /view."""
        return {"filename": self.filename, "subfolder": self.subfolder, "type": self.kind}


@dataclass(frozen=True)
class NodeError:
    """An ``execution_error``: the node, and what it raised."""

    node_id: str
    class_type: str
    exception: str
    message: str
    traceback: tuple[str, ...]


@dataclass(frozen=True)
class Ending:
    """How a prompt ended. An interruption is an ``error`` to ComfyUI; the message tells them apart."""

    success: bool
    interrupted: bool
    error: NodeError | None
    files: tuple[OutputFile, ...]
    texts: Mapping[str, list[str]]
    temporary: tuple[OutputFile, ...]
    """All previews, also those that are no result because saved files are: somebody must delete them."""
    cached: frozenset[str]
    """Nodes whose results came from ComfyUI's cache: their files may be of an older run, or gone."""


def read_ending(entry: Json) -> Ending:
    """The ending in a history entry; tolerant of what other versions leave out."""
    status = entry.get("status")
    status = status if isinstance(status, dict) else {}
    messages = dict(_messages(status.get("messages")))
    files = list(dict.fromkeys(_files(entry.get("outputs"))))
    success = status.get("status_str", "success") == "success"
    return Ending(
        success=success,
        interrupted=not success and "execution_interrupted" in messages,
        error=_node_error(messages.get("execution_error")) if not success else None,
        files=tuple(_preferred(files)),
        temporary=tuple(file for file in files if file.kind == "temp"),
        texts=_texts(entry.get("outputs")),
        cached=frozenset(str(node) for node in messages.get("execution_cached", {}).get("nodes", ())),
    )


def _messages(messages: Any) -> Iterator[tuple[str, Json]]:
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, list) and len(message) == 2 and isinstance(message[1], dict):
            yield str(message[0]), message[1]


def _node_error(data: Json | None) -> NodeError | None:
    if data is None:
        return None
    trace = data.get("traceback")
    lines = [str(line).rstrip() for line in trace] if isinstance(trace, list) else []
    return NodeError(
        str(data.get("node_id")),
        str(data.get("node_type")),
        str(data.get("exception_type", "Exception")),
        str(data.get("exception_message", "")).strip()[:MESSAGE_CHARS],
        tuple(lines[-TRACEBACK_LINES:]),
    )


def _files(outputs: Any) -> Iterator[OutputFile]:
    """Under any key: nodes choose their own, and put booleans and strings beside the files."""
    for node_id, shown in outputs.items() if isinstance(outputs, dict) else ():
        for items in shown.values() if isinstance(shown, dict) else ():
            for item in items if isinstance(items, list) else ():
                if isinstance(item, dict) and isinstance(item.get("filename"), str) and item["filename"]:
                    subfolder, kind = str(item.get("subfolder") or ""), str(item.get("type") or "output")
                    yield OutputFile(str(node_id), item["filename"], subfolder, kind)


def _preferred(files: list[OutputFile]) -> list[OutputFile]:
    """Saved files; previews only when there is nothing else."""
    saved = [file for file in files if file.kind == "output"]
    return saved or [file for file in files if file.kind == "temp"]


def _texts(outputs: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node_id, shown in outputs.items() if isinstance(outputs, dict) else ():
        text = shown.get("text") if isinstance(shown, dict) else None
        if isinstance(text, list) and text and all(isinstance(part, str) for part in text):
            found[str(node_id)] = text
    return found


def locate(file: OutputFile, root: Path) -> list[Path]:
    """The regular files behind an output, inside ``root``: one, or a numbered series (``x_%03d.png``).

    Raises FileNotFoundError when nothing is there, :class:`BadOutput` for a name that leads out, be it by a link.
    """
    folder = root / file.subfolder
    if file.subfolder.startswith("/") or "/" in file.filename:
        raise BadOutput(f"{file.filename} lies outside ComfyUI's own directories")
    names = [file.filename]
    if _NUMBERED.search(file.filename) and not (folder / file.filename).exists():
        names = _series(folder, file.filename)
    if not names:
        raise FileNotFoundError(file.filename)
    return [_inside(root, folder / name) for name in names]


def _series(folder: Path, name: str) -> list[str]:
    head, tail = _NUMBERED.split(name, maxsplit=1)
    pattern = re.compile(re.escape(head) + r"\d+" + re.escape(tail))
    return sorted(entry for entry in os.listdir(folder) if pattern.fullmatch(entry)) if folder.is_dir() else []


def _inside(root: Path, path: Path) -> Path:
    real = Path(os.path.realpath(path))
    plain = Path(os.path.normpath(os.path.realpath(root) / path.relative_to(root)))
    if not real.is_relative_to(os.path.realpath(root)) or real != plain:
        raise BadOutput(f"{path.name} lies outside ComfyUI's own directories")
    if not stat.S_ISREG(os.lstat(real).st_mode):
        raise BadOutput(f"{path.name} is no regular file")
    return real
