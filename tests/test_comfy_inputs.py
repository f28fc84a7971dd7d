"""Files and values for a graph, as rows name them: found in it or refused in a sentence, before anything is started."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.comfy_jobs import Bench, make_video, picture, spec_row
from tests.test_media_bombs import png_head
from wan2gp.comfy_sources import kind_of, sources_of
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_fields import BASE64_BYTES
from wan2gp.handlers.comfy_input_files import allowed_file, decoded
from wan2gp.handlers.comfy_params import ComfySettings, input_documentation, read_params, task_documentation
from wan2gp.protocol import Source

Json = dict[str, Any]
Make = Callable[..., Bench]
URL = "https://example.com/a.png"


def graph() -> Json:
    """Two pictures, a mask, a clip and a sound are to be loaded."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "Person"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "y.png"}, "_meta": {"title": "Place"}},
        "3": {"class_type": "LoadImageMask", "inputs": {"image": "m.png", "channel": "alpha"}},
        "4": {"class_type": "VHS_LoadVideo", "inputs": {"video": "v.mp4", "force_rate": 0}},
        "5": {"class_type": "LoadAudio", "inputs": {"audio": "s.wav"}},
        "6": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20}, "_meta": {"title": "Sampler"}},
        "7": {"class_type": "MyLoader", "inputs": {"image": "z.png", "strength": 1.0}},
    }


LAPTOP = {"class_type": "VHS_LoadVideoPath", "inputs": {"video": "/somewhere/on/my/laptop.mp4"}}


def asking(*inputs: Json, **more: Any) -> Json:
    return {"workflow": graph(), "inputs": list(inputs), **more}


def places(params: Json) -> list[tuple[str, str, str]]:
    return [(each.target.node_id, each.target.field, each.kind) for each in read_params(params).inputs]


def refusal(params: Any) -> tuple[str, str]:
    with pytest.raises(TaskFailure) as caught:
        read_params(params)
    assert "\n" not in caught.value.message and len(caught.value.message) < 600
    return caught.value.code, caught.value.message


# --- finding the place ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"node_id": "1"}, ("1", "image", "image")),
        ({"node_id": 1}, ("1", "image", "image")),
        ({"title": "Place"}, ("2", "image", "image")),
        ({"title": "place"}, ("2", "image", "image")),
        ({"class_type": "LoadImageMask"}, ("3", "image", "mask")),
        ({"class_type": "LoadAudio"}, ("5", "audio", "audio")),
        ({"node_id": "7"}, ("7", "image", "image")),
        ({"node_id": "7", "field": "image", "kind": "any"}, ("7", "image", "any")),
        ({"node_id": "6", "field": "seed"}, ("6", "seed", "any")),
        ({"kind": "mask"}, ("3", "image", "mask")),
        ({"kind": "audio"}, ("5", "audio", "audio")),
        ({"node_id": "4", "field": ""}, ("4", "video", "video")),
    ],
)
def test_a_node_is_named_by_id_title_class_or_kind(entry: Json, place: tuple[str, str, str]) -> None:
    assert places(asking({"url": URL, **entry})) == [place]


def test_any_number_of_files_and_the_video_of_the_specification() -> None:
    row = asking(
        {"url": URL, "title": "Person"}, {"url": URL, "title": "Place"}, {"url": URL, "kind": "mask"},
        video_url=URL, video_node_id="4",
    )  # fmt: skip
    assert [place[0] for place in places(row)] == ["4", "1", "2", "3"]


