"""The judges and looks of the watches over memory and disk, and what the GPU's driver is asked, each by itself."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.nvml_stand_in import PaperDriver, compiler, loader
from wan2gp import processes
from wan2gp.config import ConfigError, load_config
from wan2gp.control import Gpu
from wan2gp.handlers.input_cache import InputCache, Validators
from wan2gp.machine_memory import machine_memory
from wan2gp.processes import held, held_by, share_of, trees
from wan2gp.supervisor import disk_watch, gpus
from wan2gp.supervisor.disk_watch import DiskWatch, sweep_cache
from wan2gp.supervisor.gpus import GpuMemory, GpuReader
from wan2gp.supervisor.memory_watch import Judge, Limits, MemoryWatch, Root, memory_limits
from wan2gp.supervisor.nvml import RETRY_S, Nvml, parse_processes
from wan2gp.supervisor.weight import Verdict, Weighed, Weight

MIB = 1024 * 1024
FINE, HEAVY, TOO_HEAVY = Verdict.FINE, Verdict.HEAVY, Verdict.TOO_HEAVY

# -- memory ------------------------------------------------------------------------------------------------------------


def verdicts(judge: Judge, *looks: tuple[float, int]) -> list[Verdict]:
    """Of looks at one child: when, and the memory that it held, MiB."""
    return [judge.judge(b"a", Weight(mib * MIB), now).verdict for now, mib in looks]


def judge() -> Judge:
    return Judge(Limits(100 * MIB, 200 * MIB, 50 * MIB))


def test_what_is_too_heavy_for_three_looks_in_a_row_is_ended() -> None:
    assert verdicts(judge(), (1, 99), (2, 101), (3, 201), (4, 201), (5, 201)) == [FINE, HEAVY, HEAVY, HEAVY, TOO_HEAVY]


def test_one_peak_ends_nobody() -> None:
    assert TOO_HEAVY not in verdicts(judge(), (1, 201), (2, 201), (3, 150), (4, 201), (5, 201))


def test_looks_that_were_asked_for_in_between_do_not_hurry_the_end() -> None:
    assert TOO_HEAVY not in verdicts(judge(), (1.0, 201), (1.1, 201), (1.2, 201), (2.0, 201), (2.1, 201))


def test_a_new_process_starts_with_a_clean_sheet() -> None:
    subject = judge()
    verdicts(subject, (1, 201), (2, 201))
    subject.forget_all_but([b"b"])
    assert verdicts(subject, (3, 201)) == [HEAVY]


def test_gpu_memory_that_is_kept_counts_like_memory() -> None:
    found = judge().judge(b"a", Weight(1, 51 * MIB), 1.0)
    assert (found.verdict, found.reason.partition(" of GPU memory, ")[2]) == (
        HEAVY,
        "the limit is 50 MiB (memory.gpu_soft_mib)",
    )
    assert judge().judge(b"a", Weight(1, None), 1.0).verdict is FINE, "nothing tells: no limit"


def limits(**given: str) -> Limits:
    return memory_limits(load_config(flags={"data_dir": "/x"}, environ=given))


def test_without_limits_a_share_of_the_machine_is_one() -> None:
    found = limits()
    assert (found.soft, found.hard, found.gpu_soft) == (int(machine_memory() * 0.85), int(machine_memory() * 0.95), 0)
    assert limits(WAN2GP_MEMORY_HARD_MIB="10") == Limits(10 * MIB, 10 * MIB), "what must end may not stay either"


def test_a_soft_limit_above_the_hard_one_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="memory.soft_mib = 3 is more than memory.hard_mib = 2"):
        limits(WAN2GP_MEMORY_SOFT_MIB="3", WAN2GP_MEMORY_HARD_MIB="2")


GRANDCHILD = """
import mmap, subprocess, sys
code = "import mmap; m = mmap.mmap(-1, 64 << 20); m.write(bytes(64 << 20)); print(flush=True); input()"
subprocess.run([sys.executable, "-c", code])
"""


def test_what_runs_below_a_child_counts_and_its_end_is_seen() -> None:
    told: list[Mapping[bytes, Weighed]] = []
    with subprocess.Popen([sys.executable, "-c", GRANDCHILD], stdin=-1, stdout=-1) as child:
        assert child.stdin is not None and child.stdout is not None
        roots = [Root("child", b"child#1", child.pid)]
        watch = MemoryWatch(Limits(40 * MIB, 0), lambda: roots, told.append, pytest.fail)
        child.stdout.readline()
        watch.look(False)
        assert watch.weights["child"].memory > 64 * MIB
        assert told[-1][b"child#1"].verdict is HEAVY
        child.stdin.close()
    watch.look(False)
    assert (watch.weights["child"].memory, told[-1][b"child#1"].verdict) == (0, FINE)
    watch.look(False)
    assert len(told) == 2, "what stays fine is told to nobody"
    watch.look(True)
    assert len(told) == 3, "unless somebody asked"


def test_a_mapped_file_is_not_held(tmp_path: Path) -> None:
    """A model that is mapped and read fills the memory, and costs nobody any."""
    (tmp_path / "model").write_bytes(bytes(64 * MIB))
    code = "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
    code += "sum(m[::4096]); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model")], stdin=-1, stdout=-1) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        assert held_by(child.pid) < 40 * MIB
        child.stdin.close()


POOL = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
held = bytearray(b"x") * (40 << 20)
for _ in range(3):
    if os.fork() == 0:
        signal.pause()
print(flush=True)
sys.stdin.readline()
os.killpg(0, signal.SIGKILL)
"""


