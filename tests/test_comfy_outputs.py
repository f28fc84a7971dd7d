"""What a prompt made, read from recorded history entries of a real server, and from names that mean harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_jobs import Bench, fault
from tests.output_graphs import RECORDED
from wan2gp.comfy_sidecar.errors import BadOutput
from wan2gp.comfy_sidecar.outputs import NONCE_FIELD, OutputFile, locate, read_ending, rerun
from wan2gp.handlers.comfy_collect import MOST_FILES
from wan2gp.handlers.comfy_texts import NODE_CHARS, ROW_CHARS, bound

SERIES = "video_8bit-png_00002-audio.%03d.png"
Make = Callable[..., Bench]
Named = tuple[str, str, str, str]
"""Node, subfolder, name, type."""

READ: dict[str, tuple[list[Named], dict[str, list[str]]]] = {
    "02.1": ([("2", "team", "vid_00003-audio.mp4", "output")], {}),
    "02b.1": ([("2", "team", "min_00001.mp4", "output")], {}),
    "03.1": ([("2", "team", "vid_00004.mp4", "output")], {}),
    "04.1": ([("2", "team", "linkednone_00002.mp4", "output")], {}),
    "05.1": ([("2", "", "prev_00001-audio.mp4", "temp")], {}),
    "08.1": ([("2", "fmt", "image_gif_00002.gif", "output")], {}),
    "08.2": ([("2", "fmt", "image_webp_00002.webp", "output")], {}),
    "08.3": ([("2", "fmt", "video_webm_00002-audio.webm", "output")], {}),
    "08.4": ([("2", "fmt", "video_h265-mp4_00002-audio.mp4", "output")], {}),
    "08.5": ([("2", "fmt", "video_ProRes_00002-audio.mov", "output")], {}),
    "08.6": ([("2", "fmt", "video_ffv1-mkv_00002-audio.mkv", "output")], {}),
    "08.7": ([("2", "fmt", SERIES, "output")], {}),
    "08.8": ([], {}),
    "08.9": ([("2", "fmt", "video_h264-mp4_00002-audio.mp4", "output")], {}),
    "10.1": ([("2", "core", "img_00001_.png", "output")], {}),
    "11.1": ([("2", "", f"ComfyUI_temp_upfzz_0000{number}_.png", "temp") for number in (1, 2, 3)], {}),
    "12.1": ([("2", "core", "two_00001_.png", "output")], {}),
    "13.1": ([("3", "video", "cap_00001_.mp4", "output")], {}),
    "13.2": ([("3", "video", "copy_00001_.mp4", "output")], {}),
    "14.1": (
        [
            ("2", "anim", "webp_00001_.webp", "output"),
            ("3", "anim", "apng_00001_.png", "output"),
            ("4", "anim", "webm_00001_.webm", "output"),
        ],
        {},
    ),
    "15.1": (
        [
            ("2", "audio", "flac_00001_.flac", "output"),
            ("3", "audio", "mp3_00001_.mp3", "output"),
            ("4", "audio", "opus_00001_.opus", "output"),
        ],
        {},
    ),
    "16.1": ([], {"2": ["hello ünïcode"]}),
    "16.2": ([("2", "latents", "cap_00001_.latent", "output")], {}),
    "17.1": ([], {"1": ["slept 0.6"]}),
    "19.1": ([], {}),
    "20.1": ([], {"1": ["async slept 0.5"], "2": ["async slept 0.5"]}),
    "23.1": ([("2", "core", "cached_00001_.png", "output")], {}),
    "23.2": ([("2", "core", "cached_00001_.png", "output")], {}),
    "23.3": ([("2", "core", "other_00001_.png", "output")], {}),
    "23.4": ([("2", "core", "cached_00002_.png", "output")], {}),
    "23.5": ([("2", "core", "cached_00002_.png", "output")], {}),
    "24.1": ([("2", "core", "vhsc_00001-audio.mp4", "output")], {}),
    "24.2": ([("2", "core", "vhsc_00001-audio.mp4", "output")], {}),
    "24.3": ([("2", "core", "vhsc_00002.mp4", "output")], {}),
    "25.1": ([("9", "", "ComfyUI_temp_iizcz_00001_.png", "temp")], {}),
    "26.1": ([("1.0.0.2", "core", "exp_00001_.png", "output")], {}),
    "27.1": ([], {"3": ["other output"]}),
    "27.2": ([], {"3": ["other output"]}),
    "29.1": ([], {}),
    "29.2": ([], {}),
    "50b.1": ([], {"1": ["slept 0.2"], "2": ["805918715035698"]}),
    "50b.2": ([("2", "core", "fin_00001-audio.mp4", "output")], {}),
    "74.1": ([("2", "view", "vid_00001-audio.mp4", "output")], {}),
}
CACHED = {"04.1": {"1"}, "23.2": {"1", "2"}, "23.5": {"1", "2"}, "24.2": {"1", "2"}, "27.2": {"3"}, "29.2": {"1"}}


def test_the_table_has_every_recorded_entry_and_every_key_that_they_show() -> None:
    assert READ.keys() == RECORDED.keys()
    entries = [row["entry"] for row in RECORDED.values()]
    keys = {key for entry in entries for shown in entry["outputs"].values() for key in shown}
    assert keys == {"images", "gifs", "audio", "text", "latents", "animated"}


@pytest.mark.parametrize("name", READ)
def test_a_real_servers_history_is_read(name: str) -> None:
    files, texts = READ[name]
    ending = read_ending(RECORDED[name]["entry"])
    assert [(file.node_id, file.subfolder, file.filename, file.kind) for file in ending.files] == files
    assert ending.texts == texts
    assert ending.success == (name not in ("08.8", "50b.1", "50b.2"))
    formats = name.startswith("08.") and name != "08.1"
    assert ending.cached == CACHED.get(name, {"1"} if formats else set())
    assert {file.kind for file in ending.temporary} <= {"temp"}


def entry(outputs: Any, cached: tuple[str, ...] = (), meta: Any = None) -> dict[str, Any]:
    messages = [["execution_start", {}], ["execution_cached", {"nodes": list(cached)}], ["execution_success", {}]]
    return {"outputs": outputs, "status": {"status_str": "success", "messages": messages}, "meta": meta or {}}


def item(name: str, kind: str = "output") -> dict[str, str]:
    return {"filename": name, "subfolder": "", "type": kind}


@pytest.mark.parametrize("key", ["images", "gifs", "videos", "audio", "3d", "latents", "files", "anything at all", ""])
def test_a_file_counts_under_whatever_key(key: str) -> None:
    assert [file.filename for file in read_ending(entry({"1": {key: [item("a.x")]}})).files] == ["a.x"]


def test_files_come_in_the_order_of_their_nodes_whatever_the_servers_is() -> None:
    """The server's order of independent outputs is that of a set; the primary file must not change with it."""
    shown = {node: {"images": [item(f"{node}.png")]} for node in ("10", "9", "2", "1.0.0.2", "x", "1")}
    found = [file.node_id for file in read_ending(entry(shown)).files]
    assert found == [file.node_id for file in read_ending(entry(dict(reversed(shown.items())))).files]
    assert found.index("2") < found.index("9") < found.index("10")


