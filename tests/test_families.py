"""Whose a process is, when it has made a long chain of parents so that the question takes long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from wan2gp.processes import HOPS_MAX, is_below, may_be_below

CHAIN = f"""
import os, time
depth = 1
while depth <= {HOPS_MAX} and os.fork() == 0:
    depth += 1
os.write(1, b"%d %d\\n" % (depth, os.getpid()))
time.sleep(60)
"""


@pytest.fixture
def chain() -> Iterator[list[int]]:
    """The pids of a process, its child, that one's child, and so on, one more than anybody looks at."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", CHAIN], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        said = [first.stdout.readline().split() for _ in range(HOPS_MAX + 1)]
        pids = [int(pid) for _, pid in sorted(said, key=lambda each: int(each[0]))]
        try:
            yield pids
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)


def test_a_long_chain_of_parents_is_not_followed_to_its_end(chain: list[int]) -> None:
    assert len(chain) == HOPS_MAX + 1
    assert is_below(chain[HOPS_MAX - 1], os.getpid())
    assert not is_below(chain[HOPS_MAX], os.getpid()), "it is further away than what may speak for a child"


def test_who_hides_at_the_end_of_a_long_chain_counts_as_one_of_ours(chain: list[int]) -> None:
    stranger = chain[0]
    assert may_be_below(chain[HOPS_MAX], os.getpid())
    assert not may_be_below(os.getpid(), stranger)
