"""Broken graphs as rows of a real worker: what the row says afterwards, for people and for programs."""

from __future__ import annotations

import pytest

from tests.broken_graphs_data import Broken, broken_graphs
from tests.comfy_worker import Start
from tests.conftest_comfy import FAULTS, free_port
from tests.conftest_worker import Worker

NAMES = (
    "all_at_once",
    "five_megabytes",
    "format_of_the_editor",
    "id_of_300_characters",
    "nodes_that_are_none",
    "unicode_everywhere",
    "video_that_is_not_there",
)
BROKEN = [broken for broken in broken_graphs() if broken.name in NAMES]


@pytest.fixture(scope="module")
def worker(start_lasting: Start) -> Worker:
    arguments = f"--extra-nodes {FAULTS}"
    return start_lasting(name="judge", COMFY_PATH="builtin", COMFY_PORT=str(free_port()), COMFY_ARGS=arguments)


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_the_row_of_a_broken_graph_says_all_of_it(worker: Worker, broken: Broken) -> None:
    row = worker.ended(worker.insert("comfy", {"workflow": broken.workflow}))
    assert row["status"] == "Failed"
    assert row["error_message"].startswith(f"{broken.code}: ")
    for words in broken.says:
        assert words in row["error_message"]
    (attempt,) = row["result_data"]["attempts"]
    listed = attempt.get("detail", {}).get("problems", [])
    assert [(item["node_id"], item.get("field", ""), item["kind"]) for item in listed] == broken.problems
    assert all(item["message"] for item in listed)
    assert "Workflow queued" not in worker.log and "prompt_id" not in str(worker.events(row["id"]))
