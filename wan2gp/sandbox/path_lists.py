"""Files that name directories of models: ComfyUI's lists, and Wan2GP's own configuration.

Their forms are the engines' own. What is not of that form names nothing; a file that cannot be read is empty.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

LIST_BYTES_MAX = 1024 * 1024


def directories_of(path: str) -> list[str]:
    """The directories that a file names: Wan2GP's where it is JSON by its name, else one of ComfyUI's form."""
    try:
        with open(path, errors="surrogateescape") as file:
            text = file.read(LIST_BYTES_MAX)
    except OSError:
        return []
    here = os.path.dirname(os.path.abspath(path))
    return _of_wan2gp(here, text) if path.endswith(".json") else _of_comfyui(here, text.splitlines())


def _of_wan2gp(here: str, text: str) -> list[str]:
    """``checkpoints_paths`` and ``loras_root`` of ``wgp_config.json``, beside which they lie. The directory itself is
    one by default, and needs no grant of its own."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    given, root = (found.get("checkpoints_paths"), found.get("loras_root")) if isinstance(found, dict) else (None, None)
    names = [name.strip() for name in (*(given if isinstance(given, list) else ()), root) if isinstance(name, str)]
    return [place for place in (_expanded(here, name) for name in names if name) if place != here]


def _of_comfyui(here: str, lines: list[str]) -> list[str]:
    """``extra_model_paths.yaml`` has sections with a ``base_path`` and kinds of model, whose values are one path or,
    behind ``|``, one a line: ``utils/extra_config.py`` of ComfyUI."""
    found = []
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
