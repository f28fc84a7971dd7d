"""docs/reliability.md: each promise has a test that is there and is run; codes, options and limits are as it says."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.conftest_worker import ROOT
from wan2gp.comfy_sidecar import watchdog
from wan2gp.config_options import OPTIONS
from wan2gp.errors import REGISTRY
from wan2gp.handlers.comfy_params import ComfySettings
from wan2gp.supervisor import disk_watch, gpu_health, leases, lifecycle, memory_watch, registry, running

PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = re.compile(r"`(tests/\w+\.py)::(\w+)`")
PROMISES = (
    "Leases",
    "Attempts",
    "Out of memory",
    "Claiming",
    "Cancelling",
    "No survivors",
    "Restarts",
    "All at",
    "Incidents",
)
INCIDENTS = 16


def section(title: str) -> str:
    """The text under the heading that begins with these words, up to the next of its rank or above."""
    found = re.search(rf"^(#+) {re.escape(title)}[^\n]*\n(.*?)(?=^#{{1,3}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"the page has no section {title!r}"
    return found[2]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def watchdog_row(wrong: str) -> str:
    (row,) = [cells for cells in rows("The watchdogs") if cells[0].startswith(wrong)]
    return " | ".join(row)


@functools.cache
def cases_in(path: Path) -> dict[str, ast.FunctionDef]:
    """Test functions of a file by name, those of its classes too."""
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name: node for node in found}


def is_skipped(test: ast.FunctionDef) -> bool:
    """Whatever the machine is like."""
    marked = [ast.unparse(mark) for mark in test.decorator_list]
    body = [node for node in test.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    said = ast.unparse(body[0]) if body else "pass"
    return any(re.match(r"pytest\.mark\.(skip|xfail)\b", mark) for mark in marked) or said.startswith("pytest.skip(")


@pytest.mark.parametrize("title", PROMISES)
def test_every_promise_names_a_test_that_holds_it(title: str) -> None:
    table = rows(title)
    assert table
    for promise, held in table:
        assert promise and NAMED.findall(held), f"nothing holds: {promise}"


def test_every_watchdog_names_its_test() -> None:
    assert len(rows("The watchdogs")) >= 20
    for wrong, *_, held in rows("The watchdogs"):
        assert NAMED.findall(held), f"nothing proves that this is seen: {wrong}"


def test_every_incident_has_its_row() -> None:
    assert len(rows("Incidents")) == INCIDENTS


def test_every_test_that_is_named_is_there_and_is_run() -> None:
    """A contract's test is run where some test module inherits it, which all of them do by QueueContract."""
    contract = (ROOT / "tests" / "queue_contract.py").read_text()
    for name, test in NAMED.findall(PAGE):
        path = ROOT / name
        assert path.is_file(), f"{name} is not there"
        assert test in cases_in(path), f"{name} has no {test}"
        assert not is_skipped(cases_in(path)[test]), f"{name}::{test} is never run"
        assert path.name.startswith("test_") or f"from tests.{path.stem} import" in contract


def test_nothing_is_named_in_another_way() -> None:
    assert len(re.findall(r"::test_", PAGE)) == len(NAMED.findall(PAGE))


def test_every_code_and_option_that_it_names_is_there() -> None:
    known = {option.env for option in OPTIONS.values()} | {option.key for option in OPTIONS.values()} | set(REGISTRY)
    variables = set(re.findall(r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", PAGE))
    dotted = set(re.findall(r"`([a-z]+\.[a-z_]+)`", PAGE)) - {"result_data.attempts"}
    assert variables and dotted
    assert not (variables | dotted) - known


LIMITS = {
    "a handler's work": [
        f"{registry.PHASE_LIMITS_S[phase]:,.0f} s in `{phase}`" for phase in ("start", "download", "load")
    ],
    "a handler stands": [f"{registry.SILENCE_S:.0f} s without a beat"],
    "a handler does not end": [f"{registry.CANCEL_GRACE_S:.0f} s"],
    "a handler dies": [
        f"{lifecycle.DEATHS_MAX} deaths in a row, each less than {lifecycle.STABLE_S:.0f} s",
        f"{lifecycle.BACKOFF_FIRST_S} s doubling to {lifecycle.BACKOFF_MAX_S:.0f} s",
        f"one try every {lifecycle.HALF_OPEN_S:.0f} s",
    ],
    "ComfyUI has ended": [f"after {watchdog.FIRST_DELAY_S} s doubling to {watchdog.LONGEST_DELAY_S:.0f} s"],
    "ComfyUI does not answer": [f"{watchdog.UNRESPONSIVE_S:.0f} s"],
    "a prompt makes": [
        f"{OPTIONS['comfy_stuck_s'].default:,.0f} s (`COMFY_STUCK_S`)",
        f"after {ComfySettings().cancel_grace_s:.0f} s",
    ],
    "an engine keeps memory": [f"{memory_watch.SOFT_SHARE:.0%}".replace("%", " %")],
    "an engine takes": [f"{memory_watch.HARD_SHARE:.0%}".replace("%", " %")],
    "the GPU breaks": [f"{gpu_health.BROKEN_RUNS_MAX} runs in a row", f"every {lifecycle.HALF_OPEN_S:.0f} s"],
    "a disk fills": [f"{OPTIONS['disk_min_free_mib'].default} MiB free", f"{disk_watch.ENOUGH} times the limit"],
    "the database is": [f"{leases.SILENT_S:.0f} s"],
}


@pytest.mark.parametrize("wrong", list(LIMITS))
def test_the_limits_are_the_real_ones(wrong: str) -> None:
    for words in LIMITS[wrong]:
        assert words in watchdog_row(wrong)


def test_the_other_numbers_are_the_real_ones() -> None:
    assert f"every {OPTIONS['renew_s'].default:.0f} s (`lease.renew_s`)" in PAGE.replace("\n", " ")
    assert f"for {OPTIONS['lease_s'].default:.0f} s (`lease.duration_s`)" in PAGE.replace("\n", " ")
    assert f"| {running.RETRY_FIRST_S:.0f} s doubling to {running.RETRY_MAX_S:.0f} s, ± 20 % |" in PAGE
