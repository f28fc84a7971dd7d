"""What a run measured: how soon deaths and hangs were seen, how soon work went on, and what it cost.

A fault that something else got in the way of (its supervisor died or stood still meanwhile, the database was away, the
next fault came first) is no sample: it is counted as not measured, and the reader is told how many there were.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from tests.chaos.history import stories_of
from tests.chaos.loglines import Said, read
from tests.chaos.records import Deed, Event, History
from tests.chaos.story import Story, kind_of, overlaps
from tests.chaos.times import NAMES, Figures, Load, Times

__all__ = ["NAMES", "Deed", "Figures", "Load", "Times", "measure"]

PATIENCE_S = 30.0
"""What was not seen so long after a fault was not seen."""
STAMP_S = 0.001
"""The log cuts its times off to the millisecond, so that what ends with a line is told too short by up to so much."""
CHILDREN = ("handler", "shim", "courier")
GUARDIAN = "guardian"
"""In the cause of a handler's death when its shim was killed."""
LIMIT_WORDS = "no progress within "


def measure(history: History, logs: Mapping[str, str], load: Load | None = None, calm: Load | None = None) -> Figures:
    """All figures of one run. ``logs``: the text of each worker's ``worker.log``, by worker."""
    scene = Scene(history, {worker: list(read(text)) for worker, text in logs.items()})
    times = {
        "death of a child": scene.after(CHILDREN, scene.child_died),
        "death of ComfyUI": scene.after(("server",), scene.server_died),
        "handler back": scene.after(("handler", "shim"), scene.handler_back),
        "handler again": scene.after(("handler", "shim"), scene.handler_again),
        "handler done": scene.after(("handler", "shim"), scene.handler_done),
        "ComfyUI again": scene.after(("server",), scene.server_again),
        "ComfyUI start": Times(tuple(start for worker in logs for _, start in scene.starts(worker))),
        "worker lost": scene.worker_lost(),
        "hang": scene.hangs(),
    }
    return Figures(times, load, calm)


