"""The built-in engine against recorded traffic of a real ComfyUI 0.3.64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite("tests.capture_replay")

from tests.builtin_prompts import FPS, FRAMES, SIZE, Probe, made, saved_image, vhs  # noqa: E402
from tests.capture_replay import replay  # noqa: E402

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer


CAPTURES = Path(__file__).parent / "captures"
WHOLE_EXCHANGES = (  # one recorded file each
    "01 02 02b 03 04 05 06 08 10 11 12 13 17 18 21 22 23 24 25 30 31 32 33 34 35 36 37 38 39 40 "
    "50 50b 51 52 53 54 55 58 59 61 62 63 65 94 99"
).split()


def recorded(number: str) -> Any:
    (path,) = CAPTURES.glob(f"{number}_*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("number", WHOLE_EXCHANGES)
def test_answers_and_tells_what_the_real_one_did(server: BuiltinServer, number: str) -> None:
    replay(server, recorded(number))


def test_row_of_the_specification_is_refused_as_written_and_runs_with_two_more_inputs(
    server: BuiltinServer,
) -> None:
    row = json.loads(json.dumps(recorded("01")["steps"][0]["send"]["json"]["prompt"]))
    assert server.post(row).status_code == 400
    row["2"]["inputs"] |= {"loop_count": 0, "filename_prefix": "job/out"}
    result = Probe(made(server, row))
    assert (result.codec, result.size, result.rate, len(result.greys)) == ("h264", SIZE, FPS, FRAMES)
    assert result.audio == []


def test_system_stats_has_the_same_keys_and_types(server: BuiltinServer) -> None:
    def types(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: types(item) for key, item in value.items()}
        return [types(item) for item in value[:1]] if isinstance(value, list) else type(value).__name__

    assert types(server.get("/system_stats")) == types(server.get("/api/system_stats")) == recorded("70")
    assert server.call("HEAD", "/system_stats").status_code == 200


def test_node_descriptions_are_those_of_the_real_one(server: BuiltinServer) -> None:
    (server.input / "corrupt_random.mp4").unlink()
    for name, expected in recorded("71").items():
        described = server.get(f"/object_info/{name}")[name]
        del described["description"]
        assert described == expected
        assert name in server.get("/object_info")
    assert server.get("/object_info/NoSuchNode") == {}


def test_newer_nodes_are_described_with_what_their_kind_adds(server: BuiltinServer) -> None:
    described = server.get("/object_info/SaveVideo")["SaveVideo"]
    added = {name: described[name] for name in ("output_tooltips", "deprecated", "experimental", "api_node")}
    assert added == {"output_tooltips": [], "deprecated": False, "experimental": False, "api_node": False}
    assert described["input"]["hidden"] == {"prompt": ["PROMPT"], "extra_pnginfo": ["EXTRA_PNGINFO"]}
    assert described["input"]["required"]["codec"][1]["options"] == ["auto", "h264"]


def test_input_types_that_raise_are_a_500_and_left_out_of_the_list(server: BuiltinServer) -> None:
    assert server.call("GET", "/object_info/FaultBadInputTypes").status_code == 500
    assert "FaultBadInputTypes" not in server.get("/object_info")
    answer = server.post({"1": {"class_type": "FaultBadInputTypes", "inputs": {}}})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == "Exception when validating node: INPUT_TYPES boom"


def test_history_endpoints(server: BuiltinServer) -> None:
    """69: max_items counts from the end, an offset from the start; unknown ids are no error."""
    ids = [f"h{index}" for index in range(4)]
    for index, prompt_id in enumerate(ids):
        server.run(saved_image(index), prompt_id=prompt_id)
    assert list(server.get("/history")) == ids
    assert list(server.get("/history?max_items=2")) == ids[2:]
    assert list(server.get("/history?max_items=1&offset=0")) == ids[:1]
    assert server.get("/history?max_items=0") == server.get("/history?max_items=-1") == {}
    assert server.call("GET", "/history?max_items=abc").status_code == 500
    assert server.get("/history/nope") == {}
    assert server.call("POST", "/history", json={"delete": ["h0", "nope"]}).text == ""
    assert list(server.get("/history")) == ids[1:]
    assert server.call("POST", "/history", json={"clear": True}).status_code == 200
    assert server.get("/history") == {}


def test_view_answers_as_the_real_one(server: BuiltinServer) -> None:
    made(server, vhs(audio=["1", 2], filename_prefix="view/vid"))
    server.run(saved_image(prefix="view/img"))
    (server.output / "x.html").write_text("<script>alert(1)</script>")
    (server.output / "x.svg").write_text("<svg/>")
    (server.output / "\u00fcn\u00ef c\u00f6d\u00e9.txt").write_text("x")
    etag = server.call("HEAD", "/view?filename=vid_00001-audio.mp4&subfolder=view").headers["ETag"]
    for row in recorded("74_75"):
        headers = {name: value.replace("<etag>", etag) for name, value in row["headers"].items()}
        answer = server.call(row["method"], row["path"], headers=headers)
        assert answer.status_code == row["status"], row
        if row["status"] < 300:
            shown = {name: answer.headers.get(name) for name in row["shown"]}
            assert shown == row["shown"] or "\u00fc" in str(row["shown"]), row
        if "bytes" in row:
            assert len(answer.content) == row["bytes"]


def test_upload_answers_as_the_real_one(server: BuiltinServer) -> None:
    for index, row in enumerate(recorded("76")):
        request = row["request"]
        given: dict[str, Any] = {"json": request["json"]} if "json" in request else {}
        if "raw_body" in request:
            given["data"] = request["raw_body"]
        if "multipart" in request:
            given["files"] = [multipart_field(part, index) for part in request["multipart"]]
        answer = server.call(request["method"], request["path"], **given)
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        assert [answer.status_code, answer.json() if is_json else answer.text] == [
            row["status"],
            row["body"],
        ], row
    assert (server.input / "job7" / "a" / "u.txt").exists()
    assert (server.output / "upl" / "u.txt").exists()


def multipart_field(part: dict[str, Any], index: int) -> tuple[str, tuple[Any, ...]]:
    """The recording's client wrote names percent-encoded. Its first two files were the same."""
    from urllib.parse import quote

    if "value" in part:
        return part["name"], (None, part["value"])
    letter = bytes([ord("a") + max(index - 1, 0)])
    return part["name"], (quote(part["filename"], safe="()"), letter * part["bytes"], part["content_type"])


def test_upload_names_cannot_leave_the_folder(server: BuiltinServer) -> None:
    """97: names as a raw client sends them."""
    for row in recorded("97"):
        body = row["request"]["raw_body"]["text"].encode()
        answer = server.call("POST", "/upload/image", data=body, headers=row["request"]["headers"])
        assert answer.status_code == row["status"], row
        if row["status"] == 200:
            assert answer.json() == row["body"]