@pytest.fixture
def pool() -> Iterator[list[int]]:
    """A process of 40 MiB with three that it forked, which share them."""
    with subprocess.Popen([sys.executable, "-c", POOL], stdin=-1, stdout=-1, start_new_session=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdout.readline()
        yield trees([parent.pid])[parent.pid]
        parent.stdin.close()


def test_an_engine_that_forks_a_pool_is_not_killed_for_pages_that_its_processes_share(pool: list[int]) -> None:
    watch = MemoryWatch(Limits(0, 100 * MIB), lambda: [Root("child", b"child#1", pool[0])], lambda _: None, pytest.fail)
    assert len(pool) == 4 and held(pool) == sum(map(held_by, pool)) > 160 * MIB
    watch.look(False)
    assert 40 * MIB < watch.weights["child"].memory < 100 * MIB
    assert held(pool, limit=300 * MIB) > 160 * MIB, "what is below its limit anyway is not measured twice"


def test_a_kernel_that_does_not_divide_pages_is_taken_at_its_word(
    pool: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "share_of", lambda pid: None)
    assert held(pool, limit=100 * MIB) > 160 * MIB


def test_a_process_that_is_gone_holds_nothing() -> None:
    with subprocess.Popen(["true"]) as gone:
        """Only its pid is wanted."""
    assert (held_by(gone.pid), share_of(gone.pid), held([gone.pid, gone.pid], 1)) == (0, None, 0)


def test_a_watch_that_fails_stops_the_worker() -> None:
    failed: list[BaseException] = []
    ended = threading.Event()

    def roots() -> list[Root]:
        raise ZeroDivisionError

    def crash(error: BaseException) -> None:
        failed.append(error)
        ended.set()

    watch = MemoryWatch(Limits(1, 1), roots, lambda found: None, crash)
    watch.start()
    watch.look_now()
    assert ended.wait(30) and isinstance(failed[0], ZeroDivisionError)
    watch.stop()


# -- the disk ----------------------------------------------------------------------------------------------------------


class Disks:
    """A watch over a disk that has as much space as one says."""

    def __init__(self, data_dir: Path, free_mib: int, total_mib: int = 10_000, limit_mib: int = 100) -> None:
        self.free_mib = free_mib
        self._total_mib = total_mib
        self.said: list[str | None] = []
        self.facts: list[tuple[str, dict[str, Any]]] = []
        self.watch = DiskWatch(
            data_dir,
            limit_mib * MIB,
            lambda name, **fields: self.facts.append((name, fields)),  # type: ignore[arg-type]
            self.said.append,
            pytest.fail,
            self.statvfs,
        )

    def statvfs(self, place: Path) -> os.statvfs_result:
        return SimpleNamespace(f_frsize=MIB, f_bavail=self.free_mib, f_blocks=self._total_mib)  # type: ignore[return-value]

    def look(self, free_mib: int) -> str | None:
        """What is wrong with so much space."""
        self.free_mib = free_mib
        self.said.append(None)
        self.watch.look()
        return self.said[-1]


def test_claims_stop_below_the_limit_and_go_on_at_half_as_much_again(tmp_path: Path) -> None:
    disks = Disks(tmp_path, 100)
    assert disks.look(100) is None
    low = disks.look(99)
    assert low == f"99 MiB are free under {tmp_path}, less than disk.min_free_mib = 100; free space there"
    between = disks.look(149)
    assert between is not None and "149 MiB are free" in between and "work goes on at 150" in between
    assert disks.look(150) is None
    assert disks.look(101) is None, "it was enough before"


def test_a_disk_that_is_smaller_than_the_limit_says_what_would_help(tmp_path: Path) -> None:
    said = Disks(tmp_path, 0, total_mib=60).look(50)
    assert said is not None and "has 60 MiB in all" in said and "give a larger disk, or a lower limit" in said


def test_a_small_disk_can_become_ready_again(tmp_path: Path) -> None:
    disks = Disks(tmp_path, 0, total_mib=120)
    assert disks.look(99) is not None
    assert disks.look(110) is None, "150 it does not have"


def test_a_network_disk_that_does_not_tell_its_size_stops_nothing(tmp_path: Path) -> None:
    assert Disks(tmp_path, 0, total_mib=0).look(0) is None


def test_a_limit_of_nothing_is_none(tmp_path: Path) -> None:
    disks = Disks(tmp_path, 0, limit_mib=0)
    disks.watch.start()
    disks.watch.stop()
    assert disks.said == []


def test_a_network_disk_that_hangs_holds_up_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_watch, "FIRST_LOOK_S", 0.05)
    monkeypatch.setattr(disk_watch, "JOIN_S", 0.05)
    disks, answer = Disks(tmp_path, 0), threading.Event()
    dead, disks.watch._statvfs = disks.statvfs, lambda place: (answer.wait(60), dead(place))[1]
    disks.watch.start()
    disks.watch.stop()
    answer.set()
    disks.watch._thread.join(30)
    assert disks.said == [], "what a stopped watch finds is nobody's business"


