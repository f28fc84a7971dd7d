"""Graphs spoiled at random, from a seed: links, values, names and whole nodes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from tests.valid_graphs import VALID

Json = dict[str, Any]
VALUES = (0, -1, 1, 16, 1.5, 10**9, "16", "x", "", None, True, [], {}, "area", "video/h264-mp4", "nope.png", 0.5)
SLOTS = (0, 1, 2, -1, -9, 99, "0", True, None, 0.0)
CLASSES = (
    "ImageInvert",
    "PreviewImage",
    "LoadImage",
    "ImageScale",
    "VHS_LoadVideo",
    "ImageBlend",
    "MaskToImage",
    "NoSuchNode",
    "CheckpointLoaderSimple",
)


def mutants(chance: random.Random, count: int) -> Iterator[Json]:
    """So many, each with one to three changes."""
    names = sorted(VALID)
    for _ in range(count):
        graph = copy.deepcopy(VALID[chance.choice(names)].workflow)
        for _ in range(chance.randint(1, 3)):
            _spoil(chance, graph)
        yield graph


def _spoil(chance: random.Random, graph: Json) -> None:
    node = graph[chance.choice(sorted(graph))]
    inputs = node["inputs"]
    name = chance.choice([*sorted(inputs), "mask", "image", "width"])
    what = chance.randrange(6)
    if what == 0:
        inputs[name] = chance.choice(VALUES)
    elif what == 1:
        inputs[name] = [chance.choice([*sorted(graph), "77"]), chance.choice(SLOTS)]
    elif what == 2:
        inputs.pop(name, None)
    elif what == 3:
        node["class_type"] = chance.choice(CLASSES)
    elif what == 4:
        inputs[name] = [chance.choice(sorted(graph)), 0]
    elif len(graph) > 1:
        del graph[chance.choice(sorted(graph))]
