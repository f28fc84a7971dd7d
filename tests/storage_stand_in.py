"""A stand-in of Supabase Storage, as one aiohttp handler for ``/storage/v1/*``. Its words are the recorded ones.

It refuses what the real server refuses, keeps its objects on the disk, holds no body in memory, and can be told to
misbehave: see :class:`Mischief`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union
from urllib.parse import unquote

from aiohttp import BodyPartReader, web

from tests.storage_shelf import (
    PIECE,
    BucketSpec,
    Intake,
    Shelf,
    StorageError,
    StoredObject,
    exists,
    no_such_bucket,
    too_large,
)
from tests.storage_tokens import Tokens
from tests.storage_tus import Resumable

__all__ = ["BucketSpec", "Mischief", "Refusal", "StorageStandIn"]

PREFIX = "/storage/v1"
SIGNED_UPLOAD_S = 7200
Body = Union[str, dict[str, Any]]


@dataclass
class Refusal:
    """An answer in place of the real one, ``times`` times. ``part``: how the rest of the path must begin."""

    status: int
    body: Body = ""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    method: str | None = None
    part: str = ""

    def fits(self, request: web.Request, rest: str) -> bool:
        return self.times > 0 and self.method in (None, request.method) and rest.startswith(self.part)

    def answer(self) -> web.Response:
        if isinstance(self.body, str):
            return web.Response(status=self.status, text=self.body, headers=self.headers)
        return web.json_response(self.body, status=self.status, headers=self.headers)


class _Dropped(Exception):
    """The connection was cut on purpose."""


@dataclass
class Mischief:
    """Set from a test at any time; each cut and each lost answer happens once."""

    cuts: list[int] = field(default_factory=list)
    """The next bodies are read for so many bytes, then the connection goes."""
    lost: int = 0
    """So many finished uploads are not answered: done, and the connection goes."""
    lost_at: int | None = None
    """The same for the chunk that brings a resumable upload to this offset."""
    pause_s: float = 0.0
    """Between two pieces of a body, seconds."""
    refusals: list[Refusal] = field(default_factory=list)


class StorageStandIn:
    """``keys(token)``: whether a bearer token may do everything. ``directory``: where the objects lie."""

    def __init__(self, keys: Callable[[str], bool], directory: Path) -> None:
        self.mischief = Mischief()
        self.arrived = 0
        """Bytes of all bodies of uploads, also of those that came to nothing."""
        self.directory = directory
        self._keys = keys
        self._shelf = Shelf(directory)
        self.tokens = Tokens()
        self.resumable = Resumable(self._shelf, self._pour)

    @property
    def buckets(self) -> dict[str, BucketSpec]:
        return self._shelf.buckets

    def paths(self, bucket: str) -> list[str]:
        return self._shelf.names(bucket)

    def content(self, bucket: str, path: str) -> bytes | None:
        found = self._shelf.objects.get((bucket, path))
        return found.file.read_bytes() if found else None

    def file(self, bucket: str, path: str) -> Path | None:
        """Where the bytes lie, for those too large for :meth:`content`."""
        found = self._shelf.objects.get((bucket, path))
        return found.file if found else None

    def mime(self, bucket: str, path: str) -> str | None:
        found = self._shelf.objects.get((bucket, path))
        return found.mime if found else None

    def expire_uploads(self) -> None:
        """Every resumable upload that is not finished is gone (410)."""
        self.resumable.expired |= {name for name, upload in self.resumable.uploads.items() if not upload.finished}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        parts = [unquote(part) for part in request.rel_url.raw_path.removeprefix(PREFIX).strip("/").split("/")]
        try:
            refusal = self._refusal(request, "/".join(parts))
            if refusal is not None:
                return refusal.answer()
            answer = await self._answer(request, parts)
            if request.method in ("POST", "PUT", "PATCH") and self._loses(parts, answer):
                raise _Dropped
            return answer
        except StorageError as error:
            return web.json_response(error.body, status=400)
        except _Dropped:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)  # nobody reads it

    def _refusal(self, request: web.Request, rest: str) -> Refusal | None:
        found = next((one for one in self.mischief.refusals if one.fits(request, rest)), None)
        if found is not None:
            found.times -= 1
        return found

    def _loses(self, parts: list[str], answer: web.StreamResponse) -> bool:
        mischief = self.mischief
        if mischief.lost_at is not None and answer.headers.get("Upload-Offset") == str(mischief.lost_at):
            mischief.lost_at = None
            return True
        uploads = parts[:2] == ["upload", "resumable"] or parts[:3] == ["object", "upload", "sign"]
        if mischief.lost and (uploads or (parts[0] == "object" and parts[1] in self.buckets)):
            mischief.lost -= 1
            return True
        return False

    async def _answer(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        method = request.method
        if parts[0] == "object" and len(parts) > 3 and (opened := self._open(method, parts)):
            return await opened(request, parts[2], "/".join(parts[3:]))
        if parts[:3] == ["object", "upload", "sign"] and method == "PUT":
            return await self._signed_put(request, parts[3], "/".join(parts[4:]))
        if parts[:2] == ["upload", "resumable"]:
            if method not in ("HEAD", "OPTIONS"):
                self._authorise(request)
            return await self.resumable.handle(request, parts[2:])
        self._authorise(request)
        if parts[0] == "bucket":
            return await self._bucket(request, parts[1:])
        if parts[0] == "object":
            return await self._object(request, parts[1:])
        message = f"Route {method}:{request.path.removeprefix(PREFIX)} not found"
        return web.json_response({"message": message, "error": "Not Found", "statusCode": 404}, status=404)

    def _open(self, method: str, parts: list[str]) -> Callable[[web.Request, str, str], Any] | None:
        """Requests that carry no key."""
        if method not in ("GET", "HEAD"):
            return None
        return {"public": self._public, "sign": self._signed}.get(parts[1])

    def _authorise(self, request: web.Request) -> None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise StorageError(400, "InvalidRequest", "headers must have required property 'authorization'", "Error")
        if not self._keys(token):
            raise StorageError(403, "AccessDenied", "JWS Protected Header is invalid", "Unauthorized")

    async def _bucket(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        if request.method == "POST" and not parts:
            wanted = await request.json()
            if wanted["name"] in self.buckets:
                raise exists("BucketAlreadyExists")
            limit, kinds = wanted.get("file_size_limit"), wanted.get("allowed_mime_types")
            self.buckets[wanted["name"]] = BucketSpec(wanted.get("public", False), limit, kinds)
            return web.json_response({"name": wanted["name"]})
        if request.method == "GET" and not parts:
            return web.json_response([_described(name, spec) for name, spec in self.buckets.items()])
        spec = self._shelf.bucket(parts[0])
        if request.method == "GET":
            return web.json_response(_described(parts[0], spec))
        if request.method == "POST" and parts[1:] == ["empty"]:
            for name in self.paths(parts[0]):
                self._shelf.remove(parts[0], name)
            said = "Empty bucket has been queued. Completion may take up to an hour."
            return web.json_response({"message": said})
        if self.paths(parts[0]):
            raise StorageError(409, "ResourceNotEmpty", "The bucket you tried to delete is not empty")
        del self.buckets[parts[0]]
        return web.json_response({"message": "Successfully deleted"})

    async def _object(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        method = request.method
        if method == "POST" and parts[0] in ("move", "copy") and len(parts) == 1:
            return await self._carry(request, parts[0])
        if method == "POST" and parts[0] == "list":
            return self._listed(parts[1], await request.json())
        if method == "POST" and parts[0] == "sign":
            return await self._sign(request, parts[1], "/".join(parts[2:]))
        if method == "POST" and parts[:2] == ["upload", "sign"]:
            return self._sign_upload(request, parts[2], "/".join(parts[3:]))
        if method == "DELETE" and len(parts) == 1:
            return self._delete(parts[0], (await request.json())["prefixes"])
        if method == "GET" and parts[0] == "info":
            return self._info(parts[1], "/".join(parts[2:]))
        if method in ("POST", "PUT"):
            return await self._upload(request, parts[0], "/".join(parts[1:]))
        if parts[0] == "authenticated":
            parts = parts[1:]
        return await self._send(request, self._shelf.get(parts[0], "/".join(parts[1:])))

    async def _upload(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        upsert = request.method == "PUT" or request.headers.get("x-upsert") == "true"
        if request.method == "PUT":
            self._shelf.get(bucket, name)
        stored = await self._receive(request, bucket, name, upsert)
        return web.json_response({"Key": f"{bucket}/{name}", "Id": stored.id})

    async def _signed_put(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        payload = self.tokens.check(request.query.get("token", ""), f"{bucket}/{name}")
        await self._receive(request, bucket, name, payload["upsert"])
        return web.json_response({"Key": f"{bucket}/{name}"})

    async def _receive(self, request: web.Request, bucket: str, name: str, upsert: bool) -> StoredObject:
        """One request's file, plain or in a form; nothing stays of one that breaks off or is refused."""
        intake = self._shelf.intake()
        try:
            if request.content_type == "multipart/form-data":
                mime, cache = await self._form(request, bucket, name, upsert, intake)
            else:
                mime, cache = request.content_type, request.headers.get("Cache-Control", "no-cache")
                self._shelf.may_write(bucket, name, upsert=upsert, size=request.content_length, mime=mime)
                await self._pour(request, intake, None)
            return self._shelf.put(bucket, name, intake.done(mime, cache))
        except BaseException:
            intake.drop()
            raise

    async def _form(
        self, request: web.Request, bucket: str, name: str, upsert: bool, intake: Intake
    ) -> tuple[str, str]:
        cache, limit = "no-cache", self._shelf.bucket(bucket).size_limit
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if part.name == "cacheControl":
                cache = f"max-age={await part.text()}"
            elif part.filename is not None:
                mime = part.headers.get("Content-Type", "application/octet-stream").partition(";")[0]
                self._shelf.may_write(bucket, name, upsert=upsert, size=None, mime=mime)
                await self._write(_pieces(part), intake)
                if limit is not None and intake.size > limit:
                    raise too_large()
                return mime, cache  # like the real server, which takes the fields before the file
        raise StorageError(400, "InvalidRequest", "No content provided")

    async def _pour(self, request: web.Request, intake: Intake, most: int | None) -> int:
        return await self._write(request.content.iter_chunked(PIECE), intake)

    async def _write(self, pieces: AsyncIterator[bytes], intake: Intake) -> int:
        left = self.mischief.cuts.pop(0) if self.mischief.cuts else None
        try:
            return await self._take(pieces, intake, left)
        finally:
            intake.rest()

    async def _take(self, pieces: AsyncIterator[bytes], intake: Intake, left: int | None) -> int:
        taken = 0
        async for piece in pieces:
            kept = piece if left is None else piece[: left - taken]
            intake.write(kept)
            taken += len(kept)
            self.arrived += len(kept)
            if left is not None and taken >= left:
                raise _Dropped
            if self.mischief.pause_s:
                await asyncio.sleep(self.mischief.pause_s)
        return taken

    async def _public(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        if not self._shelf.bucket(bucket).public:
            raise no_such_bucket()
        return await self._send(request, self._shelf.get(bucket, name))

    async def _signed(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        self.tokens.check(request.query.get("token", ""), f"{bucket}/{name}")
        return await self._send(request, self._shelf.get(bucket, name), cached=False)

    async def _send(self, request: web.Request, found: StoredObject, *, cached: bool = True) -> web.StreamResponse:
        first, last, part = 0, found.size - 1, request.http_range
        if part.start is not None or part.stop is not None:
            first, stop, _ = part.indices(found.size)
            last = stop - 1
            if first > last:
                raise StorageError(400, "InvalidRange", "invalid range provided", "invalid_range")
        headers = {**found.headers(cached=cached), "Content-Type": found.mime, "Accept-Ranges": "bytes"}
        answer = web.StreamResponse(headers=headers)
        if first > 0 or last < found.size - 1:
            answer.set_status(206)
            answer.headers["Content-Range"] = f"bytes {first}-{last}/{found.size}"
        answer.content_length = last + 1 - first
        await answer.prepare(request)
        if request.method == "HEAD":
            return answer
        with found.file.open("rb") as file:
            file.seek(first)
            while (wanted := last + 1 - file.tell()) > 0 and (piece := file.read(min(PIECE, wanted))):
                await answer.write(piece)
        await answer.write_eof()
        return answer

    async def _sign(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        lifetime_s = float((await request.json())["expiresIn"])
        self._shelf.bucket(bucket)
        self._shelf.get(bucket, name)
        token = self.tokens.sign(f"{bucket}/{name}", lifetime_s)
        return web.json_response({"signedURL": f"{request.rel_url.raw_path.removeprefix(PREFIX)}?token={token}"})

    def _sign_upload(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        upsert = request.headers.get("x-upsert") == "true"
        self._shelf.may_write(bucket, name, upsert=upsert, size=None, mime="application/octet-stream")
        token = self.tokens.sign(f"{bucket}/{name}", SIGNED_UPLOAD_S, upsert=upsert)
        place = request.rel_url.raw_path.removeprefix(PREFIX)
        return web.json_response({"url": f"{place}?token={token}", "token": token})

    def _info(self, bucket: str, name: str) -> web.StreamResponse:
        found = self._shelf.get(bucket, name)
        described = {
            "id": found.id,
            "name": name,
            "version": found.version,
            "bucket_id": bucket,
            "size": found.size,
            "content_type": found.mime,
            "cache_control": found.cache_control,
            "etag": found.etag,
            "metadata": {},
            "last_modified": found.last_modified,
            "created_at": found.created_at,
        }
        return web.json_response(described, headers=found.headers())

    def _listed(self, bucket: str, wanted: dict[str, Any]) -> web.StreamResponse:
        folder = wanted.get("prefix", "").strip("/")
        within = [name for name in self.paths(bucket) if not folder or name.startswith(folder + "/")]
        rows: dict[str, dict[str, Any]] = {}
        for name in within:
            first, _, deeper = name[len(folder) + bool(folder) :].partition("/")
            whole = self._shelf.get(bucket, name).row(bucket, name)
            kept = ("id", "updated_at", "created_at", "last_accessed_at", "metadata")
            rows[first] = {"name": first, **{key: None if deeper else whole[key] for key in kept}}
        begin = int(wanted.get("offset", 0))
        return web.json_response(list(rows.values())[begin : begin + int(wanted.get("limit", 100))])

    async def _carry(self, request: web.Request, how: str) -> web.StreamResponse:
        wanted = await request.json()
        bucket, source, target = wanted["bucketId"], wanted["sourceKey"], wanted["destinationKey"]
        found = self._shelf.get(bucket, source)
        self._shelf.may_write(bucket, target, upsert=False, size=None, mime=found.mime)
        if how == "move":
            self._shelf.objects[bucket, target] = self._shelf.objects.pop((bucket, source))
            return web.json_response({"message": "Successfully moved"})
        intake = self._shelf.intake()
        with found.file.open("rb") as file:
            while piece := file.read(PIECE):
                intake.write(piece)
        copied = self._shelf.put(bucket, target, intake.done(found.mime, found.cache_control))
        return web.json_response({"Key": f"{bucket}/{target}", "Id": copied.id, **copied.row(bucket, target)})

    def _delete(self, bucket: str, names: list[str]) -> web.StreamResponse:
        self._shelf.bucket(bucket)
        gone = [(name, self._shelf.remove(bucket, name)) for name in names]
        return web.json_response([found.row(bucket, name) for name, found in gone if found is not None])


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    while piece := await part.read_chunk(PIECE):
        yield piece


def _described(name: str, spec: BucketSpec) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "owner": "",
        "public": spec.public,
        "type": "STANDARD",
        "file_size_limit": spec.size_limit,
        "allowed_mime_types": spec.mime_types,
        "created_at": spec.created_at,
        "updated_at": spec.created_at,
    }
