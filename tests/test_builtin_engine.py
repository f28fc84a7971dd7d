"""The built-in engine against recorded traffic of a real ComfyUI 0.3.64, and by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite("tests.capture_replay")

from tests.capture_replay import replay  # noqa: E402

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer

pytest_plugins = ["tests.conftest_comfy"]

CAPTURES = Path(__file__).parent / "captures"
FRAMES = 60
FPS = 30
SIZE = (320, 240)
TONE_HZ = 44_100
DIGIT, STEP = 8, 32
"""A frame shows its number in two digits: the left half and the right half, in steps of grey."""
WHOLE_EXCHANGES = (  # one recorded file each
    "01 02 02b 03 04 05 06 08 10 11 12 13 17 18 21 22 23 24 25 30 31 32 33 34 35 36 37 38 39 40 "
    "50 50b 51 52 53 54 55 58 59 61 62 63 65 94 99"
).split()


def recorded(number: str) -> Any:
    (path,) = CAPTURES.glob(f"{number}_*.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files the recordings speak of: two seconds, each frame marked with its number."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "input.mp4", sound=True)
    make_video(folder / "input_noaudio.mp4", sound=False)
    return folder


def make_video(path: Path, *, sound: bool) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height = SIZE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=TONE_HZ, layout="mono") if sound else None
        for index in range(FRAMES):
            picture = np.full((SIZE[1], SIZE[0], 3), STEP * (index % DIGIT), np.uint8)
            picture[:, : SIZE[0] // 2] = STEP * (index // DIGIT)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            samples = 0.4 * np.sin(np.arange(FRAMES * TONE_HZ // FPS) / 20)
            frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = TONE_HZ, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


class Probe:
    """What a file decodes to: two pixels of each frame, and the sound's length."""

    def __init__(self, path: Path) -> None:
        import av

        self.greys: list[tuple[int, int]] = []
        self.sound_s = 0.0
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            self.codec, self.rate = stream.codec_context.name, stream.average_rate
            self.size = (stream.width, stream.height)
            self.metadata = dict(container.metadata)
            self.audio = [audio.codec_context.name for audio in container.streams.audio]
            for frame in container.decode(video=0):
                picture = frame.to_ndarray(format="rgb24")
                line = picture[picture.shape[0] // 2, :, 0]
                self.greys.append((int(line[len(line) // 4]), int(line[3 * len(line) // 4])))
        if self.audio:
            with av.open(str(path)) as container:
                self.sound_s = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))

    def indices(self) -> list[int]:
        """Which frames of the input these are."""
        return [DIGIT * round(left / STEP) + round(right / STEP) for left, right in self.greys]


@pytest.fixture
def server(shared_builtin_server: BuiltinServer, videos: Path) -> Iterator[BuiltinServer]:
    """The shared engine with empty folders and the input files in place."""
    for folder in (shared_builtin_server.input, shared_builtin_server.output):
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for path in videos.iterdir():
        shutil.copy(path, shared_builtin_server.input)
    (shared_builtin_server.input / "corrupt_random.mp4").write_bytes(bytes(range(256)) * 80)
    shared_builtin_server.run(fault("FaultNoOutput"))  # the cache keeps the last prompt only
    shared_builtin_server.call("POST", "/history", json={"clear": True})
    yield shared_builtin_server


def saved_image(color: int = 0, prefix: str = "x", **size: int) -> dict[str, Any]:
    values = {"width": 64, "height": 64, "batch_size": 1, "color": color, **size}
    return {
        "1": {"class_type": "EmptyImage", "inputs": values},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def vhs(load: dict[str, Any] | None = None, **combine: Any) -> dict[str, Any]:
    """The row of the specification with what it lacks; `combine` None takes an input away."""
    loading = {"video": "input.mp4", "force_rate": 0, "custom_width": 0, "custom_height": 0}
    loading |= {"frame_load_cap": 0, "skip_first_frames": 0, "select_every_nth": 1, **(load or {})}
    values = {"images": ["1", 0], "frame_rate": 30, "format": "video/h264-mp4", "save_output": True}
    values |= {"pingpong": False, "loop_count": 0, "filename_prefix": "job/out", **combine}
    return {
        "1": {"inputs": loading, "class_type": "VHS_LoadVideo"},
        "2": {"inputs": values, "class_type": "VHS_VideoCombine"},
    }


def fault(class_type: str, **values: Any) -> dict[str, Any]:
    return {"1": {"class_type": class_type, "inputs": {"nonce": time.monotonic_ns() % (1 << 53), **values}}}


def made(server: BuiltinServer, prompt: dict[str, Any], **body: Any) -> Path:
    """Runs a VHS prompt; the file it names."""
    entry = server.run(prompt, **body)
    assert entry["status"]["status_str"] == "success", entry["status"]
    return Path(entry["outputs"]["2"]["gifs"][0]["fullpath"])


# ---- against the recordings


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


# ---- what the videos hold


@pytest.mark.parametrize(
    ("load", "combine", "expected"),
    [
        ({"frame_load_cap": 10}, {}, list(range(10))),
        ({"skip_first_frames": 50}, {}, list(range(50, 60))),
        ({"select_every_nth": 7}, {}, list(range(0, 60, 7))),
        ({"skip_first_frames": 5, "select_every_nth": 10, "frame_load_cap": 3}, {}, [5, 15, 25]),
        ({"force_rate": 10, "frame_load_cap": 5}, {}, [0, 3, 6, 9, 12]),
        ({"force_rate": 60, "frame_load_cap": 6}, {}, [0, 1, 1, 2, 2, 3]),
        ({"frame_load_cap": 4}, {"pingpong": True}, [0, 1, 2, 3, 2, 1]),
        ({"frame_load_cap": 3}, {"loop_count": 2}, [0, 1, 2] * 3),
    ],
)
def test_frames_taken(
    server: BuiltinServer, load: dict[str, Any], combine: dict[str, Any], expected: list[int]
) -> None:
    assert Probe(made(server, vhs(load, **combine))).indices() == expected


def test_sound_is_as_long_as_the_video_and_the_silent_file_stays_beside_it(server: BuiltinServer) -> None:
    path = made(server, vhs({"frame_load_cap": 15}, audio=["1", 2]))
    result = Probe(path)
    assert (result.audio, len(result.greys)) == (["aac"], 15)
    assert 0.45 < result.sound_s < 0.6
    assert sorted(os.listdir(path.parent)) == ["out_00001-audio.mp4", "out_00001.mp4", "out_00001.png"]
    prompt = json.loads(result.metadata["prompt"])
    assert prompt["1"]["inputs"]["video"] == "input.mp4"
    assert len(prompt["1"]["is_changed"][0]) == 64


def test_no_sound_in_the_input_is_no_sound_in_the_output(server: BuiltinServer) -> None:
    path = made(server, vhs({"video": "input_noaudio.mp4"}, audio=["1", 2]))
    assert (path.name, Probe(path).audio) == ("out_00001.mp4", [])


def test_client_can_ask_for_the_one_file_only(server: BuiltinServer) -> None:
    """94: both settings travel in the workflow of the front end."""
    settings = {"VHS_KeepIntermediate": False, "VHS_MetadataImage": False}
    extra = {"extra_pnginfo": {"workflow": {"extra": settings}}}
    path = made(server, vhs(audio=["1", 2]), extra_data=extra)
    assert os.listdir(path.parent) == ["out_00001-audio.mp4"]


@pytest.mark.parametrize(("custom", "size"), [((160, 0), (160, 120)), ((0, 120), (160, 120)), ((100, 100), (100, 100))])
def test_custom_size(server: BuiltinServer, custom: tuple[int, int], size: tuple[int, int]) -> None:
    load = {"custom_width": custom[0], "custom_height": custom[1], "frame_load_cap": 2}
    assert Probe(made(server, vhs(load))).size == size


@pytest.mark.parametrize(
    ("name", "suffix", "codec"),
    [("image/gif", "gif", "gif"), ("video/webm", "webm", "vp9"), ("video/h265-mp4", "mp4", "hevc")],
)
def test_other_formats(server: BuiltinServer, name: str, suffix: str, codec: str) -> None:
    path = made(server, vhs({"frame_load_cap": 5}, format=name))
    result = Probe(path)
    assert (path.name, result.codec, len(result.greys)) == (f"out_00001.{suffix}", codec, 5)


@pytest.mark.parametrize("video", ["../secret.mp4", "/etc/hostname", "job/../../secret.mp4"])
def test_a_name_outside_the_input_folder_is_refused(server: BuiltinServer, video: str) -> None:
    """The real one reads it."""
    (server.path / "secret.mp4").write_bytes(b"x")
    name = str(server.path / "secret.mp4") if video.startswith("/") else video
    answer = server.post(vhs({"video": name}))
    assert answer.status_code == 400
    assert answer.json()["node_errors"]["1"]["errors"][0]["type"] == "custom_validation_failed"


def test_images_are_scaled_inverted_batched_and_become_a_video(server: BuiltinServer) -> None:
    (server.input / "red.png").write_bytes(b"")
    red = saved_image(0xFF0000, prefix="red", width=40, height=20)
    server.run(red)
    shutil.copy(server.output / "red_00001_.png", server.input / "red.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "red.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["3", 0],
                "upscale_method": "lanczos",
                "width": 64,
                "height": 64,
                "crop": "center",
            },
        },
        "5": {"class_type": "CreateVideo", "inputs": {"images": ["4", 0], "fps": 4}},
        "6": {"class_type": "GetVideoComponents", "inputs": {"video": ["5", 0]}},
        "7": {"class_type": "CreateVideo", "inputs": {"images": ["6", 0], "fps": ["6", 2]}},
        "8": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["7", 0], "filename_prefix": "v", "format": "auto", "codec": "auto"},
        },
    }
    entry = server.run(prompt)
    assert entry["outputs"]["8"]["animated"] == [True], entry
    result = Probe(server.output / entry["outputs"]["8"]["images"][0]["filename"])
    assert (result.size, result.rate) == ((64, 64), Fraction(4))
    assert [left > 128 for left, _ in result.greys] == [True, False]


