"""Every message between the supervisor and a child, in two unions with one codec each.

The supervisor is a ROUTER, a child connects a DEALER; a message is one frame of JSON (msgspec, tagged by
``type``). No pickle crosses the wire and no plain dict goes past the edge: whoever decodes gets one of the frozen
structs below or :class:`ProtocolError`. What else bounds a child's messages is in :mod:`wan2gp.supervisor.bounds`.
"""

from __future__ import annotations

from typing import Any, Union

import msgspec

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Upper bound of one frame in either direction, bytes. Larger ones are refused by :func:`decode_up`."""


MAX_DEPTH = 200
"""Deepest nesting of free JSON (params, details) that crosses the wire: more would overflow what walks it."""

MAX_CONTAINERS = 100_000
"""Most objects and lists in one frame. Each costs whoever decodes it a hundred times what a byte of text does: without
a limit one frame holds up the supervisor for seconds."""


class ProtocolError(Exception):
    """A frame that is not one of our messages: malformed, too large, or of an unknown type."""


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower, forbid_unknown_fields=True):
    """Base of all messages; the tag is the class name in lower case."""


OUT_OF_MEMORY = "engine.out_of_memory"
"""The code of a failure after which a task is run once more, in a fresh process."""


# --- outcomes: what became of a task's run ----------------------------------------------------------------------


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file a handler made, inside the task's own work directory.

    ``path`` is relative to that directory. ``duration_s`` is in seconds, ``width`` and ``height`` in pixels.
    """

    path: str
    name: str
    kind: str
    """``video``, ``image``, ``audio``, ``text`` or ``file``; ``poster``: the still picture of a video among them."""
    mime: str
    bytes: int
    sha256: str
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    duration_s: float | None = None
    node_id: str | None = None
    primary: bool = False
    poster: str | None = None
    """Of a video: the name of the artifact that is its poster."""


class Succeeded(Message, frozen=True):
    """The run made its artifacts; exactly one of them is primary."""

    artifacts: tuple[Artifact, ...]
    warnings: tuple[str, ...] = ()
    engine: dict[str, Any] = {}
    data: dict[str, Any] = {}
    """More for ``result_data``: text outputs and the like."""


class Failed(Message, frozen=True):
    """The run ended without a result. ``code`` is one of :mod:`wan2gp.errors`."""

    code: str
    message: str
    retryable: bool = False
    detail: dict[str, Any] = {}
    recycle: bool = False
    """True when the process must not be used again (a broken CUDA context, say)."""
    engine_down: bool = False
    """True when the engine could not start: the task goes back uncounted and its types are not claimed until it can."""

    @property
    def needs_fresh_process(self) -> bool:
        """Whether the next task must not meet this process. What ran out of memory may hold or have scattered it."""
        return self.recycle or self.engine_down or self.code == OUT_OF_MEMORY


class Cancelled(Message, frozen=True):
    """The run ended because it was asked to."""


Outcome = Union[Succeeded, Failed, Cancelled]


# --- down: supervisor to child ------------------------------------------------------------------------------------


class Run(Message, frozen=True):
    """Run one task. The lease's token stays in the supervisor; ``lease_id`` is its public name."""

    task_id: str
    task_type: str
    attempt: int
    lease_id: str
    params: Any
    work_dir: str


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one input comes from, and what it must be: ``video``, ``image``, ``audio`` or ``any``.

    ``lora`` and ``weights`` are files that stay where they are kept, for all tasks: whoever uses one locks it."""

    url: str
    kind: str = "any"
    doubt: bool = False
    """Of a file that is kept: the engine cannot read it, so that every byte of it is to be compared."""


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A URL that opens one file of the project's Storage, for a while, to whoever has it: it is shown nowhere."""

    url: str

    def __repr__(self) -> str:
        return "Signed(***)"


class Inputs(Message, frozen=True):
    """The answer to a :class:`Want`: absolute paths by input name, or why there are none."""

    task_id: str
    lease_id: str
    files: dict[str, str] = {}
    failure: Failed | None = None


class Fetch(Message, frozen=True):
    """To the courier: download ``sources`` (by input name) into ``directory``, which exists and is empty."""

    task_id: str
    lease_id: str
    sources: dict[str, Source]
    directory: str
    signed: dict[str, Signed] = {}
    """Of the sources that begin with ``storage:``, by name. Only the supervisor makes these, for the operator's own
    project, so their host may have a private address."""


class Cancel(Message, frozen=True):
    """Stop working on this task soon; the outcome will be Cancelled."""

    task_id: str
    lease_id: str


class Unload(Message, frozen=True):
    """Give the GPU's memory back; sent to an idle child, whose process stays. It answers :class:`Unloaded`."""


class Shutdown(Message, frozen=True):
    """Leave now, cleanly. ``grace_s`` is what the supervisor waits before it kills, in seconds."""

    grace_s: float = 2.0


Down = Union[Run, Inputs, Fetch, Cancel, Unload, Shutdown]


# --- up: child to supervisor --------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """The engine code is imported and the child takes work. ``pid`` is the handler's own, not its shim's."""

    pid: int


