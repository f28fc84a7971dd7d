"""Graphs that name model files of another machine: which one is missing, where it belongs, and what is there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.broken_graphs_data import catalogue_of, recorded_classes
from wan2gp.comfy_sidecar.preflight import check_graph
from wan2gp.comfy_sidecar.preflight_problems import Problem

Json = dict[str, Any]
CHECKPOINTS = ["SDXL/sd_xl_base_1.0.safetensors", "flux1-dev-fp8.safetensors", "v1-5-pruned-emaonly.ckpt"]


def missing(
    wanted: str, there: list[str], class_type: str = "CheckpointLoaderSimple", name: str = "ckpt_name"
) -> Problem:
    """The one problem of a graph that wants a file."""
    classes = recorded_classes()
    classes[class_type]["input"]["required"][name][0] = there
    classes[class_type]["output_node"] = True
    graph = {"7": {"class_type": class_type, "inputs": {name: wanted}, "_meta": {"title": "the model"}}}
    (problem,) = [each for each in check_graph(graph, catalogue_of(classes)) if each.field == name]
    assert f'node 7 ({class_type} "the model"), input {name}' in problem.sentence
    assert problem.kind.value == "missing_model"
    return problem


@pytest.mark.parametrize(
    ("wanted", "close"),
    [
        ("SDXL\\sd_xl_base_1.0.safetensors", "SDXL/sd_xl_base_1.0.safetensors"),
        ("sd_xl_base_1.0.safetensors", "SDXL/sd_xl_base_1.0.safetensors"),
        ("other/Flux1-Dev-FP8.safetensors", "flux1-dev-fp8.safetensors"),
        ("v1-5-pruned.ckpt", "v1-5-pruned-emaonly.ckpt"),
    ],
)
def test_the_same_file_under_another_path_is_found(wanted: str, close: str) -> None:
    problem = missing(wanted, CHECKPOINTS)
    assert f"closest: '{close}'" in problem.sentence
    assert problem.facts["close"][0] == close


def test_a_few_are_listed() -> None:
    problem = missing("nothing.like.it.safetensors", CHECKPOINTS)
    assert all(repr(name) in problem.sentence for name in CHECKPOINTS)
    assert "put it in ComfyUI's models/checkpoints" in problem.sentence
    assert problem.facts["choices"] == CHECKPOINTS


def test_of_thousands_the_closest_are_named_and_how_many_there_are() -> None:
    there = [f"style_{number:04}.safetensors" for number in range(3000)]
    problem = missing("style_77.safetensors", there, "LoraLoader", "lora_name")
    assert "of 3000 that there are" in problem.sentence and len(problem.sentence) < 400
    assert problem.facts["choice_count"] == 3000 and len(problem.facts["choices"]) == 20
    assert "models/loras" in problem.sentence


def test_of_thousands_without_a_close_one_the_first_are_named() -> None:
    problem = missing("zzz.safetensors", [f"{number}.ckpt" for number in range(3000)])
    assert "'0.ckpt'" in problem.sentence and "and 2984 more" in problem.sentence


def test_an_empty_folder_is_said_to_be_empty() -> None:
    assert "so far there is none" in missing("x.safetensors", []).sentence


@pytest.mark.parametrize(
    ("class_type", "name", "folder"),
    [
        ("VAELoader", "vae_name", "models/vae"),
        ("UNETLoader", "unet_name", "models/diffusion_models"),
        ("CLIPVisionLoader", "clip_name", "models/clip_vision"),
    ],
)
def test_the_folder_is_that_of_the_loader(class_type: str, name: str, folder: str) -> None:
    assert folder in missing("x.safetensors", ["y.safetensors"], class_type, name).sentence


def test_a_model_of_a_custom_node_is_known_by_its_ending() -> None:
    declared: Json = {"required": {"onnx": [["a.onnx"]]}}
    classes = {"Detect": {"input": declared, "output": [], "output_node": True}}
    graph = {"1": {"class_type": "Detect", "inputs": {"onnx": "b.onnx"}}}
    (problem,) = check_graph(graph, catalogue_of(classes))
    assert problem.kind.value == "missing_model"
    assert "its folder below ComfyUI's models" in problem.sentence
