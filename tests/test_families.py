"""Whose a process is, when it has made a long chain of parents so that the question takes long."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from wan2gp.cgroups import owner_name
from wan2gp.processes import HOPS_MAX, is_below, lineage, may_be_below
from wan2gp.supervisor import kin as kin_module
from wan2gp.supervisor.kin import Kin
from wan2gp.supervisor.router import STRANGERS, Router

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


def test_whose_the_end_of_a_long_chain_is_shows_once_somebody_must_be_blamed(chain: list[int]) -> None:
    kin = Kin(chain[HOPS_MAX])
    assert not kin.is_of(os.getpid(), None) and kin.deep
    kin.look_far()
    assert kin.is_of(os.getpid(), None) and not kin.deep


def test_the_end_of_a_long_chain_is_known_by_the_user_that_only_its_handler_has(chain: list[int]) -> None:
    kin = Kin(chain[HOPS_MAX])
    assert kin.is_of(os.getpid(), os.getuid()) and not kin.is_of(os.getpid(), os.getuid() + 1)
    assert not Kin(chain[0]).is_of(chain[1], os.getuid()), "a user is asked for only where parents do not tell"


def test_the_end_of_a_long_chain_is_known_by_its_group(chain: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = f"/docker/x/{owner_name(os.getpid())}"
    monkeypatch.setattr(kin_module, "lineage", lambda pid, hops: pytest.fail("its parents were looked at"))
    for path, found in ((f"{ours}/comfy-ui-{chain[0]}", True), (f"{ours}/comfy-{chain[1]}", False)):
        monkeypatch.setattr(kin_module, "groups_of", lambda pid, path=path: ["/", path])
        assert Kin(chain[HOPS_MAX]).is_of(chain[0], None) is found


def test_whose_a_connection_is_costs_the_same_however_many_may_have_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(kin_module, "lineage", lambda pid, hops: read.append(pid) or lineage(pid, hops))
    kin = Kin(os.getpid())
    assert [kin.is_of(shim, None) for shim in (os.getppid(), *range(10**7, 10**7 + 20))] == [True] + [False] * 20
    assert read == [os.getpid()]


def test_a_long_chain_that_connects_without_end_ends_its_child_and_is_let_in_ever_more_slowly(
    chain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections of this process are taken for some of the chain's end."""
    monkeypatch.setattr("wan2gp.supervisor.router.Kin", lambda pid: Kin(chain[HOPS_MAX]))
    with tempfile.TemporaryDirectory(prefix="w2g-") as short:
        router = Router(f"ipc://{short}/s", lambda: 0.0)
        router.admit(b"other#1", lambda kin: kin.is_of(chain[0] + 10**7, None))
        router.admit(b"a#1", lambda kin: kin.is_of(os.getpid(), None))
        heard = []
        for _ in range(int(STRANGERS.burst) + 50):
            if router.due_s() is None:
                with socket.socket(socket.AF_UNIX) as own:
                    own.connect(f"{short}/s")
                    heard += router.receive()
        assert [(who, str(said)) for who, said in heard] == [(b"a#1", "it opens connection after connection")]
        assert router.turned_away == {"stranger": STRANGERS.burst + 1}, "the next ones wait at the door"
        router.close()
