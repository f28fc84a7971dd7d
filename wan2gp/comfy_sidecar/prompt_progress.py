"""How far a prompt is, from what its server says of it: a fraction, the node that runs, its steps, a picture.

Pure: fed messages, it knows no socket and no clock but the one that notes when the last message came.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from wan2gp.engine_process.process import monotonic

Json = dict[str, Any]
MOST_STEPS = 10_000
PREVIEW, PREVIEW_OF_NODE = 1, 4
"""Numbers of the binary messages that carry a picture; the second says whose it is."""
LARGEST_PREVIEW = 8 * 1024 * 1024
HEADER_BYTES = 64
"""Some extensions put a header of their own before the picture; it is shorter than this."""
PICTURES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"))


@dataclass(frozen=True)
class Snapshot:
    """``fraction`` 0..1 over the nodes and their steps, never falling; ``node_id`` is one of the graph's own."""

    fraction: float = 0.0
    node_id: str | None = None
    step: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Preview:
    """A picture of what is made, as it was sent. ``number`` grows with each."""

    image: bytes
    suffix: str
    number: int


def weigh(graph: Mapping[str, Json], is_output: Callable[[str], bool]) -> dict[str, float]:
    """The nodes that will run, each with its share of the work: those that no output node needs are left out.

    A sampler weighs its steps, any other node one. ``is_output`` is asked by node id.
    """
    todo = [node_id for node_id in graph if is_output(node_id)] or list(graph)
    weights: dict[str, float] = {}
    while todo:
        node_id = todo.pop()
        if node_id in weights or node_id not in graph:
            continue
        inputs = graph[node_id]["inputs"]
        weights[node_id] = 1.0 + _steps(inputs)
        todo += [str(value[0]) for value in inputs.values() if isinstance(value, list) and len(value) == 2]
    return weights


def _steps(inputs: Mapping[str, Any]) -> int:
    """Of a sampler, which may begin and end in between."""
    steps, first, last = (inputs.get(name) for name in ("steps", "start_at_step", "end_at_step"))
    if not isinstance(steps, int) or not 0 < steps <= MOST_STEPS:
        return 0
    last = min(steps, last) if isinstance(last, int) else steps
    return max(0, last - first) if isinstance(first, int) and 0 <= first else max(0, last)