def test_a_subgraphs_result_is_that_of_the_node_that_made_it() -> None:
    ending = read_ending(RECORDED["26.1"]["entry"])
    assert ending.in_graph("1.0.0.2") == "1" and ending.in_graph("2") == "2"
    meta = {"1.0.0.2": {"node_id": "1.0.0.2", "display_node": "1"}}
    again = read_ending(entry({"1.0.0.2": {"images": [item("x.png")]}}, ("1",), meta))
    assert again.from_cache("1.0.0.2") and again.cached_results() == {"1"}


def test_only_the_nodes_whose_files_are_gone_run_again() -> None:
    graph: dict[str, Any] = {"1": {"class_type": "A", "inputs": {}}, "2": {"class_type": "B", "inputs": {}}}
    rerun(graph, {"2", "not in the graph"}, "n")
    assert graph["1"]["inputs"] == {} and graph["2"]["inputs"] == {NONCE_FIELD: "n"}


# --- names that mean harm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subfolder", "name"),
    [
        ("", "/etc/passwd"),
        ("", "../secret.png"),
        ("../..", "etc/passwd"),
        ("a/../..", "secret.png"),
        ("", "nul\0byte.png"),
        ("", "x" * 5000),
        ("x" * 5000, "y.png"),
        ("", "half \ud800 character.png"),
        ("", "."),
        ("", ".."),
        ("", "folder"),
        ("", "pipe"),
        ("file.png", "below a file.png"),
    ],
)
def test_a_name_that_is_none_or_leads_out_is_refused(tmp_path: Path, subfolder: str, name: str) -> None:
    import os

    root = tmp_path / "output"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"x")
    (root / "file.png").write_bytes(b"x")
    os.mkfifo(root / "pipe")
    with pytest.raises((BadOutput, FileNotFoundError)):
        locate(OutputFile("1", name, subfolder, "output"), root)