def test_kept_inputs_are_given_up_oldest_first_until_it_is_enough(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    names = [hashlib.sha256(bytes([number])).hexdigest() for number in range(4)]
    for age, name in enumerate(names):
        (blobs / name).write_bytes(bytes(1000))
        os.utime(blobs / name, (1000 - age, 1000 - age))
    (blobs / "0123456789abcdef.part").write_text("a download's draft")
    (blobs / "notes").write_text("nobody's")
    found = sweep_cache(blobs, lambda: not (blobs / names[2]).exists())
    assert found == (2, 2000)
    assert {path.name for path in blobs.iterdir()} == {*names[:2], "0123456789abcdef.part", "notes"}


def test_a_courier_cannot_have_the_files_of_others_swept(tmp_path: Path) -> None:
    name = hashlib.sha256(b"").hexdigest()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / name).write_text("precious")
    (tmp_path / "blobs").symlink_to(tmp_path / "others")
    assert sweep_cache(tmp_path / "blobs", lambda: False) == (0, 0)
    assert (tmp_path / "others" / name).read_text() == "precious"


def test_a_shortage_that_kept_inputs_make_up_for_stops_nothing(tmp_path: Path) -> None:
    blobs = tmp_path / "handlers" / "courier" / "cache" / "blobs"
    blobs.mkdir(parents=True)
    disks = Disks(tmp_path, 90)
    kept = blobs / hashlib.sha256(b"").hexdigest()
    kept.write_bytes(bytes(2 * MIB))
    given_up, disks.watch._statvfs = disks.statvfs, lambda place: given_up(place) if kept.exists() else roomy(place)

    def roomy(place: Path) -> os.statvfs_result:
        return SimpleNamespace(f_frsize=MIB, f_bavail=160, f_blocks=10_000)  # type: ignore[return-value]

    assert disks.look(90) is None
    assert disks.facts == [("worker.cache_swept", {"count": 1, "mib": 2})]


