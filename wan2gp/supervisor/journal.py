"""A small write-ahead journal in one preallocated file: many records a second, on the disk when ``append`` returns.

The file is filled with zeros once and then overwritten, so that a flush has data to write and nothing else (a file that
grows makes every flush commit the file system's own journal too). A full one is replaced by a fresh one. The last line
may be torn by a crash: it has zeros in it, and nobody was promised anything of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import msgspec

DONE = b"null"
SIZE_BYTES = 1024 * 1024
"""Smallest size of the file, bytes."""


class _Line(msgspec.Struct, frozen=True, array_like=True):
    key: str
    value: msgspec.Raw = msgspec.Raw(DONE)
    """``null``: the record of this key is done with."""


class Journal:
    """Records by key, from any thread. What :meth:`append` was given survives a power cut, once it has returned."""

    def __init__(self, path: Path) -> None:
        """Read what is there and start the next epoch with it. Raises :class:`OSError`."""
        self._path = path
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._live, self.damaged = _read(path)
        """``damaged``: a line in the middle cannot be read. The file is kept as ``.bad`` and all other lines count."""
        if self.damaged:
            os.replace(path, path.with_suffix(".bad"))
        self._file = -1
        self._renew()

    @property
    def live(self) -> dict[str, bytes]:
        """The records that were not forgotten, oldest first: JSON by key."""
        with self._lock:
            return dict(self._live)

    def append(self, records: dict[str, Any]) -> None:
        """Add records, or replace them, and flush. Raises :class:`OSError`; then nothing is promised of them."""
        encoded = {key: self._encoder.encode(value) for key, value in records.items()}
        with self._lock:
            self._live.update(encoded)
            self._write(b"".join(self._line(key, msgspec.Raw(value)) for key, value in encoded.items()))
            # A descriptor of its own: others may write meanwhile, or replace the file (by one that is flushed).
            written = os.dup(self._file)
        try:
            os.fdatasync(written)
        finally:
            os.close(written)

    def forget(self, key: str) -> None:
        """The record is done with. Not flushed: doing it once more after a crash must be harmless."""
        with self._lock:
            if self._live.pop(key, None) is not None:
                self._write(self._line(key, msgspec.Raw(DONE)))

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _line(self, key: str, value: msgspec.Raw) -> bytes:
        return self._encoder.encode(_Line(key, value)) + b"\n"

    def _write(self, data: bytes) -> None:
        if self._position + len(data) > self._size:
            self._renew()  # with all live records, so `data` is in it already
            return
        self._position += os.pwrite(self._file, data, self._position)

    def _renew(self) -> None:
        """A new file with the live records alone takes the old one's place."""
        lines = b"".join(self._line(key, msgspec.Raw(value)) for key, value in self._live.items())
        size = max(SIZE_BYTES, 2 * len(lines))
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)  # a crash may have left one, with whatever mode and owner
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(lines + bytes(size - len(lines)))
            os.fsync(descriptor)
            os.rename(fresh, self._path)
            flush_folder(self._path.parent)
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._file, self._position, self._size = descriptor, len(lines), size


def _read(path: Path) -> tuple[dict[str, bytes], bool]:
    """The live records, and whether a line that was whole once cannot be read."""
    live: dict[str, bytes] = {}
    damaged = False
    with contextlib.suppress(FileNotFoundError):
        decoder = msgspec.json.Decoder(_Line)
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = decoder.decode(line)
            except msgspec.DecodeError:
                damaged |= b"\0" not in line and line != b""
                continue
            live.pop(entry.key, None)
            if bytes(entry.value) != DONE:
                live[entry.key] = bytes(entry.value)
    return live, damaged


def flush_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
