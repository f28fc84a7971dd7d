"""Every way in which a row can be wrong ends in one clear sentence with a code, and the worker takes the next task."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.bad_web_server import BadWebServer
from tests.comfy_jobs import fault, picture, spec_row
from tests.comfy_worker import Start, newest, run_sql
from tests.conftest_comfy import FAULTS, free_port
from tests.conftest_worker import Row, Worker, eventually
from wan2gp.demo_stage import Video
from wan2gp.errors import REGISTRY

Json = dict[str, Any]
Clip = tuple[Video, str]


@pytest.fixture(scope="module")
def worker(start_lasting: Start) -> Worker:
    """One worker takes all that is thrown at it here."""
    return start_lasting(
        name="patient",
        COMFY_PATH="builtin",
        COMFY_PORT=str(free_port()),
        COMFY_ARGS=f"--extra-nodes {FAULTS}",
        WAN2GP_ALLOW_PRIVATE_URLS="1",
        WAN2GP_INPUT_MAX_BYTES=str(4 * 1024**2),
    )


@pytest.fixture(scope="module")
def hasty(start_lasting: Start) -> Worker:
    """Its patience with downloads is small. Apart, since on a busy machine it may run out with anybody."""
    return start_lasting(
        name="hasty",
        COMFY_PATH="builtin",
        COMFY_PORT=str(free_port()),
        WAN2GP_ALLOW_PRIVATE_URLS="1",
        WAN2GP_INPUT_TOTAL_S="2",
        WAN2GP_INPUT_IDLE_S="1",
    )


@pytest.fixture(scope="module")
def web() -> Iterator[BadWebServer]:
    server = BadWebServer()
    yield server
    server.close()


def failed(worker: Worker, params: Any, code: str) -> str:
    """The row's sentence, after the common promises were held: one code, one line, and the next task completes."""
    row = worker.ended(worker.insert("comfy", params, max_attempts=1))
    assert (row["status"], row["attempts"], row["output_location"]) == ("Failed", 1, None)
    sentence = sentence_of(row, code)
    assert worker.ended(worker.insert("comfy", {"workflow": picture()}))["status"] == "Complete"
    return sentence


def sentence_of(row: Row, code: str) -> str:
    given, _, sentence = row["error_message"].partition(": ")
    assert given == code, row["error_message"]
    assert given in REGISTRY
    assert 10 < len(sentence) < 1000 and "\n" not in sentence and "Traceback" not in sentence, sentence
    return str(sentence)


# --- the workflow --------------------------------------------------------------------------------------------------

WORKFLOWS: dict[str, tuple[Any, str]] = {
    "broken JSON": ({"workflow": '{"1": {"class_type": '}, "JSON"),
    "missing": ({"video_url": "https://example.com/x.mp4"}, "missing"),
    "null": ({"workflow": None}, "missing"),
    "empty": ({"workflow": {}}, "empty"),
    "an empty string": ({"workflow": ""}, "workflow"),
    "a list": ({"workflow": [{"class_type": "SaveImage", "inputs": {}}]}, "list"),
    "a list in a string": ({"workflow": "[]"}, "list"),
    "a number": ({"workflow": 7}, "workflow"),
    "the editor's own format": ({"workflow": {"nodes": [], "links": [], "version": 0.4}}, "API"),
    "a node that is no object": ({"workflow": {"1": "SaveImage"}}, "node 1"),
    "a node without a class": ({"workflow": {"1": {"inputs": {}}}}, "class_type"),
}


@pytest.mark.long
@pytest.mark.parametrize("which", WORKFLOWS)
def test_a_bad_workflow_is_named(worker: Worker, which: str) -> None:
    params, word = WORKFLOWS[which]
    assert word in failed(worker, params, "comfy.bad_workflow")


@pytest.mark.long
@pytest.mark.parametrize("params", [[1, 2], "a sentence", 7, True], ids=["a list", "a string", "a number", "a truth"])
def test_params_that_are_no_object_are_named(worker: Worker, params: Any) -> None:
    assert "params" in failed(worker, params, "input.bad_params")


def test_params_that_are_null_are_named(worker: Worker) -> None:
    run_sql(worker, "INSERT INTO tasks (task_type, params, status) VALUES ('comfy', 'null', 'queued')")
    assert "params" in sentence_of(worker.ended(newest(worker)), "input.bad_params")


def test_a_graph_that_comfyui_refuses_names_the_node_and_the_field(worker: Worker) -> None:
    graph = picture()
    graph["1"]["inputs"]["width"] = "wide"
    sentence = failed(worker, {"workflow": graph}, "comfy.validation")
    assert "node 1 (EmptyImage)" in sentence and "width" in sentence


def test_a_graph_without_an_output_node_says_what_to_add(worker: Worker) -> None:
    graph = {"1": picture()["1"]}
    assert "output node" in failed(worker, {"workflow": graph}, "comfy.validation")


