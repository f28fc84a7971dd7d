"""Graphs that cannot run: each is answered before a download and before anything is queued, with all that is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from PIL import Image

from tests.broken_graphs_data import Broken, broken_graphs, catalogue_of, listed, recorded_classes
from tests.comfy_jobs import Bench
from tests.conftest_comfy import FAULTS, free_port
from tests.valid_graphs import VALID
from wan2gp.comfy_sidecar.graph_shape import parse_workflow
from wan2gp.comfy_sidecar.preflight import check_graph

BROKEN = broken_graphs()
HERE = [broken for broken in BROKEN if "builtin" in broken.on]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    settings = {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}"}
    one = Bench(tmp_path_factory.mktemp("preflight") / "bench", settings)
    yield one
    one.handler.close()


def refused(one: Bench, workflow: Any) -> Any:
    """The failure; nothing was queued, and nothing is left in the history."""
    one.facts.clear()
    failure = one.fails({"workflow": workflow})
    assert "comfy.queued" not in one.names()
    return failure


def nothing_ran(one: Bench) -> bool:
    port = next(detail["port"] for state, detail in reversed(one.states) if state == "ready")
    base = f"http://127.0.0.1:{port}"
    queue = requests.get(f"{base}/queue", timeout=10).json()
    return (
        queue == {"queue_running": [], "queue_pending": []} and not requests.get(f"{base}/history", timeout=10).json()
    )


def test_there_are_at_least_forty() -> None:
    assert len(BROKEN) >= 40
    kinds = {kind for broken in BROKEN for _, _, kind in broken.problems}
    assert len(kinds) >= 14


@pytest.mark.parametrize("broken", HERE, ids=str)
def test_a_broken_graph_is_answered_with_all_that_is_wrong(warm: Bench, broken: Broken) -> None:
    failure = refused(warm, broken.workflow)
    assert failure.code == broken.code and not failure.retryable
    for words in broken.says:
        assert words in failure.message
    assert listed(failure.detail) == broken.problems
    assert "\n" not in failure.message and len(failure.message) < 2000
    json.dumps(failure.detail).encode()
    failure.message.encode()


def test_none_of_them_was_run(warm: Bench) -> None:
    """A good graph between them, so that the history would show it."""
    for broken in HERE[:3]:
        refused(warm, broken.workflow)
    if any(state == "ready" for state, _ in warm.states):
        assert nothing_ran(warm)


@pytest.mark.parametrize("name", sorted(name for name, valid in VALID.items() if valid.builtin))
def test_a_graph_that_only_looks_wrong_runs(warm: Bench, name: str) -> None:
    folder = warm.engine / "input" / "sub"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "red").save(folder / "there.png")
    warm.succeeds({"workflow": copy.deepcopy(VALID[name].workflow)})


@pytest.mark.parametrize("broken", [one for one in BROKEN if one.code == "comfy.validation"], ids=str)
def test_the_recorded_catalogue_of_a_real_server_is_enough_to_find_it(broken: Broken) -> None:
    classes = recorded_classes()
    graph = parse_workflow(broken.workflow)
    catalogue = catalogue_of(classes)
    catalogue.learn(node["class_type"] for node in graph.values())
    found = [(problem.node_id, problem.field, problem.kind.value) for problem in check_graph(graph, catalogue)]
    assert found == broken.problems
