"""A problem of a graph: its kind, its place and its sentence, and how names are shown in one."""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from wan2gp.comfy_sidecar.workflow import Graph, title

Json = dict[str, Any]
NAME_CHARS, VALUE_CHARS, REASON_CHARS, KEPT_CHARS = 60, 120, 240, 1000
FEW, LISTED, CLOSE = 16, 20, 3
"""Choices that are spelled out in a sentence; that are kept for a program; and close ones."""


class Kind(enum.Enum):
    """The kinds of problems, by the names a program sees."""

    UNKNOWN_CLASS = "unknown_class"
    NO_OUTPUT_NODE = "no_output_node"
    MISSING_INPUT = "missing_input"
    BAD_LINK = "bad_link"
    MISSING_NODE = "missing_node"
    NO_SUCH_OUTPUT = "no_such_output"
    TYPE_MISMATCH = "type_mismatch"
    CYCLE = "cycle"
    NEEDS_LINK = "needs_link"
    WRONG_TYPE = "wrong_type"
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    WRONG_CHOICE = "wrong_choice"
    MISSING_MODEL = "missing_model"
    MISSING_FILE = "missing_file"
    REFUSED_BY_NODE = "refused_by_node"
    REFUSED = "refused"


@dataclass(frozen=True)
class Problem:
    """``sentence`` names the place, the fault and the remedy. ``certain`` False: the class may see it otherwise.

    ``node_id`` is None for what concerns the whole graph; ``facts`` are for programs, JSON values.
    """

    kind: Kind
    sentence: str
    node_id: str | None = None
    title: str = ""
    class_type: str = ""
    field: str = ""
    certain: bool = True
    facts: Json = dataclasses.field(default_factory=dict)

    def as_json(self) -> Json:
        """For the machine-readable list."""
        place = {"node_id": self.node_id, "title": self.title, "class_type": self.class_type, "field": self.field}
        given = {"kind": self.kind.value, **place, "message": self.sentence, **self.facts}
        return {key: _storable(value) for key, value in given.items()}


def _storable(value: Any) -> Any:
    """Neither half characters nor NUL, which no row takes, and no text without end."""
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if not isinstance(value, str):
        return value
    return value[:KEPT_CHARS].encode("utf-8", "replace").decode().replace("\0", "")


def at(kind: Kind, graph: Graph, node_id: str, name: str, said: str, *, certain: bool = True, **facts: Any) -> Problem:
    """A problem of one node, and of its input ``name`` unless that is empty."""
    class_type = str(graph.get(node_id, {}).get("class_type", ""))
    where = show_node(graph, node_id) + (f", input {shown(name)}" if name else "")
    return Problem(kind, f"{where}: {said}", node_id, title(graph, node_id), class_type, name, certain, facts)


def show_node(graph: Graph, node_id: str) -> str:
    """``node 2 (SaveImage "My title")``, each name cut to what a person reads."""
    class_type = shown(str(graph.get(node_id, {}).get("class_type", "unknown")))
    name = shown(title(graph, node_id))
    named = class_type if name == class_type else f'{class_type} "{name}"'
    return f"node {shown(node_id)} ({named})"


def shown(name: str, limit: int = NAME_CHARS) -> str:
    """On one line, and cut in the middle: names often differ at their ends."""
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
    if len(plain) <= limit:
        return plain
    return f"{plain[: limit * 2 // 3]}…{plain[-(limit // 3) :]}"


def quoted(value: Any) -> str:
    return f"'{shown(value, VALUE_CHARS)}'" if isinstance(value, str) else shown(str(value), VALUE_CHARS)


def close_to(wanted: str, present: Iterable[Any], most: int = CLOSE) -> list[str]:
    """The nearest names: same but for case, folder or separators first, then by spelling."""
    names = [name for name in present if isinstance(name, str)]
    same = [name for name in names if _bare(name) == _bare(wanted)]
    if len(wanted) <= VALUE_CHARS:  # the comparison takes time that grows with the square of the length
        folded = {name.lower(): name for name in names}
        near = difflib.get_close_matches(wanted.lower(), list(folded), n=most, cutoff=0.6)
        same += [folded[name] for name in near]
    return list(dict.fromkeys(same))[:most]


def _bare(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name.lower()


def listing(names: Sequence[Any]) -> str:
    """All of a few, else how many, and the first ones."""
    first = ", ".join(quoted(name) for name in names[:FEW])
    return first if len(names) <= FEW else f"{first} and {len(names) - FEW} more"
