"""What a child may say, besides saying it in messages that are well-formed: so long, so many, so deep, and in its name.

What is beyond a bound is one of two things. Talk (progress, events, state) is dropped and counted: nothing depends on
it. An answer that something depends on (an outcome, a wish for inputs, files) breaks the protocol.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from wan2gp.logs import FACTS, one_line
from wan2gp.protocol import (
    MAX_MESSAGE_BYTES,
    Artifact,
    Beat,
    EngineState,
    Event,
    Failed,
    Fetched,
    Finished,
    Hello,
    Progress,
    ProtocolError,
    Succeeded,
    Unloaded,
    Up,
    Want,
    decode_up,
    too_bulky,
)

TALK_MAX_BYTES = 64 * 1024
WISH_MAX_BYTES = 1024 * 1024
ID_MAX = 200
TEXT_MAX = 4096
DETAIL_MAX = 300
"""Of what a run says of its step, characters: it stands in one line of the row and of ``status``."""
DETAIL_MAX_BYTES = 64 * 1024
"""Of a failure's detail, which goes into ``result_data.attempts`` of each attempt."""
ARTIFACTS_MAX, WARNINGS_MAX = 1000, 1000
NUMBER_MAX = 2**53
"""Larger integers are not the same everywhere that reads JSON."""
STATES = frozenset({"stopped", "starting", "ready", "failed"})
THEIRS = ("comfy.", "input.", "wan.", "media.", "remote.")
"""Begin the names of worded facts that a child may state; the others are the supervisor's alone."""
NAME_MAX = 100
MODEL_MAX = 200
"""Longest name of a model, characters: it goes to the database with each claim."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[\w.-]{1,100}")
_PHASE = re.compile(r"[a-z][a-z_]{0,29}")
_TALK = (Hello, Beat, Progress, Event, EngineState, Unloaded)
_WISHES = (Want, Fetched)
_TAG = re.compile(rb'\{"type":"([a-z]{1,20})"')
_LONGEST = {b"finished": MAX_MESSAGE_BYTES} | {each.__name__.lower().encode(): WISH_MAX_BYTES for each in _WISHES}
"""By tag, bytes; of all others :data:`TALK_MAX_BYTES`."""


class Dropped(ProtocolError):
    """Talk beyond a bound. It costs the child nothing but being heard."""


def understood(payload: bytes) -> Up | ProtocolError:
    """The message, or what is wrong with it. Raises nothing, whatever the payload."""
    try:
        _judge_unread(payload)
        message = decode_up(payload)
        check(message, len(payload))
    except ProtocolError as error:
        return error
    return message


def _judge_unread(payload: bytes) -> None:
    """Whether a frame may be decoded at all, which costs the loop's thread far more than a look at its bytes does.

    What our own children write begins with its tag. Raises :class:`Dropped`, and
    :class:`~wan2gp.protocol.ProtocolError`."""
    if len(payload) <= TALK_MAX_BYTES:
        return
    found = _TAG.match(payload)
    if found is None:
        raise ProtocolError(f"{len(payload)} bytes that do not begin with a type")
    tag, size = found[1], len(payload)
    if size > _LONGEST.get(tag, TALK_MAX_BYTES):
        raise (ProtocolError if tag in _LONGEST else Dropped)(f"{tag.decode()} of {size} bytes")
    if (why := too_bulky(payload)) is not None:
        raise ProtocolError(f"{tag.decode()} with {why}")


def check(message: Up, size: int) -> None:
    """``size``: of its frame, bytes. Raises :class:`Dropped`, and :class:`~wan2gp.protocol.ProtocolError`."""
    if isinstance(message, _TALK):
        if size > TALK_MAX_BYTES:
            raise Dropped(f"{type(message).__name__} of {size} bytes")
        if isinstance(message, EngineState) and message.state not in STATES:
            raise Dropped("an engine's state that is none")
    elif isinstance(message, _WISHES):
        if size > WISH_MAX_BYTES:
            raise ProtocolError(f"{type(message).__name__} of {size} bytes, limit {WISH_MAX_BYTES}")
    else:
        _check_outcome(message)
    for name in (getattr(message, "task_id", None), getattr(message, "lease_id", None)):
        if name is not None and len(name) > ID_MAX:
            raise ProtocolError(f"{type(message).__name__} with an id of {len(name)} characters")


def _check_outcome(message: Finished) -> None:
    outcome = message.outcome
    if isinstance(outcome, Failed) and not _CODE.fullmatch(outcome.code):
        raise ProtocolError("a failure with a code that is none")
    if not isinstance(outcome, Succeeded):
        return
    if len(outcome.artifacts) > ARTIFACTS_MAX or len(outcome.warnings) > WARNINGS_MAX:
        raise ProtocolError(f"{len(outcome.artifacts)} artifacts and {len(outcome.warnings)} warnings")
    for artifact in outcome.artifacts:
        _check_artifact(artifact)


def _check_artifact(made: Artifact) -> None:
    texts = (made.path, made.name, made.kind, made.mime, made.node_id, made.poster)
    if any(text is not None and len(text) > TEXT_MAX for text in texts):
        raise ProtocolError("an artifact with a text that is too long")
    numbers = (made.bytes, made.width, made.height, made.frames, made.duration_s)
    if not all(number is None or (math.isfinite(number) and 0 <= number <= NUMBER_MAX) for number in numbers):
        raise ProtocolError("an artifact with a number that cannot be")
    if not _SHA256.fullmatch(made.sha256):
        raise ProtocolError("an artifact without its sha256")


def fact_name(name: str) -> str:
    """The name of a fact that a child states: what only the supervisor can know is marked as said."""
    shown = name[:NAME_MAX]
    return f"said.{shown}" if shown in FACTS and not shown.startswith(THEIRS) else shown


def model(said: Any) -> str | None:
    """The name of a model that an engine has loaded; None for what is no name."""
    return said if isinstance(said, str) and 0 < len(said) <= MODEL_MAX else None


def phase(said: str) -> str:
    """A phase's name; ``step`` for what is none."""
    return said if _PHASE.fullmatch(said) else "step"


def detail(said: str | None) -> str | None:
    """One line, for the row and ``status``."""
    return None if said is None else one_line(said[:DETAIL_MAX])


def failure_detail(said: dict[str, Any]) -> dict[str, Any]:
    """What is kept with the attempt of a failure's detail."""
    size = len(msgspec.json.encode(said))
    return said if size <= DETAIL_MAX_BYTES else {"left_out": f"{size} bytes, more than {DETAIL_MAX_BYTES}"}
