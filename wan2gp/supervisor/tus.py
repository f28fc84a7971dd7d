"""Resumable uploads (TUS 1.0.0) into Supabase Storage: what has arrived is never sent again.

The server names a place for the upload, takes chunks there at the offset that it is at, and says on request what that
offset is. After any doubt it is asked; only its answer counts.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable

from wan2gp.supervisor.patience import Patience
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.storage_answers import Answer, StorageMissing, Target, failure_of, unavailable
from wan2gp.supervisor.storage_wire import Wire
from wan2gp.supervisor.upload_file import UploadFile, check_stop

CHUNK_BYTES = 6 * 1024**2
"""Hosted Storage takes chunks of this size only, but for the last."""
RESTARTS = 3
"""How often an upload may be lost by the server before it counts as refused for now."""
_VERSION = {"Tus-Resumable": "1.0.0"}
_NAME = re.compile(r"[A-Za-z0-9._~=-]{1,4096}")
_CONFLICT, _GONE = 409, (404, 410)


class _Lost(Exception):
    """The server does not know the upload any more."""


class Resumable:
    """Sends files to one project's Storage."""

    def __init__(self, wire: Wire, patience: Patience) -> None:
        self._wire = wire
        self._patience = patience

    def upload(
        self,
        file: UploadFile,
        target: Target,
        mime: str,
        cache_s: int,
        stop: threading.Event,
        begun: str | None,
        note: Callable[[str | None], None],
    ) -> None:
        """``begun``: the name of an upload to go on with; ``note(name)`` is told the name in use, None once it is
        over. Raises :class:`PublishFailed`; after one that passes, the upload may be gone on with."""
        for _ in range(RESTARTS + 1):
            resumed = begun is not None
            name = begun or self._patience.persist(lambda: self._create(file, target, mime, cache_s), stop)
            note(name)
            try:
                self._send(file, target, name, stop, resumed)
            except _Lost:
                begun = None
                note(None)
                continue
            note(None)
            return
        raise unavailable(target, f"Storage lost the upload {RESTARTS + 1} times")

    def terminate(self, target: Target, name: str) -> None:
        """Have the server forget an upload; it is no matter when it has already."""
        answer = self._wire.ask(target, "DELETE", self._place(name), headers={**_VERSION, "x-upsert": "true"})
        if answer.status not in (*_GONE, 400) and not 200 <= answer.status < 300:
            raise failure_of(answer, target)

    def _place(self, name: str) -> str:
        return self._wire.place("upload/resumable", name)

    def _create(self, file: UploadFile, target: Target, mime: str, cache_s: int) -> str:
        about = {
            "bucketName": target.bucket,
            "objectName": target.path,
            "contentType": mime,
            "cacheControl": str(cache_s),
        }
        metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in about.items())
        headers = {**_VERSION, "Upload-Length": str(file.size), "Upload-Metadata": metadata, "x-upsert": "true"}
        answer = self._wire.demand(target, "POST", self._wire.place("upload/resumable"), headers=headers)
        return _name(answer, target)

    def _send(self, file: UploadFile, target: Target, name: str, stop: threading.Event, unsure: bool) -> None:
        """Until the server has it all; ``unsure``: it must be asked first what it has."""
        offset = furthest = failures = 0
        asked = unsure
        while offset < file.size:
            try:
                if unsure:
                    offset, unsure, asked = self._offset(file, target, name), False, True
                else:
                    offset, asked = self._patch(file, target, name, offset), False
            except PublishFailed as failure:
                failures, unsure = failures + 1, True
                self._patience.wait(failures, failure, stop)
            if offset > furthest:
                furthest, failures = offset, 0
            check_stop(stop)
        if asked:
            self._patience.persist(lambda: self._check_landed(file, target), stop)

    def _patch(self, file: UploadFile, target: Target, name: str, offset: int) -> int:
        """Send one chunk. Returns where the server is then."""
        count = min(CHUNK_BYTES, file.size - offset)
        headers = {
            **_VERSION,
            "x-upsert": "true",
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(count),
        }
        answer = self._wire.ask(target, "PATCH", self._place(name), headers=headers, content=file.pieces(offset, count))
        _check(answer, target)
        reached = _whole(answer, "Upload-Offset")
        if reached is None or not offset < reached <= offset + count:
            raise unavailable(target, "Storage does not say what it took of a chunk")
        return reached

    def _offset(self, file: UploadFile, target: Target, name: str) -> int:
        answer = self._wire.ask(target, "HEAD", self._place(name), headers=_VERSION)
        _check(answer, target)
        offset, length = _whole(answer, "Upload-Offset"), _whole(answer, "Upload-Length")
        if offset is None:
            raise unavailable(target, "Storage does not say what it has of the upload")
        if offset > file.size or length not in (None, file.size):
            raise _Lost
        return offset

    def _check_landed(self, file: UploadFile, target: Target) -> None:
        """All bytes are there, but the answer to the last ones was not seen: is there an object of them?"""
        try:
            found = self._wire.demand(target, "GET", self._wire.place("object/info", target.bucket, target.path)).json()
        except StorageMissing:
            raise _Lost from None
        if found.get("size") != file.size:
            raise _Lost


def _check(answer: Answer, target: Target) -> None:
    """Raises unless it is a success. What a new look at the offset may mend is no permanent failure."""
    status = answer.true_status
    if 200 <= answer.status < 300:
        return
    if status in _GONE and "NoSuchBucket" not in answer.kinds:
        raise _Lost
    if status == _CONFLICT or (answer.status == 400 and not answer.json()):
        # Another connection of ours, given up but not over yet, may hold the upload.
        raise unavailable(target, f"Storage answered {status} to a chunk: {answer.said}")
    raise failure_of(answer, target)


def _name(answer: Answer, target: Target) -> str:
    """The name of the new upload. Only that is taken from the answer: behind a gateway the rest of the address is
    wrong, and the key goes to no host but the configured one."""
    name = re.split("[?#]", answer.headers.get("Location", ""), maxsplit=1)[0].rstrip("/").rpartition("/")[2]
    if not _NAME.fullmatch(name) or not name.strip("."):
        raise unavailable(target, "Storage names no place for the upload")
    return name


def _whole(answer: Answer, header: str) -> int | None:
    text = answer.headers.get(header, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
