"""A form with a file as the body of a request, read while it is sent: an input may be larger than the memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

PIECE = 1 << 20


class FileForm:
    """``multipart/form-data``. Its length is known and its pieces are made while it is iterated; names are ASCII."""

    def __init__(self, part: str, path: Path, name: str, fields: Mapping[str, str]) -> None:
        """``part`` is the form's name for the file at ``path``, ``name`` what the file shall be called."""
        boundary = uuid.uuid4().hex
        self.content_type = f"multipart/form-data; boundary={boundary}"
        texts = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n'
            for key, text in fields.items()
        )
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{part}"; filename="{name}"\r\n'
        self._head = ("".join(texts) + head + "Content-Type: application/octet-stream\r\n\r\n").encode("ascii")
        self._tail = f"\r\n--{boundary}--\r\n".encode("ascii")
        self._path = path
        self._size = path.stat().st_size

    def __len__(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with self._path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        yield self._tail
