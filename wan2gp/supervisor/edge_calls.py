"""Calls of the predecessor's Edge Functions, one by one: bounded in time, and every answer judged by its status alone.

What matters most of a call that failed is whether it may have done its work: most of these functions must not be called
twice. :class:`NotDone` says that it surely has not, :class:`Doubtful` that nobody can tell.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from wan2gp.supervisor.queue import AccessDenied, FunctionsMissing, QueueError, QueueRefused, QueueUnavailable
from wan2gp.supervisor.storage_answers import spoken
from wan2gp.supervisor.supabase_project import SupabaseProject, retry_after_s

COUNTS = "task-counts"
CLAIM = "claim-next-task"
CREATE = "create-task"
UPDATE = "update-task-status"
UPLOAD_URL = "generate-upload-url"
COMPLETE = "complete_task"
CALL_S: Mapping[str, float] = {COUNTS: 10.0, CLAIM: 15.0, CREATE: 45.0, UPDATE: 30.0, UPLOAD_URL: 30.0, COMPLETE: 60.0}
"""How long each function may take, seconds: what the predecessor's worker waits."""
CONNECT_S = 5.0
TRIES = 3
PAUSE_S = 0.5
"""Before the first repeat of a call that may be repeated, doubled for the next, seconds."""
RETRY_AFTER_MAX_S = 10.0
_NOT_YET = frozenset({425, 429, 503})
"""Said by the gateway in a function's place: nothing has run."""
_PASSES = frozenset({408}) | _NOT_YET
_BODY_MAX = 64 * 1024 * 1024
_SAID_MAX = 300


