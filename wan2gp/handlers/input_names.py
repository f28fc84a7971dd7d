"""What a downloaded file is called: safe on every file system and in every shell, and true about its content."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

from wan2gp.handlers.sniff import Sniffed

MAX_STEM = 80
"""Longest name before the extension, characters."""
_ALIASES = {
    ".mp4": {".m4v", ".mov", ".3gp"},
    ".mov": {".mp4", ".m4v"},
    ".m4a": {".m4b", ".mp4"},
    ".mpg": {".mpeg", ".vob"},
    ".ts": {".m2ts", ".mts"},
    ".wmv": {".asf", ".wma"},
    ".ogg": {".oga", ".opus"},
    ".ogv": {".ogg"},
    ".mkv": {".mka"},
    ".jpg": {".jpeg"},
    ".tif": {".tiff"},
    ".aiff": {".aif"},
    ".txt": {".srt", ".vtt", ".csv", ".md"},
    ".json": {".workflow"},
}
"""By the extension of what was found: other extensions of a URL that say the same."""


def input_name(url_name: str, found: Sniffed) -> tuple[str, str]:
    """Stem and extension, ASCII, from a URL's last part: ``("a_clip", ".mp4")``. The stem is never empty."""
    plain = unicodedata.normalize("NFKD", url_name).encode("ascii", "ignore").decode("ascii")
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    path = PurePosixPath(safe or "input")
    known = {found.extension, *_ALIASES.get(found.extension, ())}
    suffix = path.suffix.lower()
    unknown = found.extension == ".bin" and re.fullmatch(r"\.[a-z0-9]{1,8}", suffix)
    extension = suffix if suffix in known or unknown else found.extension
    return path.stem[:MAX_STEM].strip("._-") or "input", extension


def place(draft: Path, directory: Path, stem: str, extension: str) -> Path:
    """Move ``draft`` to ``stem + extension`` in ``directory``, with a number behind the stem when that is taken."""
    number = 1
    while True:
        path = directory / (f"{stem}{extension}" if number == 1 else f"{stem}-{number}{extension}")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            number += 1
            continue
        draft.replace(path)
        return path
