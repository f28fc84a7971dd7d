"""The same graphs on a real ComfyUI, and graphs that must pass: what it takes is never refused before it was asked."""

from __future__ import annotations

import copy
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.broken_graphs_data import Broken, broken_graphs, listed
from tests.comfy_jobs import Bench, spec_row
from tests.conftest_comfy import free_port
from tests.preflight_mutants import mutants
from tests.test_preflight_graphs import refused
from tests.valid_graphs import VALID
from wan2gp.comfy_sidecar.client import ComfyClient
from wan2gp.comfy_sidecar.errors import ApiError, PromptRefused
from wan2gp.comfy_sidecar.workflow import fill_missing
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_live import Live
from wan2gp.handlers.comfy_preflight import preflight

PATH = os.environ.get("COMFY_PATH", "")
pytestmark = [
    pytest.mark.real_comfy,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (Path(PATH) / "main.py").is_file(), reason="COMFY_PATH names no ComfyUI"),
]
BROKEN = [broken for broken in broken_graphs() if "real" in broken.on]
SEED, MUTANTS = 7, 300


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    settings = {
        "path": PATH,
        "port": free_port(),
        "python": os.environ.get("COMFY_PYTHON", ""),
        "args": os.environ.get("COMFY_ARGS", "--cpu"),
    }
    one = Bench(tmp_path_factory.mktemp("real") / "bench", settings)
    folder = one.engine / "input" / "sub"
    folder.mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(folder / "there.png")
    yield one
    one.handler.close()


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_broken_graph_is_answered_by_the_same_words(real: Bench, broken: Broken) -> None:
    failure = refused(real, broken.workflow)
    assert failure.code == broken.code
    for words in broken.says:
        assert words in failure.message
    assert listed(failure.detail) == broken.problems


@pytest.mark.parametrize("name", sorted(VALID))
def test_a_good_graph_passes(real: Bench, name: str) -> None:
    real.succeeds({"workflow": copy.deepcopy(VALID[name].workflow)})


def test_a_broken_graph_costs_no_download(real: Bench) -> None:
    """The video that is still to come is nothing the loader's own code is asked about."""
    row = spec_row()
    row["workflow"]["2"]["inputs"] |= {"format": "video/nope", "frame_rate": 0}
    real.fetched.clear()
    failure = real.fails(row)
    assert listed(failure.detail) == [("2", "frame_rate", "too_small"), ("2", "format", "wrong_choice")]
    assert real.fetched == []


def port_of(one: Bench) -> int:
    return next(int(detail["port"]) for state, detail in reversed(one.states) if state == "ready")


def test_what_the_server_takes_is_never_refused(real: Bench) -> None:
    """Good graphs, spoiled at random: where its answer is yes, ours is yes; where ours is no, so is its."""
    real.succeeds({"workflow": copy.deepcopy(VALID["picture"].workflow)})
    client = ComfyClient(f"http://127.0.0.1:{port_of(real)}")
    live = Live(client, None, "comfyui", "")
    try:
        verdicts = [agree(live, graph) for graph in mutants(random.Random(SEED), MUTANTS)]
    finally:
        live.close()
    assert verdicts.count("both take it") > MUTANTS / 10 and verdicts.count("both refuse") > MUTANTS / 10
    assert verdicts.count("left to the server") < MUTANTS / 50


def agree(live: Live, graph: Any) -> str:
    """What the server takes and then dies of, or always fails at, is not posted."""
    try:
        preflight(graph, live, (), lambda: live.catalogue.learn(node["class_type"] for node in graph.values()))
    except TaskFailure as failure:
        if not all(beyond_validation(problem) for problem in failure.detail["problems"]):
            assert not server_takes(live.client, graph), (failure.message, graph)
        return "both refuse"
    fill_missing(graph, "wan2gp", live.node_info)
    return "both take it" if server_takes(live.client, graph) else "left to the server"


def beyond_validation(problem: dict[str, Any]) -> bool:
    """A value where only a link can be, or a link to nowhere in an input that the class does not have."""
    return problem["kind"] == "needs_link" or problem.get("unseen", False)


def server_takes(client: ComfyClient, graph: Any) -> bool:
    """Its own validation. Nothing of the graph is left in its queue."""
    prompt_id = str(uuid.uuid4())
    try:
        errors = client.post_prompt(graph, prompt_id, "")
    except (PromptRefused, ApiError):
        return False
    client.delete_pending(prompt_id)
    client.interrupt(prompt_id)
    return not errors
