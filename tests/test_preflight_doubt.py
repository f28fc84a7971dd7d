"""Where too little is known to say that a graph is wrong, the server says it; and what it says is taken for true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broken_graphs_data import catalogue_of, listed
from tests.comfy_jobs import VIDEO_URL, Bench, bench, make_video, picture, spec_row
from tests.conftest_comfy import free_port
from tests.test_preflight_graphs import refused
from wan2gp.comfy_sidecar.catalogue import Catalogue, Standing
from wan2gp.comfy_sidecar.errors import ApiError, PromptRefused, Unreachable
from wan2gp.comfy_sidecar.preflight import check_graph
from wan2gp.comfy_sidecar.preflight_probe import make_probe
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_live import Live
from wan2gp.handlers.comfy_preflight import preflight

__all__ = ["bench"]
WAIVING = Path(__file__).parent / "waiving_nodes.py"
Json = dict[str, Any]


def declared(
    output: list[Any] | None = None, output_node: bool = False, optional: Json | None = None, **required: Any
) -> Json:
    """An entry of the catalogue."""
    inputs = {"required": required, "optional": optional or {}}
    return {"input": inputs, "output": output or [], "output_node": output_node, "python_module": "custom_nodes.x"}


def problems(classes: Json, graph: Json) -> list[tuple[str | None, str, str]]:
    found = check_graph(graph, catalogue_of(classes, "Raises"))
    return [(problem.node_id, problem.field, problem.kind.value) for problem in found]


def node(class_type: str, **inputs: Any) -> Json:
    return {"class_type": class_type, "inputs": inputs}


IMAGE, ANY = declared(["IMAGE"]), declared(["*"])


@pytest.mark.parametrize(
    ("sink", "source", "link"),
    [
        (declared(output_node=True, x=["*"]), IMAGE, ["1", 0]),
        (declared(output_node=True, x=["*", {}]), IMAGE, ["1", 0]),
        (declared(output_node=True, x=["IMAGE"]), ANY, ["1", 0]),
        (declared(output_node=True, x=["IMAGE"]), ANY, ["1", 7]),
        (declared(output_node=True, x=["IMAGE,MASK"]), IMAGE, ["1", 0]),
        (declared(output_node=True, x=["MASK , IMAGE"]), IMAGE, ["1", 0]),
        (declared(output_node=True, x=["MASK"]), declared(["IMAGE,MASK"]), ["1", 0]),
        (declared(output_node=True, x=[["a", "b"]]), declared([["a", "b"]]), ["1", 0]),
        (declared(output_node=True, x=[["a", "b"]]), declared(["STRING"]), ["1", 0]),
        (declared(output_node=True, x=["COMBO", {"options": ["a"]}]), declared(["COMBO"]), ["1", 0]),
        (declared(output_node=True, x=["STRING"]), declared(["COMBO"]), ["1", 0]),
        (declared(output_node=True, x=["COMFY_MATCHTYPE_V3", {}]), IMAGE, ["1", 0]),
        (declared(output_node=True, x=["IMAGE"]), declared(["COMFY_MATCHTYPE_V3"]), ["1", 0]),
        (declared(output_node=True, x=["IMAGE", {"rawLink": True}]), IMAGE, ["1", 0]),
        (declared(output_node=True, x=["IMAGE", {"lazy": True}]), IMAGE, ["1", 0]),
        (declared(output_node=True, x=["INT", {"forceInput": True}]), declared(["INT"]), ["1", 0]),
        (declared(output_node=True, x=["MY_TYPE"]), declared(["MY_TYPE"]), ["1", 0]),
        (declared(output_node=True, x=["IMAGE"]), IMAGE, ["1", -1]),
        (declared(output_node=True, x=["IMAGE"]), IMAGE, ["1", False]),
    ],
)
def test_links_that_a_server_may_take_are_let_through(sink: Json, source: Json, link: list[Any]) -> None:
    assert problems({"Sink": sink, "Source": source}, {"1": node("Source"), "2": node("Sink", x=link)}) == []


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (["MY_WIDGET"], "anything"),
        (["MY_WIDGET"], {"a": 1}),
        (["COMFY_DYNAMICCOMBO_V3", {"options": []}], "x"),
        (["COMBO", {"remote": {"route": "/x"}}], "x"),
        (["COMBO", {"options": ["a", "b"], "multiselect": True}], ["a", "b"]),
        (["COMBO", {"options": ["a", "b"], "multiselect": True}], {"__value__": ["a", "b"]}),
        ([[1, 2, 3]], 2.0),
        ([[True, False]], 1),
        (["INT", {"min": 0}], "7"),
        (["INT", {"min": "none"}], 7),
        (["FLOAT", {"max": 1}], True),
        (["FLOAT"], "1e3"),
        (["STRING"], 5),
        (["STRING"], None),
        (["BOOLEAN"], "no"),
        (["VIDEO"], "clip.mp4"),
        ("nonsense", 1),
        ([], 1),
        ([5], 1),
    ],
)
def test_values_that_a_server_may_take_are_let_through(spec: Any, value: Any) -> None:
    assert problems({"Sink": declared(output_node=True, x=spec)}, {"1": node("Sink", x=value)}) == []


def test_inputs_that_become_others_are_not_missed() -> None:
    """An input of a growing kind has as many names as are given, and none of them is its own."""
    sink = declared(output_node=True, images=["COMFY_AUTOGROW_V3", {}], mode=["COMFY_DYNAMICCOMBO_V3", {}])
    graph = {"1": node("Source"), "2": node("Sink", **{"images.image0": ["1", 0], "mode": "a", "mode.size": 5})}
    assert problems({"Sink": sink, "Source": IMAGE}, graph) == []


def test_null_for_an_optional_link_is_what_editors_write() -> None:
    sink = declared(output_node=True, optional={"mask": ["IMAGE"]}, x=["IMAGE"])
    assert (
        problems({"Sink": sink, "Source": IMAGE}, {"1": node("Source"), "2": node("Sink", x=["1", 0], mask=None)}) == []
    )


def test_a_class_whose_inputs_raise_may_be_anything() -> None:
    graph = {"1": node("Raises", x="?"), "2": node("Raises", x=["1", 9])}
    assert problems({}, graph) == []
    sink = declared(output_node=True, x=["IMAGE"])
    assert problems({"Sink": sink}, {"1": node("Raises"), "2": node("Sink", x=["1", 3])}) == []


@pytest.mark.parametrize("info", [{}, {"input": 5, "output": []}, {"input": {}, "output": "IMAGE"}])
def test_an_entry_that_is_like_no_other_is_no_ground_for_a_refusal(info: Json) -> None:
    assert problems({"Odd": info}, {"1": node("Odd", x=1)}) == []


# --- the catalogue -------------------------------------------------------------------------------------------------


class Server:
    """Answers for the catalogue, and counts."""

    def __init__(self, classes: Json) -> None:
        self.classes, self.asked = classes, [""]
        self.down = False

    def __call__(self, class_type: str | None) -> Json:
        self.asked.append(class_type or "all")
        if self.down:
            raise Unreachable("no answer in time")
        if class_type is None:
            return self.classes
        return {class_type: self.classes[class_type]} if class_type in self.classes else {}


def test_a_class_is_asked_for_once_in_a_servers_life() -> None:
    server = Server({"A": IMAGE, "B": ANY})
    catalogue = Catalogue(server)
    for _ in range(3):
        catalogue.learn(["A", "B", "A"])
        assert catalogue.node_info("A") == IMAGE
    assert server.asked == ["", "A", "B"]


def test_a_class_that_was_absent_is_asked_for_again() -> None:
    """It may have come with a custom node, on a server that is not ours to restart."""
    server = Server({})
    catalogue = Catalogue(server)
    catalogue.learn(["A"])
    assert catalogue.standing("A") is Standing.ABSENT
    server.classes["A"] = IMAGE
    catalogue.learn(["A"])
    assert catalogue.standing("A") is Standing.DESCRIBED


def test_what_was_learned_before_a_silence_is_kept() -> None:
    server = Server({"A": IMAGE})
    catalogue = Catalogue(server)
    catalogue.learn(["A"])
    server.down = True
    with pytest.raises(Unreachable):
        catalogue.learn(["A", "B"])
    assert catalogue.names() == ()
    server.down = False
    catalogue.learn(["A", "B"])
    assert server.asked == ["", "A", "B", "all", "B"]
    assert catalogue.names() == ("A",)
    assert catalogue.names() == ("A",) and server.asked[-1] == "all" and server.asked.count("all") == 2


def test_what_a_good_graph_costs_is_no_request_at_all(bench: Any) -> None:
    one: Bench = bench()
    one.succeeds({"workflow": picture()})
    live = one.handler._engine._live
    assert live is not None
    asked = Server({})
    live.catalogue.ask = asked
    one.succeeds({"workflow": picture(color=1)})
    assert asked.asked == [""]


# --- asking the server ---------------------------------------------------------------------------------------------


class Posts:
    """A client whose server answers so."""

    base_url = "http://127.0.0.1:1"

    def __init__(self, answer: Any, classes: Json) -> None:
        self.answer, self.object_info = answer, Server(classes)
        self.posted: list[Json] = []
        self.withdrawn: list[str] = []

    def post_prompt(self, graph: Json, prompt_id: str, _client_id: str) -> Json:
        self.posted.append(graph)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]

    def delete_pending(self, prompt_id: str) -> None:
        self.withdrawn.append(prompt_id)

    interrupt = delete_pending


SAVER = {"Save": declared(output_node=True, size=["INT", {"max": 10}], name=["STRING"])}
TOO_LARGE = {"1": node("Save", size=11, name="x")}


def judge(answer: Any, graph: Json = TOO_LARGE, classes: Json = SAVER) -> tuple[Posts, list[Any]]:
    """The posts, and what was refused."""
    posts = Posts(answer, classes)
    live = Live(posts, None, "comfyui", "")  # type: ignore[arg-type]
    try:
        preflight(graph, live, (), lambda: live.catalogue.learn(each["class_type"] for each in graph.values()))
    except TaskFailure as failure:
        return posts, listed(failure.detail)
    return posts, []


def answer_of(*errors: tuple[str, str, str]) -> PromptRefused:
    found: Json = {}
    for node_id, name, kind in errors:
        given = {"type": kind, "message": kind, "details": name, "extra_info": {"input_name": name}}
        given["extra_info"] |= {"received_value": 11}
        found.setdefault(node_id, {"errors": []})["errors"].append(given)
    return PromptRefused({"type": "prompt_outputs_failed_validation", "message": "m"}, found)


def test_a_doubt_that_the_server_shares_is_a_problem() -> None:
    posts, found = judge(answer_of(("1", "name", "bad_linked_input"), ("1", "size", "value_bigger_than_max")))
    assert found == [("1", "size", "too_large")]
    assert posts.posted == [{"1": node("Save", size=11, name=[])}], "no output of what is posted can run"
    assert TOO_LARGE["1"]["inputs"]["name"] == "x", "the graph itself is left alone"


def test_a_doubt_that_the_server_does_not_share_is_none() -> None:
    assert judge(answer_of(("1", "name", "bad_linked_input")))[1] == []


def test_what_only_the_server_sees_is_a_problem_too() -> None:
    both = answer_of(("1", "name", "bad_linked_input"), ("1", "else", "brand_new_error"))
    assert judge(both)[1] == [("1", "else", "refused")]


def test_what_a_class_says_of_the_spoiled_input_is_not_about_the_graph() -> None:
    answer = answer_of(
        ("1", "name", "custom_validation_failed"),
        ("1", "size", "custom_validation_failed"),
        ("1", "", "exception_during_validation"),
    )
    assert judge(answer)[1] == []


@pytest.mark.parametrize("answer", [Unreachable("reset"), ApiError("500", 500)])
def test_without_an_answer_the_graph_has_the_benefit_of_the_doubt(answer: Exception) -> None:
    posts, found = judge(answer)
    assert found == [] and len(set(posts.withdrawn)) == 1


def test_a_server_that_takes_what_it_must_refuse_does_not_run_it() -> None:
    posts, found = judge({})
    assert found == [] and len(posts.withdrawn) == 2


def test_a_graph_that_cannot_be_spoiled_is_not_posted() -> None:
    graph = {"1": node("Only", size=11)}
    posts, found = judge({}, graph, {"Only": declared(output_node=True, size=["INT", {"max": 10}])})
    assert found == [] and posts.posted == []


def test_a_certain_problem_needs_no_answer() -> None:
    posts, found = judge(Unreachable("never asked"), {"1": node("Save", size="x", name="y")})
    assert found == [("1", "size", "wrong_type")] and posts.posted == []


def test_every_output_of_what_is_posted_is_spoiled() -> None:
    classes = {**SAVER, "Show": declared(output_node=True, x=["IMAGE"]), "Make": declared(["IMAGE"], size=["INT"])}
    graph = {
        "1": node("Make", size=1),
        "2": node("Show", x=["1", 0]),
        "3": node("Save", size=11, name="x"),
        "4": node("Save", size=1, name=["1", 0]),
    }
    catalogue = catalogue_of(classes)
    probe = make_probe(graph, catalogue, check_graph(graph, catalogue), ())
    assert probe.complete
    assert probe.spoiled == {("1", "size"), ("3", "name"), ("4", "size")}


# --- on an engine --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def waiving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    settings = {"path": "builtin", "port": free_port(), "args": f"--extra-nodes {WAIVING}"}
    one = Bench(tmp_path_factory.mktemp("waiving") / "bench", settings)
    yield one
    one.handler.close()


def test_a_class_may_take_what_it_says_it_does_not(waiving: Bench) -> None:
    waiving.succeeds({"workflow": {"1": node("Waives", width=500, height=500, choice="zebra", depth=1)}})


def test_what_it_does_not_waive_is_refused(waiving: Bench) -> None:
    failure = refused(waiving, {"1": node("Waives", width=500, height=1, choice="zebra", depth=500)})
    assert listed(failure.detail) == [("1", "depth", "too_large")]


def test_what_its_own_code_refuses_is_said_in_its_words(waiving: Bench) -> None:
    waiving.facts.clear()
    failure = waiving.fails({"workflow": {"1": node("Waives", width=1, height=13, choice="a", depth=1)}})
    assert "comfy.queued" not in waiving.names()
    assert "node 1 (Waives), input height: the node itself refuses it: thirteen is no height" in failure.message


def test_a_broken_graph_costs_no_download(bench: Any, tmp_path: Path) -> None:
    one: Bench = bench(make_video(tmp_path / "in.mp4"))
    row = spec_row()
    row["workflow"]["2"]["inputs"]["format"] = "video/nope"
    assert listed(one.fails(row).detail) == [("2", "format", "wrong_choice")]
    assert one.fetched == []


def test_the_name_that_a_file_will_replace_is_not_looked_at(bench: Any, tmp_path: Path) -> None:
    """The row names a file of the sender's machine; its own comes from the URL."""
    one: Bench = bench(make_video(tmp_path / "in.mp4"))
    row = spec_row()
    row["workflow"]["1"]["inputs"]["video"] = "C:\\me\\holiday.mp4"
    assert row["video_url"] == VIDEO_URL
    assert one.succeeds(row).artifacts[0].kind == "video"


def test_a_model_that_came_meanwhile_is_found() -> None:
    """Lists of files are asked for again before anybody is told that one is missing."""
    server = Server({"Load": declared(["MODEL"], output_node=True, ckpt_name=[["old.safetensors"]])})
    live = Live(Posts({}, {}), None, "comfyui", "")  # type: ignore[arg-type]
    live.catalogue = Catalogue(server)
    live.catalogue.learn(["Load"])
    server.classes = {"Load": declared(["MODEL"], output_node=True, ckpt_name=[["new.safetensors"]])}
    graph = {"1": node("Load", ckpt_name="new.safetensors")}
    preflight(graph, live, (), lambda: live.catalogue.learn(["Load"]))
    assert server.asked == ["", "Load", "Load"]
