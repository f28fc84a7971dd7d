"""What a profile's paths come to on this disk: where links of model directories lead, what lists of paths name.

Nothing that a handler can write itself widens what it may read: a link or a list below a path that the profile lets it
write is passed over. So is what would open a place that the profile closes, or everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from wan2gp.profile import Profile

LINKS_DEEP = 8
"""How far below a model directory links are looked for."""
ENTRIES_MAX = 50_000
"""How many entries are looked at in all, so that a start never takes minutes."""
LIST_BYTES_MAX = 1024 * 1024


def readable(profile: Profile) -> Iterator[str]:
    """All that may be read: the profile's own, and what its model directories and lists lead to."""
    yield from profile.read
    search = _Search([os.path.realpath(path) for path in profile.write], [*map(os.path.realpath, profile.never)])
    roots = [*profile.models]
    for path in profile.path_lists:
        if not search.writable(os.path.realpath(path)):
            roots += directories_of(path)
    yield from search.from_roots(roots)


class _Search:
    """Where directories and the links below them lead, each place once."""

    def __init__(self, write: list[str], never: list[str]) -> None:
        self._write = write
        self._never = never
        self._seen: set[str] = set()
        self._waiting: list[tuple[str, int]] = []

    def from_roots(self, roots: Iterable[str]) -> Iterator[str]:
        for root in roots:
            yield from self._reach(os.path.realpath(root))
        looked_at = 0
        while self._waiting and looked_at < ENTRIES_MAX:
            directory, depth = self._waiting.pop(0)
            for entry in _entries(directory):
                looked_at += 1
                if entry.is_symlink():
                    if not self.writable(directory):
                        yield from self._reach(os.path.realpath(entry.path))
                elif depth < LINKS_DEEP and entry.is_dir(follow_symlinks=False):
                    self._waiting.append((entry.path, depth + 1))

    def writable(self, path: str) -> bool:
        return any(_below(path, place) for place in self._write)

    def _reach(self, target: str) -> Iterator[str]:
        opens = target == "/" or any(_below(place, target) or _below(target, place) for place in self._never)
        if target not in self._seen and not opens:
            self._seen.add(target)
            self._waiting.append((target, 0))
            yield target


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:  # a file, gone, or closed to us: so it is to the handler
        return []


def _below(path: str, place: str) -> bool:
    """Whether it is that place, or lies in it."""
    return path == place or path.startswith(place.rstrip("/") + "/")


def directories_of(path: str) -> list[str]:
    """The directories that a file like ComfyUI's ``extra_model_paths.yaml`` names.

    It has sections with a ``base_path`` and kinds of model, whose values are one path or, behind ``|``, one a line:
    ``utils/extra_config.py`` of ComfyUI. What is not of that form names nothing. A file that cannot be read is empty.
    """
    try:
        with open(path, errors="replace") as file:
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