def test_a_node_that_is_not_installed_is_named(worker: Worker) -> None:
    assert "NoSuchNode" in failed(
        worker, {"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}, "comfy.validation"
    )


# --- the input -----------------------------------------------------------------------------------------------------

URLS: dict[str, tuple[str, str]] = {
    "/404": ("input.not_found", "404"),
    "/500": ("input.http_error", "500"),
    "/endless": ("input.too_large", "limit"),
    "/endless-chunks": ("input.too_large", "limit"),
    "/too-large": ("input.too_large", "limit"),
    "/page.mp4": ("input.not_media", "video"),
    "/picture.mp4": ("input.not_media", "video"),
    "/noise.mp4": ("input.not_media", "video"),
    "/loop": ("input.redirects", "redirect"),
    "/circle-a": ("input.redirects", "redirect"),
    "/for-ever": ("input.redirects", "redirect"),
    "/clip.mp4": ("input.corrupt", "video_url"),
    "/hangs-up": ("input.http_error", ""),
}
"""A path of the bad server: the code, and a word of the sentence. `/clip.mp4` begins as a video and is none."""


@pytest.mark.parametrize("path", URLS)
def test_a_bad_url_is_named(worker: Worker, web: BadWebServer, path: str) -> None:
    code, word = URLS[path]
    assert word in failed(worker, {**spec_row(), "video_url": web.url(path)}, code)


@pytest.mark.long
@pytest.mark.parametrize("path", ["/silent", "/drip", "/stall"])
def test_a_slow_url_is_named_with_the_limit(hasty: Worker, web: BadWebServer, path: str) -> None:
    assert "within" in failed(hasty, {**spec_row(), "video_url": web.url(path)}, "input.timeout")


def test_a_host_that_is_not_there_is_named(worker: Worker) -> None:
    url = f"http://127.0.0.1:{free_port()}/input.mp4"
    failed(worker, {**spec_row(), "video_url": url}, "input.unreachable")


@pytest.mark.parametrize("url", ["ftp://example.com/x.mp4", "file:///etc/passwd", "x.mp4", "http://", 7, ""])
def test_what_is_no_web_address_is_named(worker: Worker, url: Any) -> None:
    assert "video_url" in failed(worker, {**spec_row(), "video_url": url}, "input.bad_url")


class _Damaged(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """The test's output is not the place."""


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[bytes], str]]:
    """Puts bytes behind a URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Damaged)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def put(body: bytes) -> str:
        _Damaged.body = body
        return f"http://127.0.0.1:{server.server_address[1]}/input.mp4"

    yield put
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("how", ["half", "hole"])
def test_a_corrupt_video_is_named(worker: Worker, clip: Clip, serve: Callable[[bytes], str], how: str) -> None:
    data = clip[0].path.read_bytes()
    third = len(data) // 3
    damaged = data[: len(data) // 2] if how == "half" else data[:48] + bytes(third) + data[48 + third :]
    assert "video_url" in failed(worker, {**spec_row(), "video_url": serve(damaged)}, "input.corrupt")


TARGETS: dict[str, tuple[Json, str]] = {
    "a node that is not there": ({"video_node_id": "99"}, "99"),
    "a field that the node lacks": ({"video_input_field": "film"}, "film"),
    "a node that is an object": ({"video_node_id": {}}, "video_node_id"),
    "a field that is a list": ({"video_input_field": ["video"]}, "video_input_field"),
}


@pytest.mark.parametrize("which", TARGETS)
def test_a_place_for_the_video_that_is_not_there_is_named(worker: Worker, clip: Clip, which: str) -> None:
    changes, word = TARGETS[which]
    assert word in failed(worker, {**spec_row(), "video_url": clip[1], **changes}, "input.bad_params")


# --- the run -------------------------------------------------------------------------------------------------------


def test_a_node_that_fails_is_named_with_its_error(worker: Worker) -> None:
    graph = fault("TestRaise", message="the sigmas are negative", kind="ValueError")
    sentence = failed(worker, {"workflow": graph}, "comfy.node_failed")
    assert "node 1 (TestRaise)" in sentence and "the sigmas are negative" in sentence


@pytest.mark.parametrize("how", ["absent", "truncated", "empty"])
def test_success_reported_for_a_broken_file_is_a_failure(worker: Worker, how: str) -> None:
    graph = fault("FaultLieAboutSuccess", how=how, filename="lie.mp4")
    sentence = failed(worker, {"workflow": graph}, "comfy.bad_output")
    assert "lie.mp4" in sentence


def test_a_result_that_cannot_be_sent_is_a_failure(worker: Worker) -> None:
    assert "JSON" in failed(worker, {"workflow": fault("FaultUiNotJson")}, "comfy.node_failed")


# --- the type, and what is left ------------------------------------------------------------------------------------


def test_an_unknown_type_stays_queued_and_the_status_says_so(worker: Worker) -> None:
    task = worker.insert("paint_the_fence", {})
    assert worker.ended(worker.insert("comfy", {"workflow": picture()}))["status"] == "Complete"
    assert worker.row(task)["status"] == "Queued"
    shown = worker.ctl("status").stdout
    assert re.search(r"paint_the_fence.*", shown), shown
    assert worker.ctl("cancel", task).returncode == 0


def test_nothing_of_bad_rows_stays_behind(worker: Worker) -> None:
    """No part of a download, no copy of an input, no half-made output."""

    def left() -> list[str]:
        folders = [worker.data_dir / "work"]
        folders += [worker.data_dir / "handlers" / "comfy" / "engine" / name / "wan2gp" for name in ("input", "output")]
        return [str(path) for folder in folders for path in folder.rglob("*") if path.is_file()]

    worker.ended(worker.insert("comfy", {"workflow": picture()}))
    eventually("nothing waits to be settled", lambda: worker.status()["worker"]["spool_depth"] == 0)
    eventually(f"its files are gone: {left()}", lambda: not left())


def test_one_server_served_them_all_that_did_not_break_it(worker: Worker) -> None:
    """Wrong rows do not wear ComfyUI or the handler out."""
    worker.ended(worker.insert("comfy", {"workflow": picture()}))
    assert worker.handler("comfy")["incarnation"] == 1
