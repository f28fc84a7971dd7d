"""What a profile's paths come to on this disk: where links of model directories lead, what lists of paths name.

Nothing that a handler can write itself widens what it may read: a link or a list below a path that the profile lets it
write is passed over. So is what would open a place that the profile closes, or everything.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from wan2gp.profile import Profile

LINKS_DEEP = 8
"""How far below a model directory links are looked for."""
ENTRIES_MAX = 50_000
"""How many entries are looked at in all, so that a start never takes minutes."""
LIST_BYTES_MAX = 1024 * 1024


@dataclass
class Readable:
    """Paths to grant, and in a sentence each what was passed over."""

    paths: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def readable(profile: Profile) -> Readable:
    """All that may be read: the profile's own, and what its model directories and lists lead to."""
    search = _Search(profile)
    roots = [*profile.models]
    for path in profile.path_lists:
        if search.writable(os.path.realpath(path)):
            search.found.notes.append(f"{path} names no directories: this handler may write it itself")
        else:
            roots += directories_of(path)
    search.from_roots(roots)
    return search.found


class _Search:
    """Where directories and the links below them lead, each place once, those near the top first."""

    def __init__(self, profile: Profile) -> None:
        self.found = Readable(list(profile.read))
        self._write = [os.path.realpath(path) for path in profile.write]
        self._never = [os.path.realpath(path) for path in profile.never]
        self._seen: set[str] = set()
        self._waiting: deque[tuple[str, int]] = deque()

    def from_roots(self, roots: Iterable[str]) -> None:
        for root in roots:
            self._reach(root)
        looked_at = 0
        while self._waiting:
            directory, depth = self._waiting.popleft()
            for entry in _entries(directory):
                with contextlib.suppress(OSError):  # gone between two looks
                    self._look(entry, depth, self.writable(directory))
                looked_at += 1
            if looked_at > ENTRIES_MAX:
                self.found.notes.append(
                    f"after {looked_at} entries of model directories no more links are looked for: grant what the "
                    "others lead to with sandbox.read_paths"
                )
                return

    def writable(self, path: str) -> bool:
        return any(_below(path, place) for place in self._write)

    def _look(self, entry: os.DirEntry[str], depth: int, writable: bool) -> None:
        if not entry.is_symlink():
            if depth < LINKS_DEEP and entry.is_dir(follow_symlinks=False):
                self._waiting.append((entry.path, depth + 1))
        elif not writable:
            self._reach(entry.path)
        elif not _below(_real(entry.path) or "/", os.path.dirname(entry.path)):
            self.found.notes.append(f"{entry.path} is not followed: this handler may have made it itself")

    def _reach(self, path: str) -> None:
        target = _real(path)
        if target is None or target in self._seen:
            return
        self._seen.add(target)
        shut = next((place for place in self._never if _below(place, target) or _below(target, place)), None)
        if target == "/" or shut is not None:
            self.found.notes.append(f"{path} is not followed: {target} would open {shut or 'everything'}")
        else:
            self.found.paths.append(target)
            self._waiting.append((target, 0))


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:  # a file, gone, or closed to us: so it is to the handler
        return []


def _real(path: str) -> str | None:
    """Without links; None for what no path can be, and for a chain of links that the kernel would not follow either."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError, RecursionError):
        return None


def _below(path: str, place: str) -> bool:
    """Whether it is that place, or lies in it."""
    return path == place or path.startswith(place.rstrip("/") + "/")


def directories_of(path: str) -> list[str]:
    """The directories that a file like ComfyUI's ``extra_model_paths.yaml`` names.

    It has sections with a ``base_path`` and kinds of model, whose values are one path or, behind ``|``, one a line:
    ``utils/extra_config.py`` of ComfyUI. What is not of that form names nothing. A file that cannot be read is empty.
    """
    try:
        with open(path, errors="surrogateescape") as file:
            lines = file.read(LIST_BYTES_MAX).splitlines()
    except OSError:
        return []
    here, found = os.path.dirname(os.path.abspath(path)), []
    for section in _sections(lines):
        base = _expanded(here, next((value for key, value in section if key == "base_path"), ""))
        found += [_expanded(base, value) for key, value in section if key not in ("base_path", "is_default")]
    return found


def _sections(lines: Iterable[str]) -> Iterator[list[tuple[str, str]]]:
    """The keys and values below each key of the outermost level; one with several lines comes once for each."""
    section: list[tuple[str, str]] = []
    key, key_indent = "", 0
    for line in lines:
        text = _without_comment(line)
        if not text.strip():
            continue
        indent = len(text) - len(text.lstrip())
        name, colon, value = text.strip().partition(":")
        if indent == 0:
            yield section
            section, key = [], ""
        elif key and indent > key_indent:
            section.append((key, _unquoted(text.strip().removeprefix("- "))))
        elif colon:
            key, key_indent = name.strip(), indent
            if value.strip() not in ("", "|", "|-", "|+", ">", ">-"):
                section.append((key, _unquoted(value.strip())))
    yield section


def _without_comment(line: str) -> str:
    return "" if line.lstrip().startswith("#") else line.split(" #", 1)[0].rstrip()


def _unquoted(value: str) -> str:
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def _expanded(base: str, path: str) -> str:
    return os.path.normpath(os.path.join(base, os.path.expandvars(os.path.expanduser(path))))