def test_prefix_that_leaves_the_output_folder_fails_the_prompt(server: BuiltinServer) -> None:
    event, data = server.run(saved_image(prefix="../../escape"))["status"]["messages"][-1]
    assert event == "execution_error"
    assert "Saving image outside the output folder is not allowed." in data["exception_message"]


# ---- the cache, the queue, the process


def test_new_bytes_under_the_old_name_run_again(server: BuiltinServer) -> None:
    first = made(server, vhs({"frame_load_cap": 2}))
    assert made(server, vhs({"frame_load_cap": 2})) == first
    shutil.copy(server.input / "input_noaudio.mp4", server.input / "input.mp4")
    assert made(server, vhs({"frame_load_cap": 2})).name == "out_00002.mp4"


@pytest.mark.parametrize(
    ("flags", "names"),
    [((), ["a1", "a1", "b1", "a2"]), (("--cache-none",), ["a1", "a2", "b1", "a3"]),
     (("--cache-lru", "10"), ["a1", "a1", "b1", "a1"])],
)  # fmt: skip
def test_cache_flags(start_builtin: Callable[..., BuiltinServer], flags: tuple[str, ...], names: list[str]) -> None:
    """91: A, A again, B, A again."""
    server = start_builtin(*flags)
    prompts = [saved_image(1, "a"), saved_image(1, "a"), saved_image(2, "b"), saved_image(1, "a")]
    entries = [server.run(prompt)["outputs"]["2"]["images"][0]["filename"] for prompt in prompts]
    assert entries == [f"{name[0]}_0000{name[1]}_.png" for name in names]


