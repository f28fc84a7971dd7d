"""One input: from a URL that nobody vouches for to a file of the right kind, within limits of bytes and time.

Every failure is a :class:`TaskFailure` with an ``input.*`` code and a sentence for the row's author.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http
import secrets
import shutil
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol

from wan2gp.addresses import Resolve, resolve
from wan2gp.brake import Brake
from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.handlers.input_cache import InputCache, Known, validators_of
from wan2gp.handlers.input_names import input_name, place
from wan2gp.handlers.locations import Location, locate
from wan2gp.handlers.sniff import EMPTY, HEAD_BYTES, Sniffed, sniff
from wan2gp.handlers.storage_refusals import refusal_of_storage
from wan2gp.handlers.webstream import Limits, Reply, request
from wan2gp.protocol import Signed, Source

MAX_REDIRECTS = 8
NOT_MODIFIED = 304
_REDIRECTS = (301, 302, 303, 307, 308)
_NOTHING_THERE = (401, 403, 404, 410)
_SPARE_DISK = 64 * 1024**2  # bytes that a download leaves to everybody else on the disk
_LOOK_BYTES = 16 * 1024**2  # between two looks at the disk


class Digest(Protocol):
    """What is told every byte."""

    def update(self, piece: bytes, /) -> None: ...


@dataclass(frozen=True)
class Downloaded:
    """A finished file. ``url`` is fit for logs; ``seconds`` from the first look-up to the last byte."""

    path: Path
    url: str
    bytes: int
    seconds: float
    found: Sniffed
    cached: bool = False
    """It is a file that was kept, and its server says that it still is the same."""
    shared: bool = False
    """It was downloaded for another task at the same time."""


def _nobody(done: int, total: int | None) -> None:
    """Nobody wants to know."""


class Download:
    """:meth:`run` once, in any thread; :meth:`cancel` from any other, at any time.

    ``progress(done, total)`` is called from :meth:`run` with bytes, ``total`` None when the server does not say.
    """

    def __init__(
        self,
        source: Source,
        directory: Path,
        limits: Limits,
        *,
        signed: Signed | None = None,
        progress: Callable[[int, int | None], None] = _nobody,
        cache: InputCache | None = None,
        lookup: Resolve = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._signed = signed
        self._directory = directory
        self._limits = limits
        self._progress = progress
        self._cache = cache
        self._lookup = lookup
        self._clock = clock
        self._brake = Brake()

    def cancel(self) -> None:
        """End it at once: :meth:`run` raises :class:`Interrupted`, and no part of the file stays."""
        self._brake.pull(Interrupted())

    def run(self) -> Downloaded:
        """Fetch, check and store. Raises :class:`TaskFailure` or :class:`Interrupted`."""
        began = self._clock()
        first = locate(self._source, self._signed)
        limit_s = self._limits.total_s
        too_slow = TaskFailure("input.timeout", f"the download from {first.shown} was not done within {limit_s:g} s")
        with self._brake.within(limit_s, too_slow):
            known = self._cache.look_up(first) if self._cache is not None else None
            done = self._once(first, known) or self._once(first, None)  # what was kept may be gone or spoilt
        assert done is not None
        return replace(done, seconds=self._clock() - began)

    def _once(self, first: Location, known: Known | None) -> Downloaded | None:
        """None: the server has nothing newer than what was kept, and that cannot be used."""
        with self._answer(first, known.conditions if known else {}) as (location, reply):
            if reply.status == NOT_MODIFIED and known is not None:
                return self._recall(first, known)
            path, got, found = self._store(first, location, reply)
            return Downloaded(path, first.shown, got, 0.0, found)

    def _recall(self, first: Location, known: Known) -> Downloaded | None:
        assert self._cache is not None
        with self._draft() as draft:
            if not self._cache.take(known, draft):
                return None
            self._brake.check()
            with draft.open("rb") as file:
                found = self._identify(first, file.read(HEAD_BYTES))
            stem, extension = input_name(first.file_name, found)
            path = place(draft, self._directory, stem, extension)
        return Downloaded(path, first.shown, known.bytes, 0.0, found, cached=True)

    def _answer(
        self, location: Location, conditions: Mapping[str, str]
    ) -> contextlib.AbstractContextManager[tuple[Location, Reply]]:
        return final_answer(location, self._limits, self._brake, self._lookup, conditions)

    def _store(self, first: Location, location: Location, reply: Reply) -> tuple[Path, int, Sniffed]:
        if reply.plain and reply.length is not None:
            self._make_room(location, reply.length)
        try:
            with self._draft() as draft:
                digest = hashlib.sha256()
                with draft.open("xb") as file:
                    got, found = self._pour(location, reply, file, digest)
                self._brake.check()
                stem, extension = input_name(first.file_name, found)
                path = place(draft, self._directory, stem, extension)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full() from error
            raise
        if self._cache is not None and reply.has_end:
            self._cache.keep(first, path, digest.hexdigest(), validators_of(reply.header))
        return path, got, found

    @contextlib.contextmanager
    def _draft(self) -> Iterator[Path]:
        """A name for a file that is not finished; none is left of it."""
        draft = self._directory / f".{secrets.token_hex(8)}.part"
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)

    def _make_room(self, location: Location, announced: int) -> None:
        if announced > self._limits.max_bytes:
            raise self._too_large(location, f"{announced} bytes")
        wanted = announced + _SPARE_DISK
        if self._cache is not None and shutil.disk_usage(self._directory).free < wanted:
            self._cache.make_room(wanted)
        if shutil.disk_usage(self._directory).free < wanted:
            raise self._disk_full()

    def _leave_room(self) -> None:
        """Of a body whose length nobody announced, before it has taken the disk to the last byte."""
        if shutil.disk_usage(self._directory).free < _SPARE_DISK:
            raise self._disk_full()

    def _pour(self, location: Location, reply: Reply, file: BinaryIO, digest: Digest) -> tuple[int, Sniffed]:
        total = reply.length if reply.plain else None
        head, got, found, looked = b"", 0, None, 0
        for piece in reply.pieces():
            got += len(piece)
            if max(got, reply.received) > self._limits.max_bytes:
                raise self._too_large(location, "more than that")
            if got - looked >= _LOOK_BYTES:
                looked = got
                self._leave_room()
            if found is None:
                head += piece
                found = self._identify(location, head) if len(head) >= HEAD_BYTES else None
            file.write(piece)
            digest.update(piece)
            self._progress(got, total)
        return got, found or self._identify(location, head)

    def _identify(self, location: Location, head: bytes) -> Sniffed:
        found = sniff(head[:HEAD_BYTES])
        kind = self._source.kind
        if found is EMPTY or not found.serves(kind):
            wanted = "a file" if kind == "any" else f"{'an' if kind[0] in 'ai' else 'a'} {kind}"
            raise TaskFailure("input.not_media", f"{location.shown} serves {found.name}, not {wanted}")
        return found

    def _too_large(self, location: Location, size: str) -> TaskFailure:
        limit = self._limits.max_bytes
        return TaskFailure("input.too_large", f"{location.shown} is too large: {size}, the limit is {limit} bytes")

    def _disk_full(self) -> TaskFailure:
        free = shutil.disk_usage(self._directory).free
        return TaskFailure("worker.disk_full", f"no room for the input: {free // 1024**2} MiB are free on the disk")


@contextlib.contextmanager
def final_answer(
    location: Location,
    limits: Limits,
    brake: Brake,
    lookup: Resolve = resolve,
    conditions: Mapping[str, str] = MappingProxyType({}),
    *,
    also: Container[int] = (NOT_MODIFIED,),
    passing: Callable[[Location, Reply], None] = lambda location, reply: None,
) -> Iterator[tuple[Location, Reply]]:
    """The end of the chain of redirects, each hop checked like the first and shown to ``passing``.

    ``also``: statuses besides 200 that are an answer to a request with ``conditions``. Others raise.
    """
    first, seen = location, set[Location]()
    while True:
        if location in seen:
            raise TaskFailure("input.redirects", f"{first.shown} redirects in a circle, over {location.shown}")
        if len(seen) > MAX_REDIRECTS:
            raise TaskFailure("input.redirects", f"{first.shown} redirects more than {MAX_REDIRECTS} times")
        seen.add(location)
        with request(location, limits, brake, lookup, conditions) as reply:
            passing(location, reply)
            target = reply.header("Location") if reply.status in _REDIRECTS else None
            if target is None:
                if not (conditions and reply.status in also):
                    _judge(location, reply)
                yield location, reply
                return
        location = location.redirected(target)


def _judge(location: Location, reply: Reply) -> None:
    """Raises unless the answer is a file."""
    if reply.status == 200:
        return
    if location.address is not None:
        raise refusal_of_storage(location, reply)
    with contextlib.suppress(ValueError):
        said = f"{reply.status} {http.HTTPStatus(reply.status).phrase}"
        if reply.status in _NOTHING_THERE:
            raise TaskFailure(
                "input.not_found",
                f"{location.shown} answered {said}: check that the link is right, public, and not expired",
                detail={"status": reply.status},
            )
        raise _http_error(location, reply, said)
    raise _http_error(location, reply, str(reply.status))


def _http_error(location: Location, reply: Reply, said: str) -> TaskFailure:
    again = reply.header("Retry-After")
    detail = {"status": reply.status, **({"retry_after": again[:64]} if again else {})}
    return TaskFailure("input.http_error", f"{location.shown} answered {said}", detail=detail)
