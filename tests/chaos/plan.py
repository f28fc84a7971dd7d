"""From a seed: which workers there are, what is asked of them and when, and what is done to them. Pure.

How far each process has come at a given moment no seed can decide; everything else is decided here, before the start.
"""

from __future__ import annotations

import dataclasses
import json
import random
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.chaos.work import KINDS, QUICK, Params

LEASE_S = 3.0
RENEW_S = 0.5
POLL_S = 0.4
PACE_S = 0.14
"""One task is asked for in so many seconds, on average."""
GAP_S = (0.5, 1.5)
"""Between two deeds, seconds."""
CELLS = ("postgres-restart", "backend-kill", "repeated-kill", "thawed-late", "network-cut")


@dataclass(frozen=True)
class TaskPlan:
    """``after``: ids of tasks that it waits for. ``queue_call``: inserted by ``wan2gp_enqueue``, not by plain SQL."""

    id: str
    at_s: float
    kind: str
    params: Params
    priority: int = 0
    max_attempts: int = 3
    after: tuple[str, ...] = ()
    queue_call: bool = False

    @property
    def task_type(self) -> str:
        return KINDS[self.kind].task_type

    @property
    def makes(self) -> int:
        return KINDS[self.kind].makes(self.params)


@dataclass(frozen=True)
class CancelPlan:
    """``by``: ``sql``, or ``ctl`` of the named worker."""

    task_id: str
    at_s: float
    by: str
    worker: str


@dataclass(frozen=True)
class DeedPlan:
    """A fault to be done. ``pick`` chooses among the victims that there are then; ``seconds`` is how long it lasts."""

    at_s: float
    name: str
    victim: str
    worker: str = ""
    seconds: float = 0.0
    pick: int = 0


@dataclass(frozen=True)
class Plan:
    seed: int
    cell: str
    workers: tuple[str, ...]
    storage: bool
    tasks: tuple[TaskPlan, ...]
    cancels: tuple[CancelPlan, ...]
    deeds: tuple[DeedPlan, ...]

    @property
    def size(self) -> int:
        return len(self.tasks)


def plan_for(seed: int, size: int, cell: str = "") -> Plan:
    """``size`` tasks; with ``cell`` only the faults of that name, on two workers and simple tasks."""
    dice = random.Random(f"{seed} {cell}")
    names = ("one", "two", "three")[: 2 if cell else dice.choice((1, 2, 2, 3))]
    storage = not cell and dice.random() < 0.4
    lasts_s = size * PACE_S
    tasks = _tasks(dice, size, lasts_s, QUICK if cell else tuple(KINDS))
    cancels = () if cell else _cancels(dice, tasks, names)
    deeds = _cell(dice, cell, names, lasts_s) if cell else _deeds(dice, names, lasts_s, storage)
    return Plan(seed, cell, names, storage, tasks, cancels, tuple(sorted(deeds, key=lambda deed: deed.at_s)))


def _tasks(dice: random.Random, size: int, lasts_s: float, kinds: tuple[str, ...]) -> tuple[TaskPlan, ...]:
    weights = [KINDS[name].weight for name in kinds]
    times = sorted(round(dice.uniform(0.0, lasts_s), 3) for _ in range(size))
    made: list[TaskPlan] = []
    for at_s in times:
        kind = dice.choices(kinds, weights)[0]
        earlier = [task.id for task in made[-12:]]
        many = min(len(earlier), dice.choices((0, 1, 2), (85, 10, 5))[0])
        made.append(
            TaskPlan(
                id=str(uuid.UUID(int=dice.getrandbits(128), version=4)),
                at_s=at_s,
                kind=kind,
                params=KINDS[kind].params(dice),
                priority=dice.choice((0, 0, 0, 1, 5)),
                max_attempts=dice.choice((1, 2, 3, 3, 3)) if KINDS[kind].ends == "Failed" else dice.choice((3, 3, 5)),
                after=tuple(dice.sample(earlier, many)),
                queue_call=many > 1 or dice.random() < 0.3,
            )
        )
    return tuple(made)


def _cancels(dice: random.Random, tasks: Iterable[TaskPlan], names: tuple[str, ...]) -> tuple[CancelPlan, ...]:
    """About one in fifteen, at once or when it may well run, some by `wan2gp-ctl`."""
    return tuple(
        CancelPlan(
            task.id,
            round(task.at_s + dice.choice((0.01, 0.2, 0.6, 2.0)), 3),
            dice.choice(("sql", "sql", "ctl")),
            dice.choice(names),
        )
        for task in tasks
        if dice.random() < 0.07
    )


