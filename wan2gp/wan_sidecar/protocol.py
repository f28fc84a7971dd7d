"""What the engine's process and we say to each other: one JSON object a line, at most 1 MiB. ``host.py`` and its
modules spell the same, with the standard library alone."""

from __future__ import annotations

from typing import Any, Union

import msgspec

from wan2gp.wan_sidecar.errors import RequestTooLong

LINE_BYTES = 1 << 20


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is"):
    """From the engine's process."""


class Ready(Message, frozen=True, tag="ready"):
    version: str
    gpu: str
    gpu_total_mib: int
    model: Union[str, None]


class NotAvailable(Message, frozen=True, tag="unavailable"):
    kind: str
    cause: str
    tail: list[str]


class Models(Message, frozen=True, tag="models"):
    names: list[str]


class Model(Message, frozen=True, tag="model"):
    found: bool
    definition: dict[str, Any]


class Availability(Message, frozen=True, tag="availability"):
    found: bool
    status: str


class TooLong(Message, frozen=True, tag="too_long"):
    of: str
    bytes: int


class NowLoading(Message, frozen=True, tag="loading"):
    id: int
    model: str


class NowLoaded(Message, frozen=True, tag="loaded"):
    id: int
    model: str
    seconds: float


class Progress(Message, frozen=True, tag="progress"):
    id: int
    step: Union[int, None]
    steps: Union[int, None]
    phase: str
    status: str


class NewPreview(Message, frozen=True, tag="preview"):
    id: int


class Remark(Message, frozen=True, tag="said"):
    id: int
    text: str


class Wanted(Message, frozen=True, tag="want"):
    want: int
    repo: str
    file: str
    url: str
    place: str


class EngineError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message: str
    stage: str
    """validation, generation, cancelled or runtime; of our own: submit, model."""


class Missing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    repo: str
    file: str
    url: str
    why: str


class Ended(Message, frozen=True, tag="ended"):
    id: int
    success: bool
    """The engine's word: true also where it made nothing."""
    cancelled: bool
    """A cancel reached it."""
    files: list[str]
    errors: list[EngineError]
    missing: list[Missing]
    """Files that it wanted and did not get."""
    tail: list[str]
    model: Union[str, None]
    """What is in memory now."""
    unfit: bool
    """A part of it still works: the process ends itself after this."""


class Unloaded(Message, frozen=True, tag="unloaded"):
    model: Union[str, None]


Heard = Union[
    Ready,
    NotAvailable,
    Models,
    Model,
    Availability,
    TooLong,
    NowLoading,
    NowLoaded,
    Progress,
    NewPreview,
    Remark,
    Wanted,
    Ended,
    Unloaded,
]
"""What comes up."""
REQUESTS = ("models", "describe", "availability", "run", "finish", "cancel", "unload", "have", "leave")
"""What goes down, as ``do``; the first line of all is the place to start from, without one."""
_decoder: msgspec.json.Decoder[Heard] = msgspec.json.Decoder(Heard)


def decode(line: bytes) -> Heard:
    """Raises msgspec.DecodeError."""
    return _decoder.decode(line)


def encode(do: str, **fields: Any) -> bytes:
    """A request, as a line. Raises RequestTooLong."""
    line = msgspec.json.encode({"do": do, **fields}) + b"\n"
    if len(line) > LINE_BYTES:
        raise RequestTooLong(f"the request {do} has {len(line)} bytes: more than {LINE_BYTES}")
    return line
