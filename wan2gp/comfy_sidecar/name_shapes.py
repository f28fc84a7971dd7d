"""Inputs of classes that nobody here knows, whose own names say that they name files: what such a value may not be.

Packs have hundreds of them (``prompt_file``, ``image_directory``, ``output_path``, ``pattern``), to read and to write,
and no list keeps up. A plain relative value passes, whatever it means: so a text that only looks like a file's is
rarely refused.
"""

from __future__ import annotations

import fnmatch
import re

WORDS = frozenset(("path", "file", "filename", "filepath", "dir", "directory", "folder", "pattern", "glob", "prefix"))
"""An input's name, or a part of it between underscores, in any case."""
OTHER_WORDS = frozenset({"regex", "regexp", "separator", "delimiter"})
"""A part that says that the value is no file's name after all: ``regex_pattern``, ``path_separator``."""
REWRITTEN = "filename_prefix"
"""What is in it goes below the run's own folder, whatever it is."""
RUNS_FOLDER = "wan2gp"
"""Below the input folder, and below that for outputs: the files of each run, those of others among them."""
LONGEST_PATTERN = 1024
"""Of one folder with wildcards: comparing it takes time that grows with its length."""
_PATTERNS = frozenset({"pattern", "glob"})
_WEB = re.compile(r"https?://", re.IGNORECASE)
_ABSOLUTE = re.compile(r"/|file:[/.]|[a-z]:[\\/]", re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")


def words_of(field: str) -> frozenset[str]:
    """The words in an input's name that say that it names a file; empty: it does not."""
    parts = frozenset(field.casefold().split("_"))
    return frozenset() if field == REWRITTEN or parts & OTHER_WORDS else parts & WORDS


def fault_of_shape(name: str, words: frozenset[str]) -> str | None:
    """Why ``name``, without blanks and quotation marks around it, may not stand in an input with these ``words``."""
    if name.startswith("~"):
        return "begins with ~, which is somebody's home"
    if not _WEB.match(name) and _is_absolute(name, words):
        return "is absolute"
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    if ".." in parts:
        return "climbs out of its folder"
    if any(len(part) > 1 and not part.strip("*") for part in parts):
        return "looks through all folders below"
    return None if _WEB.match(name) else _fault_of_parts(parts)


def _is_absolute(name: str, words: frozenset[str]) -> bool:
    """A pattern that begins with a backslash is an expression (``\\d+``) and not a path of Windows."""
    return bool(_ABSOLUTE.match(name) or (name.startswith("\\") and not words & _PATTERNS))


def _fault_of_parts(parts: list[str]) -> str | None:
    folders = [part for part in parts[:-1] if _WILD.search(part)]
    if any(len(part) > LONGEST_PATTERN for part in folders):
        return f"has a folder with wildcards that is longer than {LONGEST_PATTERN} characters"
    if any(part.startswith(".") and fnmatch.fnmatchcase("..", part) for part in folders):
        return "climbs out of its folder"
    if RUNS_FOLDER in parts or any(fnmatch.fnmatchcase(RUNS_FOLDER, part) for part in folders):
        return "belongs to other tasks"
    return None
