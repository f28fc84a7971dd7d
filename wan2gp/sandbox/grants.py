"""What a profile's paths come to on this disk: where links of model directories lead, what lists of paths name.

Nothing that a handler can write itself widens what it may read: a link or a list below a path that the profile lets it
write is passed over.
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
    write = [os.path.realpath(path) for path in profile.write]
    roots = [*profile.models]
    for path in profile.path_lists:
        if not _below(os.path.realpath(path), write):
            roots += directories_of(path)
    for path in roots:
        real = os.path.realpath(path)
        if not _encloses(real, write):
            yield real
            yield from _targets(real, write)


def _targets(root: str, write: list[str]) -> Iterator[str]:
    """Where links below ``root`` lead, and those below that, each once."""
    seen, waiting, left = {root}, [(root, 0)], ENTRIES_MAX
    while waiting and left > 0:
        directory, depth = waiting.pop()
        for entry in _entries(directory):
            left -= 1
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if target in seen or _below(directory, write) or _encloses(target, write):
                    continue
                seen.add(target)
                yield target
                waiting.append((target, depth + 1))
            elif depth < LINKS_DEEP and entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, depth + 1))


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:  # a file, gone, or closed to us: so it is to the handler
        return []


def _below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


def _encloses(path: str, places: Iterable[str]) -> bool:
    """Whether it holds one of the handler's own places, and with it those of others and the worker's: a link to ``/``
    would open everything."""
    return path == "/" or any(_below(place, [path]) and place != path for place in places)


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
