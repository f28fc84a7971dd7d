"""What a prompt's history entry says: how it ended, and which files it made."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wan2gp.comfy_sidecar.errors import BadOutput

Json = dict[str, Any]
_NUMBERED = re.compile(r"%0?\d*d")
SAVED, TEMPORARY = "output", "temp"
NONCE_FIELD = "wan2gp_run"
"""An input no node has."""
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
        """The parameters of GET /view, which takes no folder within the name."""
        within, _, name = self.filename.rpartition("/")
        subfolder = "/".join(part for part in (self.subfolder, within) if part)
        return {"filename": name, "subfolder": subfolder, "type": self.kind}

    @property
    def is_series(self) -> bool:
        """Whether the name may stand for many numbered files."""
        return _NUMBERED.search(self.filename) is not None

    def numbered(self, number: int) -> OutputFile:
        """One file of a series."""
        name = _NUMBERED.sub(lambda found: str(number).zfill(int(found.group().strip("%d") or 1)), self.filename, 1)
        return replace(self, filename=name)


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
    """What nodes showed as text, under whatever key."""
    temporary: tuple[OutputFile, ...]
    """All previews, also those that are no result because saved files are: somebody must delete them."""
    cached: frozenset[str]
    """Nodes whose results came from ComfyUI's cache: their files may be of an older run, or gone."""
    shown_as: Mapping[str, str]
    """The node of the graph behind a node that a subgraph made."""

    @property
    def everything(self) -> tuple[OutputFile, ...]:
        """Saved files and previews."""
        return (*self.files, *self.temporary)

    def in_graph(self, node_id: str) -> str:
        """The node of the graph that a result belongs to: ``1`` for ``1.0.0.2``, which node 1 brought forth."""
        return self.shown_as.get(node_id, node_id)

    def from_cache(self, node_id: str) -> bool:
        """Whether the node did not run: its result is an older run's."""
        return node_id in self.cached or self.in_graph(node_id) in self.cached

    def cached_results(self) -> frozenset[str]:
        """Nodes of the graph that have files and did not run."""
        nodes = {file.node_id for file in self.files}
        return frozenset(self.in_graph(node_id) for node_id in nodes if self.from_cache(node_id))


def read_ending(entry: Json) -> Ending:
    """The ending in a history entry; tolerant of what other versions leave out."""
    status = entry.get("status")
    status = status if isinstance(status, dict) else {}
    messages = dict(_messages(status.get("messages")))
    # ComfyUI's order is that of a set: by node, so that the same graph always gives the same first file.
    files = _once(sorted(_files(entry.get("outputs")), key=lambda file: _natural(file.node_id)))
    success = status.get("status_str", "success") == "success"
    return Ending(
        success=success,
        interrupted=not success and "execution_interrupted" in messages,
        error=_node_error(messages.get("execution_error")) if not success else None,
        files=tuple(_preferred(files)),
        temporary=tuple(file for file in files if file.kind == TEMPORARY),
        texts=_texts(entry.get("outputs")),
        cached=frozenset(_nodes_of(messages.get("execution_cached"))),
        shown_as=dict(_origins(entry.get("meta"))),
    )


def rerun(graph: Mapping[str, Json], nodes: Iterable[str], nonce: str) -> None:
    """Make these nodes run although nothing of theirs has changed; what they depend on still comes from the cache.

    ComfyUI keeps results by a node's inputs, those that it does not know included, and gives a node only known ones.
    """
    for node_id in nodes:
        if node_id in graph:
            graph[node_id]["inputs"][NONCE_FIELD] = nonce


def _natural(node_id: str) -> list[tuple[int, str]]:
    """Orders 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", node_id)]


def _nodes_of(message: Json | None) -> Iterator[str]:
    nodes = message.get("nodes") if message is not None else None
    yield from map(str, nodes if isinstance(nodes, list) else ())


def _origins(meta: Any) -> Iterator[tuple[str, str]]:
    for node_id, names in meta.items() if isinstance(meta, dict) else ():
        if isinstance(names, dict) and names.get("display_node") is not None:
            yield str(node_id), str(names["display_node"])


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


def _once(files: Iterable[OutputFile]) -> list[OutputFile]:
    """Each file for the first node that names it: of two nodes that are the same in all, only one runs."""
    found: dict[tuple[str, str, str], OutputFile] = {}
    for file in files:
        found.setdefault((file.kind, file.subfolder, file.filename), file)
    return list(found.values())


def _preferred(files: list[OutputFile]) -> list[OutputFile]:
    """Saved files; previews only when there is nothing else."""
    saved = [file for file in files if file.kind == SAVED]
    return saved or [file for file in files if file.kind == TEMPORARY]


def _texts(outputs: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node_id, shown in outputs.items() if isinstance(outputs, dict) else ():
        for items in shown.values() if isinstance(shown, dict) else ():
            if isinstance(items, list) and items and all(isinstance(part, str) for part in items):
                found.setdefault(str(node_id), []).extend(items)
    return found


def locate(file: OutputFile, root: Path) -> list[Path]:
    """The regular files behind an output, inside ``root``: one, or a numbered series (``x_%03d.png``).

    A node may also give an absolute folder, or a folder within the name, as long as it lies inside. Raises
    FileNotFoundError when nothing is there, :class:`BadOutput` for a name that leads out, be it by a link, or that
    is none.
    """
    try:
        path = root / file.subfolder / file.filename
        names = [path.name]
        if _NUMBERED.search(path.name) and not path.exists():
            names = _series(path.parent, path.name)
        found = [_inside(root, path.parent / name) for name in names]
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:  # half a character, a NUL, a name of more than 255 bytes, a file as a folder
        raise BadOutput(f"{file.filename[:80]!r} cannot be a file's name: {error}") from error
    if not found:
        raise FileNotFoundError(file.filename)
    return found


def _series(folder: Path, name: str) -> list[str]:
    head, tail = _NUMBERED.split(name, maxsplit=1)
    pattern = re.compile(re.escape(head) + r"\d+" + re.escape(tail))
    return sorted(entry for entry in os.listdir(folder) if pattern.fullmatch(entry)) if folder.is_dir() else []


def _inside(root: Path, path: Path) -> Path:
    """The path without links; a name that needs one, or ``..`` across the root, is refused."""
    plain = Path(os.path.normpath(path))
    if not plain.is_relative_to(root):
        raise BadOutput(f"{path.name} lies outside ComfyUI's own directories")
    real = Path(os.path.realpath(path))
    if real != Path(os.path.realpath(root)) / plain.relative_to(root):
        raise BadOutput(f"{path.name} lies outside ComfyUI's own directories")
    if not stat.S_ISREG(os.lstat(real).st_mode):
        raise BadOutput(f"{path.name} is no regular file")
    return real