def test_smallest_number_runs_first(server: BuiltinServer) -> None:
    """40: front is a negative counter, and any number may be sent."""
    server.post(fault("TestSleep", seconds=0.5, steps=1), prompt_id="s")
    server.until_running("s")
    for prompt_id, body in {"a": {}, "b": {"front": True}, "c": {"number": -1000.5}}.items():
        assert server.post(saved_image(len(prompt_id)), prompt_id=prompt_id, **body).status_code == 200
    assert server.get("/prompt") == {"exec_info": {"queue_remaining": 4}}
    server.finished("a")
    assert list(server.get("/history")) == ["s", "c", "b", "a"]


def test_same_number_and_id_is_a_500_and_runs_all_the_same(server: BuiltinServer) -> None:
    """39"""
    server.post(fault("TestSleep", seconds=0.5, steps=1), prompt_id="slow")
    server.until_running("slow")
    answers = [server.post(saved_image(n), prompt_id="dup", number=99).status_code for n in (1, 2)]
    assert answers == [200, 500]
    assert len(server.get("/queue")["queue_pending"]) == 2
    server.finished("dup")


def test_interrupted_encoding_leaves_a_short_playable_file(server: BuiltinServer) -> None:
    """57"""
    with server.listen("c") as listener:
        server.post(vhs(loop_count=100, filename_prefix="cut"), client_id="c", prompt_id="cut")
        listener.until("progress", node="2", value=20)
        server.call("POST", "/interrupt", json={"prompt_id": "cut"})
        assert listener.until("executing", node=None)[-3]["type"] == "execution_interrupted"
    assert server.get("/history/cut")["cut"]["outputs"] == {}
    assert 0 < len(Probe(server.output / "cut_00001.mp4").greys) < FRAMES * 101


