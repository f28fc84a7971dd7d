"""Runs one prompt: which node next, what it is given, what is told to whom. In the worker thread only."""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from wan2gp.comfy_sidecar.builtin.cache import Cached, KeyMaker, OutputCache, is_link, links_of
from wan2gp.comfy_sidecar.builtin.folders import Folders
from wan2gp.comfy_sidecar.builtin.progress import Interrupted, InterruptFlag, NodeRun, Progress
from wan2gp.comfy_sidecar.builtin.prompt_queue import Outcome
from wan2gp.comfy_sidecar.builtin.registry import RUN, Json, NodeType, Registry
from wan2gp.comfy_sidecar.builtin.websocket import Hub

OUT_OF_MEMORY_TIPS = (
    "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before you might "
    "have accidentally set the batch_size to a large number."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """What all prompts share."""

    registry: Registry
    hub: Hub
    folders: Folders
    cache: OutputCache
    interrupt: InterruptFlag
    metadata: bool

    def execute(self, prompt_id: str, prompt: Json, extra_data: Json, outputs: list[str]) -> Outcome:
        """SystemExit and KeyboardInterrupt of a node end the worker thread, as in ComfyUI."""
        self.interrupt.clear()
        self.hub.client_id = extra_data.get("client_id")
        self.hub.last_node = None
        execution = _Execution(self, prompt_id, prompt, extra_data, outputs)
        execution.run()
        self.hub.last_node = None
        return execution.outcome()


class Plan:
    """The nodes still to run. Output nodes come first where they can, then what an output node waits for."""

    def __init__(self, waits_for: dict[str, set[str]], outputs: list[str]) -> None:
        self._waits_for = waits_for
        self._outputs = set(outputs)

    def next(self) -> str | None:
        ready = [node_id for node_id, sources in self._waits_for.items() if not sources]
        if not ready:
            return None
        for node_id in ready:
            if node_id in self._outputs:
                return node_id
        blocking = {source for output in self._outputs for source in self._waits_for.get(output, ())}
        return next((node_id for node_id in ready if node_id in blocking), ready[0])

    def done(self, node_id: str) -> None:
        del self._waits_for[node_id]
        for sources in self._waits_for.values():
            sources.discard(node_id)


@dataclass
class _Execution:
    engine: Engine
    prompt_id: str
    prompt: Json
    extra_data: Json
    outputs: list[str]
    success: bool = True
    messages: list[tuple[str, Json]] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    shown: dict[str, Cached] = field(default_factory=dict)
    given: Json = field(default_factory=dict)
    """Inputs of the node that runs, for the report of its error."""

    def __post_init__(self) -> None:
        self.progress = Progress(self.engine.hub, self.prompt_id)

    def run(self) -> None:
        self._message("execution_start", {"prompt_id": self.prompt_id})
        keys = KeyMaker(self.prompt, self.engine.registry).keys(self.outputs)
        known = self.engine.cache.begin(keys)
        self._message("execution_cached", {"nodes": known, "prompt_id": self.prompt_id})
        plan = Plan(self._waits_for(), self.outputs)
        while (node_id := plan.next()) is not None:
            if not self._node(node_id):
                self.success = False
                return
            plan.done(node_id)
        self._message("execution_success", {"prompt_id": self.prompt_id})

    def outcome(self) -> Outcome:
        outputs = {node_id: cached.ui for node_id, cached in self.shown.items()}
        meta = {node_id: cached.meta for node_id, cached in self.shown.items()}
        return Outcome(outputs, meta, self.success, self.messages)

    def _waits_for(self) -> dict[str, set[str]]:
        waits: dict[str, set[str]] = {}
        todo = list(reversed(self.outputs))
        while todo:
            node_id = todo.pop()
            if node_id in waits:
                continue
            waits[node_id] = set()
            if self.engine.cache.get(node_id) is None:
                sources = [source for _, source, _ in links_of(self._type(node_id), self.prompt[node_id]["inputs"])]
                waits[node_id] = {source for source in sources if self.engine.cache.get(source) is None}
                todo += sorted(waits[node_id], reverse=True)
        return waits

    def _node(self, node_id: str) -> bool:
        cached = self.engine.cache.get(node_id)
        if cached is not None:
            self._show(node_id, cached, always=True)
            return True
        self.progress.start(node_id)
        self.engine.hub.last_node = node_id
        self._send("executing", {"node": node_id, "display_node": node_id, "prompt_id": self.prompt_id})
        self.given = {}
        try:
            cached = self._call(node_id)
        except Interrupted:
            log.info("Processing interrupted")
            self._failed("execution_interrupted", node_id, {}, broadcast=True)
            return False
        except Exception as error:  # whatever a node raises is the outcome of the prompt, told to its client
            log.error("!!! Exception during processing !!! %s", error, exc_info=error)
            self._failed("execution_error", node_id, self._report(error), broadcast=False)
            return False
        self.engine.cache.put(node_id, cached)
        self._show(node_id, cached, always=False)
        self.executed.append(node_id)
        return True

    def _call(self, node_id: str) -> Cached:
        node_type = self._type(node_id)
        arguments = self._arguments(node_id, node_type)
        self.engine.interrupt.check()
        returned = node_type.function(**arguments)
        ui = None
        if isinstance(returned, dict):
            ui = {key: list(items) for key, items in returned["ui"].items()} if "ui" in returned else None
            returned = returned.get("result", ())
        meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
        return Cached(tuple(returned), ui, meta if ui is not None else None)

    def _arguments(self, node_id: str, node_type: NodeType) -> Json:
        declared = node_type.inputs()
        values = self.prompt[node_id]["inputs"]
        known = {**declared.get("required", {}), **declared.get("optional", {})}
        accepts_any = getattr(node_type.node, "ACCEPT_ANY_INPUT", False)
        arguments: Json = {}
        for name, value in values.items():
            if name in known:
                arguments[name] = self._result(*value) if is_link(value) else value
            elif accepts_any:
                arguments[name] = value
        hidden = {
            "PROMPT": self.prompt,
            "EXTRA_PNGINFO": self.extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": node_id,
        }
        wanted = declared.get("hidden", {})
        self.given = arguments | {name: hidden[kind] for name, kind in wanted.items() if kind in hidden}
        run = NodeRun(self.engine.folders, self.engine.metadata, node_id, self.progress, self.engine.interrupt)
        return self.given | {name: run for name, kind in wanted.items() if kind == RUN}

    def _result(self, source: str, slot: int) -> Any:
        cached = self.engine.cache.get(source)
        if cached is None:
            raise RuntimeError(f"cannot read input: node {source} has no result")
        return cached.results[slot]

    def _show(self, node_id: str, cached: Cached, *, always: bool) -> None:
        """`always`: a cached node is reported even without ui, with output null."""
        if cached.ui is not None:
            self.shown[node_id] = cached
        if cached.ui is not None or always:
            data = {
                "node": node_id,
                "display_node": node_id,
                "output": cached.ui,
                "prompt_id": self.prompt_id,
            }
            self._send("executed", data)
        self.progress.finish(node_id)

    def _report(self, error: Exception) -> Json:
        kind = type(error)
        tips = OUT_OF_MEMORY_TIPS if kind.__name__ == "OutOfMemoryError" else ""
        return {
            "exception_message": f"{error}\n{tips}",
            "exception_type": kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}",
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": {name: [_shown_value(value)] for name, value in self.given.items()},
            "current_outputs": list(self.prompt),
        }

    def _failed(self, event: str, node_id: str, report: Json, *, broadcast: bool) -> None:
        class_type = self.prompt[node_id]["class_type"]
        data: Json = {"prompt_id": self.prompt_id, "node_id": node_id, "node_type": class_type}
        self._message(event, {**data, "executed": list(self.executed), **report}, broadcast=broadcast)

    def _message(self, event: str, data: Json, *, broadcast: bool = False) -> None:
        """Kept for the history; sent to the prompt's client, or to all where the real server does so."""
        data = {**data, "timestamp": int(time.time() * 1000)}
        self.messages.append((event, data))
        if broadcast:
            self.engine.hub.send(event, data, self.engine.hub.client_id)
        else:
            self._send(event, data)

    def _send(self, event: str, data: Json) -> None:
        if self.engine.hub.client_id is not None:
            self.engine.hub.send(event, data, self.engine.hub.client_id)

    def _type(self, node_id: str) -> NodeType:
        return self.engine.registry[self.prompt[node_id]["class_type"]]


def _shown_value(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, bool, str)) else str(value)
