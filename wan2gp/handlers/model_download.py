"""One file of a model: from its URL to its place on the shelf, gone on with where it broke off, and whole in the end.

What is known of a file before it is there: its size, from its server; and its checksum, where the server says that
too. The hub does for what is kept in large-file storage, in ``X-Linked-ETag`` of its first answer; others may in
``Repr-Digest`` (RFC 9530). A file that is not whole is removed and fetched once more; the second time it is an error.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from wan2gp.addresses import Resolve, resolve
from wan2gp.brake import Brake
from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.handlers.download import Digest, Downloaded, final_answer
from wan2gp.handlers.input_cache import Validators, validators_of
from wan2gp.handlers.locations import Location, locate
from wan2gp.handlers.model_checks import HEADER_MAX, damage
from wan2gp.handlers.model_store import Draft, Found, Shelf, boot_id
from wan2gp.handlers.sniff import HEAD_BYTES, Sniffed, sniff
from wan2gp.handlers.webstream import Limits, Reply
from wan2gp.lora_names import SUFFIX, is_signed, resolved
from wan2gp.model_places import place_of
from wan2gp.protocol import Signed, Source

PART, NOT_THAT_PART = 206, 416
GOES_ON = 5
"""How often a download that got further than before goes on after it broke off, within one task."""
ROOM_BYTES = 64 * 1024**2
"""Of a body whose length nobody announced: after so much more, room is made again."""
_LATER = ("input.http_error", "input.timeout", "input.unreachable")
_MODEL = Sniffed("a model file", frozenset(), "application/octet-stream", "")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):")


class _Spoilt(Exception):
    """What has come is not the file; the message continues "it …"."""


@dataclass(frozen=True)
class _Body:
    """An answer that is used: from which byte on, and what is known of the whole."""

    begin: int
    draft: Draft


class ModelDownload:
    """As :class:`~wan2gp.handlers.download.Download`: :meth:`run` once, :meth:`cancel` at any time. What has come when
    it is cancelled stays for the next one."""

    def __init__(
        self,
        source: Source,
        shelf: Shelf,
        limits: Limits,
        *,
        signed: Signed | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
        lookup: Resolve = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._signed = signed
        self._place = PurePosixPath()
        self._shelf = shelf
        self._limits = limits
        self._progress = progress
        self._lookup = lookup
        self._clock = clock
        self._brake = Brake()
        self._sha256: str | None = None
        """That the server has told, of the file as it is now."""

    def cancel(self) -> None:
        """End it at once: :meth:`run` raises :class:`Interrupted`."""
        self._brake.pull(Interrupted())

    def run(self) -> Downloaded:
        """Find it or fetch it. Raises :class:`TaskFailure` or :class:`Interrupted`."""
        began = self._clock()
        locate(self._source, self._signed)  # raises for what is no URL
        location = locate(Source(resolved(self._source.url)), self._signed)
        self._place = place_of(self._source.kind, self._source.url)
        limit_s = self._limits.total_s
        slow = TaskFailure(
            "input.timeout",
            f"the download from {location.shown} was not done within {limit_s:g} s: the next try goes on with it",
        )
        try:
            self._shelf.open()
            with self._brake.within(limit_s, slow), self._shelf.alone(self._place, self._brake, self._others):
                found = self._found(location)
                got = found or self._twice(location)
        except OSError as error:
            raise self._unplaced(error) from error
        return Downloaded(got.path, location.shown, got.bytes, self._clock() - began, _MODEL, cached=found is not None)

    def _others(self, done: int) -> None:
        """It is fetched for somebody else."""
        self._progress(done, None)

    def _found(self, location: Location) -> Found | None:
        """What is there, if this URL may have it: one that is signed is asked, since its right may have ended."""
        found = self._shelf.find(self._place, doubt=self._source.doubt)
        if found is None or not (self._signed is not None or is_signed(self._source.url)):
            return found
        headers, also = {"Range": "bytes=0-0"}, (PART, NOT_THAT_PART)
        with final_answer(location, self._limits, self._brake, self._lookup, headers, also=also) as (_, reply):
            span = _RANGE.fullmatch(reply.header("Content-Range") or "")
            now = span[3] if span is not None else str(reply.length) if reply.status == 200 and reply.plain else None
        if now in (None, "*", str(found.bytes)) or not found.ours:
            return found
        self._shelf.remove(self._place)
        return None

    def _twice(self, location: Location) -> Found:
        try:
            return self._fetch(location)
        except _Spoilt:
            self._shelf.discard(self._place)
        try:
            return self._fetch(location)
        except _Spoilt as error:
            self._shelf.discard(self._place)
            raise TaskFailure(
                "input.corrupt", f"what {location.shown} serves {error} (it was fetched twice)"
            ) from error

    def _fetch(self, location: Location) -> Found:
        """Go on as long as it gets on."""
        tries = 0
        while True:
            before = self._written()
            try:
                return self._once(location)
            except TaskFailure as failure:
                self._brake.check()
                tries += 1
                if failure.code not in _LATER or self._written() <= before or tries > GOES_ON:
                    raise

    def _once(self, location: Location) -> Found:
        draft = self._shelf.draft(self._place)
        begin = self._resumable(draft)
        self._sha256 = None
        with self._answer(location, draft, begin) as reply:
            body = self._understood(location, reply, draft, begin)
            if body is not None:
                self._room(body, location)
                sha256 = self._store(location, reply, body)
                return self._checked(reply, body, sha256)
        self._shelf.discard(self._place)  # what is there is of another file than the server has now
        return self._once(location)

    def _resumable(self, draft: Draft | None) -> int:
        """From which byte on to ask. Of a part that is complete the last byte, which shows whether it is the file."""
        if draft is None:
            return 0
        written = self._written()
        return written - 1 if written == draft.total else written

    def _written(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._shelf.part(self._place).stat().st_size
        return 0

    # --- asking ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _answer(self, location: Location, draft: Draft | None, begin: int) -> Iterator[Reply]:
        headers = {"Range": f"bytes={begin}-", **_if_range(draft)} if draft is not None and begin else {}

        def note(hop: Location, reply: Reply) -> None:
            if hop.origin == location.origin and reply.status < 400:
                self._sha256 = _told_sha256(reply) or self._sha256

        also = (PART, NOT_THAT_PART)
        answer = final_answer(location, self._limits, self._brake, self._lookup, headers, also=also, passing=note)
        with answer as (_, reply):
            yield reply

    def _understood(self, location: Location, reply: Reply, draft: Draft | None, begin: int) -> _Body | None:
        """None: ask anew, from the beginning."""
        total = reply.length if reply.plain else None
        if reply.status == 200:
            return _Body(0, self._begun(reply, total))
        span = _RANGE.fullmatch(reply.header("Content-Range") or "")
        if reply.status != PART or span is None or not reply.plain or draft is None or int(span[1]) != begin:
            return None
        whole = None if span[3] == "*" else int(span[3])
        if draft.sha256 is not None:  # the whole is compared in the end
            same = self._sha256 in (None, draft.sha256)
        else:
            same = bool(_if_range(draft)) and draft.validators.etag in (None, reply.header("ETag"))
        if not same or (draft.total is not None and whole != draft.total) or int(span[2]) + 1 != whole:
            return None
        return _Body(begin, draft)

    def _begun(self, reply: Reply, total: int | None) -> Draft:
        return Draft(str(self._place), total, validators_of(reply.header), self._sha256, boot_id())

    def _room(self, body: _Body, location: Location) -> None:
        if (body.draft.total or 0) > self._shelf.max_bytes:
            raise self._too_large(location, f"{body.draft.total} bytes")
        if not body.begin:
            self._shelf.discard(self._place)
        self._shelf.begin(body.draft, self._brake)

    # --- storing ---------------------------------------------------------------------------------------------------

    def _store(self, location: Location, reply: Reply, body: _Body) -> str:
        """Returns the checksum of the whole."""
        digest = hashlib.sha256()
        with self._shelf.part(self._place).open("r+b" if body.begin else "wb") as file:
            head = self._known(file, body.begin, digest)
            self._pour(location, reply, body, file, head, digest)
        return digest.hexdigest()

    def _known(self, file: BinaryIO, begin: int, digest: Digest) -> bytes:
        """What has come before, once more: the checksum is of all of it. Returns its head."""
        head = b""
        while (left := begin - file.tell()) and (piece := file.read(min(left, 1 << 20))):
            self._brake.check()
            head = head or piece[:HEAD_BYTES]
            digest.update(piece)
        file.truncate()
        return head

    def _pour(self, location: Location, reply: Reply, body: _Body, file: BinaryIO, head: bytes, digest: Digest) -> None:
        got, roomy = body.begin, body.draft.total or body.begin + ROOM_BYTES
        looked = len(head) >= HEAD_BYTES
        for piece in reply.pieces():
            got += len(piece)
            if got > self._shelf.max_bytes:
                raise self._too_large(location, "more than that")
            file.write(piece)
            digest.update(piece)
            if not looked:
                head += piece[:HEAD_BYTES]
                looked = len(head) >= HEAD_BYTES and self._looks_right(location, head)
            if got > roomy:
                file.flush()
                self._shelf.begin(body.draft, self._brake)
                roomy = got + ROOM_BYTES
            self._progress(got, body.draft.total)
        if not looked and head:
            self._looks_right(location, head)

    def _looks_right(self, location: Location, head: bytes) -> bool:
        """A page that asks to log in is found before it is fetched twice."""
        if self._place.suffix.lower() == SUFFIX and int.from_bytes(head[:8], "little") > HEADER_MAX:
            found = sniff(head[:HEAD_BYTES])
            self._shelf.discard(self._place)
            raise TaskFailure(
                "input.not_media",
                f"{location.shown} serves {found.name}, not a {SUFFIX} file: give the link of the file itself",
            )
        return True

    def _checked(self, reply: Reply, body: _Body, sha256: str) -> Found:
        part = self._shelf.part(self._place)
        told = self._sha256 or body.draft.sha256
        if told is not None and sha256 != told:
            raise _Spoilt(f"has the checksum {sha256}, and its server says {told}")
        fault = damage(part, self._place.name)
        if fault is not None:
            raise _Spoilt(fault)
        if told is None and not reply.has_end and self._place.suffix.lower() != SUFFIX:
            raise _Spoilt("ends with its connection, so that a part cannot be told from the whole")
        self._brake.check()
        return self._shelf.keep(self._place, sha256)

    # --- failures --------------------------------------------------------------------------------------------------

    def _too_large(self, location: Location, size: str) -> TaskFailure:
        self._shelf.discard(self._place)
        limit = self._shelf.max_bytes
        return TaskFailure("input.too_large", f"{location.shown} is too large: {size}, the limit is {limit} bytes")

    def _unplaced(self, error: OSError) -> TaskFailure:
        where = self._shelf.root / self._place
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return TaskFailure("worker.disk_full", f"no room for {where}: the disk is full")
        return TaskFailure("input.unplaced", f"cannot keep {where}: {error.strerror}")


def _if_range(draft: Draft | None) -> dict[str, str]:
    """The header by which a server sends the rest of the same file only (RFC 9110, 13.1.5); nothing when it cannot."""
    found = draft.validators if draft is not None else Validators()
    if found.etag is not None and not found.etag.startswith("W/"):
        return {"If-Range": found.etag}
    return {"If-Range": found.last_modified} if found.last_modified is not None else {}


def _told_sha256(reply: Reply) -> str | None:
    linked = _SHA256.fullmatch(reply.header("X-Linked-ETag") or "")
    if linked is not None:
        return linked[1]
    if reply.status != 200 or not reply.plain:
        return None
    told = _DIGEST.search(reply.header("Repr-Digest") or "")
    with contextlib.suppress(binascii.Error):
        return base64.b64decode(told[1]).hex() if told is not None else None
    return None
