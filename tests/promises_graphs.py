"""What holds for any graph that is let through: it reads its own task's files and writes below its own folder."""

from __future__ import annotations

import copy
import json
import os
import posixpath
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from wan2gp.comfy_sidecar.catalogue import Catalogue
from wan2gp.comfy_sidecar.file_names import NAME_LOADERS, PATH_LOADERS, names_in
from wan2gp.comfy_sidecar.graph_shape import DEEPEST, MOST_VALUES
from wan2gp.comfy_sidecar.preflight import check_graph
from wan2gp.comfy_sidecar.workflow import Graph, fill_missing, rewrite_prefixes
from wan2gp.errors import REGISTRY
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_params import read_params

INPUT, OUTPUT, TEMP, CHECKOUT = "/srv/home/input", "/srv/home/output", "/srv/home/temp", "/srv/ComfyUI"
FOLDER = "wan2gp/task/lease"
CLASSES = sorted({*NAME_LOADERS, *PATH_LOADERS}) + [
    "Image Load",
    "Image Save",
    "SaveImage",
    "PrimitiveString",
    "",
    "\ud800",
    "x" * 2000,
]
FIELDS = ["image", "images", "video", "file", "audio", "audio_file", "directory", "folder", "latent", "model_file"]
NAMED = ["path", "prompt_file", "Output_Path", "image_directory", "pattern", "prefix"]
"""Inputs of any class whose names say that they name files."""
FIELDS += ["filename_prefix", "text", "seed", "", "__value__", "a\n_file", *NAMED]
PIECES = [
    "/",
    "..",
    ".",
    "~",
    '"',
    "'",
    " ",
    "\\",
    "a.png",
    "etc",
    "wan2gp",
    "input",
    "file:",
    "concat:",
    "http://",
    "%",
]
PIECES += ["[input]", "[output]", "[temp]", " [output]", "\n", "\0", "\t", "\u00a0", "\u2003", "\ud800", "é", "x" * 300]
NAMES = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=8)
LINKS = st.tuples(st.sampled_from(["1", "2", "9", "/etc/passwd"]), st.integers(-1, 2)).map(list)
LEAVES = NAMES | LINKS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(lambda value: {"__value__": value})
        | st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["__value__", "image", "mask"]), inner, max_size=2)
    ),
    max_leaves=5,
)
NODES = st.fixed_dictionaries(
    {"class_type": st.sampled_from(CLASSES), "inputs": st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4)},
    optional={"_meta": st.fixed_dictionaries({"title": NAMES | LEAVES})},
)
IDS = st.sampled_from(["1", "2", "3", "prompt", "nodes", "../x", "a\nb", "\ud800"])
GRAPHS = st.dictionaries(IDS, NODES | LEAVES, max_size=3) | st.dictionaries(IDS, NODES, min_size=1, max_size=4)
DEEP = st.tuples(st.integers(1, 120), LEAVES).map(lambda drawn: _nested(*drawn))
OVERRIDES = st.none() | st.dictionaries(
    IDS, st.dictionaries(st.sampled_from(FIELDS), VALUES | DEEP, max_size=2), max_size=2
)
PLACES = [(name, field) for name, fields in {**NAME_LOADERS, **PATH_LOADERS}.items() for field in sorted(fields)]
AIMED = st.tuples(
    st.sampled_from([*PLACES, ("SaveImage", "filename_prefix"), *(("Image Save", name) for name in NAMED)]),
    st.sampled_from(["", '"', "'", ' "', " ", "a/"]),
    st.sampled_from(
        [
            "/etc/passwd",
            "../x",
            "wan2gp/task/x",
            "**/x",
            "input/wan2gp",
            "..x",
            "x.png",
            "~/x",
            "http://x/a",
            "file:/x",
            "x" * 300,
            "a\nb",
        ]
    )
    | NAMES,
    st.sampled_from(["", '"', "[input]", " [output]", "[temp]", " "]),
    st.sampled_from(
        [lambda name: name, lambda name: {"__value__": name}, lambda name: [name], lambda name: {"mask": name}]
    ),
).map(lambda drawn: {"1": _node(*drawn[0], drawn[4]("".join(drawn[1:4])))})
"""A graph that is right but for one name."""


def _nested(levels: int, value: Any) -> Any:
    return value if levels == 0 else [_nested(levels - 1, value)]


