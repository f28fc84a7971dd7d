"""Says things to the supervisor that no honest handler says; `params["how"]` chooses."""

from __future__ import annotations

import gc

from wan2gp.handlers.api import Handler, Job
from wan2gp.handlers.link import Link
from wan2gp.protocol import EngineState, Event, Finished, Hello, Outcome, Progress, Source, Succeeded, Want


def nested(depth: int) -> list[object]:
    found: list[object] = []
    for _ in range(depth):
        found = [found]
    return found


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        link = next(thing for thing in gc.get_objects() if isinstance(thing, Link))
        how, ids = job.params["how"], (job.task_id, job.lease_id)
        if how == "numbers":
            link.send(Event("input.downloaded", {"bytes": 1, "seconds": 10**400}))
        elif how == "lines":
            link.send(
                Event("forged\nfact\x1b[2J", {"x\n": "y\n2026-01-01 CRITICAL forged"}, "x]\n2026 CRITICAL forged")
            )
        elif how == "pid":
            link.send(EngineState("ready", {"pid": job.params["pid"]}))
        elif how == "progress":
            link.send(Progress(*ids, float("inf"), "x" * 100_000, detail="y" * 100_000))
            link.send(Progress(*ids, -5.0))
        elif how == "hello":
            link.send(Hello(1))
            link.send(Hello(1))
        elif how == "want":
            link.send(Want(*ids, {str(number): Source("http://127.0.0.1/x") for number in range(10_000)}))
        elif how == "others":
            other = job.params["task"], job.params["lease"]
            link.send(Event("task.completed", {"task_id": other[0]}, other[0]))
            link.send(Progress(*other, 0.99))
            link.send(Finished(*other, Succeeded(())))
            link.send(Finished(job.task_id, other[1], Succeeded(())))
        elif how == "noise":
            for number in range(3000):
                link.send(Event("noise", {"number": number}))
            link.send(Event("noise", {"text": "x" * 100_000}))
        elif how == "deep":
            return Succeeded((), data={"deep": nested(150), "odd": "\u0000 😀"})
        elif how == "deeper":
            return Succeeded((), data={"deep": nested(600)})
        return Succeeded((), data={"how": how})
