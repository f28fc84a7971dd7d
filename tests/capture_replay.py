"""Sends a recorded exchange with a real ComfyUI to another server, and brings both sides to one form.

What differs from run to run is replaced: ids, times, counters, random names, tracebacks, folders. A recording
is a list of steps: `{"send": request, "answer": [status, body]}`, or `{"seen": [node, prompt]}`, the point at
which it had read that `executing` message. `ws` holds the messages of the one websocket, in order.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer, Listener

IDLE_S = 15.0
COUNTER = re.compile(r"_\d{5}")
TEMP_NAME = re.compile(r"ComfyUI_temp_[a-z]{5}")
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass
class Canon:
    """One side of a comparison. Ids become <id0>, <id1>, … and numbers count from the first."""

    ids: list[str] = field(default_factory=list)
    first_number: float | None = None

    def value(self, given: Any, key: str = "") -> Any:
        if isinstance(given, dict):
            return {self.text(name): self.value(item, name) for name, item in given.items()}
        if isinstance(given, list):
            return self._list(given, key)
        if isinstance(given, str):
            return self._string(given, key)
        if key == "timestamp":
            return "<time>" if isinstance(given, int) else given
        return self.number(given) if key == "number" else given

    def _list(self, given: list[Any], key: str) -> list[Any]:
        if key == "traceback":
            assert given and all(isinstance(line, str) for line in given)
            return ["<traceback>"]
        items = [self.value(item) for item in given]
        if len(given) == 5 and isinstance(given[2], dict):
            items[0] = self.number(given[0])
        if key == "errors":
            items.sort(key=lambda error: str(error["details"]))
        return items

    def _string(self, given: str, key: str) -> str:
        if key == "fullpath":
            given = given.rpartition("/")[2]
        elif key == "details":
            given = "\n".join(sorted(given.split("\n")))
        elif key == "exception_message":
            given = re.sub(r"/\S*/", "", given)
        return self.text(given)

    def number(self, given: float) -> float:
        if self.first_number is None:
            self.first_number = given
        return given - self.first_number

    def text(self, given: str) -> str:
        given = ID.sub(lambda found: self._name(found.group()), given)
        return TEMP_NAME.sub("ComfyUI_temp_*****", COUNTER.sub("_#####", given))

    def _name(self, prompt_id: str) -> str:
        if prompt_id not in self.ids:
            self.ids.append(prompt_id)
        return f"<id{self.ids.index(prompt_id)}>"

    def back(self, given: str) -> str:
        """A request of the recording, with the ids of this side."""
        return re.sub(r"<id(\d+)>", lambda found: self.ids[int(found.group(1))], given)


def keep(message: dict[str, Any], ignored: list[str]) -> bool:
    """Of a node's progress only the first two steps and the last are compared."""
    if message["type"] in ignored:
        return False
    if message["type"] == "progress":
        return _is_edge(message["data"])
    if message["type"] == "progress_state":
        return all(_is_edge(node) for node in message["data"]["nodes"].values())
    return True


def _is_edge(progress: dict[str, Any]) -> bool:
    return bool(progress["value"] <= 2 or progress["value"] == progress["max"])


def replay(server: BuiltinServer, recorded: dict[str, Any]) -> None:
    """Asserts that the server answers and tells what the recorded one did."""
    canon = Canon()
    if "client" not in recorded:
        _steps(server, recorded, canon, None)
        return
    with server.listen(recorded["client"]) as listener:
        messages = _steps(server, recorded, canon, listener)
        expected = recorded["ws"]
        while len(_kept(messages, recorded)) < len(expected):
            messages.append(listener.read())
    seen = [canon.value(message) for message in _kept(messages, recorded)]
    assert [message["type"] for message in seen] == [message["type"] for message in expected]
    assert seen == expected


def _kept(messages: list[dict[str, Any]], recorded: dict[str, Any]) -> list[dict[str, Any]]:
    return [message for message in messages if keep(message, recorded["ignored"])]


def _steps(
    server: BuiltinServer, recorded: dict[str, Any], canon: Canon, listener: Listener | None
) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for step in recorded["steps"]:
        if "send" in step:
            _send(server, step, canon)
            if listener is None and step["answer"][0] == 200 and step["send"]["method"] == "POST":
                _until_idle(server)
        elif listener is not None:
            node, prompt = step["seen"]
            messages += listener.until("executing", node=node, prompt_id=canon.back(prompt))
    return messages


def _until_idle(server: BuiltinServer) -> None:
    """Without a websocket the recording says nothing of when a prompt ended; it waited too."""
    deadline = time.monotonic() + IDLE_S
    while server.get("/prompt")["exec_info"]["queue_remaining"]:
        assert time.monotonic() < deadline, "the prompt did not end"
        time.sleep(0.005)


def _send(server: BuiltinServer, step: dict[str, Any], canon: Canon) -> None:
    request = json.loads(canon.back(json.dumps(step["send"])))
    given = {name: request[name] for name in ("json", "headers") if name in request}
    if "raw_body" in request:
        given["data"] = request["raw_body"].encode()
    answer = server.call(request["method"], request["path"], **given)
    is_json = answer.headers.get("Content-Type", "").startswith("application/json")
    body = answer.json() if is_json else answer.text
    assert canon.value(body) == step["answer"][1], request
    assert answer.status_code == step["answer"][0], request