_CHOICES: tuple[tuple[int, str, str, tuple[float, ...]], ...] = (
    (14, "kill", "handler", ()),
    (7, "kill", "shim", ()),
    (4, "kill", "courier", ()),
    (10, "kill", "server", ()),
    (9, "kill", "supervisor", ()),
    (2, "kill", "backend", ()),
    (6, "freeze", "handler", (0.3, 1.5)),
    (4, "freeze", "shim", (0.3, 1.5)),
    (4, "freeze", "server", (0.3, 2.0)),
    (7, "freeze", "supervisor", (0.5, LEASE_S + 1.5)),
    (2, "freeze", "courier", (0.3, 1.5)),
    (3, "freeze", "backend", (0.3, 1.5)),
    (3, "terminate", "backend", ()),
    (3, "restart", "database", (0.0, 1.0)),
    (2, "kill", "database", (0.2, 1.0)),
    (5, "cut", "network", (0.7, LEASE_S + 1.5)),
    (4, "drop", "network", ()),
    (3, "refuse", "network", (0.7, LEASE_S + 1.5)),
    (5, "slow", "disk", (1.5, 3.0)),
    (5, "stop", "supervisor", ()),
)
_STORAGE: tuple[tuple[int, str, str, tuple[float, ...]], ...] = (
    (8, "refuse", "storage", (0.7, 2.0)),
    (4, "forget", "storage", (0.7, 2.0)),
    (3, "down", "storage", (0.7, 2.0)),
)
"""Weight, deed, victim, and how long it may last, seconds."""


def _deeds(dice: random.Random, names: tuple[str, ...], lasts_s: float, storage: bool) -> list[DeedPlan]:
    choices = _CHOICES + (_STORAGE if storage else ())
    weights = [weight for weight, *_ in choices]
    at_s, made = dice.uniform(0.3, 1.0), []
    while at_s < lasts_s:
        _, name, victim, lasting = dice.choices(choices, weights)[0]
        made.append(_deed(dice, at_s, name, victim, dice.choice(names), lasting))
        if name == "kill" and dice.random() < 0.2:  # and again, as soon as it may be back
            made += [dataclasses.replace(made[-1], at_s=round(at_s + again, 3)) for again in (0.8, 1.6)]
        at_s += dice.uniform(*GAP_S)
    return made


def _deed(
    dice: random.Random, at_s: float, name: str, victim: str, worker: str, lasting: tuple[float, ...] = ()
) -> DeedPlan:
    seconds = dice.choice(lasting) if lasting else 0.0
    everybodys = victim in ("database", "storage", "disk")
    return DeedPlan(round(at_s, 3), name, victim, "" if everybodys else worker, seconds, dice.getrandbits(16))


def _cell(dice: random.Random, cell: str, names: tuple[str, ...], lasts_s: float) -> list[DeedPlan]:
    """The same fault again and again, with time to recover in between."""
    kinds: dict[str, tuple[tuple[str, str, float], ...]] = {
        "postgres-restart": (("restart", "database", 0.5), ("restart", "database", 0.0)),
        "backend-kill": (("terminate", "backend", 0.0), ("kill", "backend", 0.0), ("terminate", "backend", 0.0)),
        "repeated-kill": (("kill", "supervisor", 0.0), ("kill", "handler", 0.0), ("kill", "server", 0.0)),
        "thawed-late": (("freeze", "supervisor", LEASE_S + 1.5),),
        "network-cut": (("cut", "network", LEASE_S + 1.5), ("drop", "network", 0.0)),
    }
    turns, made, at_s = kinds[cell], [], 0.8
    while at_s < lasts_s:
        name, victim, seconds = turns[len(made) % len(turns)]
        made.append(_deed(dice, at_s, name, victim, names[len(made) % len(names)], (seconds,) if seconds else ()))
        at_s += seconds + dice.uniform(0.8, 1.4)
    return made


def written(plan: Plan) -> str:
    """The head line of a recorded list, which :func:`read` takes back together with its deeds."""
    return json.dumps({"seed": plan.seed, "tasks": plan.size, "cell": plan.cell})


def read(lines: Iterable[str]) -> Plan:
    """The plan of a recorded run with the deeds that were really done, at the times at which they were."""
    head, *rest = [json.loads(line) for line in lines if line.strip()]
    plan = plan_for(head["seed"], head["tasks"], head["cell"])
    names = {field.name for field in dataclasses.fields(DeedPlan)}
    done = [DeedPlan(**{name: value for name, value in one.items() if name in names}) for one in rest]
    return dataclasses.replace(plan, deeds=tuple(sorted(done, key=lambda deed: deed.at_s)))


def as_line(deed: DeedPlan, **seen: Any) -> str:
    """A line of the list: what was planned, and what was seen of it."""
    return json.dumps({**dataclasses.asdict(deed), **seen})
