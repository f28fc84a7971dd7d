"""Whether a handler may have the inputs that it asks for: what its task's own row names, what its specification names
besides, and not without end.

The engine below a handler says which weights it lacks, and is not trusted: weights come from the sources that the
operator has named, whatever a row or an engine says, for they can run code when they are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from wan2gp.lora_names import resolved
from wan2gp.model_places import KINDS as KEPT
from wan2gp.model_places import LORA, WEIGHTS
from wan2gp.protocol import Failed, Source

SOURCES_MAX = 256
"""How many inputs one task may have."""
WISHES_MAX = 32
"""How often one run may ask for other inputs than before: each time they are downloaded."""
NAME_MAX = 200
KEPT_WISHES_MAX = 1000
"""The same where nothing but files of models is asked for: a first load asks for each of its files by itself."""
KINDS = frozenset({"video", "image", "audio", "any"})
_PLAIN_PATH = re.compile(r"/[\w./+@=~-]+")


@dataclass(frozen=True)
class MayFetch:
    """What a handler may have besides what stands in its task's params."""

    urls: frozenset[str] = frozenset()
    """LoRAs."""
    sources: tuple[str, ...] = ()
    """Of weights, and of LoRAs too: hosts with the beginning of a path. https, unless one says otherwise."""
    models: bool = False
    """Whether it may ask for files of models at all."""


def refusal(
    params: Any, sources: Mapping[str, Source], wishes: int = 1, may_fetch: MayFetch = MayFetch()
) -> Failed | None:
    """Why they are not fetched, if so. ``wishes``: how often the run has asked for others."""
    most = KEPT_WISHES_MAX if all(each.kind in KEPT for each in sources.values()) else WISHES_MAX
    if wishes > most:
        return Failed("input.bad_params", f"it has asked for other inputs {most} times")
    if len(sources) > SOURCES_MAX:
        return Failed("input.bad_params", f"more than {SOURCES_MAX} inputs: {len(sources)}")
    kinds = KINDS | KEPT if may_fetch.models else KINDS
    odd = next((name for name, each in sources.items() if len(name) > NAME_MAX or each.kind not in kinds), None)
    if odd is not None:
        return Failed("input.bad_params", f"input {odd[:NAME_MAX]!r} has no such name or kind")
    return _foreign(params, sources, may_fetch)


def _foreign(params: Any, sources: Mapping[str, Source], may_fetch: MayFetch) -> Failed | None:
    """Of the first URL that may not be fetched."""
    named = _Named(params)
    for source in sources.values():
        if source.kind == WEIGHTS:
            if not _from(source.url, may_fetch.sources):
                return _distrusted(source.url, may_fetch)
        elif not (named.has(source.url) or (source.kind == LORA and _lora_known(source.url, named, may_fetch))):
            return Failed("input.bad_url", f"{source.url[:200]} does not stand in the task's params")
    return None


def _distrusted(url: str, may_fetch: MayFetch) -> Failed:
    if not may_fetch.sources:
        return Failed(
            "input.bad_url", f"{_shown(url)} is not fetched: downloads of weights are switched off (wan.download)"
        )
    trusted = ", ".join(may_fetch.sources)
    return Failed("input.bad_url", f"{_shown(url)} is not fetched: wan.model_sources has only {trusted}")


def _shown(url: str) -> str:
    return url.partition("?")[0][:200]


def _lora_known(url: str, named: _Named, may_fetch: MayFetch) -> bool:
    """Rows give the URL of a file's page too, where the file itself is fetched."""
    return url in may_fetch.urls or named.has_page_of(url) or _from(url, may_fetch.sources)


def _from(url: str, sources: tuple[str, ...]) -> bool:
    """Whether a URL is plainly below one of the sources: nothing in its path may lead out again."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    path = unquote(parts.path)
    if "@" in parts.netloc or not _PLAIN_PATH.fullmatch(path) or not {"", ".", ".."}.isdisjoint(path.split("/")[1:]):
        return False
    for source in sources:
        trusted = urlsplit(source if "://" in source else f"https://{source}")
        if (parts.scheme, host, port) == (trusted.scheme, trusted.hostname, trusted.port) and path.startswith(
            f"{trusted.path}/"
        ):
            return True
    return False


class _Named:
    """The strings in a task's params."""

    def __init__(self, params: Any) -> None:
        self._strings: set[str] = set()
        self._documents: list[str] = []
        level = [params]
        while level:
            value = level.pop()
            if isinstance(value, str):
                self._strings.add(value)
                if value.lstrip()[:1] in ("{", "["):
                    self._documents.append(value)  # JSON in a string: a graph, say
            elif isinstance(value, dict):
                self._strings.update(key for key in value if isinstance(key, str))
                level += value.values()
            elif isinstance(value, list):
                level += value

    def has(self, url: str) -> bool:
        return url in self._strings or any(url in document for document in self._documents)

    def has_page_of(self, url: str) -> bool:
        """Whether a string in them means this file, by itself or in a list with commas."""
        return any(_same_file(part, url) for string in self._strings for part in {string, *string.split(",")})


def _same_file(given: str, url: str) -> bool:
    try:
        return ":" in given and resolved(given) == url
    except ValueError:  # it only looks like a URL
        return False
