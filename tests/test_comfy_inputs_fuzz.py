"""Whatever a row holds: it is read or refused in a sentence, and the handler wants what the supervisor fetched."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_comfy_inputs import graph
from wan2gp.comfy_sources import sources_of
from wan2gp.errors import REGISTRY
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_inputs import ORIGINS
from wan2gp.handlers.comfy_params import read_params

KEYS = st.sampled_from(
    "url path base64 node_id title class_type field kind workflow video_url video_node_id video_input_field inputs "
    "overrides 1 3 6 Person Sampler seed image orchestrator_task_id".split()
)
TEXTS = st.sampled_from(
    [
        *("", "1", "3", "6", "image", "seed", "Person", "place", "LoadAudio", "mask", "video", "any", "x" * 9000),
        *("https://x/a.png", "http://[", "data:image/png;base64,AAAA", "data:,x", "/etc/passwd", "../x", "\0", "é"),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers(-5, 9) | st.floats(allow_nan=False) | TEXTS
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "url": TEXTS | JSON,
        "path": TEXTS,
        "base64": TEXTS,
        "node_id": TEXTS | st.integers(1, 8),
        "title": TEXTS,
        "class_type": TEXTS,
        "field": TEXTS,
        "kind": TEXTS,
    },
)
GOOD = st.builds(
    lambda origin, node: {**origin, **node},
    st.sampled_from(
        [{"url": "https://x/a.png"}, {"url": "data:image/png;base64,AAAA"}, {"path": "/x"}, {"base64": "AA"}]
    ),
    st.sampled_from(
        [{"node_id": key} for key in (1, "2", "3")] + [{"title": "Place"}, {"kind": "mask"}, {"kind": "audio"}]
    ),
)
NEARLY = st.fixed_dictionaries(
    {"workflow": st.just(graph())},
    optional={
        "video_url": st.just("https://x/v.mp4"),
        "video_node_id": st.sampled_from([4, "4", "1"]),
        "inputs": st.lists(GOOD | ENTRY, max_size=3),
        "overrides": st.sampled_from([{"6": {"seed": 2}}, {"Sampler": {"steps": [1, 0]}}, {"1": {"image": "a"}}]),
    },
)
PARAMS = st.fixed_dictionaries(
    {"workflow": st.just(graph()) | JSON},
    optional={
        "video_url": TEXTS | JSON,
        "video_node_id": TEXTS | JSON,
        "video_input_field": TEXTS | JSON,
        "inputs": st.lists(ENTRY | JSON, max_size=4) | JSON,
        "overrides": st.dictionaries(KEYS, st.dictionaries(KEYS, JSON, max_size=3) | JSON, max_size=3) | JSON,
    },
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(NEARLY | PARAMS | JSON)
def test_any_row_is_read_or_refused_and_both_sides_mean_the_same(params: Any) -> None:
    before = copy.deepcopy(params)
    sources = sources_of(params)
    try:
        request = read_params(params)
    except TaskFailure as failure:
        assert failure.code in REGISTRY
        assert failure.message and "\n" not in failure.message and len(failure.message) < 1500
        return
    finally:
        assert params == before, "a retry must find the row as it was"
    assert {wanted.label for wanted in request.inputs if wanted.url is not None} == set(sources)
    for wanted in request.inputs:
        assert sum(getattr(wanted, name) is not None for name in ORIGINS) == 1
        assert wanted.target.node_id in request.graph
