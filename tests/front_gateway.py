"""What a project's gateway does with a request: judge its key, meet a fault, pass it on, stream the answer back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tests.front_faults import Fault, Faults
from tests.supabase_keys import ProjectKeys

REST = "/rest/v1/"
_TRANSLATED = (REST, "/storage/v1/")
_RESET = struct.pack("ii", 1, 0)
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_BAD_KEY = "Double check your Supabase `anon` or `service_role` API key."
_NO_KEY = "No `apikey` request header or url param was found."


@dataclass
class Seen:
    """One request. ``at`` is ``time.monotonic()``; ``status`` is None before the answer begins, 0 when none did.

    ``bytes_in`` and ``bytes_out`` count the bodies, ``head_in`` and ``head_out`` the lines before them.
    """

    method: str
    path: str
    at: float
    head_in: int
    bytes_in: int = 0
    head_out: int = 0
    bytes_out: int = 0
    status: int | None = None


class _Returned(web.StreamResponse):
    """An answer from behind."""

    def __init__(self, answer: aiohttp.ClientResponse, seen: Seen) -> None:
        super().__init__(status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers))
        self.untyped = "Content-Type" not in answer.headers
        self.seen = seen


class Gateway:
    """Lives on one loop, from ``open`` to ``close``; ``rest`` is PostgREST's address, ``behind`` has the others'."""

    def __init__(self, keys: ProjectKeys) -> None:
        self.faults = Faults()
        self.requests: list[Seen] = []
        self.rest = ""
        self.behind: dict[str, str] = {}
        self._keys = keys

    async def open(self) -> None:
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        await self._client.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.raw_path, time.monotonic(), _head_in(request))
        self.requests.append(seen)
        try:
            return await self._answer(request, seen, self.faults.meet(request.method, request.raw_path))
        finally:
            seen.status = seen.status or 0

    async def _answer(self, request: web.Request, seen: Seen, fault: Fault | None) -> web.StreamResponse:
        kind = fault.kind if fault else None
        if fault and kind == "status":
            return _faulty(fault, seen)
        if fault and kind == "hang":
            await _hang(fault)
        if kind == "hang" or (fault and kind == "reset" and not fault.after_bytes):
            raise _reset(request)
        if fault and kind == "slow":
            await asyncio.sleep(fault.delay_s)
        return self._refusal(request, seen) or await self._forward(request, seen, fault)

    def _refusal(self, request: web.Request, seen: Seen) -> web.Response | None:
        """The word on a request without one of the project's keys; storage and functions judge by themselves."""
        if not request.path.startswith(REST):
            return None
        apikey = request.headers.get("apikey") or request.query.get("apikey")
        if apikey is None:
            return _says(seen, 401, {"message": "No API key found in request", "hint": _NO_KEY})
        if not self._keys.opens_gateway(apikey):
            return _says(seen, 401, {"message": "Invalid API key", "hint": _BAD_KEY})
        return None

    def _target(self, request: web.Request) -> URL | None:
        path = request.raw_path
        if path.startswith(REST):
            return URL(self.rest + path.removeprefix(REST[:-1]), encoded=True) if self.rest else None
        found = next((address for prefix, address in self.behind.items() if path.startswith(prefix)), None)
        return URL(found + path, encoded=True) if found else None

    def _headers(self, request: web.Request) -> CIMultiDict[str]:
        headers = _end_to_end(request.headers)
        if request.path.startswith(_TRANSLATED):
            given = headers.get("Authorization", "").removeprefix("Bearer ") or headers.get("apikey", "")
            if given:
                headers["Authorization"] = f"Bearer {self._keys.as_jwt(given)}"
        return headers

    async def _forward(self, request: web.Request, seen: Seen, fault: Fault | None) -> web.StreamResponse:
        target = self._target(request)
        if target is None:
            return _says(seen, 404, {"message": "no Route matched with those values"})
        cut = asyncio.Event()
        limit = fault.after_bytes if fault and fault.kind == "reset" else None
        body = _passed_on(request, seen, limit, cut) if request.body_exists else None
        sending = asyncio.create_task(self._send(request, target, body))
        cutting = asyncio.create_task(cut.wait())
        try:
            await asyncio.wait((sending, cutting), return_when=asyncio.FIRST_COMPLETED)
            if cut.is_set():
                raise _reset(request)
            answer = await sending
        except (aiohttp.ClientError, OSError) as error:
            if cut.is_set():
                raise
            if not request.path.startswith(REST):
                raise _reset(request) from error  # one of ours hung up, and meant the client
            return _says(seen, 502, {"message": "An invalid response was received from the upstream server"})
        finally:
            for task in (sending, cutting):
                task.cancel()
            await asyncio.gather(sending, cutting, return_exceptions=True)
        async with answer:
            return await _returned(request, answer, seen, fault)

    async def _send(
        self, request: web.Request, target: URL, body: AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        return await self._client.request(
            request.method, target, headers=self._headers(request), data=body, allow_redirects=False
        )


async def _passed_on(request: web.Request, seen: Seen, limit: int | None, cut: asyncio.Event) -> AsyncIterator[bytes]:
    """The request's body; after ``limit`` bytes of it ``cut`` is set and nothing more comes."""
    async for chunk in request.content.iter_any():
        if limit is not None and seen.bytes_in + len(chunk) >= limit:
            chunk = chunk[: limit - seen.bytes_in]
            seen.bytes_in = limit
            yield chunk
            cut.set()
            await asyncio.Event().wait()
        seen.bytes_in += len(chunk)
        yield chunk


async def _returned(
    request: web.Request, answer: aiohttp.ClientResponse, seen: Seen, fault: Fault | None
) -> web.StreamResponse:
    if fault and fault.kind == "cut_after":
        async for _ in answer.content.iter_any():
            pass
        raise _reset(request)
    response = _Returned(answer, seen)
    await response.prepare(request)
    limit = fault.after_bytes if fault and fault.kind == "cut_answer" else None
    async for chunk in answer.content.iter_any():
        if limit is not None and seen.bytes_out + len(chunk) >= limit:
            chunk = chunk[: limit - seen.bytes_out]
            seen.bytes_out = limit
            await response.write(chunk)
            raise _reset(request, gently=True)
        seen.bytes_out += len(chunk)
        await response.write(chunk)
    await response.write_eof()
    return response


async def as_it_came(request: web.Request, response: web.StreamResponse) -> None:
    """Just before the head is sent: without the content type that aiohttp gives to an answer that had none."""
    if isinstance(response, _Returned):
        if response.untyped:
            response.headers.pop("Content-Type", None)
        _note(response.seen, response)


async def _hang(fault: Fault) -> None:
    ends = time.monotonic() + fault.delay_s if fault.delay_s else float("inf")
    while not fault.lifted.is_set() and time.monotonic() < ends:
        await asyncio.sleep(0.02)


def _faulty(fault: Fault, seen: Seen) -> web.Response:
    body, mime = fault.payload
    headers = CIMultiDict(fault.headers)
    headers.setdefault("Content-Type", mime)
    return _own(seen, web.Response(status=fault.status, body=body, headers=headers))


def _says(seen: Seen, status: int, words: dict[str, str]) -> web.Response:
    return _own(seen, web.json_response(words, status=status))


def _own(seen: Seen, response: web.Response) -> web.Response:
    seen.bytes_out = len(response.body) if isinstance(response.body, bytes) else 0
    _note(seen, response)
    return response


def _note(seen: Seen, response: web.StreamResponse) -> None:
    """Before the client can have it, so that a test that has its answer finds it here."""
    seen.head_out, seen.status = _head_out(response), response.status


def _reset(request: web.Request, *, gently: bool = False) -> ConnectionResetError:
    """Breaks the connection; ``gently``: what was written before still arrives. To be raised."""
    break_off(request.transport, gently=gently)
    return ConnectionResetError("by order of the test")


def break_off(transport: asyncio.BaseTransport | None, *, gently: bool = False) -> None:
    if not isinstance(transport, asyncio.Transport):
        return
    if gently:
        transport.close()
        return
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _end_to_end(headers: Any) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)


def _head_in(request: web.Request) -> int:
    first = len(f"{request.method} {request.raw_path} HTTP/1.1\r\n")
    return first + sum(len(name) + len(value) + 4 for name, value in request.raw_headers) + 2


def _head_out(response: web.StreamResponse) -> int:
    first = len(f"HTTP/1.1 {response.status} {response.reason}\r\n")
    return first + sum(len(name) + len(value) + 4 for name, value in response.headers.items()) + 2
