"""``worker.log`` read back: which fact each line states, when, and of whom. The wording is the log's own."""

from __future__ import annotations

import math
import re
import string
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tests.chaos.records import Life
from wan2gp.logs import FACTS

READ = (
    "worker.started",
    "worker.took_back",
    "handler.starting",
    "handler.ready",
    "handler.died",
    "handler.hung",
    "task.processing",
    "task.completed",
    "comfy.starting",
    "comfy.started",
    "comfy.ready",
    "comfy.stopped",
    "comfy.queued",
)
"""The facts that figures are made of; no two of them read alike."""
LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.(\d{3}) \w+ +(?:\[([^\]=]+=[^\]]*)\] )?(.*)")


@dataclass(frozen=True)
class Said:
    """One line. ``at``: seconds since the epoch, to the millisecond, cut off."""

    at: float
    name: str
    handler: str | None = None
    task: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


def pattern(template: str) -> re.Pattern[str]:
    """What a line of this wording looks like; its fields are groups."""
    parts: list[str] = []
    seen: set[str] = set()
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(re.escape(text))
        if name is not None:
            parts.append(".*?" if name in seen else f"(?P<{name}>.*?)")
            seen.add(name)
    return re.compile("".join(parts))


def read(text: str) -> Iterator[Said]:
    """The lines that state one of :data:`READ`, in order; others, also those that were cut off, are passed over."""
    patterns = {name: pattern(FACTS[name][1]) for name in READ}
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            continue
        second, millisecond, speaker, words = found.groups()
        for name, wording in patterns.items():
            fields = wording.fullmatch(words)
            if fields is not None:
                who = dict(pair.partition("=")[::2] for pair in (speaker or "").split())
                at = time.mktime(time.strptime(second, "%Y-%m-%d %H:%M:%S")) + int(millisecond) / 1000
                yield Said(at, name, who.get("handler"), who.get("task"), fields.groupdict())
                break


def with_starts(lives: Iterable[Life], logs: Mapping[str, str]) -> Iterator[Life]:
    """The lives, each with when its worker's log says that it began to claim. ``logs``: by worker."""
    started = {
        worker: [said.at for said in read(text) if said.name == "worker.started"] for worker, text in logs.items()
    }
    for life in lives:
        end = math.inf if life.ended is None else life.ended
        own = [at for at in started.get(life.worker, []) if life.begun <= at <= end]
        yield replace(life, able=own[0] if own else math.inf)
