"""One bucket of Supabase Storage: files go up streamed and resumable, and come back as URLs.

Up to 6 MiB a file is one request; above that it is a resumable upload, in which nothing is sent twice. Everything
overwrites, so that a repeat is harmless. Memory stays flat, whatever the size.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan2gp.storage_address import LONGEST_PATH
from wan2gp.supervisor.patience import Patience, apart
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.storage_answers import Answer, StorageMissing, Target, spoken, unavailable
from wan2gp.supervisor.storage_wire import Wire
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.tus import CHUNK_BYTES, Resumable
from wan2gp.supervisor.upload_file import UploadFile, check_stop, plain_mime

__all__ = ["Bucket", "PublishFailed", "StorageMissing"]

CACHE_S = 3600
"""How long whoever downloads an object may keep it, seconds: storage3's own default."""
_BATCH = 500
_REMEMBERED = 64
"""Unfinished uploads that a later call can go on with."""


@dataclass(frozen=True)
class _Begun:
    name: str
    state: tuple[int, int, int]


class Bucket:
    """Safe to use from several threads; two of them must not write the same path at once.

    Every method raises :class:`PublishFailed`. Messages name the bucket and the path, never the key.
    """

    def __init__(self, project: SupabaseProject, name: str, *, patience: Patience | None = None) -> None:
        self.name = name
        self._patience = patience or Patience()
        self._wire = Wire(project, self._patience)
        self._resumable = Resumable(self._wire, self._patience)
        self._begun: dict[str, _Begun] = {}
        self._lock = threading.Lock()

    def put(self, path: str, file: Path, mime: str, *, stop: threading.Event) -> None:
        """Store ``file`` under ``path``, over what is there. Returns when Storage has it.

        ``stop`` ends it at once (``worker.stopping``). A later call for the same file goes on where this one failed.
        """
        _check_path("upload", self.name, path)
        check_stop(stop)
        apart(lambda: self._put(path, file, plain_mime(mime), stop), stop)

    def _put(self, path: str, file: Path, mime: str, stop: threading.Event) -> None:
        with UploadFile(file, stop) as opened:
            target = Target("upload", self.name, path, opened.size)
            if opened.size <= CHUNK_BYTES:
                self._patience.persist(lambda: self._send(opened, target, mime), stop)
                return
            begun = self._begun.get(path)
            name = begun.name if begun is not None and begun.state == opened.state else None
            self._resumable.upload(
                opened, target, mime, CACHE_S, stop, name, lambda name: self._remember(path, name, opened)
            )

    def _send(self, file: UploadFile, target: Target, mime: str) -> None:
        """In one form, as storage3 does."""
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="cacheControl"\r\n\r\n{CACHE_S}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{_form_name(target.path)}"\r\n'
            f"Content-Type: {mime}\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "x-upsert": "true",
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + file.size + len(tail)),
        }
        place = self._wire.place("object", self.name, target.path)
        answer = self._wire.demand(target, "POST", place, headers=headers, content=_form(head, file, tail))
        if "Key" not in answer.json():
            raise _nonsense(target, answer)

    def _remember(self, path: str, name: str | None, file: UploadFile) -> None:
        with self._lock:
            self._begun.pop(path, None)
            if name is not None:
                self._begun[path] = _Begun(name, file.state)
            while len(self._begun) > _REMEMBERED:
                del self._begun[next(iter(self._begun))]

    def remove(self, paths: Sequence[str]) -> None:
        """Delete the objects, and what was begun to be uploaded there; it is fine when some are absent."""
        over = threading.Event()  # never set: deletions are short
        for path in paths:
            _check_path("delete", self.name, path)
            with self._lock:
                begun = self._begun.pop(path, None)
            if begun is not None:
                self._resumable.terminate(Target("delete", self.name, path), begun.name)
        for first in range(0, len(paths), _BATCH):
            batch = list(paths[first : first + _BATCH])
            self._patience.persist(lambda batch=batch: self._delete(batch), over)  # type: ignore[misc]

    def _delete(self, paths: list[str]) -> None:
        content = json.dumps({"prefixes": paths}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            place = self._wire.place("object", self.name)
            self._wire.demand(Target("delete", self.name), "DELETE", place, headers=headers, content=content)
        except StorageMissing:
            return  # a bucket that does not exist holds none of them

    def url(self, path: str, signed_s: float | None) -> str:
        """Where anybody can get the object: for ``signed_s`` seconds by a signed URL, or None: in a public bucket."""
        if signed_s is None:
            _check_path("name", self.name, path)
            return self._wire.place("object/public", self.name, path)
        return self._patience.persist(lambda: self.sign(path, signed_s), threading.Event())

    def sign(self, path: str, ttl_s: float) -> str:
        """A URL that opens the object for ``ttl_s`` seconds, asked for once. Raises :class:`StorageMissing` when there
        is no such object or bucket."""
        _check_path("sign a URL for", self.name, path)
        target = Target("sign a URL for", self.name, path)
        content = json.dumps({"expiresIn": max(1, round(ttl_s))}).encode()
        place = self._wire.place("object/sign", self.name, path)
        headers = {"Content-Type": "application/json"}
        answer = self._wire.demand(target, "POST", place, headers=headers, content=content)
        # Only the signature is taken from the answer, which speaks of a path of its own.
        query = str(answer.json().get("signedURL") or answer.json().get("signedUrl") or "").partition("?")[2]
        if "token=" not in query:
            raise _nonsense(target, answer)
        return f"{place}?{query}"


def _check_path(verb: str, bucket: str, path: str) -> None:
    """A dot as a part of a path is taken away on the way, and leads elsewhere."""
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or not path.isprintable() or len(path.encode()) > LONGEST_PATH:
        cannot = Target(verb, bucket, spoken(path)).cannot()
        why = f"a path has no empty part, `.` or `..`, no control characters, and at most {LONGEST_PATH} bytes"
        raise PublishFailed("publish.refused", f"{cannot}: {why}", permanent=True)


def _form_name(path: str) -> str:
    last = path.rpartition("/")[2]
    return "".join({'"': "%22", "\\": "%5C"}.get(each, each if each.isprintable() else "_") for each in last)


def _form(head: bytes, file: UploadFile, tail: bytes) -> Iterator[bytes]:
    yield head
    yield from file.pieces(0, file.size)
    yield tail


def _nonsense(target: Target, answer: Answer) -> PublishFailed:
    return unavailable(target, f"something that is not Storage answered {answer.status}: {answer.said}")
