"""Downloads that are kept, so that the same file is not fetched twice: by URL with its validator, and by content.

Below the courier's own directory: ``blobs/<sha256>`` are the files, ``urls/<digest of a URL>`` say which file a URL
gave, and how to ask its server whether it still does. A server is always asked: what it no longer gives, or no longer
gives to this URL's signature, is not taken from here. An entry appears by a link or a rename, so it is whole or not
there; and it is hashed again before it is used, since whoever got a link to it could have written into it.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_plus

import msgspec

from wan2gp.handlers.locations import Location

SPARE_DISK = 1024**3
"""Free bytes on the disk that no kept file may take."""
FRESH_S = 2.0
"""A file that changed less than this before it was served may change again within the same second of its date."""
_CHUNK = 1 << 20
_SIGNING_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "x-ms-")
_SIGNING = frozenset(
    "expires signature policy key-pair-id awsaccesskeyid googleaccessid ossaccesskeyid token sig sv se st sp sr spr "
    "skoid sktid skt ske sks skv".split()
)


class Validators(msgspec.Struct, frozen=True):
    """What a server said of a file, to ask it later whether that still holds."""

    etag: str | None = None
    last_modified: str | None = None

    def __bool__(self) -> bool:
        return self.etag is not None or self.last_modified is not None


class Kept(msgspec.Struct, frozen=True):
    """What a URL gave. ``exact``: digest of the whole URL, with its signature."""

    sha256: str
    bytes: int
    exact: str
    validators: Validators


@dataclass(frozen=True)
class Known:
    """A kept file that may still be what a URL gives; ``conditions`` are the headers that ask."""

    sha256: str
    bytes: int
    conditions: dict[str, str]


class InputCache:
    """Any thread may use it. ``budget``: bytes of all files together; 0: nothing is kept, and what was is removed.

    ``links``: whether a kept file and the one that a task gets may be one. Not where whoever gets it may write to it:
    it would write into what the next task gets.
    """

    def __init__(self, root: Path, budget: int, *, links: bool = True) -> None:
        self._root = root
        self._place = _link if links else _copy
        self._blobs = root / "blobs"
        self._urls = root / "urls"
        self._budget = budget
        self._lock = threading.Lock()
        if not budget:
            shutil.rmtree(root, ignore_errors=True)
            return
        for folder in (self._blobs, self._urls):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for draft in (*self._blobs.glob("*.part"), *self._urls.glob("*.part")):
            draft.unlink(missing_ok=True)
        self._fits(0)

    def look_up(self, location: Location) -> Known | None:
        """What this URL gave before, in whatever signature, if it is still there."""
        kept = self._read(self._urls / _key(location)) if self._budget else None
        if kept is None or not self._is_there(kept):
            return None
        conditions = {}
        etag, modified = kept.validators.etag, kept.validators.last_modified
        exact = kept.exact == _digest(location, location.query)
        if etag is not None and (exact or not etag.startswith("W/")):
            conditions["If-None-Match"] = etag
        if modified is not None and exact:
            # Of a URL that differs in what may be more than a signature, a date says nothing: another file of that
            # address that is older would count as this one, not modified.
            conditions["If-Modified-Since"] = modified
        return Known(kept.sha256, kept.bytes, conditions) if conditions else None

    def take(self, known: Known, draft: Path) -> bool:
        """Make ``draft`` the kept file. False, and nothing is made, when it is gone or not what it was."""
        blob = self._blobs / known.sha256
        try:
            self._place(blob, draft)
        except FileNotFoundError:
            return False
        if draft.stat().st_size != known.bytes or file_digest(draft) != known.sha256:
            blob.unlink(missing_ok=True)
            draft.unlink()
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(blob)  # used now: the last to go
        return True

    def keep(self, location: Location, path: Path, sha256: str, validators: Validators) -> None:
        """Remember what ``location`` gave, unless nothing could tell later whether it still does."""
        size = path.stat().st_size
        if not validators or not 0 < size <= self._budget:
            return
        with contextlib.suppress(OSError):  # a full disk, say: the download itself has succeeded
            if self._add(path, self._blobs / sha256, size):
                kept = Kept(sha256, size, _digest(location, location.query), validators)
                self._write(self._urls / _key(location), msgspec.json.encode(kept))

    def make_room(self, wanted: int) -> None:
        """Give up files, those used longest ago first, until ``wanted`` bytes of the disk are free, or none is left."""
        if self._budget:
            with self._lock:
                self._evict(lambda held: shutil.disk_usage(self._root).free >= wanted)

    # --- files ---------------------------------------------------------------------------------------------------

    def _add(self, path: Path, blob: Path, size: int) -> bool:
        """Also when there is one of that name: it may have been spoilt meanwhile. False when there is no room."""
        draft = blob.with_name(f"{secrets.token_hex(8)}.part")
        try:
            self._place(path, draft)  # the slow part, where it must be a copy
            with self._lock:
                if not self._fits(0 if blob.exists() else size):
                    return False
                draft.replace(blob)
                os.utime(blob)
            return True
        finally:
            draft.unlink(missing_ok=True)  # two names of one file are not replaced by each other

    def _is_there(self, kept: Kept) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (self._blobs / kept.sha256).stat().st_size == kept.bytes
        return False

    def _read(self, path: Path) -> Kept | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            kept = msgspec.json.decode(path.read_bytes(), type=Kept)
            return kept if _is_digest(kept.sha256) else None
        return None

    def _write(self, path: Path, content: bytes) -> None:
        draft = path.with_name(f"{secrets.token_hex(8)}.part")
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    # --- the budget ----------------------------------------------------------------------------------------------

    def _fits(self, coming: int) -> bool:
        """Whether ``coming`` more bytes fit, after as many files as it takes were evicted."""
        held = self._evict(lambda held: held + coming <= self._budget and self._spares_disk())
        return held + coming <= self._budget and self._spares_disk()

    def _spares_disk(self) -> bool:
        return shutil.disk_usage(self._root).free >= SPARE_DISK

    def _evict(self, enough: Callable[[int], bool]) -> int:
        """Remove the files used longest ago until it is enough; returns the bytes that stay."""
        found = sorted(self._sized())
        held = sum(size for _, size, _ in found)
        evicted = False
        for _, size, path in found:
            if enough(held):
                break
            path.unlink(missing_ok=True)
            held -= size
            evicted = True
        if evicted:
            self._forget_evicted()
        return held

    def _sized(self) -> Iterator[tuple[int, int, Path]]:
        """(last use in nanoseconds, bytes, path) of every file."""
        for path in self._blobs.iterdir():
            if path.suffix == ".part":
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime_ns, status.st_size, path

    def _forget_evicted(self) -> None:
        for path in self._urls.iterdir():
            kept = self._read(path)
            if path.suffix != ".part" and (kept is None or not self._is_there(kept)):
                path.unlink(missing_ok=True)


def validators_of(header: Callable[[str], str | None]) -> Validators:
    """What an answer's headers give to ask by; nothing when its server forbids to keep it."""
    if "no-store" in (header("Cache-Control") or "").lower():
        return Validators()
    etag, modified = header("ETag"), header("Last-Modified")
    if etag is not None and not (etag.isascii() and etag.isprintable() and 2 < len(etag) <= 512):
        etag = None
    return Validators(etag, modified if _settled(modified, header("Date")) else None)


