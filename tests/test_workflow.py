"""Graphs as users send them: what is refused before anything is started, and what a run changes in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.comfy_jobs import picture, spec_row
from wan2gp.comfy_sidecar.graph_shape import parse_workflow
from wan2gp.comfy_sidecar.workflow import fill_missing, prefixed, rewrite_prefixes
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_params import read_params

LOADER = {"class_type": "VHS_LoadVideo", "inputs": {"video": "x.mp4"}}
URL = "https://example.com/in.mp4"
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]


def refusal(params: Any) -> tuple[str, str]:
    with pytest.raises(TaskFailure) as caught:
        read_params(params)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        (None, "missing"),
        ({}, "empty"),
        ("", "empty string"),
        ("  ", "empty string"),
        ("{not json", "not JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('{"1": {"class_type": "A", "inputs": {"x": NaN}}}', "NaN"),
        ({"1": {"class_type": "A", "inputs": {"x": DEEP}}}, "nested too deeply"),
        ("[1]", "list"),
        ([], "list"),
        ([{"class_type": "X"}], "list"),
        (7, "a number"),
        (True, "a boolean"),
        ('"text"', "a string"),
        ("null", "null"),
        ({"nodes": [{"id": 1}], "links": []}, "editor's format"),
        ({"1": None}, "node 1 of `workflow` is null"),
        ({"1": []}, "node 1 of `workflow` is a list"),
        ({"1": {"inputs": {}}}, "no class_type"),
        ({"1": {"class_type": 5}}, "no class_type"),
        ({"1": {"class_type": "A", "inputs": []}}, "`inputs` of node 1"),
        ({"prompt": {"1": LOADER}}, "one level down, under 'prompt'"),
        ({"output": {"1": LOADER}, "workflow": {"nodes": []}}, "one level down, under 'output'"),
        ({"prompt": '{"1": {}}'}, "as a string under 'prompt'"),
        (
            {"1": 5, "2": {}, "3": LOADER},
            "node 1 of `workflow` is a number, not an object; node 2 ",
        ),
    ],
)
def test_what_is_no_graph_is_refused_in_a_sentence(workflow: Any, words: str) -> None:
    code, message = refusal({"workflow": workflow})
    assert code == "comfy.bad_workflow"
    assert words in message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("params", [None, [], "text", 5, [{"workflow": {}}]])
def test_params_may_be_any_json_and_must_be_an_object(params: Any) -> None:
    assert refusal(params)[0] == "input.bad_params"


def test_params_without_a_workflow_are_told_so() -> None:
    assert refusal({})[0] == "comfy.bad_workflow"


@pytest.mark.parametrize("url", ["", "ftp://x/y", "/etc/passwd", "file:///etc/passwd", 5, {}, "http://", "http://[::1"])
def test_a_url_that_is_none_is_refused(url: Any) -> None:
    assert refusal({**spec_row(), "video_url": url})[0] == "input.bad_url"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_node_id": "12"}, "'12' is not in the workflow"),
        ({"video_node_id": 3}, "'3' is not in the workflow; there is '1'"),
        ({"video_node_id": [1]}, "video_node_id"),
        ({"video_node_id": True}, "video_node_id"),
        ({"video_input_field": "vido"}, "no input 'vido'; there is 'video'"),
        ({"video_input_field": 5}, "video_input_field"),
        ({"video_node_id": "2"}, "node 2 (VHS_VideoCombine) has no input 'video'"),
    ],
)
def test_a_target_that_is_not_there_is_refused_with_what_is(change: dict[str, Any], words: str) -> None:
    code, message = refusal({**spec_row(), **change})
    assert code == "input.bad_params"
    assert words in message


def test_the_only_loader_is_found_and_of_several_one_must_be_named() -> None:
    one = {"workflow": {"9": LOADER}, "video_url": URL}
    target = read_params(one).target
    assert target is not None and (target.node_id, target.field) == ("9", "video")
    code, message = refusal({"workflow": {"9": LOADER, "8": LOADER}, "video_url": URL})
    assert code == "input.bad_params"
    assert "node 9 (VHS_LoadVideo)" in message and "node 8 (VHS_LoadVideo)" in message
    assert refusal({"workflow": picture(), "video_url": URL})[0] == "input.bad_params"


def test_an_unknown_loader_is_found_by_its_only_video_input() -> None:
    graph = {"4": {"class_type": "MyLoader", "inputs": {"video": "x"}}, "5": {"class_type": "Other", "inputs": {}}}
    target = read_params({"workflow": graph, "video_url": URL}).target
    assert target is not None and target.node_id == "4"


def test_the_core_loader_takes_the_file_in_its_own_field() -> None:
    graph = {"4": {"class_type": "LoadVideo", "inputs": {}}}
    target = read_params({"workflow": graph, "video_url": URL, "video_node_id": "4"}).target
    assert target is not None and target.field == "file"


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.mp4", "a/../../b", "..\\..\\x", "~/x"])
@pytest.mark.parametrize("class_type", ["VHS_LoadVideo", "LoadImage", "VHS_LoadVideoPath", "VHS_LoadImagesPath"])
def test_a_loader_may_not_read_outside_the_input_folder(class_type: str, name: str) -> None:
    """VideoHelperSuite itself opens any path of the machine."""
    field = "directory" if class_type == "VHS_LoadImagesPath" else "video" if "Video" in class_type else "image"
    code, message = refusal({"workflow": {"1": {"class_type": class_type, "inputs": {field: name}}}})
    assert code == "input.bad_params"
    assert "leads out" in message


def test_the_name_that_will_be_replaced_may_be_anything() -> None:
    row = spec_row()
    row["workflow"]["1"]["inputs"]["video"] = "/home/me/input.mp4"
    assert read_params(row).target is not None


def test_a_node_id_without_a_url_is_ignored_aloud() -> None:
    row = spec_row()
    del row["video_url"]
    request = read_params(row)
    assert request.target is None and len(request.warnings) == 1


def test_the_params_of_the_row_are_never_changed() -> None:
    """A retry must find them as they were."""
    row = spec_row()
    request = read_params(row)
    rewrite_prefixes(request.graph, "f")
    fill_missing(request.graph, "f", lambda _: None)
    request.graph["1"]["inputs"]["video"] = "changed"
    assert row == spec_row()


def test_a_graph_may_be_a_string() -> None:
    assert parse_workflow(json.dumps(picture())) == picture()


@pytest.mark.parametrize(
    ("given", "result"),
    [
        ("clip", "f/clip"),
        ("a/b/clip", "f/a/b/clip"),
        ("/etc/x", "f/etc/x"),
        ("../../x", "f/x"),
        ("./a/./b/", "f/a/b"),
        ("", "f/output"),
        ("..", "f/output"),
        ("%year%/x", "f/%year%/x"),
    ],
)
def test_prefixes_go_below_the_runs_own_folder(given: str, result: str) -> None:
    assert prefixed("f", given) == result


def test_a_linked_prefix_is_left_alone_and_named() -> None:
    graph = {"1": {"class_type": "S", "inputs": {"filename_prefix": ["2", 0]}}}
    assert rewrite_prefixes(graph, "f") == ["1"]
    assert graph["1"]["inputs"]["filename_prefix"] == ["2", 0]


INFO = {
    "input": {
        "required": {
            "images": ["IMAGE"],
            "loop_count": ["INT", {"default": 0}],
            "filename_prefix": ["STRING", {"default": "AnimateDiff"}],
            "format": [["a", "b"], {"formats": {}}],
            "mode": ["COMBO", {"default": "x", "options": ["x", "y"]}],
        },
        "optional": {"extra": ["INT", {"default": 3}]},
    }
}


def test_missing_inputs_get_their_defaults_and_nothing_else() -> None:
    """What has no default is for ComfyUI to name; what is optional needs none."""
    graph = {"2": {"class_type": "C", "inputs": {"mode": "y"}}}
    (filled,) = fill_missing(graph, "f", lambda name: INFO if name == "C" else None)
    assert graph["2"]["inputs"] == {"mode": "y", "loop_count": 0, "filename_prefix": "f/output"}
    assert set(filled.inputs) == {"loop_count", "filename_prefix"}
    assert "node 2 (C)" in filled.sentence(graph) and "loop_count = 0" in filled.sentence(graph)


def test_an_optional_prefix_is_made_the_runs_own_too() -> None:
    info = {"input": {"required": {}, "optional": {"filename_prefix": ["STRING", {"default": "x"}]}}}
    graph: dict[str, Any] = {"2": {"class_type": "C", "inputs": {}}}
    assert fill_missing(graph, "f", lambda _: info) == []
    assert graph["2"]["inputs"] == {"filename_prefix": "f/output"}


@pytest.mark.parametrize(
    "info", [None, {}, {"input": None}, {"input": {"required": [1]}}, {"input": {"required": {"a": 1}}}]
)
def test_a_catalogue_that_says_nonsense_changes_nothing(info: Any) -> None:
    graph = picture()
    assert fill_missing(graph, "f", lambda _: info) == []
    assert graph == picture()
