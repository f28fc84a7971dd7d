"""The prompts waiting, the one that runs, and those that ended. For the event loop and the worker."""

from __future__ import annotations

import copy
import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_HISTORY = 10_000
SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")
"""Keys of extra_data that history does not show."""

Json = dict[str, Any]
Item = tuple[float, str, Json, Json, list[str]]
"""number (smallest first), prompt_id, prompt, extra_data, output node ids. A plain tuple, as in the API:
two with the same number and id cannot be ordered: POST /prompt answers 500 although the prompt is queued."""


@dataclass(frozen=True)
class Outcome:
    """How a prompt ended. `messages` are the websocket events kept for the history."""

    outputs: Json
    meta: Json
    success: bool
    messages: list[tuple[str, Json]]

    def status(self) -> Json:
        messages = [[event, data] for event, data in self.messages]
        word = "success" if self.success else "error"
        return {"status_str": word, "completed": self.success, "messages": messages}


class PromptQueue:
    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._changed = threading.Condition(threading.RLock())
        self._pending: list[Item] = []
        self._running: dict[int, Item] = {}
        self._history: dict[str, Json] = {}
        self._tasks = 0
        self._flags: Json = {}

    def put(self, item: Item) -> None:
        with self._changed:
            heapq.heappush(self._pending, item)
            self._on_change()
            self._changed.notify()

    def get(self, timeout_s: float) -> tuple[Item, int] | None:
        """Blocks; None when flags were set or nothing came. The API shows a copy: a run changes it."""
        with self._changed:
            if not self._pending:
                self._changed.wait(timeout_s)
            if not self._pending:
                return None
            item = heapq.heappop(self._pending)
            task = self._tasks
            self._tasks += 1
            self._running[task] = copy.deepcopy(item)
            self._on_change()
            return item, task

    def task_done(self, task: int, outcome: Outcome) -> None:
        with self._changed:
            number, prompt_id, prompt, extra, outputs = self._running.pop(task)
            shown = {key: value for key, value in extra.items() if key not in SECRETS}
            if len(self._history) > MAX_HISTORY:
                self._history.pop(next(iter(self._history)))
            self._history[prompt_id] = {
                "prompt": (number, prompt_id, prompt, shown, outputs),
                "outputs": outcome.outputs,
                "status": outcome.status(),
                "meta": outcome.meta,
            }
            self._on_change()

    def remaining(self) -> int:
        with self._changed:
            return len(self._pending) + len(self._running)

    def snapshot(self) -> tuple[list[Item], list[Item]]:
        """Running and pending; pending is the heap's array, not the order of running."""
        with self._changed:
            return list(self._running.values()), list(self._pending)

    def is_running(self, prompt_id: object) -> bool:
        with self._changed:
            return any(item[1] == prompt_id for item in self._running.values())

    def clear(self) -> None:
        with self._changed:
            self._pending = []
            self._on_change()

    def delete(self, prompt_id: object) -> None:
        """Takes out the first pending one of that id; anything else is no error."""
        with self._changed:
            for index, item in enumerate(self._pending):
                if item[1] == prompt_id:
                    self._pending.pop(index)
                    heapq.heapify(self._pending)
                    self._on_change()
                    return

    def history_of(self, prompt_id: str) -> dict[str, Json]:
        with self._changed:
            return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}

    def history(self, max_items: int | None = None, offset: int = -1) -> dict[str, Json]:
        """Oldest first; with `max_items` and no offset, the last ones."""
        with self._changed:
            entries = list(self._history.items())
        if offset < 0:
            offset = 0 if max_items is None else len(entries) - max_items
        chosen = entries[max(offset, 0) :]
        return dict(chosen if max_items is None else chosen[: max(max_items, 1)])

    def clear_history(self) -> None:
        with self._changed:
            self._history = {}

    def delete_history(self, prompt_id: Any) -> None:
        with self._changed:
            self._history.pop(prompt_id, None)

    def set_flag(self, name: str, value: object) -> None:
        with self._changed:
            self._flags[name] = value
            self._changed.notify()

    def take_flags(self) -> Json:
        with self._changed:
            flags, self._flags = self._flags, {}
            return flags
