"""Which handlers and types of tasks this worker cannot serve now, and why: looked at on disks that may not answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from wan2gp.config import Config
from wan2gp.supervisor.answers import Answer, ask
from wan2gp.supervisor.registry import Found, HandlerSpec, looks_around, unable_of

SILENT: Found = ("its files do not answer: a network volume that hangs? It is looked at again and again", {})
"""Of a handler of which nothing was ever found."""


class Inability:
    """Only the loop's thread comes here."""

    def __init__(self, specs: Mapping[str, HandlerSpec], config: Config) -> None:
        self._specs = {name: spec for name, spec in specs.items() if looks_around(spec)}
        self._config = config
        self._asked: dict[str, Answer[Found]] = {}
        self._found: dict[str, Found] = dict.fromkeys(self._specs, SILENT)
        self.handlers: dict[str, str] = {}
        """Those that can serve nothing, with the reason."""
        self.types: dict[str, str] = {}
        """Types of the other handlers that cannot be served, with the reason."""

    def look(self, wait_s: float) -> bool:
        """Look again, for at most so long; of a disk that does not answer, what was found last stays true. Whether
        something can be served now that could not before."""
        looks = {name: partial(unable_of, spec, self._config) for name, spec in self._specs.items()}
        self._asked |= ask({name: look for name, look in looks.items() if name not in self._asked}, wait_s)
        for name in [name for name, answer in self._asked.items() if answer.wait(0)]:
            self._found[name] = self._asked.pop(name).get(SILENT)
        before = {*self.handlers, *self.types}
        self.handlers = {name: reason for name, (reason, _) in self._found.items() if reason}
        self.types = {kind: reason for _, types in self._found.values() for kind, reason in types.items()}
        return bool(before - {*self.handlers, *self.types})
