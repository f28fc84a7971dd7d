"""Graphs that look wrong and are right: a server runs each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Valid:
    """``builtin``: that engine has its classes as well. ``name``\\ s of files are of `sub/there.png`, 16 by 16."""

    workflow: Json
    builtin: bool = True


def node(class_type: str, **inputs: Any) -> Json:
    return {"class_type": class_type, "inputs": inputs}


def empty(**inputs: Any) -> Json:
    return node("EmptyImage", **{"width": 16, "height": 16, "batch_size": 1, "color": 0, **inputs})


def save(source: str = "1", slot: Any = 0, **inputs: Any) -> Json:
    return node("SaveImage", images=[source, slot], filename_prefix="v", **inputs)


VALID = {
    "picture": Valid({"1": empty(), "2": save()}),
    "defaults_left_out": Valid({"1": node("EmptyImage"), "2": node("SaveImage", images=["1", 0])}),
    "numbers_as_text": Valid({"1": empty(width="16", height=16.7, batch_size=True), "2": save()}),
    "wrapped_value": Valid({"1": empty(width={"__value__": 16}), "2": save()}, builtin=False),
    "inputs_nobody_knows": Valid({"1": empty(extra=5, other=[1, 2, 3]), "2": save(note="x")}),
    "a_broken_node_that_no_output_needs": Valid({"1": empty(), "2": save(), "3": empty(width=-1, height="x")}),
    "a_loose_end_linked_to_nowhere": Valid({"1": empty(), "2": save(), "3": node("ImageInvert", image=["99", 0])}),
    "a_circle_that_no_output_needs": Valid(
        {
            "1": empty(),
            "2": save(),
            "3": node("ImageInvert", image=["4", 0]),
            "4": node("ImageInvert", image=["3", 0]),
        }
    ),
    "true_for_a_slot": Valid({"1": node("LoadImage", image="sub/there.png"), "2": save(slot=False)}),
    "a_file_in_a_folder_that_no_list_shows": Valid({"1": node("LoadImage", image="sub/there.png"), "2": save()}),
    "a_file_with_its_place": Valid({"1": node("LoadImage", image="sub/there.png [input]"), "2": save()}),
    "an_optional_input_of_null": Valid(
        {
            "1": empty(),
            "2": node("CreateVideo", images=["1", 0], fps=8.0, audio=None),
            "3": node("SaveVideo", video=["2", 0]),
        }
    ),
    "one_source_twice": Valid(
        {"1": empty(), "2": node("ImageBatch", image1=["1", 0], image2=["1", 0]), "3": save("2")}
    ),
    "any_type": Valid({"1": empty(), "2": node("PreviewAny", source=["1", 0]), "3": save()}, builtin=False),
    "a_number_from_another_node": Valid(
        {"1": node("PrimitiveInt", value=16), "2": empty(width=["1", 0]), "3": save("2")}, builtin=False
    ),
    "a_size_from_a_picture": Valid(
        {
            "1": empty(),
            "2": node("GetImageSize", image=["1", 0]),
            "3": empty(width=["2", 0], height=["2", 1]),
            "4": save("3"),
        },
        builtin=False,
    ),
    "a_slot_from_the_end": Valid(
        {"1": node("LoadImage", image="sub/there.png"), "2": node("MaskToImage", mask=["1", -1]), "3": save("2")},
        builtin=False,
    ),
    "titles_and_ids_in_any_script": Valid(
        {"узел": {**empty(), "_meta": {"title": "映像 🎬" * 100}}, "節" * 300: save("узел")}
    ),
    "the_formats_own_widgets": Valid(
        {
            "1": empty(),
            "2": node(
                "VHS_VideoCombine",
                images=["1", 0],
                frame_rate=8,
                loop_count=0,
                filename_prefix="v",
                format="video/h264-mp4",
                pix_fmt="yuv420p",
                crf=30,
                pingpong=False,
                save_output=True,
            ),
        }
    ),
}
