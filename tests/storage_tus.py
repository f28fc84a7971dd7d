"""Resumable uploads of the Storage stand-in: TUS 1.0.0 as the real server speaks it.

Errors of this protocol are plain text with their true status, but for a refused key, which the server answers before.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from tests.storage_shelf import Intake, Shelf, StorageError

CHUNK = 6 * 1024**2
"""The one size of a chunk that the hosted server allows, but for the last."""
_VERSION = {"Tus-Resumable": "1.0.0"}
_LOCK_S = 5.0

Pour = Callable[[web.Request, Intake, "int | None"], Awaitable[int]]


class TusError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass
class Upload:
    """``offset``: what has arrived; ``sent``: bytes of all PATCHes, whether they were new or not."""

    bucket: str
    name: str
    length: int
    mime: str
    cache_control: str
    upsert: bool
    intake: Intake
    metadata: str
    finished: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Resumable:
    """The part below ``/upload/resumable``."""

    def __init__(self, shelf: Shelf, pour: Pour) -> None:
        self.uploads: dict[str, Upload] = {}
        self.expired: set[str] = set()
        self.location: Callable[[web.Request, str], str] = _recorded
        """Where a new upload is said to be; the recorded server says it without its prefix."""
        self._shelf = shelf
        self._pour = pour

    async def handle(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        try:
            return await self._answer(request, rest)
        except TusError as error:
            return web.Response(status=error.status, text=error.text, headers=_VERSION)
        except StorageError as error:
            return web.Response(status=error.status, text=error.body["message"], headers=_VERSION)

    async def _answer(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        if request.headers.get("Tus-Resumable") != "1.0.0":
            raise TusError(412, "Tus-Resumable Required\n")
        if request.method == "POST" and not rest:
            return self._create(request)
        upload = self._found(rest[-1] if rest else "")
        try:
            await asyncio.wait_for(upload.lock.acquire(), _LOCK_S)
        except asyncio.TimeoutError:
            raise TusError(500, "failed to acquire lock before timeout\n") from None
        try:
            return await self._on(request, upload, rest[-1])
        finally:
            upload.lock.release()

    async def _on(self, request: web.Request, upload: Upload, name: str) -> web.StreamResponse:
        if request.method == "HEAD":
            offset = {"Upload-Offset": str(upload.intake.size), "Upload-Length": str(upload.length)}
            more = {"Upload-Metadata": upload.metadata, "Cache-Control": "no-store"}
            return web.Response(headers={**_VERSION, **offset, **more})
        if request.method == "PATCH":
            return await self._patch(request, upload)
        if request.method == "DELETE":
            return self._terminate(upload, name)
        raise TusError(404, "Not found\n")

    def _create(self, request: web.Request) -> web.StreamResponse:
        if not request.headers.get("Upload-Length", "").isdigit():
            raise TusError(400, "Upload-Length or Upload-Defer-Length header required\n")
        raw = request.headers.get("Upload-Metadata")
        if raw is None:
            raise TusError(400, "Metadata header is required")
        about = _metadata(raw)
        length, mime = int(request.headers["Upload-Length"]), about.get("contentType", "application/octet-stream")
        bucket, name = about.get("bucketName", ""), about.get("objectName", "")
        upsert = request.headers.get("x-upsert") == "true"
        self._shelf.may_write(bucket, name, upsert=upsert, size=None, mime=mime)
        limit = self._shelf.bucket(bucket).size_limit
        if limit is not None and length > limit:
            raise TusError(413, "Maximum size exceeded\n")
        age = about.get("cacheControl", "")
        cache = f"max-age={age}" if age.lstrip("-").isdigit() else "no-cache"
        where = base64.urlsafe_b64encode(f"{bucket}/{name}/{uuid.uuid4()}".encode()).rstrip(b"=").decode()
        self.uploads[where] = Upload(bucket, name, length, mime, cache, upsert, self._shelf.intake(), raw)
        headers = {**_VERSION, "Location": self.location(request, where)}
        return web.Response(status=201, headers={**headers, "Content-Type": "text/plain;charset=UTF-8"})

    def _found(self, name: str) -> Upload:
        if name in self.expired:
            raise TusError(410, "The file for this url no longer exists\n")
        if name not in self.uploads:
            raise TusError(404, "The file for this url was not found\n")
        return self.uploads[name]

    async def _patch(self, request: web.Request, upload: Upload) -> web.StreamResponse:
        if request.headers.get("Content-Type") != "application/offset+octet-stream":
            raise TusError(403, "Content-Type header required\n")
        offset = request.headers.get("Upload-Offset", "")
        if not offset.isdigit():
            raise TusError(403, "Upload-Offset header required\n")
        if int(offset) != upload.intake.size:
            raise TusError(409, "Upload-Offset conflict\n")
        left, announced = upload.length - upload.intake.size, request.content_length
        if announced is not None and announced > left:
            raise TusError(413, "upload's size exceeded\n")
        if announced not in (left, CHUNK):
            raise TusError(400, f"a chunk has {CHUNK} bytes, unless it is the last\n")  # in words of our own
        self._shelf.may_write(upload.bucket, upload.name, upsert=upload.upsert, size=None, mime=upload.mime)
        await self._pour(request, upload.intake, left)
        headers = {**_VERSION, "Upload-Offset": str(upload.intake.size)}
        if upload.intake.size == upload.length:
            self._finish(upload)
            headers["Tus-Complete"] = "1"
        return web.Response(status=204, headers=headers)

    def _finish(self, upload: Upload) -> None:
        if not upload.finished:
            upload.finished = True
            self._shelf.put(upload.bucket, upload.name, upload.intake.done(upload.mime, upload.cache_control))

    def _terminate(self, upload: Upload, name: str) -> web.StreamResponse:
        if upload.finished:
            raise TusError(400, "Cannot terminate an already completed upload\n")
        upload.intake.drop()
        del self.uploads[name]
        return web.Response(status=204, headers=_VERSION)


def _recorded(request: web.Request, name: str) -> str:
    return f"http://{request.host}/upload/resumable/{name}"


def _metadata(raw: str) -> dict[str, str]:
    """``key base64,key base64``; a key may stand alone."""
    found = {}
    for pair in raw.split(","):
        key, _, value = pair.strip().partition(" ")
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise TusError(400, "Upload-Metadata is invalid\n") from None
    return found
