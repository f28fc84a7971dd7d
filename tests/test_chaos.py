"""`make chaos`, whole: real workers under faults that a seed chose, and what the books say of it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.deeds import LIST
from tests.chaos.plan import CELLS, DeedPlan, as_line, plan_for, read, written
from tests.chaos.records import Rule
from tests.conftest_worker import ROOT

SHORT_S, LONG_S = 150.0, 900.0
PLANTED = """
import subprocess, sys
import psycopg
from tests.chaos.__main__ import main

def tamper(stage):
    with psycopg.connect(stage.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO task_events (task_id, name, worker_id, attempt) SELECT task_id, name, worker_id, attempt "
            "FROM task_events WHERE name = 'completed' ORDER BY id LIMIT 1")
        (failed,) = connection.execute("SELECT id FROM tasks WHERE task_type = 'noop' LIMIT 1").fetchone()
    orphan = stage.folder / "one" / "outputs" / "noop" / f"{failed}_orphan.txt"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_text("nobody's")
    (stage.folder / "one" / "spool" / "left").touch()
    stage.open.callback(subprocess.Popen(["sleep", "60"]).kill)

sys.exit(main(sys.argv[1:], tamper))
"""


def chaos(folder: Path, *options: str, patience_s: float = SHORT_S, script: str = "") -> tuple[int, str]:
    """Exit status and output. An impatient end is an orderly one: nothing that it started stays."""
    command = [
        sys.executable,
        *(("-c", script) if script else ("-m", "tests.chaos")),
        "--folder",
        str(folder),
        *options,
    ]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=-1, stderr=subprocess.STDOUT
    ) as process:
        try:
            said, _ = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            said, _ = process.communicate(timeout=60)
            raise AssertionError(f"not within {patience_s:.0f} s: {said[-3000:]}") from None
    return process.returncode, said


def clean(folder: Path, *options: str, patience_s: float = LONG_S) -> str:
    """A run in which no promise was broken; its output."""
    status, said = chaos(folder, *options, patience_s=patience_s)
    assert status == 0, said[-5000:]
    assert "no violation" in said and not list(folder.glob("w2g-chaos-*"))
    return said


@pytest.mark.timeout(SHORT_S + 90)
def test_a_short_run_of_faults_loses_and_doubles_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    report = tmp_path / "lines.jsonl"
    said = clean(tmp_path, "--seed", "37", "--tasks", "40", "--report", str(report), patience_s=SHORT_S)
    (line,) = [json.loads(line) for line in report.read_text().splitlines()]
    assert (line["seed"], line["tasks"], line["lost"], line["doubled"], line["stale"]) == (37, 40, 0, 0, 0), said
    assert sum(line["rows"].values()) == 40 and sum(line["faults"].values()) >= 3


@pytest.mark.long
@pytest.mark.timeout(SHORT_S + 90)
def test_what_is_planted_in_a_real_run_is_found_and_the_run_can_be_played_again(tmp_path: Path) -> None:
    status, said = chaos(tmp_path, "--seed", "24", "--tasks", "3", script=PLANTED)
    assert status == 1, said
    for rule in (Rule.COMPLETED_ONCE, Rule.PUBLISHED, Rule.ORPHAN, Rule.SPOOL_LEFT):
        assert rule.value in said, said
    (kept,) = tmp_path.glob("w2g-chaos-*")
    again = read((kept / LIST).read_text().splitlines())
    assert f"--replay {kept / LIST}" in said
    assert again.tasks == plan_for(24, 3).tasks and "Traceback" not in said


def test_a_seed_decides_everything_that_can_be_decided_before_the_start() -> None:
    assert plan_for(7, 100) == plan_for(7, 100) != plan_for(8, 100)
    assert {len(plan_for(seed, 10).workers) for seed in range(20)} == {1, 2, 3}
    assert {(deed.name, deed.victim) for deed in plan_for(0, 2_000).deeds} >= {
        ("kill", "server"),
        ("freeze", "backend"),
        ("slow", "disk"),
        ("cut", "network"),
    }


def test_a_recorded_list_is_played_with_the_deeds_that_were_done_and_their_own_times() -> None:
    plan = plan_for(3, 60)
    done = [DeedPlan(2.5, "kill", "server", "one", pick=3), DeedPlan(1.25, "cut", "network", "two", 0.7)]
    lines = [written(plan), *(as_line(deed, pid=12, task=None, at=1e9) for deed in done)]
    again = read(lines)
    assert again.deeds == (done[1], done[0])
    assert (again.tasks, again.cancels, again.workers) == (plan.tasks, plan.cancels, plan.workers)


@pytest.mark.long
@pytest.mark.timeout(LONG_S + 90)
def test_a_run_that_was_played_again_has_the_same_tasks_and_faults(tmp_path: Path) -> None:
    report = tmp_path / "lines.jsonl"
    options = ("--keep", "--report", str(report))
    assert chaos(tmp_path, "--seed", "4", "--tasks", "60", *options)[0] == 0
    (kept,) = tmp_path.glob("w2g-chaos-*")
    assert chaos(tmp_path, "--replay", str(kept / LIST), *options)[0] == 0
    first, second = [json.loads(line) for line in report.read_text().splitlines()]
    assert (first["seed"], first["tasks"]) == (second["seed"], second["tasks"]) == (4, 60)
    assert sum(second["faults"].values()) >= sum(first["faults"].values()) - 2  # a victim may not be there this time


@pytest.mark.long
@pytest.mark.timeout(LONG_S + 90)
@pytest.mark.parametrize("cell", CELLS)
def test_one_fault_again_and_again_loses_and_doubles_nothing(tmp_path: Path, cell: str) -> None:
    clean(tmp_path, "--seed", "1", "--tasks", "100", "--cell", cell)


@pytest.mark.long
@pytest.mark.timeout(LONG_S + 90)
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_five_hundred_tasks_under_all_faults_are_each_done_once_or_said_to_have_failed(
    tmp_path: Path, seed: int
) -> None:
    clean(tmp_path, "--seed", str(seed), "--tasks", "500")
