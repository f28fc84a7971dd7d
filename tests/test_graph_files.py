"""A workflow from a stranger names files: its own may be read, nobody else's, however the name is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wan2gp.comfy_sidecar.catalogue import NodeClass
from wan2gp.comfy_sidecar.errors import BadTarget, BadWorkflow
from wan2gp.comfy_sidecar.file_names import NAME_LOADERS, PATH_LOADERS, Allowed, declared_files, refuse_outside_names
from wan2gp.comfy_sidecar.graph_shape import DEEPEST, LONGEST_NAME, MOST_NODES, describe_node, parse_workflow
from wan2gp.comfy_sidecar.suggest import there_is
from wan2gp.comfy_sidecar.workflow import prefixed, rewrite_prefixes
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_params import ComfySettings, read_params

LOADERS = sorted({**NAME_LOADERS, **PATH_LOADERS}.items())
EVERY = [pytest.param(name, field, id=f"{name}.{field}") for name, fields in LOADERS for field in sorted(fields)]
OUTSIDE = [
    "/etc/passwd",
    "../secret.png",
    "a/../../secret.png",
    "..\\..\\x",
    "~/x",
    ' "/etc/passwd"',
    "\"'/etc/passwd",
    '"../x"',
    "/etc/passwd [input]",
    "..x[input]",
    "x.png [output]",
    "x.png[temp]",
    '"x.png [output]"',
    "file:/etc/passwd",
    "file:///etc/passwd",
    "concat:/etc/passwd|x",
    "subfile,,start,0,end,0,,:/etc/passwd",
    "smb://host/share/x",
    "wan2gp/another-task/lease/face.png",
    "./wan2gp//another-task/x",
    "wan2gp0[input]",
    "a\nb",
    "a\0b",
]


def graph(class_type: str, field: str, value: Any) -> dict[str, Any]:
    return {"1": {"class_type": class_type, "inputs": {field: value}}}


def refusal(class_type: str, field: str, value: Any, **allowed: Any) -> str:
    with pytest.raises(BadTarget) as caught:
        refuse_outside_names(graph(class_type, field, value), Allowed(**allowed))
    assert "`inputs`" in str(caught.value) and field in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(("class_type", "field"), EVERY)
def test_no_known_loader_is_given_anything_but_the_tasks_own(class_type: str, field: str, name: str) -> None:
    refusal(class_type, field, name)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: {"__value__": name},
        lambda name: {"__value__": {"__value__": name}},
        lambda name: {"__value__": [name, 0]},
        lambda name: ["harmless.png", name],
        lambda name: [[name]],
        lambda name: {"image": "harmless.png", "mask": name},
    ],
)
def test_a_name_that_is_wrapped_is_found(wrap: Any) -> None:
    """ComfyUI takes `__value__` off after it was looked at; other loaders take lists and objects of names."""
    assert "leads out" in refusal("LoadImage", "image", wrap("/etc/passwd"))
    refuse_outside_names(graph("LoadImage", "image", wrap("face.png")))


@pytest.mark.parametrize(("class_type", "field"), EVERY)
def test_a_name_that_another_node_makes_up_is_refused(class_type: str, field: str) -> None:
    """Joined from harmless pieces, it would pass every look at the graph."""
    assert "another node" in refusal(class_type, field, ["2", 0])


@pytest.mark.parametrize("field", ["image", "image_path", "path", "file_path", "folder", "directory"])
@pytest.mark.parametrize("class_type", ["Image Load", "LoadImagesFromFolderKJ", "easy loadImageBase"])
def test_loaders_of_other_packs_are_looked_at_too(class_type: str, field: str) -> None:
    assert "leads out" in refusal(class_type, field, "/etc/passwd")
    refuse_outside_names(graph(class_type, field, "faces/a.png"))
    refuse_outside_names(graph(class_type, field, ["2", 0]))  # a picture, most likely


PACKS = [
    ("Load Image Batch", "path"),
    ("Load Image Batch", "pattern"),
    ("Batch Load Images", "image_directory"),
    ("LoadPromptsFromFile //Inspire", "prompt_file"),
    ("LoadPromptsFromDir //Inspire", "prompt_dir"),
    ("CR Load Text List", "input_file_path"),
    ("Load Cache", "latent_path"),
    ("Create Video from Path", "input_path"),
    ("Video Dump Frames", "output_path"),
    ("ImageFromPath", "path"),
    ("Image Save", "OUTPUT_PATH"),
    ("SaveLoRA", "prefix"),
    ("Anything", "Folder"),
    ("Anything", "my_glob"),
    ("Anything", "file_of_words"),
]
"""Of packs as they are, none of which anybody here had listed."""


STRAY = [
    ("/etc/passwd", "absolute"),
    ("/etc/*", "absolute"),
    (' "/etc/passwd"', "absolute"),
    ("file:///etc/passwd", "absolute"),
    ("C:\\x", "absolute"),
    ("../x", "climbs"),
    ("a/../../x", "climbs"),
    ("..", "climbs"),
    ("a\\..\\x", "climbs"),
    (".*/x", "climbs"),
    ("~/x", "home"),
    ("~root", "home"),
    ("**/*", "all folders"),
    ("input/**", "all folders"),
    ("wan2gp/another-task/x.png", "belongs to other"),
    ("input/wan2gp/x.png", "belongs to other"),
    ("./wan2gp", "belongs to other"),
    ("input/*/x/*.png", "belongs to other"),
    ("w[a]n2gp/x", "belongs to other"),
    ({"__value__": "/etc/passwd"}, "absolute"),
    (["a.png", "/etc/passwd"], "absolute"),
]
RELATIVE = [
    *("", "a.png", "faces/a b.png", "*.png", "frame_*.png", "a..b", "x~", "./out/[time(%Y-%m-%d)]", ".*", "*/"),
    *("relative", "true", "https://x.example/wan2gp/a.png", "a photo of and/or by", "wan2gp_x", None, 5, True),
]


@pytest.mark.parametrize(("class_type", "field"), PACKS)
def test_an_input_whose_name_says_file_leads_nowhere_else(class_type: str, field: str) -> None:
    """To read or to write, in a class that nobody here knows. Of loaders more is known, and said in other words."""
    for name, words in STRAY:
        said = refusal(class_type, field, name)
        assert words in said or "Load" in class_type


@pytest.mark.parametrize(("class_type", "field"), PACKS)
def test_a_relative_name_passes_in_an_input_whose_name_says_file(class_type: str, field: str) -> None:
    for value in (*RELATIVE, ["2", 0]):
        refuse_outside_names(graph(class_type, field, value))


@pytest.mark.parametrize("field", ["text", "profile", "regex_pattern", "path_separator", "filename_prefix", "direct"])
def test_an_input_whose_name_says_no_file_holds_any_text(field: str) -> None:
    for text in ("/etc/x", "../x", "~", "**/*", "\\.\\./x"):
        refuse_outside_names(graph("Anything", field, text))
    refuse_outside_names(graph("Anything", "pattern", r"\d+ of \w*"))  # an expression, with no folder in it


def test_a_pattern_of_a_million_letters_is_not_compared() -> None:
    assert "longer than" in refusal("Anything", "pattern", "[a]*" * 250_000 + "/x")


def test_the_name_of_an_input_forges_no_second_line() -> None:
    with pytest.raises(BadTarget) as caught:
        refuse_outside_names(graph("Anything", "my\nforged_file", "/x"))
    assert "\n" not in str(caught.value)


def test_no_graph_that_is_kept_here_names_a_file_that_is_refused() -> None:
    """Those that engines ran, those that are broken in other ways, and the defaults of classes. Known loaders have
    rules of their own."""
    folder = Path(__file__).parent
    whole = json.loads((folder / "broken_graphs_catalogue.json").read_text(encoding="utf-8"))
    graphs = [each for path in folder.glob("captures/**/*.json") for each in graphs_in(read_json(path))]
    graphs += [each for path in folder.glob("broken_graphs/*.json") for each in graphs_in(read_json(path))]
    graphs += [{"1": {"class_type": name, "inputs": defaults(info)}} for name, info in whole.items()]
    assert len(graphs) > 100
    for each in graphs:
        refuse_outside_names({key: node for key, node in each.items() if node["class_type"] not in dict(LOADERS)})


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def graphs_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every graph in a recording, however deep."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    nodes = {
        node_id: node
        for node_id, node in (value.items() if isinstance(value, dict) else ())
        if isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
    }
    if nodes:
        yield nodes
    for part in parts:
        yield from graphs_in(part)


def defaults(info: Any) -> dict[str, Any]:
    """Of the inputs of a class."""
    known = NodeClass.read("x", info)
    assert known is not None
    options = {name: spec.options.get("default") for name, spec in known.inputs.items()}
    return {name: value for name, value in options.items() if value is not None}


def test_a_path_loader_reads_nothing_of_comfyuis_own_folder() -> None:
    """Its names are relative to ComfyUI's checkout, with the operator's files in it."""
    for name in ("main.py", "output/somebody.mp4", "models/x.safetensors", "input/x.mp4"):
        assert "path on the worker" in refusal("VHS_LoadVideoPath", "video", name)
    there = Allowed(relative=True)  # a server of somebody else's, whose input folder is where its files are
    refuse_outside_names(graph("VHS_LoadVideoPath", "video", "input/x.mp4"), there)
    for name in ("main.py", "input/../main.py", "input/wan2gp/task/x.mp4", "inputs/x.mp4"):
        refusal("VHS_LoadVideoPath", "video", name, relative=True)


@pytest.mark.parametrize("class_type", ["VHS_LoadVideoPath", "VHS_LoadVideoFFmpegPath", "VHS_LoadImagePath"])
def test_a_node_fetches_nothing_by_itself(class_type: str) -> None:
    """It would ask yt-dlp, past all that guards a download: any scheme, any address."""
    field = "image" if "Image" in class_type else "video"
    for url in ("http://169.254.169.254/latest/meta-data", ' "https://x/a.mp4"', "HTTP://x/a.mp4"):
        assert "web address" in refusal(class_type, field, url)


def test_folders_that_the_operator_allows_may_be_named(tmp_path: Path) -> None:
    shelf, private = tmp_path / "shelf", tmp_path / "private"
    for folder in (shelf, private):
        folder.mkdir()
        (folder / "a.mp4").touch()
    (shelf / "link.mp4").symlink_to(private / "a.mp4")
    allowed = Allowed((str(shelf),))
    for class_type, field in (("VHS_LoadVideoPath", "video"), ("LoadImage", "image"), ("Image Load", "image_path")):
        refuse_outside_names(graph(class_type, field, str(shelf / "a.mp4")), allowed)
        for name in (private / "a.mp4", shelf / "link.mp4", f"{shelf}/../private/a.mp4", f"{shelf}x/a", tmp_path):
            refusal(class_type, field, str(name), paths=(str(shelf),))
    settings = ComfySettings(allow_paths=[str(shelf)])
    assert settings.allowed() == allowed
    elsewhere = ComfySettings(allow_paths=[str(shelf)], url="http://10.0.0.7:8188").allowed()
    assert elsewhere.paths == (), "another machine's files are not this operator's to allow"


def test_what_a_class_says_of_its_inputs_is_heeded() -> None:
    info = {
        "input": {
            "required": {
                "clip": [["a.mp4"], {"video_upload": True}],
                "where": ["STRING", {"vhs_path_extensions": ["mp4"]}],
                "note": ["STRING", {}],
                "filename_prefix": ["STRING", {"vhs_path_extensions": []}],
            }
        },
        "output": [],
    }
    known = NodeClass.read("Opener", info)
    assert declared_files(known) == {"clip": False, "where": True} and declared_files(None) == {}
    for field in ("clip", "where"):
        with pytest.raises(BadTarget, match="leads out"):
            refuse_outside_names(graph("Opener", field, "/etc/passwd"), None, lambda _: declared_files(known))
    refuse_outside_names(graph("Opener", "note", "/etc/passwd"), None, lambda _: declared_files(known))


@pytest.mark.parametrize(
    "name", ["face.png", "my faces/a b.png", "..a..png", "a:b.png", "", "x [input]", "C.mp4", None]
)
def test_ordinary_names_pass(name: Any) -> None:
    refuse_outside_names(graph("LoadImage", "image", name))


def test_overrides_are_looked_at_like_the_graph() -> None:
    row = {"workflow": graph("LoadImage", "image", "a.png"), "overrides": {"1": {"image": {"__value__": "/etc/x"}}}}
    with pytest.raises(TaskFailure, match="leads out") as caught:
        read_params(row)
    assert caught.value.code == "input.bad_params"


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "result"),
    [
        ({"__value__": "../../x"}, "f/x"),
        ({"__value__": {"__value__": "/etc/x"}}, "f/etc/x"),
        ({"no": "value"}, "f/output"),
        ({"__value__": ["../x"]}, "f/output"),
        (5, "f/5"),
        (None, "f/output"),
        ("a\0b\n/c", "f/a_b_/c"),
        ("x" * 300, "f/" + "x" * 150),
        ("é" * 100, "f/" + "é" * 75),
        ("\ud800", "f/?"),
        (" .. /x", "f/x"),
        ("/".join("a" * 40), "f" + "/a" * 16),
    ],
)
def test_a_prefix_of_any_kind_stays_inside(given: Any, result: str) -> None:
    saver = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": given}}}
    assert rewrite_prefixes(saver, "f") == []
    assert saver["1"]["inputs"]["filename_prefix"] == result
    assert prefixed("f", "%year%/x") == "f/%year%/x"


# --- size and depth --------------------------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def chain(count: int) -> dict[str, Any]:
    return {str(number): {"class_type": "A", "inputs": {"x": [str(number - 1), 0]}} for number in range(count)}


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        (chain(MOST_NODES + 1), f"the most is {MOST_NODES}"),
        (graph("A", "x", nested(DEEPEST)), "nested too deeply"),
        (graph("A", "x", nested(100_000)), "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps(graph("A", "x", nested(DEEPEST))), "nested too deeply"),
        (graph("A", "x", [0] * 500_000), "values"),
        ('{"1": {"class_type": "A", "inputs": {"x": ["\\ud800"]}}}', "half a character"),
        ('{"\\ud800": {"class_type": "A"}}', "half a character"),
        ({"i" * (LONGEST_NAME + 1): {"class_type": "A"}}, "more than 1024 characters"),
        (graph("A" * (LONGEST_NAME + 1), "x", 1), "more than 1024 characters"),
        (graph("A", "x" * (LONGEST_NAME + 1), 1), "more than 1024 characters"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else "graph",
)
def test_a_graph_too_large_to_be_meant_is_refused_before_it_is_walked(workflow: Any, words: str) -> None:
    with pytest.raises(BadWorkflow, match=words) as caught:
        parse_workflow(workflow)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("given", "words"),
    [(nested(150), "nested too deeply"), ([0] * 500_000, "values"), (["\ud800"], "half a character")],
    ids=["depth", "values", "text"],
)
def test_overrides_make_no_graph_larger_than_it_may_be(given: Any, words: str) -> None:
    row = {"workflow": graph("A", "x", 1), "overrides": {"1": {"x": given}}}
    with pytest.raises(TaskFailure, match=f"with its `overrides`.*{words}") as caught:
        read_params(row)
    assert caught.value.code == "comfy.bad_workflow"
    assert read_params({**row, "overrides": {"1": {"x": nested(DEEPEST - 4)}}}).graph["1"]["inputs"]["x"]


def test_the_largest_graph_and_the_deepest_are_read() -> None:
    assert len(parse_workflow(chain(MOST_NODES))) == MOST_NODES
    assert parse_workflow(graph("A", "x", nested(DEEPEST - 4)))


def test_names_of_a_million_letters_are_not_compared() -> None:
    """Each comparison takes time that grows with the product of both lengths: hours."""
    giants = ["ab" * 500_000 + str(number) for number in range(200)]
    said = there_is("ba" * 500_000, giants)
    assert len(said) < 500
    assert there_is("imgae", ["image", *giants]) == "; there is 'image'"


def test_a_title_forges_no_second_line() -> None:
    node = {"1": {"class_type": "A", "inputs": {}, "_meta": {"title": "x\n2025-01-01 ERROR forged " + "y" * 1000}}}
    said = describe_node(node, "1")
    assert "\n" not in said and len(said) < 150


def test_a_web_address_is_no_name_of_a_file() -> None:
    """ComfyUI would look for it in a folder `http:` of its input folder, and `..` behind that leads out of it."""
    for url in ("http://x/a.png", "http:/../../etc/passwd", "http://x/a [output]"):
        assert "web address" in refusal("LoadImage", "image", url)
    refuse_outside_names(graph("LoadImageFromUrl", "image", "https://x/a.png"))  # another pack's: the sandbox is for it
