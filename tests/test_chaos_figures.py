"""The figures of a chaos run come from a log, events and deeds with known answers, and are told as they are."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.figures import NAMES, Deed, Figures, Load, Times, measure
from tests.chaos.history import Event, History, Life, Row, Rule, Sample, Violation
from tests.chaos.loglines import READ, read, with_starts
from tests.chaos.report import Result, append, line, machine, main, parse, result, table, verdict
from tests.conftest_worker import ROOT
from wan2gp.logs import FACTS, Log

BEGAN = 1_700_000_000.0


class Diary:
    """A worker's log in the log's own words, with times of our choosing (seconds after the beginning)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log = Log()
        self._log.open(folder, screen=False)
        self._path = folder / "worker.log"
        self._monkeypatch = monkeypatch

    def say(self, at: float, name: str, *, handler: str = "", task: str = "", **fields: object) -> Diary:
        who = {key: value for key, value in (("handler", handler), ("task", task)) if value}
        fields |= {"handler": handler} if name.startswith("handler.") else {}
        with self._monkeypatch.context() as clock:
            clock.setattr("wan2gp.logs.time.time", lambda: BEGAN + at)
            self._log.facts(**who)(name, **fields)
        return self

    def text(self) -> str:
        self._log.close()
        return self._path.read_text()


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Diary:
    return Diary(tmp_path, monkeypatch)


def killed(at: float, victim: str, handler: str | None = None, worker: str = "w1", name: str = "kill") -> Deed:
    return Deed(BEGAN + at, name, victim, worker, 1, None, handler)


def happened(at: float, task: str, name: str, worker: str | None = None, **detail: object) -> Event:
    return Event(task, BEGAN + at, name, worker, 1 if worker else None, detail, int(at * 1000))


def figures(diary: Diary, deeds: tuple[Deed, ...], events: tuple[Event, ...] = (), **more: object) -> Figures:
    history = History((), events, deeds=deeds, **more)  # type: ignore[arg-type]
    return measure(history, {"w1": diary.text()})


def values(found: Figures, name: str) -> list[float]:
    return list(found.times[name].values)


def near(*seconds: float) -> Any:
    """The log cuts its times off to the millisecond."""
    return pytest.approx(list(seconds), abs=0.0015)


# -- the log -----------------------------------------------------------------------------------------------------------


def test_every_fact_that_figures_are_made_of_is_read_back_from_the_logs_own_words(diary: Diary) -> None:
    for number, name in enumerate(READ):
        fields: dict[str, object] = {"worker": "w", "poll_s": 1.0, "pid": 7, "seconds": 0.5, "task_type": "t"}
        fields |= {"cause": "exit status 1", "reason": "no progress within 3s in phase step", "count": 2}
        fields |= {"task_id": "x", "path": "builtin", "prompt_id": "p"}
        diary.say(number + 0.25, name, handler="comfy", task="x", **fields)
    diary.say(99, "worker.stopping", running=0, grace_s=1)
    said = list(read(diary.text() + "half a li"))
    assert [one.name for one in said] == list(READ)
    assert [one.at for one in said] == [BEGAN + number + 0.25 for number in range(len(READ))]
    assert {(one.handler, one.task) for one in said} == {("comfy", "x")}
    assert set(READ) <= set(FACTS)


def test_when_a_worker_began_to_claim_is_known_from_its_log_and_a_life_that_never_did_too(diary: Diary) -> None:
    diary.say(1, "worker.started", worker="w1", poll_s=1).say(5, "worker.started", worker="w1", poll_s=1)
    lives = [Life("w1", BEGAN + begun, BEGAN + begun + 2) for begun in (0.0, 2.5)] + [Life("w1", BEGAN + 4.6)]
    assert [life.able for life in with_starts(lives, {"w1": diary.text()})] == [BEGAN + 1, math.inf, BEGAN + 5]


# -- deaths ------------------------------------------------------------------------------------------------------------


def test_the_death_of_a_handler_is_timed_from_the_kill_to_the_line_that_tells_of_it(diary: Diary) -> None:
    diary.say(0.5, "handler.died", handler="comfy", cause="exit status 1")  # an earlier death is none of ours
    diary.say(1.010, "handler.died", handler="media", cause="exit status 1")  # nor is another's
    diary.say(1.125, "handler.died", handler="comfy", cause="killed by SIGKILL: out of memory, or by hand")
    found = figures(diary, (killed(1, "handler", "comfy"),))
    assert values(found, "death of a child") == near(0.125)