def test_node_that_does_not_look_cannot_be_interrupted(server: BuiltinServer) -> None:
    """54: as the last node it ends as a success."""
    with server.listen("c") as listener:
        server.post(fault("TestSleep", seconds=0.3, steps=0), client_id="c", prompt_id="deaf")
        listener.until("executing", node="1")
        server.call("POST", "/interrupt", json={})
    assert server.finished("deaf")["status"]["status_str"] == "success"


def test_server_answers_while_a_node_runs(server: BuiltinServer) -> None:
    with server.listen("c") as listener:
        server.post(fault("TestSleep", seconds=0.5, steps=0), client_id="c", prompt_id="busy")
        listener.until("executing", node="1")
        started = time.perf_counter()
        for _ in range(5):
            server.get("/prompt")
        assert time.perf_counter() - started < 0.4
        assert server.get("/history/busy") == {}
        listener.until("executing", node=None)


def test_without_client_id_only_progress_is_told_to_everyone(server: BuiltinServer) -> None:
    """21"""
    with server.listen("bystander") as listener:
        listener.read()
        server.run(fault("TestSleep", seconds=0.01, steps=2))
        seen = [listener.read()["type"] for _ in range(9)]
    running = ["progress_state", "progress_state", "progress", "progress_state", "progress", "progress_state"]
    assert seen == ["status", "status", *running, "status"]


def test_another_client_sees_only_status(server: BuiltinServer) -> None:
    """22"""
    with server.listen("me") as mine, server.listen("other") as other:
        mine.read(), other.read()
        server.post(saved_image(5), client_id="me")
        mine.until("executing", node=None)
        assert [other.read()["type"] for _ in range(3)] == ["status"] * 3


def test_websocket_without_id_is_given_one_and_features_are_answered(server: BuiltinServer) -> None:
    """64 and 18, and the same under /api (99)"""
    with server.listen(path="/api/ws") as listener:
        sid = listener.read()["data"]["sid"]
        assert len(sid) == 32
        flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        listener.socket.send(json.dumps(flags))
        assert listener.read() == {"type": "feature_flags", "data": server.get("/features")}
        server.post(saved_image(6), client_id=sid)
        listener.until("executing", node=None)


