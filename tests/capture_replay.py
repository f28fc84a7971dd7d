"""Sends a recorded exchange with a real ComfyUI to another server, and brings both sides to one form.

What differs from run to run is replaced: ids, times, counters, random names, tracebacks, folders, the bytes of
pictures. A recording is a list of steps, one key each:

- `send` (with `answer`: [status, body]): an HTTP request;
- `connect` (with `path`), `close`: a websocket, by its name in the recording;
- `say` (with `text`): something sent on it;
- `seen`: [node, prompt], the point at which it had read that `executing` message (`by`: which of several);
- `until`: [event, data], the same for any other message;
- `idle`: the point at which no prompt was left;
- `hold`, `release`: until which what is sent meanwhile finds the sleeping node asleep.

`ws` holds the messages of the one websocket, or of each by name, in order. `before` are prompts that ran earlier.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer, Listener

IDLE_S = 15.0
COUNTER = re.compile(r"_\d{5}")
TEMP_NAME = re.compile(r"ComfyUI_temp_[a-z]{5}")
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
Json = dict[str, Any]


@dataclass
class Canon:
    """One side of a comparison. Ids become <id0>, <id1>, … and numbers count from the first.

    `chosen`: numbers that came from the client. Others below zero are those of `front`.
    """

    ids: list[str] = field(default_factory=list)
    first_number: float | None = None
    chosen: set[float] = field(default_factory=set)

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
            items[0], items[4] = self.number(given[0]), sorted(given[4])  # the outputs are a set
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

    def choose(self, request: Json) -> None:
        """Remembers the number a request brings along."""
        body = request.get("json")
        if isinstance(body, dict) and isinstance(body.get("number"), (int, float)):
            self.chosen.add(body["number"])

    def number(self, given: float) -> float | str:
        if given in self.chosen:
            return given
        if self.first_number is None:
            self.first_number = given
        return given - self.first_number if given >= 0 else f"<front {-given - self.first_number:g}>"

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


def keep(message: Json, ignored: list[str]) -> bool:
    """Of a node's progress only the first two steps and the last are compared."""
    if message["type"] in ignored:
        return False
    if message["type"] == "progress":
        return _is_edge(message["data"])
    if message["type"] == "progress_state":
        return all(_is_edge(node) for node in message["data"]["nodes"].values())
    return True


def _is_edge(progress: Json) -> bool:
    return bool(progress["value"] <= 2 or progress["value"] == progress["max"])


def replay(server: BuiltinServer, recorded: Json) -> None:
    """Asserts that the server answers and tells what the recorded one did."""
    for prompt in recorded.get("before", ()):
        server.run(prompt)
    with contextlib.ExitStack() as stack:
        _Replay(server, recorded, stack).run()


@dataclass
class _Replay:
    server: BuiltinServer
    recorded: Json
    stack: contextlib.ExitStack
    canon: Canon = field(default_factory=Canon)
    listeners: dict[str, Listener] = field(default_factory=dict)
    messages: dict[str, list[Json]] = field(default_factory=dict)

    def run(self) -> None:
        if "client" in self.recorded:
            self.connect({"connect": "", "path": f"/ws?clientId={self.recorded['client']}"})
        for step in self.recorded["steps"]:
            kind = next(name for name in step if hasattr(self, name))
            getattr(self, kind)(step)
        for name in self.messages:
            self._read_all(name)
            self._compare(name)

    def connect(self, step: Json) -> None:
        name, (path, _, client) = step["connect"], step["path"].partition("?clientId=")
        self.listeners[name] = self.stack.enter_context(self.server.listen(client, path))
        self.messages[name] = []

    def close(self, step: Json) -> None:
        """The request after it makes sure that the server has seen it."""
        self._read_all(step["close"])
        self.listeners[step["close"]].socket.close()
        self.server.get("/prompt")

    def say(self, step: Json) -> None:
        self.listeners[step["say"]].socket.send(step["text"])

    def seen(self, step: Json) -> None:
        node, prompt = step["seen"]
        if self.listeners:
            self._read_until(step, "executing", {"node": node, "prompt_id": prompt})
        if node is not None and (self.server.input / "hold").exists():
            self._wait("the sleeper does not sleep", (self.server.input / "asleep").exists)

    def until(self, step: Json) -> None:
        self._read_until(step, *step["until"])

    def idle(self, step: Json) -> None:
        """Without a websocket the recording says nothing of when a prompt ended; it waited too."""
        self._wait("the prompt did not end", lambda: not self.server.get("/prompt")["exec_info"]["queue_remaining"])

    def _wait(self, otherwise: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + IDLE_S
        while not done():
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.005)

    def hold(self, step: Json) -> None:
        (self.server.input / "asleep").unlink(missing_ok=True)
        (self.server.input / "hold").touch()

    def release(self, step: Json) -> None:
        (self.server.input / "hold").unlink()

    def send(self, step: Json) -> None:
        request = json.loads(self.canon.back(json.dumps(step["send"])))
        self.canon.choose(request)
        given = {name: request[name] for name in ("json", "headers") if name in request}
        if "raw_body" in request:
            given["data"] = request["raw_body"].encode()
        answer = self.server.call(request["method"], request["path"], **given)
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        body = answer.json() if is_json else answer.text
        assert self.canon.value(body) == step["answer"][1], request
        assert answer.status_code == step["answer"][0], request
        if not self.listeners and answer.status_code == 200 and request["method"] == "POST":
            self.idle(step)

    def _read_until(self, step: Json, event: str, data: Json) -> None:
        name = step.get("by", next(iter(self.listeners)))
        wanted = json.loads(self.canon.back(json.dumps(data)))
        self.messages[name] += self.listeners[name].until(event, **wanted)

    def _expected(self, name: str) -> list[Json]:
        ws = self.recorded["ws"]
        expected: list[Json] = ws if isinstance(ws, list) else ws[name]
        return expected

    def _kept(self, name: str) -> list[Json]:
        return [message for message in self.messages[name] if keep(message, self.recorded["ignored"])]

    def _read_all(self, name: str) -> None:
        while len(self._kept(name)) < len(self._expected(name)):
            self.messages[name].append(self.listeners[name].read())

    def _compare(self, name: str) -> None:
        seen = [self.canon.value(message) for message in self._kept(name)]
        expected = self._expected(name)
        assert [message["type"] for message in seen] == [message["type"] for message in expected]
        assert seen == expected
