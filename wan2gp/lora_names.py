"""LoRAs by name or URL: what is meant, and what the file is called. A leaf; nothing is fetched.

Two repositories publish files of one name, and one repository publishes several under names like
``high_noise_model.safetensors``: so a fetched file lies in a directory of its URL's hash, under the name that it has.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

SUFFIX = ".safetensors"
"""The only format: the others are pickles, which run code when they are loaded."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
LONGEST_NAME = 120
"""Characters."""
MOST_FOLDERS = 2000
"""Below one directory for LoRAs, that are looked into."""
_SECRET = re.compile(
    r"token|api_?key|key|access_token|download|expires|signature|policy|key-pair-id|x-(amz|goog)-.*|se|sp|sv|sr|st|sig"
)
"""Parameters of a URL that say who may fetch the file, or until when, and not which file it is."""


class BadLora(ValueError):
    """It is no LoRA; the message continues a sentence that names the parameter."""


def is_url(source: str) -> bool:
    """True for what is fetched; else it is the name of a file that the engine has."""
    return re.match(r"[a-z][a-z0-9+.-]*:", source.strip(), re.IGNORECASE) is not None


def checked(source: str) -> str:
    """``source`` as it is used: a URL of the file itself, or a name with its suffix. Raises :class:`BadLora`."""
    source = source.strip()
    if not source:
        raise BadLora("is empty")
    if not source.isprintable():
        raise BadLora("has characters that cannot be printed")
    return _checked_url(source) if is_url(source) else _checked_name(source)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is read only now, and may be no number
    except ValueError as error:
        raise BadLora(f"is a malformed URL: {error}") from error
    if parts.scheme.lower() not in ("http", "https", "storage") or not parts.netloc:
        raise BadLora(f"is {url[:100]!r}, which is neither an http(s) or storage:// URL nor the name of a file")
    _refuse_pickle(parts.path)
    return resolved(url)


def _checked_name(name: str) -> str:
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\", "~")) or not {"", ".", ".."}.isdisjoint(parts) or ":" in name:
        raise BadLora(f"is {name[:100]!r}: give the file's name in the engine's LoRA directory, or a URL")
    _refuse_pickle(name)
    return name if name.lower().endswith(SUFFIX) else name + SUFFIX


def _refuse_pickle(path: str) -> None:
    if path.lower().endswith(PICKLES):
        raise BadLora(f"is {PurePosixPath(path).name[:100]!r}: only {SUFFIX} files are loaded, the others can run code")


def resolved(url: str) -> str:
    """The file itself where the URL is that of its page on Hugging Face (``/blob/`` becomes ``/resolve/``)."""
    parts = urlsplit(url.strip())
    if not _is_hub(parts):
        return url.strip()
    path = re.sub(r"^(/[^/]+/[^/]+)/blob/", r"\1/resolve/", parts.path)
    return urlunsplit(parts._replace(path=path))


def _is_hub(parts: SplitResult) -> bool:
    return (parts.hostname or "") in ("huggingface.co", "www.huggingface.co", "hf.co")


def is_signed(url: str) -> bool:
    """Whether a part of the URL says who may fetch the file, so that not everybody may who knows where it is."""
    parts = urlsplit(url)
    keys = {key.lower() for key, _ in parse_qsl(parts.query)} - {"download"}
    return "@" in parts.netloc or any(_SECRET.fullmatch(key) for key in keys)


def file_name(source: str) -> str:
    """What the file is called: the end of a URL's path or of a name, safe as one part of a path."""
    path = urlsplit(source).path if is_url(source) else source
    name = re.sub(r"[^\w.+-]+", "_", unquote(re.split(r"[/\\]", unquote(path.rstrip("/")))[-1])).strip("._")
    stem = name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
    return (stem[: LONGEST_NAME - len(SUFFIX)] or "lora") + SUFFIX


def found_below(name: str, folders: Iterable[Path]) -> list[Path]:
    """The files that a name may mean: directly in one of the directories, else in any below it, each file once."""
    for folder in folders:
        if (folder / name).is_file():
            return [folder / name]
    found: dict[str, Path] = {}
    for folder in folders:
        for count, (where, below, _) in enumerate(os.walk(folder)):
            below[:] = [each for each in below if not each.startswith(".")]
            if count > MOST_FOLDERS:
                break
            if (Path(where) / name).is_file():
                found.setdefault(os.path.realpath(f"{where}/{name}"), Path(where) / name)
    return list(found.values())


def stored_at(url: str) -> PurePosixPath:
    """Where a fetched file lies below the directory for LoRAs. The same file under a fresh signature is the same."""
    parts = urlsplit(resolved(url))
    query = [(key, value) for key, value in parse_qsl(parts.query) if not _SECRET.fullmatch(key.lower())]
    same = f"{parts.netloc.rpartition('@')[2].lower()}{parts.path}?{urlencode(query)}"
    return PurePosixPath(hashlib.sha256(same.encode()).hexdigest()[:16]) / file_name(url)