class Scene:
    """A history and the logs of its workers, side by side."""

    def __init__(self, history: History, logs: Mapping[str, list[Said]]) -> None:
        self._history = history
        self._logs = logs
        self._stories = stories_of(history)
        self._events: dict[str, list[Event]] = defaultdict(list)
        for event in history.events:
            self._events[event.task_id].append(event)
        self._after = {row.id: row.after for row in history.rows}

    def after(self, victims: tuple[str, ...], end: Callable[[Deed], float | None]) -> Times:
        """``end`` gives the seconds from a kill to what is awaited, None when that was not seen."""
        killed = [one for one in self._history.deeds if one.victim in victims and one.name.startswith("kill")]
        seconds = [end(deed) for deed in killed]
        values = tuple(max(0.0, one) for one in seconds if one is not None)
        return Times(values, len(seconds) - len(values))

    # -- what is awaited after a kill --------------------------------------------------------------------------------

    def child_died(self, deed: Deed) -> float | None:
        """A shim says nothing of whose it was: the first guardian that is missed is taken for it."""
        for said in self._next(deed, "handler.died"):
            if said.fields["handler"] == deed.handler or not deed.handler and GUARDIAN in said.fields["cause"]:
                return self._undisturbed(deed, said.at, ("supervisor",))
        return None

    def _handler(self, deed: Deed) -> str | None:
        guardians = (said for said in self._next(deed, "handler.died") if GUARDIAN in said.fields["cause"])
        return deed.handler or next((said.fields["handler"] for said in guardians), None)

    def server_died(self, deed: Deed) -> float | None:
        """From the handler's own words."""
        for said in self._next(deed, "comfy.stopped"):
            return self._undisturbed(deed, said.at, ("supervisor", "handler", "shim")) if self._served(deed) else None
        return None

    def handler_back(self, deed: Deed) -> float | None:
        """With the pause that it makes between a death and the next start."""
        name = self._handler(deed)
        ready = (said for said in self._next(deed, "handler.ready") if said.handler == name)
        return next((self._undisturbed(deed, said.at) for said in ready), None)

    def handler_again(self, deed: Deed) -> float | None:
        """From the moment at which both the kill and the task were there."""
        said, since = self._next_task(deed)
        return None if said is None else self._less(deed, said.at, since)

    def handler_done(self, deed: Deed) -> float | None:
        """As people see it: with the time that the task itself takes."""
        begun, since = self._next_task(deed)
        for said in self._next(deed, "task.completed"):
            if begun is not None and said.task == begun.task:
                return self._less(deed, said.at, since)
        return None

    def _next_task(self, deed: Deed) -> tuple[Said | None, float]:
        """What the handler runs next, and since when that waits; None when it was ready before anybody waited."""
        name, ready = self._handler(deed), math.inf
        for said in self._next(deed, "handler.ready", "task.processing"):
            if said.handler == name and said.name == "handler.ready":
                ready = min(ready, said.at)
            elif said.handler == name and said.task is not None:
                since = self._waits_since(said.task, said.at)
                return (said, since) if since < ready <= said.at else (None, 0.0)
        return None, 0.0

    def server_again(self, deed: Deed) -> float | None:
        """Less what the server takes to start, which is not the worker's to shorten."""
        for said in self._next(deed, "comfy.queued"):
            starts = [start for at, start in self.starts(deed.worker or "") if deed.at <= at <= said.at]
            if said.task is None or len(starts) != 1 or not self._served(deed):
                return None
            whole_s = self._less(deed, said.at, self._waits_since(said.task, said.at))
            return None if whole_s is None else whole_s - starts[0]
        return None

    def _served(self, deed: Deed) -> bool:
        """Whether the server that was killed had been ready: the end of one that starts is a start that fails."""
        words = [said for said in self._logs.get(deed.worker or "", []) if said.name.startswith("comfy.")]
        state = [said.name for said in words if said.at <= deed.at and said.name != "comfy.queued"]
        return bool(state) and state[-1] == "comfy.ready"

    def _less(self, deed: Deed, until: float, since: float) -> float | None:
        """The seconds until then from when both the fault and the task were there."""
        whole_s = self._undisturbed(deed, until)
        return None if whole_s is None else whole_s - max(since - deed.at, 0.0)

    def starts(self, worker: str) -> Iterator[tuple[float, float]]:
        """When each server of a worker was ready, and how long it had taken."""
        began: float | None = None
        for said in self._logs.get(worker, []):
            if said.name == "comfy.starting":
                began = said.at
            elif said.name == "comfy.ready" and began is not None:
                yield said.at, said.at - began
                began = None
            elif said.name in ("worker.started", "comfy.stopped"):
                began = None

    def _next(self, deed: Deed, *names: str) -> Iterator[Said]:
        """What its worker said after a fault, before it was started again and before patience ends."""
        for said in self._logs.get(deed.worker or "", []):
            if said.at < deed.at - STAMP_S:
                continue
            if said.name == "worker.started" or said.at > deed.at + PATIENCE_S:
                return
            if said.name in names:
                yield said

    def _undisturbed(self, deed: Deed, until: float, by: tuple[str, ...] = ()) -> float | None:
        """The seconds from a fault to what came of it; None when another one, done to the same worker, came between.

        ``by``: the victims whose faults can be in the way; nothing given, all of them, and outages too. What is done
        to another handler's processes is never in the way.
        """
        others = [one for one in self._history.deeds if one is not deed and one.worker in (None, deed.worker)]
        near = [one for one in others if None in (one.handler, deed.handler) or one.handler == deed.handler]
        between = [one for one in near if one.at <= until and (one.until or one.at) >= deed.at]
        if any(not by or one.victim in by for one in between):
            return None
        away = not by and overlaps(self._history.outages, deed.at, until)
        return None if away else until - deed.at

    def _waits_since(self, task_id: str, until: float) -> float:
        """Since when the task could have been claimed: it was queued, its pause was over, its forerunners were done."""
        since = -math.inf
        for event in self._events[task_id]:
            if event.name in ("queued", "requeued", "retried", "released") and event.at <= until:
                since = max(since, event.at + float(event.detail.get("retry_in_s") or 0.0))
        for before in self._after.get(task_id, ()):
            done = [one.at for one in self._events[before] if one.name == "completed"]
            since = max([since, *done])
        return min(since, until)

    # -- workers and hangs -------------------------------------------------------------------------------------------

    def worker_lost(self) -> Times:
        """Of a killed supervisor each task that it held; of one that stood still those that were taken from it."""
        values: list[float] = []
        unseen = 0
        for deed in self._history.deeds:
            if deed.victim != "supervisor" or not deed.name.startswith(("kill", "freeze")):
                continue
            for seconds in self._taken_up(deed):
                values += [] if seconds is None else [seconds]
                unseen += seconds is None
        return Times(tuple(values), unseen)

    def _taken_up(self, deed: Deed) -> Iterator[float | None]:
        for story in self._stories.values():
            for hold in story.holds:
                if hold.worker != deed.worker or hold.begun > deed.at or (hold.ended or math.inf) <= deed.at:
                    continue
                taken = hold.end is not None and kind_of(hold.end) in ("lease_expired", "worker_died")
                if taken and hold.ended is not None:
                    clear = not overlaps(self._history.outages, deed.at, hold.ended)
                    yield hold.ended - deed.at if clear else None
                elif deed.name.startswith("kill") and hold.end is None and not _ended(story):
                    yield None

    def hangs(self) -> Times:
        """Only of tasks that said nothing more after they began: when others last moved, no log tells."""
        values: list[float] = []
        unseen = 0
        for worker, lines in self._logs.items():
            began: dict[str, Said] = {}
            for said in lines:
                if said.name == "task.processing" and said.handler is not None:
                    began[said.handler] = said
                elif said.name == "handler.hung" and said.fields["reason"].startswith(LIMIT_WORDS):
                    late_s = self._late(worker, began.get(said.fields["handler"]), said)
                    values += [] if late_s is None else [late_s]
                    unseen += late_s is None
        return Times(tuple(values), unseen)

    def _late(self, worker: str, began: Said | None, hung: Said) -> float | None:
        """How much later than its limit a hang was found, seconds."""
        limit_s = float(hung.fields["reason"].removeprefix(LIMIT_WORDS).partition("s")[0])
        if began is None or began.task is None:
            return None
        pauses = [pause for life in self._history.lives if life.worker == worker for pause in life.pauses]
        told = [one for one in self._events[began.task] if one.name == "progress" and began.at < one.at < hung.at]
        steps = {one.detail["progress"] for one in told if one.detail.get("progress") is not None}
        if len(steps) > 1 or overlaps(pauses, began.at, hung.at):
            return None
        return max(0.0, hung.at - began.at - limit_s)


def _ended(story: Story) -> bool:
    return story.ended is not None