def test_entries_without_a_node_share_out_what_is_left() -> None:
    row = {"workflow": {key: graph()[key] for key in ("1", "4", "5")}, "video_url": URL}
    row["inputs"] = [{"url": URL, "node_id": "1"}, {"url": URL}]
    assert places(row) == [("4", "video", "video"), ("1", "image", "image"), ("5", "audio", "audio")]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"node_id": "11"}, "`inputs[0].node_id` '11' is not in the workflow; there is '1'"),
        ({"title": "Persn"}, "`inputs[0].title` 'Persn' is not in the workflow; there is 'Person'"),
        ({"class_type": "LoadImages"}, "there is 'LoadImage'"),
        ({"class_type": "LoadImage"}, 'fits 2 nodes: give the node_id of one of node 1 (LoadImage "Person"), node 2'),
        ({"kind": "image"}, "names no node, and 2 load a file of kind image"),
        ({}, "names no node"),
        ({"node_id": "1", "title": "Person"}, "names its node by node_id and title"),
        ({"node_id": "1", "field": "imge"}, "has no input 'imge'; there is 'image'"),
        ({"node_id": "6"}, "set `field`"),
        ({"node_id": "1", "kind": "picture"}, "give one of video, image, mask, audio, any"),
        ({"node_id": "1", "feild": "image"}, "`inputs[0]` has no field `feild`; there is 'field'"),
        ({"node_id": "1", "path": "/x"}, "exactly one of url, path and base64: it has url and path"),
        ({"node_id": "1", "url": None}, "exactly one of url, path and base64: it has none of them"),
        ({"node_id": [1]}, "`inputs[0].node_id`: expected"),
        ({"node_id": "1", "field": 5}, "`inputs[0].field`: expected string, got int"),
        ({"node_id": "x" * 5000}, "is not in the workflow"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(entry: Json, words: str) -> None:
    code, message = refusal(asking({"url": URL, **entry}))
    assert code == "input.bad_params"
    assert words in message


@pytest.mark.parametrize("url", ["ftp://x/y", "/etc/passwd", "file:///etc/passwd", "http://", "http://[::1"])
def test_a_url_that_is_none_is_refused_and_named(url: str) -> None:
    code, message = refusal(asking({"url": url, "node_id": "1"}))
    assert code == "input.bad_url"
    assert "`inputs[0].url`" in message


@pytest.mark.parametrize("inputs", [{"url": URL}, "text", 5, [5], [None], [[]]])
def test_inputs_are_a_list_of_objects(inputs: Any) -> None:
    code, message = refusal({"workflow": graph(), "inputs": inputs})
    assert code == "input.bad_params"
    assert "`inputs" in message


def test_two_files_for_one_place_are_refused() -> None:
    words = "`inputs[1]` and `inputs[0]` are both for 'image' of node 1"
    assert words in refusal(asking({"url": URL, "node_id": "1"}, {"url": URL, "title": "Person"}))[1]
    assert "`video_url`" in refusal(asking({"url": URL, "node_id": "4"}, video_url=URL, video_node_id="4"))[1]


def test_the_name_of_a_file_that_will_come_may_be_of_any_machine() -> None:
    row = {"workflow": {"8": LAPTOP}}
    assert "leads out" in refusal(row)[1]
    assert read_params({**row, "inputs": [{"url": URL}]}).inputs[0].target.wants_path


# --- values --------------------------------------------------------------------------------------------------------


def test_values_are_set_by_id_and_by_title() -> None:
    row = spec_row()
    row["workflow"]["2"]["_meta"] = {"title": "Save"}
    row["overrides"] = {"1": {"frame_load_cap": 5}, "save": {"frame_rate": 12, "images": ["1", 0]}}
    request = read_params(row)
    assert request.graph["1"]["inputs"]["frame_load_cap"] == 5
    assert request.graph["2"]["inputs"]["frame_rate"] == 12
    assert row["workflow"]["2"]["inputs"]["frame_rate"] == 30, "a retry must find the row as it was"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"66": {"seed": 1}}, "'66', no node's id or title; there is '6'"),
        ({"Samplr": {"seed": 1}}, "there is 'Sampler'"),
        ({"6": {"sede": 1}}, "node 6 (KSampler \"Sampler\") has no input 'sede' in the workflow; there is 'seed'"),
        ({"6": {"seed": 1}, "Sampler": {"seed": 2}}, "twice"),
        ({"6": 5}, "`overrides"),
        ([], "`overrides`: expected object, got array"),
        ({"4": {"video": "a.mp4"}}, "`overrides` and `inputs[0]` both set 'video'"),
        ({"1": {"image": "/etc/passwd"}}, "leads out"),
        ({"1": {"image": "../../x.png"}}, "leads out"),
    ],
)
def test_a_value_that_has_no_place_is_refused(overrides: Any, words: str) -> None:
    row = asking({"url": URL, "node_id": "4"}, overrides=overrides)
    code, message = refusal(row)
    assert code == "input.bad_params"
    assert words in message


# --- keys ----------------------------------------------------------------------------------------------------------

