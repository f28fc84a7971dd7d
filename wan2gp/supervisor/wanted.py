"""Whether a handler may have the inputs that it asks for: what its task's own row names, what its specification names
besides, and not without end.

The engine below a handler says which weights it lacks, and is not trusted: weights come from the sources that the
operator has named, whatever a row or an engine says, for they can run code when they are loaded.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
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
PAGES_MAX = 4096
"""So many strings of one task's params are read as URLs of pages."""
URL_MAX = 8192
"""Longest of them, characters."""
SEARCHED_MAX = 512 * 1024 * 1024
"""How much text of one task's params is searched for the URLs that its run asks for, characters. A graph in a string is
searched once for each."""
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
    named: Named, sources: Mapping[str, Source], wishes: int = 1, may_fetch: MayFetch = MayFetch()
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
    return _foreign(named, sources, may_fetch)


def _foreign(named: Named, sources: Mapping[str, Source], may_fetch: MayFetch) -> Failed | None:
    """Of the first URL that may not be fetched."""
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


def _lora_known(url: str, named: Named, may_fetch: MayFetch) -> bool:
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


class Named:
    """The strings in a task's params. Their author is not trusted: they are searched in the loop's thread."""

    def __init__(self, params: Any) -> None:
        self._strings: set[str] = set()
        self._documents: list[str] = []
        self._to_search = SEARCHED_MAX
        self._pages: frozenset[str] | None = None
        level = [params]
        while level:
            value = level.pop()
            if isinstance(value, str):
                self._strings.add(value)
                if value.lstrip()[:1] in ("{", "["):
                    self._documents.append(value)  # JSON in a string: a graph, say
            elif isinstance(value, dict):
                self._strings.update(key for key in value if isinstance(key, str))
                level += [each for each in value.values() if isinstance(each, (str, dict, list))]
            elif isinstance(value, list):
                level += [each for each in value if isinstance(each, (str, dict, list))]

    def has(self, url: str) -> bool:
        return url in self._strings or any(self._stands_in(url, document) for document in self._documents)

    def has_page_of(self, url: str) -> bool:
        """Whether a string in them means this file, by itself or in a list with commas."""
        if self._pages is None:
            self._pages = frozenset(_meant(self._strings))
        return url in self._pages

    def _stands_in(self, url: str, document: str) -> bool:
        self._to_search -= len(document)
        return self._to_search >= 0 and url in document


def _meant(strings: Iterable[str]) -> Iterator[str]:
    """The files that strings mean by the URL of their page, at most :data:`PAGES_MAX`."""
    urls = (part for string in strings if "//" in string for part in {string, *string.split(",")} if "//" in part)
    for url in itertools.islice((each for each in urls if len(each) <= URL_MAX), PAGES_MAX):
        with contextlib.suppress(ValueError):  # it only looks like a URL
            yield resolved(url)
