"""The graphs of `broken_graphs/`, one file a disaster, and a real server's answers about the classes in them.

A file has `disaster` (what happened), `on` (the engines that have its classes), `code`, `says` (what the message must
have in it), `problems` (node, input and kind of each, in order; the list is complete) and `workflow`. `make` says what
is added to it: so many `savers` with titles of so much `padding`, or a `chain` of so many nodes behind `far`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan2gp.comfy_sidecar.catalogue import Catalogue

FOLDER = Path(__file__).parent / "broken_graphs"
RECORDED = Path(__file__).parent / "broken_graphs_catalogue.json"
Json = dict[str, Any]


@dataclass(frozen=True)
class Broken:
    name: str
    on: tuple[str, ...]
    code: str
    says: tuple[str, ...]
    problems: list[tuple[str | None, str, str]]
    workflow: Any

    def __str__(self) -> str:
        return self.name


def broken_graphs() -> list[Broken]:
    return [_read(path) for path in sorted(FOLDER.glob("*.json"))]


def _read(path: Path) -> Broken:
    given = json.loads(path.read_text())
    workflow = given["workflow"]
    make = given.get("make", {})
    for number in range(make.get("savers", 0)):
        inputs = {"images": ["far", 0], "filename_prefix": "x"}
        title = "t" * make["padding"]
        workflow[f"s{number}"] = {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": title}}
    before = "far"
    for number in range(make.get("chain", 0)):
        workflow[f"c{number}"] = {"class_type": "ImageInvert", "inputs": {"image": [before, 0]}}
        before = f"c{number}"
    if make.get("chain"):
        workflow["saver"]["inputs"]["images"] = [before, 0]
    problems = [(node_id, name, kind) for node_id, name, kind in given["problems"]]
    return Broken(path.stem, tuple(given["on"]), given["code"], tuple(given["says"]), problems, workflow)


def recorded_classes(**more: Json) -> Json:
    """What a real server (0.3.64, with VideoHelperSuite) declares; `more` are further classes, or other answers."""
    return {**json.loads(RECORDED.read_text()), **more}


def catalogue_of(classes: Json, *undescribed: str) -> Catalogue:
    """A catalogue that knows these classes, and that the undescribed ones raise."""
    from wan2gp.comfy_sidecar.errors import ApiError

    def ask(class_type: str | None) -> Json:
        if class_type in undescribed:
            raise ApiError("500", 500)
        if class_type is None:
            return classes
        return {class_type: classes[class_type]} if class_type in classes else {}

    catalogue = Catalogue(ask)
    catalogue.learn([*classes, *undescribed])
    return catalogue


def listed(detail: Json) -> list[tuple[str | None, str, str]]:
    """Node, input and kind of each problem in a failure's detail."""
    return [(item["node_id"], item.get("field", ""), item["kind"]) for item in detail.get("problems", [])]