class Beat(Message, frozen=True):
    """The process is alive: sent by its I/O thread, whatever the engine does. Says nothing of the work."""


class Progress(Message, frozen=True):
    """The work goes on. ``fraction`` is 0..1 over the whole run."""

    task_id: str
    lease_id: str
    fraction: float | None = None
    phase: str = "step"
    step: int | None = None
    steps: int | None = None
    detail: str | None = None
    eta_s: float | None = None
    """Seconds to the end of the run; None while that is not known."""
    preview: str | None = None
    """Name of a picture of what is made so far, directly in the task's work directory."""


class Event(Message, frozen=True):
    """A fact to log. ``name`` is from the vocabulary of :mod:`wan2gp.logs`; the fields are its blanks."""

    name: str
    fields: dict[str, Any] = {}
    task_id: str | None = None


class EngineState(Message, frozen=True):
    """What the engine below the handler is: ``stopped``, ``starting``, ``ready`` or ``failed``.

    ``detail.model``: the name of the model that it has loaded, as tasks name it in ``params.model``; none: no name.
    """

    state: str
    detail: dict[str, Any] = {}


class Unloaded(Message, frozen=True):
    """The answer to each :class:`Unload`: the engine has given the GPU's memory back, or could not, and why.

    What it holds after that is looked at; this says only that there is nothing more to come.
    """

    failure: str | None = None


class Want(Message, frozen=True):
    """The run needs these inputs now. Only URLs that stand in the task's own ``params`` are fetched."""

    task_id: str
    lease_id: str
    sources: dict[str, Source]


SIGNATURE = "signature"
"""In the detail of a courier's failure: Storage did not take the signature. Another one may do."""


class Fetched(Message, frozen=True):
    """From the courier: absolute paths by input name, or why not."""

    task_id: str
    lease_id: str
    files: dict[str, str] = {}
    failure: Failed | None = None


class Finished(Message, frozen=True):
    """The outcome of a run."""

    task_id: str
    lease_id: str
    outcome: Outcome


Up = Union[Hello, Beat, Progress, Event, EngineState, Unloaded, Want, Fetched, Finished]

_encoder = msgspec.json.Encoder()
_down = msgspec.json.Decoder(Down)
_up = msgspec.json.Decoder(Up)


def encode(message: Down | Up) -> bytes:
    """One frame. Raises :class:`ProtocolError` when it cannot be written or is larger than a frame may be."""
    _check_depth(message)
    try:
        frame = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"cannot encode {type(message).__name__}: {error}") from error
    if len(frame) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"cannot encode {type(message).__name__}: {len(frame)} bytes, limit {MAX_MESSAGE_BYTES}")
    if isinstance(message, Finished) and (why := too_bulky(frame)) is not None:
        raise ProtocolError(f"cannot encode {type(message).__name__}: {why}")
    return frame


def too_bulky(data: bytes) -> str | None:
    """Why JSON text is not to be decoded, if so: it may hold too many objects and lists. Brackets in its texts count
    too, since telling them apart costs what is to be spared."""
    containers = data.count(b"[") + data.count(b"{")
    return f"{containers} objects and lists, limit {MAX_CONTAINERS}" if containers > MAX_CONTAINERS else None


def decode_down(frame: bytes) -> Down:
    """A message for a child, or :class:`ProtocolError`."""
    message: Down = _decode(_down, frame)
    return message


def decode_up(frame: bytes) -> Up:
    """A message from a child, or :class:`ProtocolError`. The child counts as hostile."""
    message: Up = _decode(_up, frame)
    _check_depth(message)
    return message


def _check_depth(message: Down | Up) -> None:
    for free in _free_json(message):
        if (why := misshapen(free)) is not None:
            raise ProtocolError(f"{type(message).__name__} {why}")


def misshapen(free: Any) -> str | None:
    """Why JSON of any shape may not cross the wire, if so: continues a sentence of which it is the subject. Looks at no
    more of it than may be there."""
    level, depth, containers = [free] if isinstance(free, (dict, list)) else [], 0, 0
    while level:
        depth, containers = depth + 1, containers + len(level)
        if depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} levels deep"
        if containers > MAX_CONTAINERS:
            return f"holds more than {MAX_CONTAINERS} objects and lists"
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, (dict, list))
        ]
    return None


def _free_json(message: Down | Up) -> list[Any]:
    """The parts of a message whose shape is anybody's."""
    found: list[Any] = []
    if isinstance(message, Run):
        found = [message.params]
    elif isinstance(message, Event):
        found = [message.fields]
    elif isinstance(message, EngineState):
        found = [message.detail]
    elif isinstance(message, Finished):
        outcome = message.outcome
        found = [outcome.data, outcome.engine] if isinstance(outcome, Succeeded) else [getattr(outcome, "detail", None)]
    elif isinstance(message, (Fetched, Inputs)):
        found = [getattr(message.failure, "detail", None)]
    return [value for value in found if isinstance(value, (dict, list))]


def _decode(decoder: msgspec.json.Decoder[Any], frame: bytes) -> Any:
    if len(frame) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"cannot decode a frame of {len(frame)} bytes: limit {MAX_MESSAGE_BYTES}")
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"cannot decode a frame: {error}") from error