class PromptProgress:
    """Follows one prompt's messages. Fed by the reader's thread, read by another."""

    def __init__(self, prompt_id: str, weights: Mapping[str, float]) -> None:
        self.prompt_id = prompt_id
        self.changed = threading.Event()
        """Set at the prompt's end, or when the connection broke: look at the truth now."""
        self.last_message_s: float | None = None
        self._weights = weights
        self._parts: dict[str, float] = {}
        self._inner: dict[str, set[str]] = {}
        """The nodes that ended of those that a node of the graph brought forth."""
        self._told_of_states = False
        self._runs = False
        self._now = Snapshot()
        self._preview: Preview | None = None

    def snapshot(self) -> Snapshot:
        return self._now

    @property
    def preview(self) -> Preview | None:
        """The latest picture."""
        return self._preview

    # --- pictures ------------------------------------------------------------------------------------------------

    def apply_binary(self, payload: bytes) -> None:
        """Take one binary message. A picture that does not say whose it is must be ours, while we run."""
        if len(payload) > LARGEST_PREVIEW:
            return
        event, start = int.from_bytes(payload[:4], "big"), 8
        if event == PREVIEW_OF_NODE:
            start += int.from_bytes(payload[4:8], "big")
            if _prompt_of(payload[8:start]) != self.prompt_id:
                return
        elif event != PREVIEW or not self._runs:
            return
        if (found := _picture(payload, start)) is not None:
            self.last_message_s = monotonic()
            self._preview = Preview(*found, 1 if self._preview is None else self._preview.number + 1)

    # --- messages ------------------------------------------------------------------------------------------------

    def apply(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take one message.

        Without a prompt id come ``status``, what monitors among the custom nodes send for ever (it is no progress),
        and, after a reconnection, one ``executing``: only ours can be meant by that. It says where the run stands,
        also one that stands still, so that it is no progress either.
        """
        if data.get("prompt_id", self.prompt_id if kind == "executing" else None) != self.prompt_id:
            return
        if "prompt_id" in data:
            self.last_message_s = monotonic()
        self._runs = True
        if kind == "execution_cached":
            self._parts.update(dict.fromkeys(_texts(data.get("nodes")), 1.0))
        elif kind == "executing":
            self._executing(data)
        elif kind == "progress":
            self._step(data)
        elif kind == "progress_state":
            self._states(data.get("nodes"))
        elif kind == "executed":
            self._ended(str(data.get("node")), _display(data))
        elif kind == "execution_success":
            self._parts.update(dict.fromkeys(self._weights, 1.0))
        self._update()

    def _executing(self, data: Mapping[str, Any]) -> None:
        if data.get("node") is None:
            if "prompt_id" in data:
                self._runs = False
                self.changed.set()
            return
        before = self._now.node_id
        if before is not None and before != _display(data) and not self._told_of_states:
            self._parts[before] = 1.0  # an older server does not say when a node ends
        self._now = Snapshot(self._now.fraction, _display(data))

    def _step(self, data: Mapping[str, Any]) -> None:
        """Of the node that runs, or of one that it brought forth."""
        node_id, value, most = str(data.get("node")), data.get("value"), data.get("max")
        if (part := _part(value, most)) is None:
            return
        if node_id in self._weights:
            self._parts[node_id] = max(part, self._parts.get(node_id, 0.0))
        if node_id not in self._weights or node_id == self._now.node_id:
            self._now = replace(self._now, step=int(value), steps=int(most))  # type: ignore[arg-type]

    def _states(self, nodes: Any) -> None:
        self._told_of_states = True
        for state in nodes.values() if isinstance(nodes, dict) else ():
            if isinstance(state, dict):
                node_id = str(state.get("node_id"))
                if state.get("state") == "finished":
                    self._ended(node_id, str(state.get("display_node_id") or node_id))
                elif node_id in self._weights and (part := _part(state.get("value"), state.get("max"))) is not None:
                    self._parts[node_id] = max(part, self._parts.get(node_id, 0.0))

    def _ended(self, node_id: str, display: str) -> None:
        """How many nodes a node brings forth is not known: each that ends takes half of what is left."""
        if node_id in self._weights:
            self._parts[node_id] = 1.0
        elif display in self._weights:
            ended = self._inner.setdefault(display, set())
            ended.add(node_id)
            self._parts[display] = max(self._parts.get(display, 0.0), 1.0 - 0.5 ** min(len(ended), 50))

    def _update(self) -> None:
        done = sum(weight * self._parts.get(node_id, 0.0) for node_id, weight in self._weights.items())
        fraction = done / max(1.0, sum(self._weights.values()))
        self._now = replace(self._now, fraction=max(self._now.fraction, min(1.0, fraction)))


class Pace:
    """How long the rest will take, from how fast it went lately. Times are monotonic seconds."""

    WINDOW_S, WINDOW_SHARE = 15.0, 0.25
    """How far back "lately" goes: so long, or this share of the time since the start if that is more."""
    LEAST_S, LEAST_PART = 1.0, 0.01
    """An estimate needs this much time and this much progress."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []

    def note(self, now_s: float, fraction: float) -> None:
        """``fraction`` has been reached by now. What is there at the first note cost nothing: it was cached."""
        if self._seen and now_s - self._seen[-1][0] < self.LEAST_S / 4 and fraction < 1.0:
            return
        self._seen.append((now_s, fraction))
        start_s = now_s - max(self.WINDOW_S, self.WINDOW_SHARE * (now_s - self._seen[0][0]))
        while len(self._seen) > 2 and self._seen[2][0] <= start_s:
            del self._seen[1]  # the very first stays, and one at or before the window's start

    def eta_s(self, now_s: float, fraction: float) -> float | None:
        """Seconds to the end, or None while that cannot be known."""
        if fraction >= 1.0:
            return 0.0
        for since_s, from_fraction in [*self._seen[1:2], *self._seen[:1]]:
            took_s, made = now_s - since_s, fraction - from_fraction
            if took_s >= self.LEAST_S and made >= self.LEAST_PART:
                return round((1.0 - fraction) * took_s / made, 1)
        return None


def _part(value: Any, most: Any) -> float | None:
    """How much of a node is done, 0..1; None for what are no such numbers."""
    if not isinstance(value, (int, float)) or not isinstance(most, (int, float)):
        return None
    try:
        part = value / most if most > 0 else math.nan
    except OverflowError:
        return None
    return max(0.0, min(1.0, part)) if math.isfinite(part) and math.isfinite(most) else None


def _prompt_of(metadata: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        named = json.loads(metadata)
        return named.get("prompt_id") if isinstance(named, dict) else None
    return None


def _picture(payload: bytes, start: int) -> tuple[bytes, str] | None:
    """The picture and its suffix. It is known by its first bytes, not by what is said of it."""
    for magic, suffix in PICTURES:
        at = payload.find(magic, start, start + HEADER_BYTES + len(magic))
        if at >= 0:
            return payload[at:], suffix
    return None


def _display(data: Mapping[str, Any]) -> str:
    """The node of the prompt behind a node of a subgraph."""
    return str(data.get("display_node") or data.get("node"))


def _texts(value: Any) -> Collection[str]:
    return [str(part) for part in value] if isinstance(value, list) else []