def _settled(modified: str | None, served: str | None) -> bool:
    """Whether a date is old enough to tell the file from a later one of the same second."""
    if modified is None or served is None or not modified.isascii() or len(modified) > 64:
        return False
    try:
        pause = email.utils.parsedate_to_datetime(served) - email.utils.parsedate_to_datetime(modified)
    except (TypeError, ValueError):
        return False
    return pause.total_seconds() >= FRESH_S


def file_digest(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _link(source: Path, place: Path) -> None:
    """A hard link, or a copy where there can be none. Raises FileNotFoundError when ``source`` is gone."""
    try:
        os.link(source, place)
    except FileNotFoundError:
        raise
    except OSError:
        _copy(source, place)


def _copy(source: Path, place: Path) -> None:
    """Of its own bytes; where the file system can, they are shared until one of the two is written to."""
    with source.open("rb") as whole, place.open("xb") as fresh:
        try:
            while os.copy_file_range(whole.fileno(), fresh.fileno(), _CHUNK):
                pass
        except OSError:  # not on this file system
            whole.seek(0)
            fresh.seek(0)
            fresh.truncate()
            shutil.copyfileobj(whole, fresh, _CHUNK)


def _key(location: Location) -> str:
    """One name for a URL in all its signatures, for a file in Storage in whichever."""
    parts = [part for part in location.query.split("&") if part and not _signs(part)]
    return _digest(location, "&".join(parts))


def _signs(part: str) -> bool:
    name = unquote_plus(part.partition("=")[0]).lower()
    return name in _SIGNING or name.startswith(_SIGNING_PREFIXES)


def _digest(location: Location, query: str) -> str:
    """No part of a URL can be read from it: signatures and passwords are in there.

    Of a file in Storage its address says all: the same of two signatures, another in another project.
    """
    parts = (*map(str, location.origin), location.path, query, location.authorization or "")
    if location.address is not None:
        parts = (*map(str, location.origin), "storage", location.address.bucket, location.address.path)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)
