"""Requests to Supabase Storage, one by one: bounded in time and memory, every way to fail made a PublishFailed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, Union
from urllib.parse import quote

import httpx

from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.storage_answers import Answer, Target, failure_of, spoken, unavailable
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.upload_file import check_stop

BODY_BYTES = 64 * 1024
"""The most that is read of an answer."""
_DONE = "done"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Patience:
    """``_s`` are seconds. ``tries``: in a row without any progress, before whoever asked has to wait."""

    tries: int = 4
    first_s: float = 0.5
    max_s: float = 8.0
    connect_s: float = 5.0
    write_s: float = 30.0
    """The longest that the network takes nothing more of a body."""
    answer_s: float = 60.0

    def pause_s(self, failures: int, asked_s: float | None) -> float:
        """Before the next try, with jitter; ``asked_s``: what the other side wants at least."""
        grown: float = self.first_s * 2.0 ** min(failures - 1, 10)
        return max(min(self.max_s, grown) * random.uniform(0.5, 1.0), asked_s or 0.0)

    def give_up(self, failures: int, failure: PublishFailed) -> bool:
        """True when the failure is the caller's to deal with."""
        too_long = (failure.retry_after_s or 0.0) > self.max_s
        return failure.permanent or failures >= self.tries or too_long


class Wire:
    """One project's Storage. Safe to use from several threads."""

    def __init__(self, project: SupabaseProject, patience: Patience) -> None:
        self._project = project
        self._patience = patience
        self._timeout = httpx.Timeout(
            patience.answer_s, connect=patience.connect_s, write=patience.write_s, pool=patience.answer_s
        )

    def place(self, *parts: str) -> str:
        """The address of a part of Storage; each part may hold slashes."""
        return "/".join([self._project.storage_url, *(quote(part, safe="/") for part in parts)])

    def ask(
        self,
        target: Target,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Union[bytes, Iterable[bytes], None] = None,
    ) -> Answer:
        """Any answer of the server. Raises :class:`PublishFailed` when there is none."""
        ours = self._project.headers()
        problem: PublishFailed | None = None
        try:
            return self._exchange(method, url, {**ours, **(headers or {})}, content)
        except httpx.TimeoutException as error:
            problem = unavailable(target, f"no answer from Storage in time ({type(error).__name__})")
        except (httpx.TransportError, httpx.StreamError) as error:
            problem = unavailable(target, f"no connection with Storage: {spoken(str(error), _secrets(ours))}")
        # Outside of the handler: the library's error, which may quote a header, is no part of ours.
        raise problem

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: Union[bytes, Iterable[bytes], None]
    ) -> Answer:
        deadline = time.monotonic() + self._patience.answer_s
        request = self._project.http.build_request(
            method, url, headers=dict(headers), content=content, timeout=self._timeout
        )
        response = self._project.http.send(request, stream=True, follow_redirects=False)
        try:
            body = b""
            for piece in response.iter_bytes():
                body += piece
                if len(body) > BODY_BYTES or time.monotonic() > deadline:
                    break  # closing it drops the connection, and with it the rest
        finally:
            response.close()
        text = body[:BODY_BYTES].decode("utf-8", "replace")
        return Answer(response.status_code, response.headers, text, _secrets(headers))

    def demand(
        self,
        target: Target,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Union[bytes, Iterable[bytes], None] = None,
    ) -> Answer:
        """An answer that means success. Raises :class:`PublishFailed` for every other."""
        answer = self.ask(target, method, url, headers=headers, content=content)
        if 200 <= answer.status < 300:
            return answer
        raise failure_of(answer, target)

    def persist(self, step: Callable[[], _Result], stop: threading.Event) -> _Result:
        """``step()``, again after failures that pass. It must be safe to repeat."""
        failures = 0
        while True:
            check_stop(stop)
            try:
                return step()
            except PublishFailed as failure:
                failures += 1
                self.wait(failures, failure, stop)

    def wait(self, failures: int, failure: PublishFailed, stop: threading.Event) -> None:
        """Pause after one more failure; raises it when that is no use, and ends at once with ``stop``."""
        check_stop(stop)
        if self._patience.give_up(failures, failure):
            raise failure
        stop.wait(self._patience.pause_s(failures, failure.retry_after_s))
        check_stop(stop)


def _secrets(headers: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(value for name, value in headers.items() if name.lower() in ("apikey", "authorization"))[:1]


def apart(work: Callable[[], None], stop: threading.Event) -> None:
    """``work()`` in a thread of its own, so that ``stop`` ends the wait for it at once, whatever call it hangs in.

    What is left behind notices at its next step, at the latest when its time-out runs out. Raises what it raised.
    """
    over = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # it is raised where somebody waits for it
            errors.append(error)
        finally:
            over.set()

    threading.Thread(target=run, name="transfer", daemon=True).start()
    while not over.wait(0.05):
        check_stop(stop)
    if errors:
        raise errors[0]
