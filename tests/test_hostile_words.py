"""What a hostile child may say in well-formed messages: bounded, in its own name, never the supervisor's trouble."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from tests.fuzzing import corpus, search, slice_of
from wan2gp.logs import FACTS, word
from wan2gp.protocol import (
    Artifact,
    EngineState,
    Event,
    Failed,
    Fetched,
    Finished,
    Outcome,
    Progress,
    ProtocolError,
    Source,
    Succeeded,
    Unloaded,
    Up,
    Want,
    decode_down,
    encode,
)
from wan2gp.supervisor.bounds import (
    ARTIFACTS_MAX,
    DETAIL_MAX,
    TALK_MAX_BYTES,
    THEIRS,
    Dropped,
    detail,
    fact_name,
    failure_detail,
    phase,
    understood,
)
from wan2gp.supervisor.postgres_json import to_json
from wan2gp.supervisor.wanted import SOURCES_MAX, WISHES_MAX, Named, refusal

IDS = ("task", "lease")


def finished(outcome: Outcome) -> Finished:
    return Finished(*IDS, outcome)


def artifact(**fields: Any) -> Finished:
    given = {"path": "x", "name": "x", "kind": "file", "mime": "x/x", "bytes": 1, "sha256": "0" * 64, **fields}
    return finished(Succeeded((Artifact(**given),)))


LAWFUL = [
    artifact(width=1920, height=1080, frames=81, duration_s=3.4, node_id="9"),
    finished(Failed("a-plugin.Code_1", "x" * 100_000)),
    Progress(*IDS, 0.5, "step", 3, 20, "KSampler", 12.0),
    Event("comfy.ready", {"text": "x" * 10_000}),
    EngineState("ready", {"pid": 1}),
    Unloaded("RuntimeError: no"),
]


@pytest.mark.parametrize("message", LAWFUL, ids=lambda message: type(message).__name__)
def test_what_an_honest_handler_says_is_understood(message: Up) -> None:
    assert understood(encode(message)) == message


TALK = {
    "a long event": Event("x", {"text": "y" * TALK_MAX_BYTES}),
    "a long progress": Progress(*IDS, 0.1, "x" * TALK_MAX_BYTES),
    "a large state": EngineState("ready", {"x": "y" * TALK_MAX_BYTES}),
    "no state": EngineState("\x1b[2Jready"),
    "a long failure to unload": Unloaded("x" * TALK_MAX_BYTES),
}


@pytest.mark.parametrize("what", TALK)
def test_talk_beyond_a_bound_is_dropped(what: str) -> None:
    assert isinstance(understood(encode(TALK[what])), Dropped)


DEEP = (
    b'{"type":"fetched","task_id":"","lease_id":"","failure":'
    b'{"type":"failed","code":"x","message":"","detail":{"x":?}}}'
)
ANSWERS = {
    "a wish for very much": Want(*IDS, {str(each): Source("http://x/" + "y" * 1000) for each in range(2000)}),
    "very many files": Fetched(*IDS, {str(each): "/" + "x" * 1000 for each in range(2000)}),
    "a long id": Fetched("t" * 1000, "l"),
    "a long lease": Progress("t", "l" * 1000),
    "more artifacts than can be": finished(Succeeded((LAWFUL[0].outcome.artifacts[0],) * (ARTIFACTS_MAX + 1))),  # type: ignore[union-attr]
    "more warnings than can be": finished(Succeeded((), warnings=("x",) * 2000)),
    "a negative size": artifact(bytes=-1),
    "a width beyond all numbers": artifact(width=2**60),
    "a negative duration": artifact(duration_s=-0.1),
    "no digest": artifact(sha256="../../x"),
    "a long name": artifact(name="x" * 5000),
    "no code": finished(Failed("a\nb: c", "x")),
    "a deep detail": DEEP.replace(b"?", b"[" * 300 + b"]" * 300),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_beyond_a_bound_breaks_the_protocol(what: str) -> None:
    said = ANSWERS[what]
    found = understood(said if isinstance(said, bytes) else encode(said))
    assert isinstance(found, ProtocolError) and not isinstance(found, Dropped)


@pytest.mark.parametrize("name", [name for name in FACTS if not name.startswith(THEIRS)])
def test_what_only_the_supervisor_can_know_is_no_childs_to_state(name: str) -> None:
    level, line = word(fact_name(name), {"task_id": "t", "text": "x"})
    assert level == "INFO" and line.startswith(f"said.{name}")


def test_a_step_is_told_in_one_short_line() -> None:
    assert phase("decode") == "decode" and phase("x\n") == phase("x" * 99) == phase("") == "step"
    told = detail("KSampler\x1b[2J\n2026 forged" + "y" * 10_000)
    assert told is not None and told.isprintable() and len(told) <= DETAIL_MAX + 10


def test_the_detail_of_a_failure_is_kept_as_long_as_it_is_small() -> None:
    assert failure_detail({"node": 9}) == {"node": 9}
    assert list(failure_detail({"node": "x" * 100_000})) == ["left_out"]


def test_a_run_may_not_have_its_inputs_downloaded_again_and_again() -> None:
    params, sources = {"a": "http://x/a"}, {"a": Source("http://x/a")}
    assert refusal(Named(params), sources, WISHES_MAX) is None
    assert refusal(Named(params), sources, WISHES_MAX + 1) is not None
    assert refusal(Named(params), {"n" * 1000: Source("http://x/a")}) is not None
    assert refusal(Named(params), {"a": Source("http://x/a", "\x1b")}) is not None
    assert refusal(Named(params), {str(each): Source("http://x/a") for each in range(SOURCES_MAX + 1)}) is not None


# -- whatever it says --------------------------------------------------------------------------------------------------

TYPES = (
    "hello beat progress event enginestate unloaded want fetched finished "
    "run inputs fetch cancel unload shutdown nothing"
)
FIELDS = (
    "pid task_id lease_id fraction phase step steps detail eta_s preview name fields state sources files failure "
    "outcome type code message retryable recycle artifacts warnings engine data path kind mime bytes sha256 url width"
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(10**400), 1e308, float("nan"), float("inf"), 0.5]),
    st.text(max_size=20),
    st.sampled_from(["\ud800", "\0", "\x1b[2J", "x" * 5000, *TYPES.split(), "0" * 64, "http://x/"]),
)
NAMES = st.sampled_from(FIELDS.split())
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=6)),
    max_leaves=20,
)
MESSAGES = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    st.sampled_from(TYPES.split()),
    st.dictionaries(NAMES, TREES, max_size=8),
)
KNOWN = [encode(message) for message in (*LAWFUL, *(each for each in TALK.values()))]
SPLICED = st.builds(
    lambda frame, at, cut, put: frame[: at % len(frame)] + put + frame[at % len(frame) + cut :],
    st.sampled_from([frame[:2000] for frame in KNOWN]),
    st.integers(0, 2000),
    st.integers(0, 20),
    st.binary(max_size=10),
)
PAYLOADS = st.one_of(
    st.binary(max_size=200),
    MESSAGES.map(lambda tree: json.dumps(tree).encode("utf-8", "surrogatepass")),
    MESSAGES.map(lambda tree: json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    SPLICED,
)


def is_understood_or_refused(payload: bytes) -> None:
    """And what is understood can be logged, shown, stored and said again."""
    said = understood(payload)
    if isinstance(said, ProtocolError):
        assert str(said)
        return
    encode(said)
    if isinstance(said, Event):
        assert word(fact_name(said.name), said.fields)[1].isprintable()
    elif isinstance(said, Progress):
        assert (detail(said.detail) or "x").isprintable() and phase(said.phase).isprintable()
    elif isinstance(said, Finished):
        json.loads(to_json(msgspec.to_builtins(said.outcome)))


def is_a_message_down_or_refused(payload: bytes) -> None:
    try:
        encode(decode_down(payload))
    except ProtocolError:
        return


def test_whatever_a_child_sends_is_understood_or_refused() -> None:
    for payload in corpus("wire"):
        is_understood_or_refused(payload)
    slice_of(is_understood_or_refused, PAYLOADS, 40)


def test_whatever_comes_down_is_understood_or_refused() -> None:
    slice_of(is_a_message_down_or_refused, PAYLOADS, 40)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_whatever_a_child_sends_for_minutes_is_understood_or_refused() -> None:
    assert search("wire", is_understood_or_refused, PAYLOADS) > 0