def test_odd_names_that_are_names_are_found(tmp_path: Path) -> None:
    for folder, name in (("", "a b.png"), ("ünï", "cödé 漢字.png"), ("a", "..b.png"), ("", "%s 100%.png"), ("", "-rf")):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        assert locate(OutputFile("1", name, folder, "output"), tmp_path) == [path]
        inside_the_name = OutputFile("1", f"{folder}/{name}" if folder else name, "", "output")
        absolute = OutputFile("1", name, str(tmp_path / folder), "output")
        assert locate(inside_the_name, tmp_path) == locate(absolute, tmp_path) == [path]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.conftest_comfy import FAULTS, free_port

    settings = {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}"}
    one = Bench(tmp_path_factory.mktemp("outputs") / "bench", settings)
    yield one
    one.handler.close()


def say(shown: Any, nonce: int = 1) -> dict[str, Any]:
    return fault("FaultSay", shown=json.dumps(shown), nonce=nonce)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\0b", "x" * 400, "..", "no such file.png"])
def test_a_node_that_names_what_is_not_its_own_fails_its_task_only(shared: Bench, name: str) -> None:
    failure = shared.fails({"workflow": say({"images": [item(name)]})})
    assert failure.code == "comfy.bad_output"
    assert shared.succeeds({"workflow": say({"text": ["still alive"]})}).data == {"text": {"1": ["still alive"]}}


def test_node_ids_that_look_like_paths_stay_inside_the_tasks_directory(shared: Bench) -> None:
    graph: dict[str, Any] = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    }
    for number, node_id in enumerate(("../../up", "/abs", "x" * 300, "ünï")):
        inputs = {"images": ["1", 0], "filename_prefix": f"{number}/same"}
        graph[node_id] = {"class_type": "SaveImage", "inputs": inputs}
    made = shared.succeeds({"workflow": graph}).artifacts
    assert len(made) == 4 and sum(artifact.primary for artifact in made) == 1
    for artifact in made:
        place = (shared.work_dir / artifact.path).resolve()
        assert place.is_relative_to(shared.work_dir.resolve()) and place.is_file()


def test_two_nodes_that_are_the_same_in_all_name_one_file(shared: Bench) -> None:
    """ComfyUI runs one of them and answers for the other from its cache: the file was looked for twice."""
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "twin"}}
    image = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 3}}
    (artifact,) = shared.succeeds({"workflow": {"1": image, "2": save, "3": save}}).artifacts
    assert artifact.node_id == "2"


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_text_too_long_for_a_row_is_cut_there_and_whole_in_a_file(shared: Bench) -> None:
    """A node once showed 4 MiB of text: the row took minutes to list."""
    long = "ä" * (NODE_CHARS + 1)
    outcome = shared.succeeds({"workflow": say({"text": ["first", long]})})
    (artifact,) = outcome.artifacts
    assert (artifact.kind, artifact.mime, artifact.primary) == ("text", "text/plain", True)
    assert (shared.work_dir / artifact.path).read_text() == f"first\n{long}"
    assert sum(map(len, outcome.data["text"]["1"])) == NODE_CHARS
    assert any("node 1" in warning and "shortened" in warning for warning in outcome.warnings)