def test_reconnected_client_is_told_the_running_node(server: BuiltinServer) -> None:
    """61"""
    with server.listen("again") as listener:
        server.post(fault("TestSleep", seconds=0.8, steps=2), client_id="again")
        listener.until("executing", node="1")
    time.sleep(0.1)  # the server must have seen the first one go
    with server.listen("again") as listener:
        assert listener.read()["data"]["sid"] == "again"
        assert listener.read() == {"type": "executing", "data": {"node": "1"}}
        listener.until("execution_success")


def test_out_of_memory_is_named_as_torch_names_it(server: BuiltinServer) -> None:
    """51"""
    entry = server.run(fault("TestRaise", message="boom", kind="OutOfMemoryError"))
    error = entry["status"]["messages"][-1][1]
    assert error["exception_type"] == "torch.OutOfMemoryError"
    assert error["exception_message"].startswith("boom\nThis error means you ran out of memory on your GPU.")


def test_outputs_that_finished_before_an_error_are_kept(server: BuiltinServer) -> None:
    """50b"""
    raising = {"message": "late", "kind": "ValueError", "nonce": 1, "after": ["1", 0]}
    prompt = fault("TestSleep", seconds=0, steps=1) | {"2": {"class_type": "TestRaise", "inputs": raising}}
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "error"
    assert entry["outputs"] == {"1": {"text": ["slept 0.0"]}}


@pytest.mark.parametrize(("how", "size"), [("absent", None), ("truncated", 104), ("empty", 0)])
def test_success_is_no_proof_of_a_file(server: BuiltinServer, how: str, size: int | None) -> None:
    entry = server.run(fault("FaultLieAboutSuccess", how=how, filename=f"{how}.mp4"))
    assert entry["status"]["status_str"] == "success"
    path = Path(entry["outputs"]["1"]["gifs"][0]["fullpath"])
    assert (path.stat().st_size if path.exists() else None) == size


def test_success_without_output(server: BuiltinServer) -> None:
    entry = server.run(fault("FaultNoOutput"))
    assert (entry["status"]["status_str"], entry["outputs"], entry["meta"]) == ("success", {}, {})


def test_free_drops_the_cache(start_builtin: Callable[..., BuiltinServer]) -> None:
    """68: by the worker, after the prompt that runs. The larger cache outlives the prompt between."""
    server = start_builtin("--cache-lru", "10")
    first = server.run(saved_image(1, "a"))["outputs"]
    assert server.run(saved_image(1, "a"))["outputs"] == first
    server.post(fault("TestSleep", seconds=0.3, steps=1), prompt_id="busy")
    server.until_running("busy")
    assert server.call("POST", "/free", json={"free_memory": True}).text == ""
    server.post(saved_image(1, "a"), prompt_id="again")
    assert server.finished("again")["outputs"] != first


def test_memory_that_a_node_takes_is_reported(server: BuiltinServer) -> None:
    entry = server.run(fault("FaultHogMemory", mib=8, hold=True))
    assert entry["outputs"]["1"]["text"] == ["allocated 8 MiB hold=True"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [("segv", -signal.SIGSEGV), ("abort", -signal.SIGABRT), ("exit3", 3), ("sigkill", -signal.SIGKILL)],
)
def test_crash_of_a_node_ends_the_process(builtin_server: BuiltinServer, kind: str, code: int) -> None:
    """83"""
    builtin_server.post(fault("FaultCrash", kind=kind))
    assert builtin_server.wait_exit() == code


def test_sys_exit_of_a_node_leaves_a_server_that_runs_nothing(builtin_server: BuiltinServer) -> None:
    """80"""
    builtin_server.post(fault("FaultSysExit", code=1), prompt_id="dead")
    builtin_server.post(saved_image(), prompt_id="never")
    builtin_server.until_running("dead")
    queue = builtin_server.get("/queue")
    assert [[item[1] for item in queue[key]] for key in ("queue_running", "queue_pending")] == [
        ["dead"],
        ["never"],
    ]
    assert builtin_server.call("GET", "/system_stats").status_code == 200