PRODUCERS = {
    "orchestrator_task_id": "t",
    "orchestrator_details": {"run_id": "r"},
    "project_id": "p",
    "shot_id": "s",
    "parent_generation_id": None,
    "task_id": "x",
    "based_on": "y",
    "tool_type": "z",
    "create_as_generation": True,
    "workflow_id": "w",
    "workflow_name": "n",
    "prompt": "p",
    "seed": 1,
    "video_url_expires_at": 5,
}


def test_the_keys_of_producers_pass_unseen() -> None:
    assert read_params({"workflow": picture(), **PRODUCERS}).warnings == ()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("input", "inputs"),
        ("worklfow", "workflow"),
        ("Workflow", "workflow"),
        ("override", "overrides"),
        ("video_urls", "video_url"),
        ("videourl", "video_url"),
        ("video_nodeid", "video_node_id"),
        ("video_input_filed", "video_input_field"),
    ],
)
def test_a_misspelt_key_is_refused_since_its_author_believes_in_it(key: str, meant: str) -> None:
    code, message = refusal({"workflow": picture(), key: 1})
    assert code == "input.bad_params"
    assert f"did you mean `{meant}`" in message


def test_a_file_in_a_key_that_is_not_ours_is_said_to_be_unused() -> None:
    (warning,) = read_params({"workflow": picture(), "image_url": URL}).warnings
    assert "image_url" in warning and "`inputs`" in warning


def test_every_parameter_is_documented() -> None:
    rows = {row.name: row for row in task_documentation()}
    assert list(rows)[:4] == ["workflow", "video_url", "video_node_id", "video_input_field"]
    assert [name for name, row in rows.items() if row.required] == ["workflow"]
    for row in (*rows.values(), *input_documentation()):
        assert row.type and row.description.endswith(".") or row.name == "workflow"


# --- what is fetched -----------------------------------------------------------------------------------------------


def test_the_supervisor_and_the_handler_name_the_same_sources() -> None:
    row = asking(
        {"url": URL, "title": "Person"},
        {"url": URL, "node_id": 3},
        {"url": "data:image/png;base64,AAAA", "node_id": "2"},
        {"path": "/x", "node_id": "5"},
        {"url": URL, "class_type": "VHS_LoadVideo"},
        {"url": URL, "node_id": "7", "kind": "audio"},
    )
    assert sources_of({**row, "video_url": "https://x/v"}) == {
        "video_url": Source("https://x/v", "video"),
        "inputs[0]": Source(URL, "any"),
        "inputs[1]": Source(URL, "image"),
        "inputs[4]": Source(URL, "video"),
        "inputs[5]": Source(URL, "audio"),
    }


@pytest.mark.parametrize(
    "params",
    [
        None, 5, [], "x", {}, {"inputs": 5}, {"inputs": {"url": URL}}, {"inputs": [5, None, [], {"url": 5}]},
        {"inputs": [{"url": URL, "node_id": "1", "kind": []}], "workflow": {"1": 5}},
        {"inputs": [{"url": URL, "class_type": [1], "field": {}}]},
        {"video_url": {}, "inputs": [{"url": ""}]},
    ],
)  # fmt: skip
def test_sources_of_nonsense_are_few_and_nothing_breaks(params: Any) -> None:
    """The supervisor asks before anybody has checked the row."""
    assert set(sources_of(params)) <= {"inputs[0]"}


def test_a_kind_is_told_by_class_then_by_field() -> None:
    assert kind_of("LoadImage", None) == kind_of("LoadImage", "image") == "image"
    assert kind_of("Whatever", "audio_file") == "audio"
    assert kind_of("LoadImage", "other") == kind_of("Whatever", None) == "any"


# --- files of the row ----------------------------------------------------------------------------------------------

PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n1234").decode()


@pytest.mark.parametrize(
    "text", [PIXEL, f"data:image/png;base64,{PIXEL}", PIXEL.rstrip("="), f"{PIXEL[:8]}\n {PIXEL[8:]}"]
)
def test_base64_is_taken_as_people_write_it(text: str) -> None:
    assert decoded(text, "inputs[0]") == b"\x89PNG\r\n\x1a\n1234"


@pytest.mark.parametrize("text", ["$$$", "data:text/plain,hello", "A", "data:image/png;base64,$$$"])
def test_what_is_not_base64_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(TaskFailure) as caught:
        decoded(text, "inputs[0]")
    assert caught.value.code == "input.bad_params"
    assert "inputs[0]" in caught.value.message and text not in caught.value.message