def test_the_death_of_a_shim_is_known_by_its_missing_guardian(diary: Diary) -> None:
    diary.say(1.01, "handler.died", handler="media", cause="exit status 1")
    diary.say(1.05, "handler.died", handler="comfy", cause="its guardian process was killed")
    assert values(figures(diary, (killed(1, "shim"),)), "death of a child") == near(0.05)


def test_a_death_that_no_line_tells_of_is_no_sample_and_is_counted(diary: Diary) -> None:
    diary.say(2, "worker.started", worker="w1", poll_s=1)
    diary.say(2.1, "handler.died", handler="comfy", cause="killed by SIGKILL")  # of another life
    times = figures(diary, (killed(1, "handler", "comfy"),)).times["death of a child"]
    assert (times.values, times.unseen) == ((), 1)
    assert str(times) == "none seen, 1 not measured"


def test_a_death_under_a_supervisor_that_stood_still_is_not_its_handlers_time(diary: Diary) -> None:
    diary.say(3, "handler.died", handler="comfy", cause="killed by SIGKILL")
    frozen = replace(killed(0.5, "supervisor", name="freeze"), until=BEGAN + 2.9)
    times = figures(diary, (frozen, killed(1, "handler", "comfy"))).times["death of a child"]
    assert (times.values, times.unseen) == ((), 1)


def test_the_death_of_a_server_is_timed_by_the_handlers_word(diary: Diary) -> None:
    diary.say(0.0, "comfy.starting", handler="comfy", path="builtin").say(0.4, "comfy.ready", handler="comfy")
    diary.say(1.2, "comfy.stopped", handler="comfy", cause="died during a run")
    assert values(figures(diary, (killed(1, "server", "comfy"),)), "death of ComfyUI") == near(0.2)


# -- work goes on ------------------------------------------------------------------------------------------------------


def after_a_kill(diary: Diary) -> Diary:
    diary.say(1.1, "handler.died", handler="media", cause="killed by SIGKILL")
    diary.say(1.8, "handler.ready", handler="media", pid=7, seconds=0.3)
    diary.say(1.9, "task.processing", handler="comfy", task="other", task_type="comfy", task_id="other")
    diary.say(2.0, "task.processing", handler="media", task="x", task_type="media", task_id="x")
    return diary.say(2.5, "task.completed", task="x", task_id="x")


def test_a_handler_is_there_again_when_the_next_task_that_waits_begins(diary: Diary) -> None:
    found = figures(after_a_kill(diary), (killed(1, "handler", "media"),), (happened(0, "x", "queued"),))
    assert values(found, "handler back") == near(0.8)
    assert values(found, "handler again") == near(1.0)
    assert values(found, "handler done") == near(1.5)


@pytest.mark.parametrize(
    "events",
    [
        (happened(1.7, "x", "queued"),),
        (happened(0, "x", "queued"), happened(0.7, "x", "retried", "w1", retry_in_s=1.0)),
    ],
    ids=["inserted later", "in its pause"],
)
def test_a_task_that_came_later_is_not_waited_for(diary: Diary, events: tuple[Event, ...]) -> None:
    found = figures(after_a_kill(diary), (killed(1, "handler", "media"),), events)
    assert values(found, "handler again") == near(0.3)


def test_a_handler_that_nobody_waited_for_gives_no_sample(diary: Diary) -> None:
    """It was ready long before: the time would be the queue's and not the recovery's."""
    times = figures(after_a_kill(diary), (killed(1, "handler", "media"),), (happened(1.9, "x", "queued"),)).times
    assert (times["handler again"].values, times["handler again"].unseen) == ((), 1)


def test_a_fault_of_another_handler_is_not_in_the_way(diary: Diary) -> None:
    deeds = (killed(1, "handler", "media"), killed(1.5, "handler", "other"))
    assert values(figures(after_a_kill(diary), deeds, (happened(0, "x", "queued"),)), "handler again") == near(1.0)


def test_a_task_that_waited_for_another_is_counted_from_that_ones_end(diary: Diary) -> None:
    events = (happened(0, "x", "queued"), happened(1.5, "y", "completed", "w2"))
    history = History((Row("x", "media", "Complete", after=("y",)),), events, deeds=(killed(1, "handler", "media"),))
    found = measure(history, {"w1": after_a_kill(diary).text()})
    assert values(found, "handler again") == near(0.5)


