"""What settings and specifications name of this disk, resolved once when the worker starts, and judged.

Each path is looked at in a thread of its own: a network volume that hangs costs what lies on it, and neither the start
nor the loop. Whoever waits for it is started when it has answered.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping

from wan2gp.config import Config
from wan2gp.sandbox import links
from wan2gp.sandbox.links import Way, below
from wan2gp.supervisor.answers import Answer, ask
from wan2gp.supervisor.grants import around, closed_to_readers, closed_to_writers, common_reads, import_folders, is_home
from wan2gp.supervisor.needs import Needs
from wan2gp.supervisor.places import HANDLERS, WORK
from wan2gp.supervisor.users import FIXED
from wan2gp.supervisor.write_places import trusted

ANSWER_S = 5.0
"""Longest wait for a disk when the worker starts, seconds."""


class Unprepared(OSError):
    """A directory or disk that a handler needs is not to be had; the text names it, and what to do."""


class Granted:
    """Made once in a life of the supervisor. ``caches``: where settings have placed those of engines.
    ``group``: what gets those that are missing, which are made then; None: none is made."""

    def __init__(
        self, config: Config, needs: Mapping[str, Needs], caches: tuple[str, ...], group: int | None = None
    ) -> None:
        self._config, self._needs, self._caches, self._group = config, needs, caches, group
        self.notes: list[str] = []
        words = {place for one in needs.values() for place in one.write}
        settings = {place for name in needs for place in self._settings(name)}
        ways = ask({place: functools.partial(links.way, place) for place in words | settings}, ANSWER_S)
        self._where = self._judged(ways, words)
        self.untrusted = self._distrusted(ways)
        self._closed = closed_to_readers(config), closed_to_writers(config)
        read = {place for one in needs.values() for place in one.read} | {*config.sandbox_read_paths}
        looks = {(place, False): functools.partial(self._to_read, place) for place in read}
        looks |= {(place, True): functools.partial(self._to_write, place, place in words) for place in self._where}
        self._grants = ask(looks, ANSWER_S)
        checkouts = {place for one in needs.values() for place, levels in one.links.items() if levels == 0}
        self._parted = ask({place: functools.partial(self._to_list, place) for place in checkouts}, ANSWER_S)

    def _judged(self, ways: Mapping[str, Answer[Way | None]], words: set[str]) -> dict[str, str]:
        """By place that may be written to, where it is, without links."""
        found = {place: end for place, answer in ways.items() if (end := answer.get(None)) is not None}
        homes = {place for place, to in found.items() if place not in words and is_home(to.end)}
        good, planted = trusted({place: to for place, to in found.items() if place not in homes})
        silent = {place for place, answer in ways.items() if not answer.wait(0)}
        self._note(homes, "it is a home directory, or above one")
        self._note(planted, "a link in a place that handlers write to leads there: name what it leads to")
        self._note(silent, f"its disk did not answer within {ANSWER_S:g} s")
        return {place: found[place].end for place in good}

    def _note(self, places: set[str], why: str) -> None:
        self.notes += [f"{place} is not opened to handlers for writing: {why}" for place in sorted(places)]

    def _distrusted(self, ways: Mapping[str, Answer[Way | None]]) -> tuple[str, ...]:
        """Where handlers may write; a place of which nothing is known counts by its name."""
        own = [str(self._config.data_dir / name) for name in (HANDLERS, WORK)]
        silent = [place for place, answer in ways.items() if not answer.wait(0)]
        return tuple(sorted({*self._where.values(), *silent, *own, *map(os.path.realpath, own)}))

    def _to_read(self, place: str) -> list[str]:
        found = links.way(place)
        return [] if found is None or found.passes(self.untrusted) else around(found.end, self._closed[0])

    def _to_list(self, place: str) -> list[str]:
        """Python finds no module where it may not list."""
        found = links.way(place)
        opened = found is not None and self._to_read(place) != [found.end]
        return [found.end] if found is not None and opened and not found.passes(self.untrusted) else []

    def _to_write(self, place: str, word: bool) -> list[str]:
        end = self._where[place]
        if self._group is not None and not os.path.lexists(end):
            self._make(end)
        return [end] if word else around(end, self._closed[1])

    def _make(self, end: str) -> None:
        """A grant needs something to hold to. What lies below another such place, a handler makes itself."""
        if any(below(end, other) for other in self._where.values() if other != end):
            return
        with contextlib.suppress(OSError):  # it is found to be missing when it is used
            os.makedirs(end)
            if os.geteuid() == 0:
                os.chown(end, -1, self._group or -1)
                os.chmod(end, 0o2775 if self._group else 0o755)

    def common(self, environ: Mapping[str, str]) -> tuple[str, ...]:
        """To be read by all."""
        return common_reads(self._config, environ, self.untrusted)

    def listed(self, reads: tuple[str, ...]) -> tuple[str, ...]:
        """Only the names in it may be read, by all."""
        return import_folders(reads, self.untrusted)

    def checkouts(self, name: str) -> list[str]:
        """The same for one: an engine's own directory, where something in it is closed."""
        return [
            end for place in self._needs[name].links if place in self._parted for end in self._parted[place].get([])
        ]

    def reads(self, name: str) -> Iterator[str]:
        """Besides, for one. Raises :class:`Unprepared` as long as a disk does not answer."""
        for place in (*self._config.sandbox_read_paths, *self._needs[name].read):
            if not self._grants[place, False].wait(0):
                raise Unprepared(f"{place} cannot be looked at, since its disk does not answer: see to the disk")
            yield from self._grants[place, False].get([])

    def writes(self, name: str) -> Iterator[str]:
        """The same, to be written to, without what did not answer at the start."""
        for place in (*self._needs[name].write, *self._settings(name)):
            if place in self._where:
                yield from self._grants[place, True].get([])

    def _settings(self, name: str) -> tuple[str, ...]:
        """The built-in handlers without an engine have no use for its caches."""
        needs = self._needs[name]
        return (*needs.write_settings, *(self._caches if name not in FIXED or needs.models else ()))
