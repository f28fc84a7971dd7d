"""The objects of the Storage stand-in: bytes on the disk, what is known of them in memory.

The rules (which keys are valid, who is refused with which words) are those of the public Storage server.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

_KEY = re.compile(r"[A-Za-z0-9_/!.*'() &$=@;:+,?-]+")
"""Real Storage refuses every other character in a path, also each letter beyond ASCII."""
PIECE = 256 * 1024


class StorageError(Exception):
    """Answered as HTTP 400 with the true code in the body, as the real server does for almost everything."""

    def __init__(self, status: int, code: str, message: str, error: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"statusCode": str(status), "error": error or code, "message": message, "code": code}


def no_such_bucket() -> StorageError:
    return StorageError(404, "NoSuchBucket", "Bucket not found", "Bucket not found")


def no_such_key() -> StorageError:
    return StorageError(404, "NoSuchKey", "Object not found", "not_found")


def too_large() -> StorageError:
    return StorageError(413, "EntityTooLarge", "The object exceeded the maximum allowed size", "Payload too large")


def exists(code: str = "KeyAlreadyExists") -> StorageError:
    return StorageError(409, code, "The resource already exists", "Duplicate")


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class BucketSpec:
    """``size_limit`` in bytes; ``mime_types`` like ``video/*``, None for all."""

    public: bool = True
    size_limit: int | None = None
    mime_types: list[str] | None = None
    created_at: str = field(default_factory=now)

    def check(self, size: int | None, mime: str) -> None:
        if size is not None and self.size_limit is not None and size > self.size_limit:
            raise too_large()
        kinds = (mime, mime.partition("/")[0] + "/*")
        if self.mime_types is not None and not any(kind in self.mime_types for kind in kinds):
            raise StorageError(415, "InvalidMimeType", f"mime type {mime} is not supported", "invalid_mime_type")


@dataclass
class StoredObject:
    """One version of one object; ``id`` and ``created_at`` survive an overwriting."""

    file: Path
    size: int
    mime: str
    cache_control: str
    etag: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    version: str = field(default_factory=lambda: str(uuid.uuid4()))
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    last_modified: str = field(default_factory=now)

    def headers(self, *, cached: bool = True) -> dict[str, str]:
        when = datetime.datetime.fromisoformat(self.last_modified.replace("Z", "+00:00"))
        headers = {"ETag": self.etag, "Last-Modified": when.strftime("%a, %d %b %Y %H:%M:%S GMT")}
        return {**headers, "Cache-Control": self.cache_control} if cached else headers

    def metadata(self) -> dict[str, Any]:
        return {
            "eTag": self.etag,
            "size": self.size,
            "mimetype": self.mime,
            "cacheControl": self.cache_control,
            "lastModified": self.last_modified,
            "contentLength": self.size,
            "httpStatusCode": 200,
        }

    def row(self, bucket: str, name: str) -> dict[str, Any]:
        """As the server describes it after a copy or a deletion."""
        return {
            "name": name,
            "bucket_id": bucket,
            "owner": "",
            "owner_id": "",
            "version": self.version,
            "id": self.id,
            "updated_at": self.updated_at,
            "created_at": self.created_at,
            "last_accessed_at": self.created_at,
            "metadata": self.metadata(),
            "user_metadata": {},
        }


class Intake:
    """A body on its way to the disk."""

    def __init__(self, file: Path) -> None:
        self.path = file
        self.size = 0
        self._digest = hashlib.md5(usedforsecurity=False)
        self._file: BinaryIO | None = None
        file.touch(exist_ok=False)

    def write(self, piece: bytes) -> None:
        if self._file is None:
            self._file = self.path.open("ab")
        self._file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)

    def rest(self) -> None:
        """No file stays open between two requests."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def done(self, mime: str, cache_control: str) -> StoredObject:
        self.rest()
        return StoredObject(self.path, self.size, mime, cache_control, f'"{self._digest.hexdigest()}"')

    def drop(self) -> None:
        self.rest()
        self.path.unlink(missing_ok=True)


class Shelf:
    """All buckets and objects. Only the server's loop writes; tests may read from any thread."""

    def __init__(self, directory: Path) -> None:
        self.buckets: dict[str, BucketSpec] = {"image_uploads": BucketSpec()}
        self.objects: dict[tuple[str, str], StoredObject] = {}
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def bucket(self, name: str) -> BucketSpec:
        if name not in self.buckets:
            raise no_such_bucket()
        return self.buckets[name]

    def may_write(self, bucket: str, name: str, *, upsert: bool, size: int | None, mime: str) -> None:
        """Raises :class:`StorageError` when an upload of that kind is refused."""
        if not _KEY.fullmatch(name):
            raise StorageError(400, "InvalidKey", f"Invalid key: {name}")
        spec = self.bucket(bucket)
        if not upsert and (bucket, name) in self.objects:
            raise exists()
        spec.check(size, mime)

    def intake(self) -> Intake:
        return Intake(self._directory / uuid.uuid4().hex)

    def get(self, bucket: str, name: str) -> StoredObject:
        found = self.objects.get((bucket, name))
        if found is None:
            raise no_such_key()
        return found

    def put(self, bucket: str, name: str, fresh: StoredObject) -> StoredObject:
        before = self.objects.get((bucket, name))
        if before is not None:
            fresh.id, fresh.created_at = before.id, before.created_at
            before.file.unlink(missing_ok=True)
        self.objects[bucket, name] = fresh
        return fresh

    def remove(self, bucket: str, name: str) -> StoredObject | None:
        gone = self.objects.pop((bucket, name), None)
        if gone is not None:
            gone.file.unlink(missing_ok=True)
        return gone

    def names(self, bucket: str) -> list[str]:
        return sorted(name for owner, name in list(self.objects) if owner == bucket)