class NotDone(QueueUnavailable):
    """The function was surely not run. ``retry_after_s``: what was asked for, seconds."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, server_down=True)  # no lease of ours runs out meanwhile
        self.retry_after_s = retry_after_s


class Doubtful(QueueUnavailable):
    """The function may have done its work, or may do it yet. ``status``: what it answered; None: nothing."""

    def __init__(self, message: str, retry_after_s: float | None = None, status: int | None = None) -> None:
        super().__init__(message, server_down=True)
        self.retry_after_s = retry_after_s
        self.status = status


@dataclass(frozen=True)
class Said:
    """What a function answered: success, or a refusal that is the function's own."""

    status: int
    content: bytes
    secret: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """None for what is no JSON that Python can hold."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None

    @property
    def words(self) -> str:
        """For people, without the key, bounded."""
        body = self.json()
        text = body.get("error") or body.get("message") if isinstance(body, dict) else None
        text = text if isinstance(text, str) else self.content[:_SAID_MAX].decode("utf-8", "replace")
        return spoken(text, (self.secret,))


class EdgeCalls:
    """The functions of one project. Safe to use from several threads."""

    def __init__(
        self, project: SupabaseProject, *, call_s: Mapping[str, float] = CALL_S, pause_s: float = PAUSE_S
    ) -> None:
        self._project = project
        self._call_s = call_s
        self._pause_s = pause_s
        self._closed = threading.Event()
        self._hold_until = 0.0
        self.host = urlsplit(project.url).netloc

    def close(self) -> None:
        """Ends pauses, also those to come."""
        self._closed.set()

    def once(self, name: str, body: Mapping[str, Any], stopped: Callable[[float], bool] | None = None) -> Said:
        """One call. Raises :class:`NotDone`, :class:`Doubtful`, :class:`FunctionsMissing`, :class:`AccessDenied`.

        ``stopped(s)`` waits where the project has asked for a pause; True: it was cut short.
        """
        left = self._hold_until - time.monotonic()
        if left > 0 and (stopped or self._closed.wait)(left):
            raise NotDone(f"the Supabase project at {self.host} asked for a pause")
        content = json.dumps(body).encode()
        failure: QueueError
        try:
            response = self._send("POST", name, content, self._call_s[name])
            failure_or_said = self._judged(name, response)
            if isinstance(failure_or_said, Said):
                return failure_or_said
            failure = failure_or_said
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            failure = NotDone(f"cannot reach the Supabase project at {self.host}: {_reason(error)}")
        except (httpx.HTTPError, RuntimeError) as error:
            failure = Doubtful(f"no answer of the Edge Function {name} at {self.host}: {_reason(error)}")
        # Outside of the handler: the library's error, which may quote a header, is no part of ours.
        raise failure

    def repeat(self, name: str, body: Mapping[str, Any]) -> Said:
        """A call that may be made again: a few times while it fails for now. Raises as :meth:`once` does."""
        for tries_left in reversed(range(TRIES)):
            try:
                return self.once(name, body)
            except (NotDone, Doubtful) as failure:
                pause = self._pause_s * 2.0 ** (TRIES - 1 - tries_left) * random.uniform(0.5, 1.5)
                asked = min(failure.retry_after_s or 0.0, RETRY_AFTER_MAX_S)
                if not tries_left or self._closed.wait(max(pause, asked)):
                    raise
        raise AssertionError("unreachable")

    def exists(self, name: str) -> bool:
        """Whether the function is deployed: asked with a method that it refuses, so that nothing is done.

        Raises :class:`QueueUnavailable` when that cannot be told now.
        """
        problem: str
        try:
            response = self._send("GET", name, None, CONNECT_S + self._call_s[name] / 3)
            if response.status_code < 500 and response.status_code not in _PASSES:
                return not _is_gateways(response)
            problem = f"status {response.status_code}"
        except (httpx.HTTPError, RuntimeError) as error:
            problem = _reason(error)
        raise QueueUnavailable(f"cannot reach the Edge Functions at {self.host}: {problem}")

    def _send(self, method: str, name: str, content: bytes | None, call_s: float) -> httpx.Response:
        headers = {**self._project.headers(), "Content-Type": "application/json"}
        with self._project.watch(time.monotonic() + call_s, call_s):
            return self._project.http.request(
                method,
                f"{self._project.functions_url}/{name}",
                content=content,
                headers=headers,
                timeout=httpx.Timeout(call_s, connect=min(CONNECT_S, call_s)),
                follow_redirects=False,
            )

    def _judged(self, name: str, response: httpx.Response) -> Said | QueueError:
        status, asked = response.status_code, retry_after_s(response.headers.get("Retry-After"))
        said = Said(status, response.content[:_BODY_MAX], self._project.headers()["apikey"])
        what = f"the Edge Function {name} at {self.host}"
        if status in _NOT_YET:
            if asked is not None:
                self._hold_until = time.monotonic() + min(asked, RETRY_AFTER_MAX_S)
            return NotDone(f"{what} cannot be called now: HTTP {status}: {said.words}", asked)
        if status >= 500 or status in _PASSES:
            return Doubtful(f"{what} failed: HTTP {status}: {said.words}", asked, status)
        if 300 <= status < 400:
            return AccessDenied(f"{what} sends its callers elsewhere: mend SUPABASE_URL", code=str(status))
        if status == 404 and _is_gateways(response):
            return FunctionsMissing(
                f"the project at {self.host} has no Edge Function {name}: deploy it, or run `wan2gp-ctl db migrate` "
                "and use the supabase backend"
            )
        if status == 401 or (status == 403 and name != COMPLETE):
            return AccessDenied(
                f"{what} does not accept the key ({said.words}): give a personal access token of the project's app, or "
                "its service role key, as SUPABASE_SERVICE_ROLE_KEY",
                code=str(status),
            )
        return said


def refused(name: str, said: Said) -> QueueRefused:
    """What the function will not do, however often it is asked."""
    return QueueRefused(f"the Edge Function {name} refused: {said.words} (HTTP {said.status})", code=str(said.status))


def _is_gateways(response: httpx.Response) -> bool:
    """A 404 that says that there is no such function, not that the function found no such task."""
    if response.status_code != 404:
        return False
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return not response.text.strip().lower().startswith("task")
    return not isinstance(body, dict) or "error" not in body


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_SAID_MAX] or type(error).__name__