def _node(class_type: str, field: str, value: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": {field: value}}


ROWS = AIMED.map(lambda graph: {"workflow": graph}) | st.fixed_dictionaries(
    {"workflow": GRAPHS | GRAPHS.map(json.dumps) | VALUES}, optional={"overrides": OVERRIDES | VALUES}
)
OVERRIDDEN = st.tuples(NODES, VALUES | DEEP).map(
    lambda drawn: {
        "workflow": {"1": drawn[0]},
        "overrides": {"1": dict.fromkeys(list(drawn[0]["inputs"])[:1], drawn[1])},
    }
)
"""An override of an input that is there."""
ROWS |= OVERRIDDEN
INFO: dict[str, Any] = {
    "input": {
        "required": {"image": [["a.png"], {"image_upload": True}], "seed": ["INT", {"default": 0, "min": 0}]},
        "optional": {"filename_prefix": ["STRING", {"default": "../../x"}], "text": ["STRING", {}]},
    },
    "output": ["IMAGE", "*"],
    "output_node": True,
    "python_module": "nodes",
}


def is_refused_in_words_or_keeps_to_its_own(row: Any) -> None:
    before = copy.deepcopy(row)
    try:
        graph = read_params(row).graph
    except TaskFailure as failure:
        assert failure.code in REGISTRY and failure.message and "\n" not in failure.message
        assert len(failure.message) < 3000
        return
    finally:
        assert row == before, "a retry must find the row as it was"
    assert len(json.dumps(graph, ensure_ascii=False).encode()) > 0, "half a letter"
    depth, count = _measured(graph)
    assert depth <= DEEPEST and count <= MOST_VALUES
    _reads_its_own(graph)
    catalogue = Catalogue(lambda name: {str(name): INFO})
    catalogue.learn(node["class_type"] for node in graph.values())
    for problem in check_graph(graph, catalogue):
        assert "\n" not in problem.sentence
        json.dumps(problem.as_json())
    rewrite_prefixes(graph, FOLDER)
    fill_missing(graph, FOLDER, lambda name: INFO)
    _writes_its_own(graph)
    assert json.loads(json.dumps(graph)).keys() == graph.keys()


def _measured(value: Any) -> tuple[int, int]:
    """Levels, and values of all levels."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    inner = [_measured(part) for part in parts]
    return 1 + max((depth for depth, _ in inner), default=0), 1 + sum(count for _, count in inner)


def _reads_its_own(graph: Graph) -> None:
    for node in graph.values():
        class_type = node["class_type"]
        for field in NAME_LOADERS.get(class_type, ()):
            for path in _opened(node["inputs"].get(field)):
                assert path == INPUT or path.startswith(INPUT + "/"), path
                assert path != f"{INPUT}/wan2gp" and not path.startswith(f"{INPUT}/wan2gp/"), path
        for field in {*NAMED, "a\n_file"} & node["inputs"].keys():
            value = node["inputs"][field]
            for path in () if _is_link(value) else map(_below_checkout, names_in(value)):
                assert path == CHECKOUT or path.startswith(CHECKOUT + "/"), path
                assert "http" in path or not {"wan2gp", "**"} & set(path.split("/")), path
        for field in PATH_LOADERS.get(class_type, ()):
            assert not any(name.strip().strip("\"'").strip() for name in names_in(node["inputs"].get(field)))


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], (int, float))


def _below_checkout(name: str) -> str:
    """What a node would open that takes a name as it is, or that unfolds a home."""
    return os.path.normpath(os.path.join(CHECKOUT, os.path.expanduser(name.strip())))


def _opened(value: Any) -> Iterator[str]:
    """What a loader would open, by its own rules: with a quotation mark taken off (VideoHelperSuite) and without."""
    for text in names_in(value):
        stripped = text.strip()
        stripped = stripped[1:] if stripped.startswith('"') else stripped
        stripped = stripped[:-1] if stripped.endswith('"') else stripped
        for name in (text, stripped):
            top = INPUT
            for ending, cut, folder in (("[output]", 9, OUTPUT), ("[input]", 8, INPUT), ("[temp]", 7, TEMP)):
                if name.endswith(ending):
                    name, top = name[:-cut], folder
                    break
            yield os.path.normpath(os.path.join(top, name))


def _writes_its_own(graph: Graph) -> None:
    for node in graph.values():
        prefix = node["inputs"].get("filename_prefix", f"{FOLDER}/none")
        if isinstance(prefix, list):  # a link: ComfyUI keeps it inside its output folder
            continue
        plain = posixpath.normpath(prefix)
        assert plain.startswith(FOLDER + "/") and ".." not in plain.split("/"), prefix
        assert all(len(part.encode()) <= 150 for part in plain.split("/"))
        assert not any(character < " " for character in prefix)