def test_a_download_under_a_sweep_is_whole_or_made_again(tmp_path: Path) -> None:
    """The cache is the courier's, and another process empties it all the time."""
    root = tmp_path / "cache"
    cache, over, source = InputCache(root, 10**12), threading.Event(), tmp_path / "source"
    source.write_bytes(b"content" * 1000)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()

    def sweep() -> None:
        while not over.is_set():
            sweep_cache(root / "blobs", lambda: False)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        place, taken = (
            SimpleNamespace(origin=("http", "host", 80), path="/a", query="", authorization=None, address=None),
            0,
        )
        for number in range(300):
            cache.keep(place, source, digest, Validators('"tag"'))  # type: ignore[arg-type]
            known = cache.look_up(place)  # type: ignore[arg-type]
            draft = tmp_path / f"draft-{number}"
            if known is not None and cache.take(known, draft):
                assert draft.read_bytes() == source.read_bytes()
                taken += 1
            else:
                assert not draft.exists()
    finally:
        over.set()
        sweeper.join()
    cache.keep(place, source, digest, Validators('"tag"'))  # type: ignore[arg-type]
    assert cache.look_up(place) is not None, "it works as before"  # type: ignore[arg-type]


# -- the GPU's driver --------------------------------------------------------------------------------------------------

COMPILER = pytest.mark.skipif(compiler() is None, reason="no C compiler")
SHAPES: dict[str, dict[str, Any]] = {
    "v3": {},
    "v3 of some drivers of the 535 series": {"entry": 32},
    "v2": {"version": "_v2"},
    "v1": {"version": "", "entry": 16},
    "cut into slices": {"mig": True},
}


@pytest.fixture(params=["paper", pytest.param("compiled", marks=COMPILER)])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_driver_tells_who_holds_its_memory(how: str, shape: dict[str, Any], tmp_path: Path) -> None:
    held = [(pid, pid * MIB) for pid in range(100, 140)]
    nvml = Nvml(load=loader(how, tmp_path, [*held, (100, MIB), (7, 2**64 - 1)], **shape))
    assert nvml.processes() == {**dict(held), 100: 101 * MIB}, "one whose memory is not known is left out"


def test_gpus_are_told_by_the_library_and_lost_ones_left_out(how: str, tmp_path: Path) -> None:
    nvml = Nvml(load=loader(how, tmp_path, []))
    assert nvml.gpus() == (Gpu(0, "Stand-In 9000", 1024, 81559, 37),)
    assert nvml.processes() == {}
    assert GpuReader("no-such-program-here", nvml=nvml).read() == nvml.gpus()


def test_a_machine_without_the_library_has_no_limit_and_asks_seldom() -> None:
    asked: list[str] = []

    def missing(name: str) -> Any:
        asked.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    now = [0.0]
    nvml = Nvml(load=missing, clock=lambda: now[0])
    assert (nvml.gpus(), nvml.processes(), asked) == (None, None, ["libnvidia-ml.so.1"])
    now[0] = RETRY_S
    assert GpuMemory(nvml).by_pid() is None and len(asked) == 2


def test_a_driver_that_is_lost_is_opened_anew_after_a_while() -> None:
    now, driver = [0.0], PaperDriver([(5, MIB)])
    nvml = Nvml(load=lambda name: driver, clock=lambda: now[0])
    assert nvml.processes() == {5: MIB}
    driver.lost = True
    assert nvml.processes() is None
    driver.lost = False
    assert nvml.processes() is None
    now[0] = RETRY_S
    assert (nvml.processes(), driver.begun) == ({5: MIB}, 2)


def test_a_library_of_which_everything_is_missing_tells_nothing() -> None:
    assert Nvml(load=lambda name: object()).processes() is None


def test_a_driver_that_hangs_holds_up_the_watch_only_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "MEMORY_WAIT_S", 0.02)
    answer, driver = threading.Event(), PaperDriver([(5, MIB)])
    driver.nvmlInit_v2 = lambda: 0 if answer.wait(60) else 1  # type: ignore[method-assign]
    nvml = Nvml(load=lambda name: driver)
    memory = GpuMemory(nvml)
    assert memory.by_pid() is None
    answer.set()
    assert nvml.processes() == {5: MIB}


def test_an_empty_answer_is_no_process() -> None:
    assert parse_processes(b"", 0, 24) == []


def test_a_child_holds_what_its_processes_hold_on_the_gpu() -> None:
    roots = [Root("child", b"child#1", os.getpid())]
    told: list[Mapping[bytes, Weighed]] = []
    watch = MemoryWatch(
        Limits(0, 0, MIB), lambda: roots, told.append, pytest.fail, lambda: {os.getpid(): 2 * MIB, 2**22 + 1: 99 * MIB}
    )
    watch.look(False)
    assert (watch.weights["child"].gpu, told[-1][b"child#1"].verdict) == (2 * MIB, HEAVY)
