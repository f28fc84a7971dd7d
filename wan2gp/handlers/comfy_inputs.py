"""Where a task's files and values go: every node and field that ``params`` name, found in the graph or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from wan2gp.comfy_sidecar.errors import BadTarget
from wan2gp.comfy_sidecar.file_names import FILE_FIELDS
from wan2gp.comfy_sidecar.workflow import Graph, Target, describe_node, find_target
from wan2gp.comfy_sources import (
    KINDS,
    LOADERS,
    LONGEST_URL,
    MOST_INPUTS,
    VIDEO_URL,
    Loader,
    input_label,
    is_data,
    kind_of,
)
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_fields import BASE64_BYTES, InputFields, TaskFields, bad, check_entry, close, value
from wan2gp.storage_address import BadAddress, is_storage, parse_address

ORIGINS = ("url", "path", "base64")
FINDERS = ("node_id", "title", "class_type")
SHOWN = 5
Place = tuple[str, str]
"""(node id, field)"""


@dataclass(frozen=True)
class Wanted:
    """One file. Exactly one of ``url``, ``path`` and ``base64`` is there; ``label`` is its name in messages."""

    label: str
    target: Target
    kind: str
    url: str | None = None
    path: str | None = None
    base64: str | None = None


def read_inputs(graph: Graph, params: Mapping[str, Any]) -> tuple[Wanted, ...]:
    """The files of ``video_url`` and ``inputs``. Raises :class:`TaskFailure`; nothing is opened or fetched."""
    found: list[Wanted] = []
    taken: dict[Place, str] = {}
    for wanted in _each(graph, params, taken):
        place = (wanted.target.node_id, wanted.target.field)
        if place in taken:
            name = describe_node(graph, place[0])
            raise bad(f"`{wanted.label}` and `{taken[place]}` are both for {place[1]!r} of {name}")
        taken[place] = wanted.label
        found.append(wanted)
    if sum(_decoded(each.base64) for each in found if each.base64) > BASE64_BYTES:
        limit = f"{BASE64_BYTES >> 20} MiB"
        raise TaskFailure("input.too_large", f"the base64 inputs are larger than {limit} together: give them by `url`")
    return tuple(found)


def _each(graph: Graph, params: Mapping[str, Any], taken: Mapping[Place, str]) -> Iterator[Wanted]:
    if (video := _video(graph, params)) is not None:
        yield video
    entries = value(TaskFields, params, "inputs") or ()
    if len(entries) > MOST_INPUTS:
        raise bad(f"`inputs` has {len(entries)} entries, the most is {MOST_INPUTS}")
    for index, entry in enumerate(entries):
        yield _entry(graph, entry, input_label(index), taken)


def _video(graph: Graph, params: Mapping[str, Any]) -> Wanted | None:
    url = params.get(VIDEO_URL)
    if url is None:
        return None
    url = check_url(url, VIDEO_URL)
    node_id = value(TaskFields, params, "video_node_id")
    field = value(TaskFields, params, "video_input_field")
    try:
        target = find_target(graph, None if node_id is None else str(node_id), field)
    except BadTarget as error:
        raise bad(str(error)) from error
    return Wanted(VIDEO_URL, target, "video", url=url)


def check_url(url: Any, name: str) -> str:
    """``url`` if it is an http(s) URL or one in Storage. Raises :class:`TaskFailure` with ``input.bad_url``."""
    if not isinstance(url, str):
        raise TaskFailure("input.bad_url", f"`{name}` must be a string: give an http or https URL")
    if len(url) > LONGEST_URL:
        raise TaskFailure("input.bad_url", f"`{name}` has {len(url)} characters, the limit is {LONGEST_URL}")
    if is_storage(url):
        return _check_address(url, name)
    try:
        parts = urlsplit(url.strip())
    except ValueError as error:
        raise TaskFailure("input.bad_url", f"`{name}` is malformed: {error}") from error
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise TaskFailure("input.bad_url", f"`{name}` is no http or https URL, nor storage://bucket/path")
    return url


def _check_address(url: str, name: str) -> str:
    try:
        parse_address(url)
    except BadAddress as error:
        raise TaskFailure("input.bad_url", f"`{name}` {error}") from error
    return url


# --- one entry of `inputs` -------------------------------------------------------------------------------------------


def _entry(graph: Graph, entry: Mapping[str, Any], label: str, taken: Mapping[Place, str]) -> Wanted:
    check_entry(entry, label)
    given = {name: value(InputFields, entry, name, f"{label}.") for name in InputFields.__struct_fields__}
    origins = [name for name in ORIGINS if given[name] is not None]
    if len(origins) != 1:
        has = f"it has {' and '.join(origins)}" if origins else "it has none of them"
        raise bad(f"`{label}` needs exactly one of url, path and base64: {has}")
    kind = given["kind"]
    if kind is not None and kind not in KINDS:
        raise bad(f"`{label}.kind` is {kind[:40]!r}: give one of {', '.join(KINDS)}")
    node_id = _find(graph, given, label, taken)
    field = _field(graph, node_id, given["field"], label)
    class_type = graph[node_id]["class_type"]
    loader = LOADERS.get(class_type)
    target = Target(node_id, field, loader is not None and loader.wants_path and field == loader.field)
    return Wanted(label, target, kind or kind_of(class_type, field), **_origin(given, label))


def _origin(given: Mapping[str, Any], label: str) -> dict[str, str]:
    url = given["url"]
    if url is None:
        return {name: given[name] for name in ("path", "base64") if given[name] is not None}
    return {"base64": url} if is_data(url) else {"url": check_url(url, f"{label}.url")}


def _find(graph: Graph, given: Mapping[str, Any], label: str, taken: Mapping[Place, str]) -> str:
    """The id of the node that an entry is for."""
    finders = [name for name in FINDERS if given[name] is not None]
    if len(finders) > 1:
        raise bad(f"`{label}` names its node by {' and '.join(finders)}: give one of them")
    if not finders:
        return _only_free_loader(graph, given["kind"], label, taken)
    wanted = str(given[finders[0]])
    if finders[0] == "node_id":
        if wanted not in graph:
            raise bad(f"`{label}.node_id` {wanted[:100]!r} is not in the workflow{close(wanted, graph)}")
        return wanted
    names = titles(graph) if finders[0] == "title" else {key: node["class_type"] for key, node in graph.items()}
    return _only_one(graph, wanted, names, f"`{label}.{finders[0]}`")


def _only_one(graph: Graph, wanted: str, names: Mapping[str, str], what: str) -> str:
    """The only node of that name, in this spelling or, when there is none, in another case."""
    found = [node_id for node_id, name in names.items() if name == wanted]
    found = found or [node_id for node_id, name in names.items() if name.casefold() == wanted.casefold()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise bad(f"{what} {wanted[:100]!r} is not in the workflow{close(wanted, dict.fromkeys(names.values()))}")
    raise bad(f"{what} {wanted[:100]!r} fits {len(found)} nodes: give the node_id of one of {_list(graph, found)}")


def _only_free_loader(graph: Graph, kind: str | None, label: str, taken: Mapping[Place, str]) -> str:
    """Nothing names the node: then there must be one only that could be meant."""
    busy = {node_id for node_id, _ in taken}
    known = {node_id: LOADERS.get(node["class_type"]) for node_id, node in graph.items() if node_id not in busy}
    found = [node_id for node_id, loader in known.items() if loader is not None and _suits(loader, kind)]
    if len(found) == 1:
        return found[0]
    what = f"a file of kind {kind}" if kind not in (None, "any") else "a file"
    if not found:
        raise bad(f"`{label}` names no node, and no other node is known to load {what}: set its node_id")
    raise bad(f"`{label}` names no node, and {len(found)} load {what}: set its node_id to one of {_list(graph, found)}")


def _suits(loader: Loader, kind: str | None) -> bool:
    return kind in (None, "any", loader.kind)


def _field(graph: Graph, node_id: str, field: str | None, label: str) -> str:
    node = graph[node_id]
    loader = LOADERS.get(node["class_type"])
    known = loader.field if loader is not None else None
    if field is None:
        field = known or _only_file_field(graph, node_id, label)
    if field != known and field not in node["inputs"]:
        name = describe_node(graph, node_id)
        raise bad(f"`{label}`: {name} has no input {field[:100]!r}{close(field, node['inputs'])}")
    return field


def _only_file_field(graph: Graph, node_id: str, label: str) -> str:
    inputs = graph[node_id]["inputs"]
    found: list[str] = [name for name in inputs if name in FILE_FIELDS and isinstance(inputs[name], str)]
    if len(found) != 1:
        raise bad(f"`{label}`: set `field` to the input of {describe_node(graph, node_id)} that names the file")
    return found[0]


def titles(graph: Graph) -> dict[str, str]:
    """The titles that people gave, by node id."""
    found = {}
    for node_id, node in graph.items():
        meta = node.get("_meta")
        if isinstance(meta, dict) and isinstance(meta.get("title"), str) and meta["title"]:
            found[node_id] = meta["title"]
    return found


def _list(graph: Graph, node_ids: list[str]) -> str:
    more = f" and {len(node_ids) - SHOWN} more" if len(node_ids) > SHOWN else ""
    return ", ".join(describe_node(graph, node_id) for node_id in node_ids[:SHOWN]) + more


def _decoded(text: str) -> int:
    """How many bytes a base64 text stands for, about."""
    return len(text.partition("base64,")[2] or text) * 3 // 4


# --- values ----------------------------------------------------------------------------------------------------------


def apply_overrides(graph: Graph, params: Mapping[str, Any]) -> set[Place]:
    """Set the values of ``overrides`` in ``graph``, all of them or none. Returns the places that were set."""
    given: Mapping[str, Mapping[str, Any]] = value(TaskFields, params, "overrides") or {}
    values: dict[Place, Any] = {}
    for name, fields in given.items():
        node_id = name if name in graph else _titled(graph, name)
        for field, set_to in fields.items():
            if field not in graph[node_id]["inputs"]:
                node = describe_node(graph, node_id)
                near = close(field, graph[node_id]["inputs"])
                raise bad(f"`overrides`: {node} has no input {field[:100]!r} in the workflow{near}")
            if (node_id, field) in values:
                raise bad(f"`overrides` sets {field!r} of {describe_node(graph, node_id)} twice, by id and by title")
            values[node_id, field] = set_to
    for (node_id, field), set_to in values.items():
        graph[node_id]["inputs"][field] = set_to
    return set(values)


def _titled(graph: Graph, name: str) -> str:
    known = titles(graph)
    if not any(name.casefold() == title.casefold() for title in known.values()):
        names = [*graph, *known.values()]
        raise bad(f"`overrides` names {name[:100]!r}, no node's id or title{close(name, names)}")
    return _only_one(graph, name, known, "`overrides`:")
