"""Between two tasks: what a desk does with a process that held too much memory, and with what the watch tells of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wan2gp.protocol import Finished, Run, Shutdown, Succeeded
from wan2gp.supervisor.desk import Surroundings
from wan2gp.supervisor.handler_desk import WEIGH_S, HandlerDesk
from wan2gp.supervisor.lifecycle import On, State
from wan2gp.supervisor.queue import ClaimedTask
from wan2gp.supervisor.running import Running
from wan2gp.supervisor.weight import Verdict, Weighed, Weight


class Stage:
    """A desk with a process on paper that runs the task `t1`, the task `t2` behind it, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[Any] = []
        self.facts: list[str] = []
        self.asked = 0
        self.killed = False
        nothing: Any = lambda *_: None  # noqa: E731
        around = Surroundings(
            self,
            self,
            Path("/nowhere"),
            self,
            nothing,
            nothing,
            nothing,
            nothing,
            lambda: self.now,
            self.weigh,  # type: ignore[arg-type]
        )
        self.desk = HandlerDesk("h", "m:C", {}, around, 1.0, 1.0, prefetch=1)
        self.desk.child = self  # type: ignore[assignment]
        self.identity = b"h#1#x"
        self.desk._last_beat = self.now
        for event in (On.WANTED, On.HELLO):
            self.desk.life.on(event, self.now)
        for name in ("t1", "t2"):
            self.desk.take(Running(ClaimedTask(name, "h", {}, 1, 3, "secret", f"lease-{name}"), "h", "/x", self.now))

    def __call__(self, name: str, /, **fields: Any) -> None:
        self.facts.append(name)

    def bind(self, **who: str) -> Stage:
        return self

    def send(self, identity: bytes, message: Any) -> None:
        self.sent.append(message)

    def make_run(self, name: str, work_dir: str) -> None:
        """The run's directory is not needed here."""

    def weigh(self) -> None:
        self.asked += 1

    def kill(self) -> None:
        self.killed = True

    def insist(self) -> None: ...

    def look(self, verdict: Verdict, at: float | None = None) -> None:
        """What the watch tells of a look that began ``at`` that time."""
        self.desk.weighed(Weighed(Weight(1), verdict, "it holds too much", self.now if at is None else at))

    def finish(self) -> None:
        self.now += 1
        self.desk.work(Finished("t1", "lease-t1", Succeeded(())))

    def runs(self) -> list[str]:
        return [message.task_id for message in self.sent if isinstance(message, Run)]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(HandlerDesk, "_spawn", lambda self: None)
    yield Stage()


def test_a_process_that_is_heavy_in_its_task_gets_no_other_before_it_was_looked_at_again(stage: Stage) -> None:
    stage.look(Verdict.HEAVY)
    stage.finish()
    assert (stage.runs(), stage.asked, stage.desk.room(), stage.desk.at_rest) == (["t1"], 1, 0, False)
    stage.look(Verdict.HEAVY, at=stage.now - 0.5)
    assert (stage.runs(), stage.desk.life.state) == (["t1"], State.IDLE), "that look still saw the task"
    stage.now += 1
    stage.look(Verdict.FINE)
    assert stage.runs() == ["t1", "t2"]


def test_a_process_that_stays_heavy_is_replaced_and_the_next_task_waits_for_the_new_one(stage: Stage) -> None:
    stage.look(Verdict.HEAVY)
    stage.finish()
    stage.now += 1
    stage.look(Verdict.HEAVY)
    assert isinstance(stage.sent[-1], Shutdown)
    assert (stage.runs(), stage.desk.life.state) == (["t1"], State.RECYCLING)
    assert [running.task.id for running in stage.desk.waiting] == ["t2"]
    assert "handler.heavy" in stage.facts and "handler.died" not in stage.facts
    assert stage.desk._weigh_by is None, "nobody waits for another look at what is gone"


def test_a_watch_that_says_nothing_holds_the_next_task_up_for_moments_only(stage: Stage) -> None:
    stage.look(Verdict.HEAVY)
    stage.finish()
    due = stage.desk.next_tick()
    assert due == stage.now + WEIGH_S
    stage.now = due
    stage.desk.tick(stage.now)
    assert stage.runs() == ["t1", "t2"]


def test_a_process_that_is_fine_is_given_its_next_task_at_once(stage: Stage) -> None:
    stage.look(Verdict.HEAVY)
    stage.look(Verdict.FINE)
    stage.finish()
    assert (stage.runs(), stage.asked) == (["t1", "t2"], 0)


def test_a_process_that_is_heavy_before_any_task_is_not_replaced_for_ever(stage: Stage) -> None:
    stage.finish()
    stage.desk.life.state, stage.desk._worked = State.IDLE, False  # as after a fresh start
    stage.now += 1
    stage.look(Verdict.HEAVY)
    assert stage.desk.life.state is State.IDLE
    assert not any(isinstance(message, Shutdown) for message in stage.sent)


def test_a_process_that_is_too_heavy_is_killed_under_its_task_once(stage: Stage) -> None:
    stage.look(Verdict.TOO_HEAVY)
    stage.look(Verdict.TOO_HEAVY)
    assert stage.killed and stage.facts.count("handler.bloated") == 1
    assert stage.desk._code() == "engine.memory_limit"


def test_a_process_that_leaves_already_is_let_go_in_peace(stage: Stage) -> None:
    stage.desk.on(On.WORN)
    stage.look(Verdict.TOO_HEAVY)
    assert not stage.killed
