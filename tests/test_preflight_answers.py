"""Each refusal that was recorded of a real server, from its answer to a sentence, and from the row to the same one.

`captures/validation.json`: `prompt` was posted, `answer` came back; `row` says what becomes of a task with that graph:
`refused` before anything is queued, in the same words; `runs`, since what it lacks has a default; `shape`, refused as
no graph at all; `outside`, refused for a path of the machine; `elsewhere`, the built-in engine lacks its classes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broken_graphs_data import catalogue_of, listed, recorded_classes
from tests.comfy_jobs import Bench, make_video
from tests.conftest_comfy import FAULTS, free_port
from tests.test_preflight_graphs import refused
from wan2gp.comfy_sidecar.preflight_answer import read_answer
from wan2gp.protocol import Failed

ROWS = json.loads((Path(__file__).parent / "captures" / "validation.json").read_text())
RAISING = "FaultBadInputTypes"
Json = dict[str, Any]


def named(*kinds: str) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in ROWS if not kinds or row["row"] in kinds]


def nodes_of(prompt: Any) -> Json:
    """The prompt as far as it is a graph, which is what a run has in hand when the answer comes."""
    given = prompt if isinstance(prompt, dict) else {}
    return {key: {"inputs": {}, **node} if isinstance(node, dict) else {"inputs": {}} for key, node in given.items()}


def sentences(row: Json) -> list[str]:
    catalogue = catalogue_of(recorded_classes(), "ZzBad")
    graph = nodes_of(row["prompt"])
    answer = row["answer"]
    problems = read_answer(graph, answer.get("error") or {}, answer.get("node_errors") or {}, catalogue)
    return [problem.sentence for problem in problems]


@pytest.mark.parametrize("row", named())
def test_a_recorded_answer_becomes_a_sentence_with_place_and_remedy(row: Json) -> None:
    said = "; ".join(sentences(row))
    for words in row["says"]:
        assert words in said
    assert "Traceback" not in said and "\n" not in said


def test_every_kind_of_error_is_among_them() -> None:
    kinds = {
        error["type"]
        for row in ROWS
        for found in row["answer"].get("node_errors", {}).values()
        for error in found["errors"]
    }
    tops = {row["answer"]["error"]["type"] for row in ROWS if row["answer"].get("error")}
    assert kinds == {
        "required_input_missing",
        "bad_linked_input",
        "return_type_mismatch",
        "value_smaller_than_min",
        "value_bigger_than_max",
        "value_not_in_list",
        "invalid_input_type",
        "custom_validation_failed",
        "exception_during_validation",
    }
    assert tops == {"no_prompt", "prompt_no_outputs", "invalid_prompt", "prompt_outputs_failed_validation"}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("answers")
    settings = {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}"}
    one = Bench(folder / "bench", settings)
    (one.engine / "input").mkdir(parents=True)
    make_video(one.engine / "input" / "input.mp4")
    yield one
    one.handler.close()


@pytest.mark.parametrize("row", named("refused"))
def test_a_row_with_that_graph_is_refused_before_it_is_queued(warm: Bench, row: Json) -> None:
    failure = refused(warm, copy.deepcopy(row["prompt"]))
    assert failure.code == "comfy.validation"
    if row["name"] == "node_without_inputs_at_all":
        assert listed(failure.detail) == [("1", "images", "missing_input")]
        return
    if row["name"] == "class_whose_inputs_raise":  # it is not here; one that is: the next test
        assert listed(failure.detail) == [("1", "", "unknown_class")]
        return
    for words in row["says"]:
        assert words in failure.message


@pytest.mark.parametrize("row", named("runs"))
def test_a_row_that_lacks_what_has_a_default_runs(warm: Bench, row: Json) -> None:
    warm.succeeds({"workflow": copy.deepcopy(row["prompt"])})


@pytest.mark.parametrize("row", named("shape"))
def test_a_row_without_a_graph_is_told_so(warm: Bench, row: Json) -> None:
    failure = refused(warm, row["prompt"])
    assert failure.code == "comfy.bad_workflow"
    assert "`workflow`" in failure.message


@pytest.mark.parametrize("row", named("outside"))
def test_a_row_with_a_path_of_the_machine_is_refused(warm: Bench, row: Json) -> None:
    failure = refused(warm, row["prompt"])
    assert failure.code == "input.bad_params" and "leads out" in failure.message


def test_a_class_whose_own_code_raises_is_judged_by_the_server(warm: Bench) -> None:
    warm.facts.clear()
    outcome = warm.run({"workflow": {"1": {"class_type": RAISING, "inputs": {}}}})
    assert isinstance(outcome, Failed) and outcome.code == "comfy.validation"
    assert "does not exist" not in outcome.message and "not installed" not in outcome.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": {}, "node_errors": {}}, "gives no reason"),
        ({"error": {"type": "new", "message": "Brand new", "details": "why"}}, "Brand new: why"),
        ({"node_errors": {"1": {}}}, "node 1 (EmptyImage): ComfyUI refuses it and gives no reason"),
        ({"node_errors": {"1": "?"}}, "node 1 (EmptyImage)"),
        ({"node_errors": {"1": {"errors": [None, 5]}}}, "node 1 (EmptyImage)"),
        ({"node_errors": {"gone": {"errors": [{"type": "x", "message": "m"}]}}}, "node gone"),
        (
            {"node_errors": {"1": {"errors": [{"type": "dependency_cycle", "message": "Loop", "details": "1 -> 2"}]}}},
            "node 1 (EmptyImage): Loop: 1 -> 2",
        ),
        (
            {"node_errors": {"1": {"errors": [{"type": "value_bigger_than_max", "message": "Value 9 bigger"}]}}},
            "Value 9 bigger",
        ),
        (
            {"node_errors": {"1": {"errors": [{"type": "return_type_mismatch", "message": "M", "extra_info": 7}]}}},
            "node 1 (EmptyImage): M",
        ),
    ],
)
def test_an_answer_nobody_has_seen_yet_is_repeated_in_its_own_words(answer: Json, words: str) -> None:
    graph = {"1": {"class_type": "EmptyImage", "inputs": {"width": 1}}}
    row = {"prompt": graph, "answer": answer}
    assert words in "; ".join(sentences(row))


def test_a_chain_too_long_for_the_server_is_not_called_a_circle() -> None:
    graph: Json = {"0": {"class_type": "EmptyImage", "inputs": {}}}
    for number in range(1, 2000):
        graph[str(number)] = {"class_type": "ImageInvert", "inputs": {"image": [str(number - 1), 0]}}
    graph["last"] = {"class_type": "SaveImage", "inputs": {"images": ["1999", 0]}}
    error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": ""}
    (said,) = sentences({"prompt": graph, "answer": {"error": error}})
    assert "chain that is too long" in said and "split the graph" in said