def test_too_much_base64_is_refused_before_it_is_decoded() -> None:
    half = "A" * (BASE64_BYTES * 4 // 3 // 2 + 8)
    row = asking({"base64": half, "node_id": "1"}, {"url": f"data:image/png;base64,{half}", "node_id": "2"})
    assert refusal(row)[0] == "input.too_large"
    row["inputs"].pop()
    assert places(row) == [("1", "image", "image")]


# --- files of the machine ------------------------------------------------------------------------------------------


def path_refusal(text: str, *allowed: Path, limit: int = 10**6) -> tuple[str, str]:
    settings = ComfySettings(allow_paths=[str(path) for path in allowed], input_max_bytes=limit)
    with pytest.raises(TaskFailure) as caught:
        allowed_file(text, "inputs[0]", settings)
    return caught.value.code, caught.value.message


def test_a_worker_reads_none_of_its_own_files_unless_told(tmp_path: Path) -> None:
    code, message = path_refusal("/etc/passwd")
    assert code == "input.bad_params" and "inputs.allow_paths" in message


def test_a_path_stays_inside_what_is_allowed(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "allowed-not"
    for folder in (allowed, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(b"x")
    (allowed / "link.png").symlink_to(outside / "a.png")
    (allowed / "inside.png").symlink_to(allowed / "a.png")
    os.mkfifo(allowed / "pipe")
    settings = ComfySettings(allow_paths=[str(allowed)])
    assert allowed_file(str(allowed / "inside.png"), "x", settings) == allowed / "a.png"
    for name in ("../allowed-not/a.png", "link.png", "../nothing.png"):
        code, message = path_refusal(f"{allowed}/{name}", allowed)
        assert code == "input.bad_params" and "is outside" in message, "and whether it exists is not said"
    assert path_refusal(str(outside / "a.png"), allowed)[0] == "input.bad_params"
    assert path_refusal("a.png", allowed)[0] == "input.bad_params"
    assert path_refusal(f"{allowed}/a\0.png", allowed)[0] == "input.bad_params"
    assert path_refusal(str(allowed / "pipe"), allowed)[0] == "input.bad_params"
    assert path_refusal(str(allowed), allowed)[0] == "input.bad_params"
    assert path_refusal(str(allowed / "none.png"), allowed)[0] == "input.not_found"


def test_a_path_is_bound_by_the_limit_for_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(11))
    assert path_refusal(str(tmp_path / "a.png"), tmp_path, limit=10)[0] == "input.too_large"


# --- runs ----------------------------------------------------------------------------------------------------------


@dataclass
class Shop(Bench):
    """A bench at which every source is a file of its own."""

    files: dict[str, Path] = field(default_factory=dict)

    def _obtain(self, sources: Mapping[str, Source]) -> dict[str, Path]:
        self.fetched.append(sources)
        return {name: self.files[name] for name in sources}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.conftest_comfy import FAULTS, free_port

    path = tmp_path_factory.mktemp("shop")
    settings = {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {FAULTS}", "allow_paths": [str(path)]}
    one = Shop(path / "bench", settings)
    yield one
    one.handler.close()


def draw(path: Path, color: str, size: tuple[int, int] = (8, 6)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def save(node_id: str, prefix: str) -> Json:
    return {"class_type": "SaveImage", "inputs": {"images": [node_id, 0], "filename_prefix": prefix}}


def color_of(one: Bench, path: str) -> Any:
    with Image.open(one.work_dir / path) as image:
        return image.convert("RGB").getpixel((0, 0))


def test_four_files_from_four_places_reach_their_nodes(shop: Shop, tmp_path: Path) -> None:
    """All of them are called the same: each node must get its own."""
    (tmp_path / "a").mkdir()
    shop.files = {
        "video_url": make_video(tmp_path / "v.mp4", frames=3),
        "inputs[0]": draw(tmp_path / "a" / "same.png", "red"),
    }
    local = draw(shop.path.parent / "same.png", "lime")
    inline = base64.b64encode(draw(tmp_path / "inline.png", "blue").read_bytes()).decode()
    workflow = {key: {"class_type": "LoadImage", "inputs": {"image": ""}} for key in ("1", "2", "3")}
    workflow |= {f"1{key}": save(key, f"p{key}") for key in ("1", "2", "3")}
    workflow |= {"4": spec_row()["workflow"]["1"], "14": save("4", "p4")}
    outcome = shop.succeeds(
        {
            "workflow": workflow,
            "video_url": "https://x/same.mp4",
            "inputs": [
                {"url": "https://x/same.png?sig=1", "node_id": "1"},
                {"path": str(local), "node_id": "2"},
                {"url": f"data:image/png;base64,{inline}", "node_id": "3"},
            ],
        }
    )
    colors = {each.node_id: color_of(shop, each.path) for each in outcome.artifacts if each.node_id != "14"}
    assert colors == {"11": (255, 0, 0), "12": (0, 255, 0), "13": (0, 0, 255)}
    assert sum(each.node_id == "14" for each in outcome.artifacts) == 3
    assert shop.left_behind() == []
    assert color_of(shop, str(local)) == (0, 255, 0), "a file of the machine is still there, and what it was"


def test_no_file_is_copied_on_one_file_system(shop: Shop, tmp_path: Path) -> None:
    shop.files = {"inputs[0]": draw(shop.path / "big.png", "red", (600, 400))}
    seen: list[int] = []

    def look(name: str, fields: Json) -> None:
        if name == "comfy.uploaded":
            placed = next(path for path in (shop.engine / "input" / "wan2gp").rglob("*.png"))
            seen.append(placed.stat().st_ino)

    shop.heard = look
    shop.succeeds({"workflow": {"1": graph()["1"], "2": save("1", "p")}, "inputs": [{"url": URL, "node_id": "1"}]})
    shop.heard = None
    assert seen == [shop.files["inputs[0]"].stat().st_ino]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"<html>log in</html>", "input.not_media", "a web page"),
        (b"", "input.not_media", "an empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "input.corrupt", "`inputs[0]` cannot be decoded"),
        (b"RIFF\0\0\0\0WAVEfmt ", "input.not_media", "not an image"),
        (
            png_head(12_000, 12_000),
            "input.too_large",
            "12000 x 12000 pixels, the limit is 134217728",
        ),
    ],
)
def test_a_file_of_the_row_that_is_no_picture_costs_no_run(shop: Shop, content: bytes, code: str, words: str) -> None:
    text = base64.b64encode(content).decode()
    url = f"data:image/png;base64,{text}"
    failure = shop.fails({"workflow": {"1": graph()["1"], "2": save("1", "p")}, "inputs": [{"url": url}]})
    assert (failure.code, failure.retryable) == (code, False)
    assert words in failure.message


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (png_head(12_000, 12_000), "input.too_large", "12000 x 12000 pixels"),
        (b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n", "input.not_media", "a playlist (HLS)"),
        (b"ID3\x04" + bytes(6) + b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n", "input.corrupt", "cannot be decoded"),
    ],
)
def test_a_file_for_any_field_is_still_no_bomb(shop: Shop, content: bytes, code: str, words: str) -> None:
    """FFmpeg passes over an ID3 tag before it asks what a file is."""
    url = f"data:;base64,{base64.b64encode(content).decode()}"
    entry = {"url": url, "node_id": "1", "kind": "any"}
    failure = shop.fails({"workflow": {"1": graph()["1"], "2": save("1", "p")}, "inputs": [entry]})
    assert failure.code == code and words in failure.message


def test_a_sound_for_a_picture_is_noticed_after_the_download(shop: Shop, tmp_path: Path) -> None:
    """A node named by its title: what it takes is known only once the graph was read."""
    shop.files = {"inputs[0]": tmp_path / "a.wav"}
    shop.files["inputs[0]"].write_bytes(b"RIFF\0\0\0\0WAVEfmt " + bytes(100))
    row = {"workflow": {"1": graph()["1"], "2": save("1", "p")}, "inputs": [{"url": URL, "title": "Person"}]}
    failure = shop.fails(row)
    assert failure.code == "input.not_media" and "a WAV file, not an image" in failure.message
    assert [dict(sources) for sources in shop.fetched[-1:]] == [{"inputs[0]": Source(URL, "any")}]


def test_a_mistake_in_a_row_starts_no_server(bench: Make) -> None:
    one = bench(allow_paths=[])
    one.fails(asking({"url": URL, "node_id": "77"}))
    one.fails({"workflow": {"1": graph()["1"]}, "inputs": [{"path": "/etc/passwd", "node_id": "1"}]})
    one.fails({"workflow": {"1": graph()["1"]}, "inputs": [{"base64": "$", "node_id": "1"}]})
    assert one.names() == [] and one.fetched == []
