"""One bucket of Supabase Storage: files go up streamed and resumable, and come back as URLs.

Up to 6 MiB a file is one request; above that it is a resumable upload, in which nothing is sent twice. Everything
overwrites, so that a repeat is harmless. Memory stays flat, whatever the size.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
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
GIVEN_UP_S = 2.0
"""How long a deletion waits for an upload that was given up and hangs in a call yet, seconds."""


@dataclass(frozen=True)
class _Begun:
    name: str
    state: tuple[int, int, int]


class Bucket:
    """Safe to use from several threads. One path is in one upload's hands at a time, also in those of one that was
    given up and hangs in a call yet: what it sends may land late, so others write and delete there after its end.

    Every method raises :class:`PublishFailed`. Messages name the bucket and the path, never the key.
    """

    def __init__(self, project: SupabaseProject, name: str, *, patience: Patience | None = None) -> None:
        self.name = name
        self._patience = patience or Patience()
        self._wire = Wire(project, self._patience)
        self._resumable = Resumable(self._wire, self._patience)
        self._begun: dict[str, _Begun] = {}
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._ended = threading.Condition()

    def put(self, path: str, file: Path, mime: str, *, stop: threading.Event) -> None:
        """Store ``file`` under ``path``, over what is there. Returns when Storage has it.

        ``stop`` ends it at once (``worker.stopping``). A later call for the same file goes on where this one failed, in
        the same life of the worker.
        """
        _check_path("upload", self.name, path)
        self._begin(path, stop)
        apart(lambda: self._only(path, file, plain_mime(mime), stop), stop)

    def _begin(self, path: str, stop: threading.Event) -> None:
        """Wait for an upload to the same path that was given up; its own time-outs end it."""
        limits = self._patience
        deadline = time.monotonic() + limits.connect_s + limits.write_s + limits.answer_s
        with self._ended:
            while path in self._under_way and time.monotonic() < deadline:
                check_stop(stop)
                self._ended.wait(0.05)
            check_stop(stop)
            if path in self._under_way:
                raise self._hangs("upload", path)
            self._under_way.add(path)

    def _only(self, path: str, file: Path, mime: str, stop: threading.Event) -> None:
        try:
            self._put(path, file, mime, stop)
        finally:
            with self._ended:
                self._under_way.discard(path)
                self._ended.notify_all()

    def _hangs(self, verb: str, path: str) -> PublishFailed:
        return unavailable(Target(verb, self.name, path), "an upload that was given up may land there yet")

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
        """Delete the objects, and what was begun to be uploaded there; it is fine when some are absent.

        Raises :class:`PublishFailed` (``publish.unavailable``), too, while an upload that was given up may bring one of
        them back.
        """
        over = threading.Event()  # never set: deletions are short
        hangs = self._given_up(paths)
        for path in paths:
            _check_path("delete", self.name, path)
            with self._lock:
                begun = self._begun.pop(path, None)
            if begun is not None:
                self._resumable.terminate(Target("delete", self.name, path), begun.name)
        for first in range(0, len(paths), _BATCH):
            batch = list(paths[first : first + _BATCH])
            self._patience.persist(lambda batch=batch: self._delete(batch), over)  # type: ignore[misc]
        if hangs:
            raise self._hangs("delete", hangs[0])

    def _given_up(self, paths: Sequence[str]) -> list[str]:
        """Those to which something is being sent, after a short wait for its end."""
        with self._ended:
            self._ended.wait_for(lambda: self._under_way.isdisjoint(paths), GIVEN_UP_S)
            return [path for path in paths if path in self._under_way]

    def _delete(self, paths: list[str]) -> None:
        content = json.dumps({"prefixes": paths}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            place = self._wire.place("object", self.name)
            self._wire.demand(Target("delete", self.name), "DELETE", place, headers=headers, content=content)
        except StorageMissing:
            return  # a bucket that does not exist holds none of them

    def is_public(self) -> bool:
        """Asked for once. Raises :class:`StorageMissing` when there is no such bucket."""
        target = Target("look at", self.name)
        answer = self._wire.demand(target, "GET", self._wire.place("bucket", self.name))
        public = answer.json().get("public")
        if not isinstance(public, bool):
            raise _nonsense(target, answer)
        return public

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