def test_all_texts_together_have_a_bound() -> None:
    texts = bound({str(number): ["x" * NODE_CHARS] for number in range(100)})
    assert sum(len(part) for parts in texts.kept.values() for part in parts) == ROW_CHARS
    assert len(texts.cut) == 100 - ROW_CHARS // NODE_CHARS == len(texts.warnings)


def test_texts_that_a_database_cannot_hold_are_mended(shared: Bench) -> None:
    outcome = shared.succeeds({"workflow": say({"text": ["nul \0 and half \ud800"]})})
    assert outcome.data == {"text": {"1": ["nul � and half ?"]}}
    json.dumps(outcome.data).encode()


def test_a_text_beside_a_file_is_no_file(shared: Bench) -> None:
    graph = {
        **say({"text": ["seen"]}),
        "2": {"class_type": "TestSave3D", "inputs": {"nonce": 1, "filename_prefix": "m"}},
    }
    outcome = shared.succeeds({"workflow": graph})
    assert [artifact.node_id for artifact in outcome.artifacts] == ["2"]
    assert outcome.data == {"text": {"1": ["seen"]}}


def test_an_empty_text_alone_is_nothing(shared: Bench) -> None:
    assert shared.fails({"workflow": say({"text": [""]})}).code == "comfy.no_outputs"


# --- many, and from elsewhere ----------------------------------------------------------------------------------------


def test_more_files_than_a_row_can_list_are_cut_with_a_warning(shared: Bench) -> None:
    """Thousands of frames as single pictures made an outcome that was too large to be told."""
    folder = shared.engine / "output" / "wan2gp-many"
    folder.mkdir(parents=True)
    files = [
        {"filename": f"{number}.latent", "subfolder": folder.name, "type": "output"} for number in range(MOST_FILES + 3)
    ]
    for file in files:
        (folder / file["filename"]).write_bytes(b"x")
    outcome = shared.succeeds({"workflow": say({"latents": files})})
    assert len(outcome.artifacts) == MOST_FILES
    assert any(str(MOST_FILES + 3) in warning for warning in outcome.warnings)


def test_an_external_servers_forgotten_file_is_made_anew(bench: Make, start_builtin: Any) -> None:
    """Its cache names a file that somebody has deleted from its output folder meanwhile."""
    server = start_builtin()
    one = bench(url=server.url)
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 7}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    for _ in range(3):
        (artifact,) = one.succeeds({"workflow": graph}).artifacts
        assert (one.work_dir / artifact.path).is_file()
        for path in server.temp.iterdir():
            path.unlink()


def test_an_external_servers_series_is_fetched_picture_by_picture(bench: Make, start_builtin: Any) -> None:
    """VideoHelperSuite names `x_%03d.png`, which no server can show."""
    one = bench(url=start_builtin().url)
    combine = {
        "images": ["1", 0],
        "frame_rate": 8,
        "loop_count": 0,
        "filename_prefix": "a/b",
        "format": "video/8bit-png",
    }
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 12, "color": 7}},
        "2": {"class_type": "VHS_VideoCombine", "inputs": {**combine, "pingpong": False, "save_output": True}},
    }
    made = one.succeeds({"workflow": graph}).artifacts
    assert [Path(artifact.name).name[-7:] for artifact in made] == [f"{number:03}.png" for number in range(1, 13)]


def test_the_number_in_a_series_name_has_its_width() -> None:
    names = [OutputFile("1", name, "", "output").numbered(7).filename for name in ("a_%03d.png", "a%d", "%5d_%03d.x")]
    assert names == ["a_007.png", "a7", "00007_%03d.x"]


def test_pictures_sent_to_a_browser_only_are_nothing_and_the_reason_is_said(shared: Bench) -> None:
    from wan2gp.handlers.comfy_errors import why_nothing

    graph: dict[str, Any] = {"2": {"class_type": "SaveImageWebsocket", "inputs": {}}}
    assert "node 2 (SaveImageWebsocket)" in why_nothing(graph) and "use SaveImage" in why_nothing(graph)
    assert why_nothing(fault("FaultNoOutput")) == ""