@pytest.mark.parametrize(
    ("deeds", "outages"),
    [
        ((killed(1, "handler", "media"), killed(1.5, "handler", "media")), ()),
        ((killed(1, "handler", "media"), replace(killed(0, "database"), worker=None, until=BEGAN + 1.2)), ()),
        ((killed(1, "handler", "media"),), ((BEGAN + 1.1, BEGAN + 1.9),)),
    ],
    ids=["struck again", "under another fault", "in an outage"],
)
def test_a_recovery_that_another_fault_came_into_is_no_sample(
    diary: Diary, deeds: tuple[Deed, ...], outages: tuple[tuple[float, float], ...]
) -> None:
    found = figures(after_a_kill(diary), deeds, (happened(0, "x", "queued"),), outages=outages)
    assert not any(value == pytest.approx(1.0, abs=0.01) for value in values(found, "handler again"))
    assert found.times["handler again"].unseen == 1


def test_after_a_killed_comfyui_only_what_its_own_start_does_not_explain_is_counted(diary: Diary) -> None:
    diary.say(0.0, "comfy.starting", handler="comfy", path="builtin").say(0.4, "comfy.ready", handler="comfy")
    diary.say(1.1, "comfy.stopped", handler="comfy", cause="died during a run")
    diary.say(1.2, "comfy.starting", handler="comfy", path="builtin").say(1.7, "comfy.ready", handler="comfy")
    diary.say(1.9, "comfy.queued", handler="comfy", task="x", prompt_id="p")
    found = figures(diary, (killed(1, "server", "comfy"),), (happened(0, "x", "queued"),))
    assert values(found, "ComfyUI again") == near(0.4)
    assert values(found, "ComfyUI start") == near(0.4, 0.5)


def test_a_comfyui_that_was_killed_while_it_started_had_not_served(diary: Diary) -> None:
    diary.say(0.9, "comfy.starting", handler="comfy", path="builtin").say(1.1, "comfy.stopped", handler="comfy")
    diary.say(1.2, "comfy.starting", handler="comfy", path="builtin").say(1.7, "comfy.ready", handler="comfy")
    diary.say(1.9, "comfy.queued", handler="comfy", task="x", prompt_id="p")
    times = figures(diary, (killed(1, "server", "comfy"),), (happened(0, "x", "queued"),)).times
    for name in ("death of ComfyUI", "ComfyUI again"):
        assert (times[name].values, times[name].unseen) == ((), 1)


def test_a_start_of_comfyui_that_failed_is_no_start(diary: Diary) -> None:
    diary.say(0.0, "comfy.starting", handler="comfy", path="builtin").say(0.3, "comfy.stopped", handler="comfy")
    diary.say(9.0, "comfy.ready", handler="comfy")
    assert values(figures(diary, ()), "ComfyUI start") == []


# -- workers and hangs -------------------------------------------------------------------------------------------------


def test_each_task_of_a_killed_worker_is_timed_until_it_is_taken_up(diary: Diary) -> None:
    events = (
        happened(0, "x", "queued"),
        happened(0.1, "x", "claimed", "w1"),
        happened(4.5, "x", "retried", "w1", cause={"kind": "lease_expired"}),
        happened(0.2, "y", "claimed", "w1"),
        happened(1.5, "y", "retried", "w1", cause={"kind": "worker_died"}),
        happened(0.3, "told", "claimed", "w1"),
        happened(0.4, "told", "completed", "w1"),
        happened(0.5, "open", "claimed", "w1"),
    )
    times = figures(diary, (killed(1, "supervisor"),), events).times["worker lost"]
    assert sorted(times.values) == near(0.5, 3.5)
    assert times.unseen == 1


def test_a_hang_is_timed_beyond_the_limit_of_its_phase(diary: Diary) -> None:
    diary.say(1, "task.processing", handler="media", task="x", task_type="media", task_id="x")
    diary.say(4.25, "handler.hung", handler="media", reason="no progress within 3s in phase step")
    diary.say(9, "handler.hung", handler="media", reason="did not start in time")
    events = (happened(1.2, "x", "progress", "w1", progress=0.1, phase="step"),)
    assert values(figures(diary, (), events), "hang") == near(0.25)


def test_a_hang_of_a_task_that_moved_before_is_not_measured(diary: Diary) -> None:
    """When it last moved no log tells; a guess would flatter."""
    diary.say(1, "task.processing", handler="media", task="x", task_type="media", task_id="x")
    diary.say(9, "handler.hung", handler="media", reason="no progress within 3s in phase step")
    events = tuple(happened(1 + step, "x", "progress", "w1", progress=step / 10) for step in (1, 5))
    times = figures(diary, (), events).times["hang"]
    assert (times.values, times.unseen) == ((), 1)


