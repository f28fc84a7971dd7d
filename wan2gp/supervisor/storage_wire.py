"""Requests to Supabase Storage, one by one: bounded in time and memory, every way to fail made a PublishFailed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Union
from urllib.parse import quote

import httpx

from wan2gp.supervisor.patience import Patience
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.storage_answers import Answer, Target, failure_of, spoken, unavailable
from wan2gp.supervisor.supabase_project import SupabaseProject

BODY_BYTES = 64 * 1024
"""The most that is read of an answer."""
BRIEF_S = 15.0
"""The longest wait for the answer to a request that carries no file, seconds."""


class Wire:
    """One project's Storage. Safe to use from several threads."""

    def __init__(self, project: SupabaseProject, patience: Patience) -> None:
        self._project = project
        self._patience = patience

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
        except (httpx.RequestError, httpx.StreamError) as error:
            problem = unavailable(target, f"no connection with Storage: {spoken(str(error), _secrets(ours))}")
        # Outside of the handler: the library's error, which may quote a header, is no part of ours.
        raise problem

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: Union[bytes, Iterable[bytes], None]
    ) -> Answer:
        limits = self._patience
        # After a file Storage still has work to do with it.
        answer_s = min(limits.answer_s, BRIEF_S) if content is None or isinstance(content, bytes) else limits.answer_s
        timeout = httpx.Timeout(answer_s, connect=limits.connect_s, write=limits.write_s)
        request = self._project.http.build_request(method, url, headers=dict(headers), content=content, timeout=timeout)
        response = self._project.http.send(request, stream=True, follow_redirects=False)
        deadline = time.monotonic() + answer_s
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


def _secrets(headers: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(value for name, value in headers.items() if name.lower() in ("apikey", "authorization"))[:1]
