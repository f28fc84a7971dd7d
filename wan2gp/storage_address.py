"""``storage://bucket/path``: a file in the Storage of the worker's own project, as a task's ``params`` name it.

A leaf that the handler (which refuses what is malformed), the supervisor (which has it signed) and the courier (which
shows it instead of the signed URL) share. The path is the object's name as it is: nothing in it is percent-encoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "storage:"
LONGEST_PATH = 1024
"""Longest path in a bucket, bytes of UTF-8: what an object store takes."""
NO_STORAGE = (
    "cannot be fetched, since this worker has no Supabase project: "
    "set SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY, or give an https URL"
)
"""The end of a sentence that begins with the address."""
_SHOWN = 300


class BadAddress(ValueError):
    """The address is malformed; the message says how, and continues a sentence that names the input."""


@dataclass(frozen=True)
class StorageAddress:
    """One object. ``path`` has no empty part, no ``.`` and no ``..``."""

    bucket: str
    path: str

    @property
    def shown(self) -> str:
        """For logs and rows."""
        return f"{SCHEME}//{self.bucket}/{self.path}"[:_SHOWN]

    @property
    def file_name(self) -> str:
        """The last part of the path: not yet safe as the name of a file."""
        return self.path.rpartition("/")[2]


def is_storage(url: str) -> bool:
    """True for what is meant as such an address, also a malformed one."""
    return url.lstrip()[: len(SCHEME)].lower() == SCHEME


def parse_address(url: str) -> StorageAddress:
    """Raises :class:`BadAddress`."""
    rest = url.strip()[len(SCHEME) :]
    bucket, slash, path = rest[2:].partition("/")
    if not rest.startswith("//") or not bucket or not slash or not path:
        raise BadAddress("is not of the form storage://bucket/path")
    if any(character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff" for character in rest):
        raise BadAddress("contains a control character")
    if len(path.encode()) > LONGEST_PATH:
        raise BadAddress(f"has a path of {len(path.encode())} bytes, the limit is {LONGEST_PATH}")
    # Some servers take a backslash for a slash.
    if not {"", ".", ".."}.isdisjoint(re.split(r"[/\\]", f"{bucket}/{path}")):
        raise BadAddress("has an empty part, a `.` or a `..` in its path")
    return StorageAddress(bucket, path)