# -- percentiles, lines, tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)], ids=str
)
def test_a_percentile_is_a_sample_and_never_flatters(share: float, wanted: float) -> None:
    times = Times(tuple(float(number) for number in range(100, 0, -1)))
    assert times.at(share) == wanted
    assert Times((3.0,)).at(share) == 3.0
    assert Times().at(share) is None


def some_run(lost: bool = False) -> tuple[History, Figures, list[Violation]]:
    memory = tuple(Sample(BEGAN + at, "supervisor", (100 + at // 30) << 20) for at in range(60))
    deeds = (killed(1, "handler", "media"), killed(2, "handler", "media"), killed(3, "server"))
    rows = (Row("x", "t", "Complete", 1), Row("y", "t", "Failed", 2))
    history = History(
        rows, (happened(1, "x", "claimed", "w1"),), deeds=deeds, lives=(Life("w1", BEGAN, memory=memory),)
    )
    times = {name: Times() for name in NAMES} | {"death of a child": Times((0.01, 0.03), 1)}
    found = [Violation("y", Rule.FINAL.value, "it is Queued after 2 attempt(s)")] if lost else []
    return history, Figures(times, Load(500, 100.0, 50.0), Load(500, 50.0, 20.0)), found


def run_of(seed: int = 7, cell: str = "", lost: bool = False) -> Result:
    history, measured, found = some_run(lost)
    return result(seed, history, measured, found, cell=cell, machine="a machine", at=BEGAN)


def test_the_verdict_of_a_seed_tells_what_was_done_what_came_of_it_and_who_was_wronged() -> None:
    _, _, found = some_run(True)
    told = verdict(run_of(lost=True), found)
    for words in (
        "seed 7: 2 tasks, 1 attempts, 1 worker(s)",
        "2 kill handler, 1 kill server",
        "1 Complete, 1 Failed",
        "death of a child: p50 0.010 p95 0.030 p99 0.030 max 0.030 s (n = 2, 1 not measured)",
        "hang: none seen",
        "memory of supervisor: 100 → 101 MiB",
        "load: 500 tasks in 100.0 s (5.0 a second, 100 ms of CPU each)",
        "1 violation(s)",
        "y: every row ends: it is Queued after 2 attempt(s)",
    ):
        assert words in told
    assert "nothing lost" in verdict(run_of(), [])


def test_a_run_is_read_back_from_its_line_as_it_was() -> None:
    run = run_of(cell="network cut", lost=True)
    assert "\n" not in line(run)
    assert parse(line(run)) == run


def test_the_table_adds_up_what_many_seeds_have_left(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    for seed, cell, lost in ((1, "", False), (2, "", True), (3, "network cut", False)):
        append(run_of(seed, cell, lost), file)
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.report", str(file)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    day = time.strftime("%Y-%m-%d", time.gmtime(BEGAN))
    for row in (
        "| machine | a machine |",
        f"| when | {day} |",
        "| runs | 3 (3 seeds) |",
        "| tasks | 6 |",
        "| faults | 9: 6 kill handler, 3 kill server |",
        "| **lost** | **1** |",
        "| **done twice** | **0** |",
        "| **late writes accepted** | **0** |",
        "| network cut | 2 | 3 | 0 | 0 | 100 % |",
        f"| {NAMES['death of a child']} | 6 | 0.010 | 0.030 | 0.030 | 0.030 | 3 |",
        f"| {NAMES['hang']} | 0 | none seen | none seen | none seen | none seen | 0 |",
        "| with the faults | 5.0 | 100 |",
        "| without them | 10.0 | 40 |",
    ):
        assert row in done.stdout.splitlines(), done.stdout


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"times": 3}'], ids=["empty", "no run", "no json", "odd"])
def test_a_file_that_tells_of_no_run_is_refused_with_a_reason(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text(text)
    with pytest.raises(SystemExit) as refused:
        main([str(file)])
    assert refused.value.code == 2
    assert str(file) in capsys.readouterr().err


def test_a_machine_is_told_by_its_processor_memory_and_system() -> None:
    told = machine()
    assert "cores" in told and "GiB" in told and "Python" in told


def test_every_lost_doubled_and_stale_promise_is_counted_once_per_task() -> None:
    history, measured, _ = some_run()
    found = [Violation("x", Rule.STALE.value, "a"), Violation("x", Rule.STALE.value, "b")]
    found += [Violation("y", Rule.COMPLETED_ONCE.value, "c"), Violation(None, Rule.MEMORY.value, "d")]
    run = result(1, history, measured, found)
    assert (run.lost, run.doubled, run.stale) == (0, 1, 1)
    assert "memory stays flat" in table([run])