def test_frozen_process_neither_answers_nor_exits(builtin_server: BuiltinServer) -> None:
    builtin_server.post(fault("FaultFreezeServer"), prompt_id="ice")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if Path(f"/proc/{builtin_server.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            break
        time.sleep(0.01)
    os.kill(builtin_server.process.pid, signal.SIGCONT)
    assert builtin_server.finished("ice")["status"]["status_str"] == "success"


def test_ui_that_is_no_json_ends_the_server_when_a_client_listens(builtin_server: BuiltinServer) -> None:
    """82 and 82b"""
    builtin_server.post(fault("FaultUiNotJson"), prompt_id="bad")
    builtin_server.run(saved_image(), prompt_id="good")
    assert builtin_server.call("GET", "/history").status_code == 500
    builtin_server.call("POST", "/history", json={"delete": ["bad"]})
    assert list(builtin_server.get("/history")) == ["good"]
    with builtin_server.listen("c"):
        builtin_server.post(fault("FaultUiNotJson"), client_id="c")
        assert builtin_server.wait_exit() == 1


def test_sigterm_kills_and_sigint_cleans_up(start_builtin: Callable[..., BuiltinServer]) -> None:
    """87"""
    killed, asked = start_builtin(), start_builtin()
    for server in (killed, asked):
        (server.temp / "left.txt").write_text("x")
    killed.process.send_signal(signal.SIGTERM)
    asked.post(fault("TestSleep", seconds=30, steps=300))
    asked.process.send_signal(signal.SIGINT)
    assert (killed.wait_exit(), asked.wait_exit()) == (-signal.SIGTERM, 0)
    assert "Stopped server" in asked.log
    assert (killed.temp.exists(), asked.temp.exists()) == (True, False)


def test_temp_is_emptied_at_the_start_and_a_taken_port_is_exit_1(
    start_builtin: Callable[..., BuiltinServer],
) -> None:
    """85 and 90"""
    first = start_builtin()
    (first.temp / "left.txt").write_text("x")
    log = first.log
    second = start_builtin(path=first.path, port=first.port, wait=False)
    assert second.wait_exit() == 1
    assert not (first.temp / "left.txt").exists()
    assert "Starting server" in log
    assert f"To see the GUI go to: http://127.0.0.1:{first.port}" in log
    assert f"error while attempting to bind on address ('127.0.0.1', {first.port})" in second.log
    assert first.get("/prompt") == {"exec_info": {"queue_remaining": 0}}


@pytest.mark.parametrize("flags", [("--nope",), ("--port", "abc"), ("--user-directory", "/nope")])
def test_bad_flag_is_exit_2(start_builtin: Callable[..., BuiltinServer], flags: tuple[str, ...]) -> None:
    """88"""
    assert start_builtin(*flags, wait=False).wait_exit() == 2


def test_flags_of_a_supervisor_are_accepted(start_builtin: Callable[..., BuiltinServer]) -> None:
    flags = "--cpu --verbose ERROR --dont-print-server --disable-metadata --disable-api-nodes --reserve-vram 1"
    flags += " --disable-all-custom-nodes --whitelist-custom-nodes a b --preview-method none --max-upload-size 1"
    server = start_builtin(*flags.split(), "--database-url", "sqlite:////x.db", "--enable-cors-header")
    assert server.log == ""
    assert server.get("/features")["max_upload_size"] == 1 << 20
    too_big = server.call("POST", "/prompt", data=b"x" * (2 << 20))
    assert too_big.status_code == 413


def test_foreign_origin_is_refused(server: BuiltinServer) -> None:
    """96"""
    for origin, status in [("http://evil.example", 403), (server.url, 200), ("http://localhost:1", 403)]:
        assert server.call("GET", "/prompt", headers={"Origin": origin}).status_code == status
    given = {"Origin": "http://evil.example", "Host": "comfy.invalid"}
    assert server.call("GET", "/prompt", headers=given).status_code == 200


def test_start_and_a_small_graph_are_quick(builtin_server: BuiltinServer) -> None:
    builtin_server.run(saved_image(0))
    times = []
    for color in range(1, 6):
        started = time.perf_counter()
        builtin_server.run(saved_image(color))
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05
