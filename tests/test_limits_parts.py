"""Each limit by itself: control groups, counts of processes, sizes of directories, and what removes them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest_worker import ROOT, eventually
from wan2gp import cgroups
from wan2gp.cgroup_places import LEAF, Place, Unplaced, mounts
from wan2gp.config import load_config
from wan2gp.machine_memory import machine_memory
from wan2gp.processes import alive, all_tasks, families, held_by, running_as, trees
from wan2gp.supervisor.crowd import Crowd, Refusals
from wan2gp.supervisor.emptying import free_shared_memory, remove, remove_set_aside, set_aside, set_tmp_aside
from wan2gp.supervisor.memory_watch import Limits, MemoryWatch, group_memory
from wan2gp.supervisor.size_watch import Allowances, SizeWatch
from wan2gp.supervisor.tree_size import measure, nameless
from wan2gp.supervisor.weight import Excess, Root

MIB = 1024 * 1024
KEEPER = "/usr/bin/python3"
"""One that every user may execute, which a virtual environment below somebody's home is not."""


def breathe() -> None:
    """Others need no turn here."""


# -- control groups ----------------------------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[cgroups.Group]:
    """Of 20 processes and 64 MiB."""
    missing = cgroups.prepare()
    if missing:
        pytest.skip(f"no control groups here: {missing}")
    made = cgroups.open_group("a test", 64 * MIB, 20, os.getpid())
    assert isinstance(made, cgroups.Group) and made.missing == {}
    yield made
    assert made.kill() == []
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            """What was in it."""
    assert made.remove()
    cgroups.release()


@contextlib.contextmanager
def inside(group: cgroups.Group, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the group, which runs ``code`` once it is there."""
    command = [sys.executable, "-S", "-c", f"import os, sys, time\nsys.stdin.readline()\n{code}"]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        group.enter(process.pid)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            group.kill()


BREED = """
begun = 0
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
    except OSError as error:
        print(error.errno, begun, flush=True)
        time.sleep(60)
    begun += 1
"""


def test_a_fork_bomb_in_a_group_gets_no_more_and_all_of_it_ends_whatever_sessions_it_made(
    group: cgroups.Group,
) -> None:
    with inside(group, BREED) as process:
        assert process.stdout is not None
        number, begun = map(int, process.stdout.readline().split())
        assert (number, begun) == (errno.EAGAIN, 19)
        members = group.members()
        assert len(members) == 20 and group.hits()["processes"] >= 1
        assert group.kill() == []
        process.wait(10)
        assert not [pid for pid in members if alive(pid)]


def test_a_memory_hog_in_a_group_is_ended_by_the_kernel_and_nobody_else_is(group: cgroups.Group) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=-1) as bystander:
        with inside(group, "hog = bytearray(b'x') * (200 << 20)") as process:
            assert process.wait(30) == -signal.SIGKILL
        assert group.hits() == {"memory": 1}
        assert bystander.poll() is None
        bystander.communicate(b"\n")


def test_one_that_is_in_a_group_takes_its_threads_and_children_along(group: cgroups.Group) -> None:
    with inside(
        group, "pid = os.fork()\nprint(os.getpid(), flush=True) if pid else time.sleep(60)\ntime.sleep(60)"
    ) as one:
        assert one.stdout is not None
        one.stdout.readline()
        assert len(group.members()) == 2 and one.pid in group.members()


def test_a_look_from_outside_finds_the_group_of_a_shim(group: cgroups.Group) -> None:
    found = cgroups.existing(os.getpid(), os.getpid())
    assert found is not None and found.directories == group.directories
    assert cgroups.existing(1, os.getpid()) is None


OWNER = """
import os, sys
from wan2gp import cgroups
assert cgroups.prepare() == {}
group = cgroups.open_group("left", 0, 20, os.getpid())
pid = os.fork()
if pid == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "600"])
group.enter(pid)
print(pid, *(path for _, path in group.directories.values()), flush=True)
sys.stdin.readline()
"""


def test_what_a_killed_supervisor_left_in_its_groups_ends_at_the_next_start(group: cgroups.Group) -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env={**os.environ, "PYTHONPATH": str(ROOT)}) as owner:
        assert owner.stdout is not None
        pid, path = owner.stdout.readline().decode().split()
        cgroups.prepare()
        assert alive(int(pid)) and Path(path).is_dir(), "it is not ours to end while its supervisor lives"
        owner.kill()
    cgroups.prepare()
    eventually("it ended", lambda: not alive(int(pid)))
    eventually("its place is gone", lambda: cgroups.prepare() == {} and not Path(path).parent.exists())
    assert Path(next(iter(group.directories.values()))[1]).is_dir(), "ours stays"


def test_groups_that_cannot_be_made_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read_only = Place(1, tmp_path / "none", "pids", True)
    monkeypatch.setattr(cgroups, "find", lambda limit: read_only)
    found = cgroups.open_group("a", 1, 1)
    assert found == f"cannot write to the control group {read_only.base}/{cgroups.owner_name(os.getppid())}: " + (
        "No such file or directory"
    )
    assert cgroups.open_group("a", 0, 0) == "no limit was asked for"


def test_a_group_that_systemd_has_not_delegated_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("")
    with pytest.raises(Unplaced, match="needs Delegate=yes"):
        Place(2, tmp_path, "memory", False).arrange()
    (tmp_path / "cgroup.subtree_control").write_text("pids memory")
    Place(2, tmp_path, "memory", False).arrange()
    assert not (tmp_path / LEAF).exists(), "somebody has arranged it before"


def test_both_versions_are_found_in_the_table_of_mounts(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "35 31 0:32 /docker/x /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
        "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
        "41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw\n"
    )
    new, old = mounts(str(table))
    assert (new.version, new.point, new.root) == (2, Path("/sys/fs/cgroup/uni fied"), "/")
    assert (old.version, old.root, "memory" in old.controllers) == (1, "/docker/x", True)


UNIFIED = next((mount.point for mount in mounts() if mount.version == 2), None)


@pytest.mark.skipif(UNIFIED is None or not os.access(UNIFIED, os.W_OK), reason="no version 2 that we may write to")
def test_version_2_ends_a_whole_group_in_one_call() -> None:
    assert UNIFIED is not None
    place = UNIFIED / f"test-{os.getpid()}"
    place.mkdir()
    try:
        group = cgroups.Group({"processes": (2, place)})
        with inside(group, "os.fork(); os.fork(); print(flush=True); time.sleep(60)") as process:
            assert process.stdout is not None
            for _ in range(4):
                process.stdout.readline()
            (place / "cgroup.kill").write_text("1")
            assert process.wait(10) == -signal.SIGKILL
            eventually("all of them ended", lambda: group.members() == [])
    finally:
        eventually("it can be removed", group.remove)


def test_the_kernel_steps_in_above_the_limit_of_the_watch_and_below_all_that_there_is() -> None:
    def limit(**given: str) -> int:
        return group_memory(load_config(flags={"data_dir": "/x"}, environ=given))

    assert limit(WAN2GP_MEMORY_HARD_MIB="1000") == 1356 * MIB
    assert machine_memory() * 0.95 < limit() < machine_memory()
    more = machine_memory() // MIB + 1
    assert limit(WAN2GP_MEMORY_HARD_MIB=str(more)) == more * MIB, "what the operator says holds"


# -- processes ---------------------------------------------------------------------------------------------------------


def crowd(told: list[Mapping[bytes, Excess]], limit: int = 10, in_all: Callable[[], int | None] = all_tasks) -> Crowd:
    return Crowd(limit, told.append, in_all=in_all)


def test_who_is_at_the_limit_of_processes_ends_and_who_is_below_does_not() -> None:
    told: list[Mapping[bytes, Excess]] = []
    one, other = Root("one", b"1", os.getpid()), Root("other", b"2", os.getpid())
    crowd(told).look({one: 10, other: 9})
    ((identity, excess),) = told[0].items()
    assert (identity, excess.code) == (b"1", "handler.process_limit")
    assert excess.reason.startswith("it had 10 processes and threads, the limit is 10 (sandbox.processes): ")


def test_a_look_is_hurried_as_soon_as_there_are_so_many_more_that_somebody_may_be_over() -> None:
    tasks = 500
    subject = crowd([], limit=10, in_all=lambda: tasks)
    assert not subject.hurries(), "there is nobody yet"
    subject.look({Root("one", b"1", os.getpid()): 4})
    tasks = 505
    assert not subject.hurries()
    tasks = 506
    assert subject.hurries()
    subject.look({})
    assert not subject.hurries()


def test_a_kernel_that_does_not_count_all_hurries_nobody() -> None:
    subject = crowd([], in_all=lambda: None)
    subject.look({Root("one", b"1", os.getpid()): 4})
    assert not subject.hurries()


def test_who_was_refused_a_process_by_its_group_ends_though_it_has_few_now(group: cgroups.Group) -> None:
    told: list[Mapping[bytes, Excess]] = []
    subject, root = Crowd(100, told.append, Refusals()), Root("one", b"1", os.getpid())
    subject.look({root: 3})
    assert told == []
    with inside(group, BREED) as process:
        assert process.stdout is not None
        process.stdout.readline()
    subject.look({root: 3})
    assert told[0][b"1"].reason.startswith("the kernel refused it another process, the limit is 100")


def test_threads_count_like_processes_and_the_guardian_does_not() -> None:
    code = "import threading, time; [threading.Thread(target=input).start() for _ in range(5)]; print(flush=True)"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        found, tasks = families([os.getpid()])
        assert process.pid in found[os.getpid()] and tasks[os.getpid()] >= 6
        assert families([process.pid])[1] == {process.pid: 0}, "the root itself is not counted"
        process.stdin.write(b"\n" * 5)
    assert families([process.pid]) == ({process.pid: []}, {process.pid: 0})


def test_a_bomb_is_seen_before_the_next_second_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hurry the next look would come in an hour."""
    monkeypatch.setattr("wan2gp.supervisor.memory_watch.LOOK_S", 3600.0)
    told: list[Mapping[bytes, Excess]] = []
    code = (
        "import os, time\ninput()\nfor _ in range(40):\n  if os.fork() == 0: time.sleep(60)\nprint(flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=-1, stdout=-1, start_new_session=True) as process:
        assert process.stdin is not None and process.stdout is not None
        roots = [Root("one", b"1", process.pid)]
        subject = crowd(told, limit=30, in_all=lambda: families([process.pid])[1][process.pid])
        watch = MemoryWatch(Limits(0, 0), lambda: roots, lambda _: None, pytest.fail, crowd=subject)
        watch.look(False)
        watch.start()
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        eventually("it is seen", lambda: told)
        watch.stop()
        os.killpg(process.pid, signal.SIGKILL)
    assert told[0][b"1"].code == "handler.process_limit"


# -- memory of other users ---------------------------------------------------------------------------------------------

POOL = """
import os, signal, sys
held = bytearray(b"x") * (40 << 20)
for _ in range(3):
    if os.fork() == 0:
        signal.pause()
print(flush=True)
sys.stdin.readline()
os.killpg(0, signal.SIGKILL)
"""
DOCKERS = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8))
"""The capabilities of a container's root that matter here: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID,
SETPCAP; not SYS_PTRACE."""


ASK = f"""
import ctypes, os, sys
from pathlib import Path
from wan2gp.processes import held, share_of
from wan2gp.supervisor.tree_size import measure
if os.geteuid() == 0:
    words = (ctypes.c_uint32 * 6)({DOCKERS}, {DOCKERS}, 0, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capset(header, words) == 0
    if len(sys.argv) > 2:
        os.setresuid(65099, 65099, 65099)
try:
    print(eval(sys.argv[1]))
except OSError as error:
    print(repr(error))
"""


def as_in_a_container(question: str, *more: str) -> str:
    """The answer of a process that is root without being almighty; with ``more``, of one that is not even root."""
    command = [sys.executable, "-c", ASK, question, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0 or not Path(KEEPER).exists(), reason="needs root")
def test_root_in_a_container_weighs_the_pool_of_another_user_without_counting_its_pages_four_times() -> None:
    with subprocess.Popen(
        [KEEPER, "-S", "-c", POOL],
        stdin=-1,
        stdout=-1,
        start_new_session=True,
        user=65099,
        group=65099,
        extra_groups=[],
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdout.readline()
        pids = trees([parent.pid])[parent.pid]
        refused = as_in_a_container(f"Path('/proc/{parent.pid}/smaps_rollup').read_text()")
        assert refused.startswith("PermissionError"), "else there is nothing to show"
        assert sum(map(held_by, pids)) > 160 * MIB
        assert 40 * MIB < int(as_in_a_container(f"held({pids}, {100 * MIB})")) < 100 * MIB
        still_root = f"share_of({parent.pid}), len(Path('/etc/shadow').read_text()) > 0"
        assert as_in_a_container(still_root).endswith(", True)")
        parent.stdin.close()


# -- disk --------------------------------------------------------------------------------------------------------------


def test_holes_take_no_space_and_a_second_name_none_either(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4096)
    os.link(tmp_path / "file", tmp_path / "again")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(50 * 1024 * MIB)
    (tmp_path / "elsewhere").symlink_to("/usr")
    size = measure([tmp_path, tmp_path / "none"], breathe)
    assert size.wrong is None and size.files == 4 and MIB <= size.bytes < 2 * MIB


def nest(place: Path, depth: int) -> None:
    """Directories below one another, deeper than a path can say."""
    folder = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=folder)
        inner = os.open("deep", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)


def test_what_is_nested_too_deep_to_be_looked_at_is_too_much(tmp_path: Path) -> None:
    nest(tmp_path, 100)
    assert measure([tmp_path], breathe).wrong == "it nests directories more than 64 deep"
    assert measure([tmp_path], breathe, deepest=200).wrong is None


def test_more_files_than_can_be_looked_at_are_too_many(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).touch()
    assert measure([tmp_path], breathe, most_files=10).wrong == "it made more than 10 files"


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user can reach, which `tmp_path` is not."""
    place = Path(tempfile.mkdtemp(prefix="w2g-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def test_a_directory_that_is_closed_to_the_worker_hides_nothing(open_place: Path) -> None:
    (open_place / "closed").mkdir(mode=0)
    found = as_in_a_container(f"measure([Path({str(open_place)!r})], print).wrong", "not root")
    assert "it closed a directory ('closed') to the worker" in found


def test_files_without_a_name_are_found_with_their_holders(tmp_path: Path) -> None:
    code = "import os, sys; f = open(sys.argv[1], 'wb'); f.write(bytes(8 << 20)); f.flush(); os.unlink(f.name)"
    command = [sys.executable, "-S", "-c", f"{code}; print(flush=True); input()", str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        device = tmp_path.stat().st_dev
        assert measure([tmp_path], breathe).files == 0
        assert nameless([process.pid, process.pid], device) >= 8 * MIB
        assert nameless([process.pid], device + 1) == 0
        process.stdin.close()
    assert nameless([process.pid], device) == 0


class Sizes:
    """A watch over one child's directory."""

    def __init__(self, data_dir: Path, given: int) -> None:
        self.place = data_dir / "handlers" / "one"
        self.place.mkdir(parents=True)
        self.told: list[Mapping[bytes, Excess]] = []
        self.roots = [Root("one", b"1", os.getpid())]
        self.watch = SizeWatch(
            data_dir,
            Allowances(given, {"courier": 1}),
            lambda: self.roots,
            lambda name: [self.place],
            self.told.append,
            pytest.fail,
        )


def test_who_holds_more_than_its_limit_ends_with_a_sentence_that_says_where(tmp_path: Path) -> None:
    sizes = Sizes(tmp_path, 2 * MIB)
    sizes.watch.look()
    assert sizes.told == []
    (sizes.place / "file").write_bytes(os.urandom(3 * MIB))
    sizes.watch.look()
    excess = sizes.told[0][b"1"]
    assert excess.code == "handler.disk_limit"
    assert f"it had 3 MiB under {sizes.place}, the limit is 2 MiB (sandbox.disk_mib): " in excess.reason


def test_without_a_limit_what_a_child_finds_at_its_start_is_not_held_against_it(tmp_path: Path) -> None:
    allowances, root = Allowances(0), Root("one", b"1", 1)
    assert allowances.of(root, 500, 100) == 590
    assert allowances.of(root, 800, 10) == 590, "it is the same as long as the child lives"
    allowances.forget_all_but([])
    assert allowances.of(root, 800, 10) == 809
    assert Allowances(100, {"courier": 50}).of(Root("courier", b"2", 1), 0, 0) == 150


def test_a_new_child_is_looked_at_soon(tmp_path: Path) -> None:
    sizes = Sizes(tmp_path, 10**15)
    sizes.watch.look()
    assert not sizes.watch.hurries()
    sizes.roots = [Root("one", b"2", os.getpid())]
    assert sizes.watch.hurries()


def test_a_disk_that_loses_so_much_that_somebody_may_be_over_is_looked_at_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, free = Sizes(tmp_path, 10 * MIB), 100 * MIB
    monkeypatch.setattr(sizes.watch, "_free", lambda: free)
    sizes.watch.look()
    free = 92 * MIB
    assert not sizes.watch.hurries()
    free = 200 * MIB  # somebody else gives space back
    assert not sizes.watch.hurries()
    free = 190 * MIB
    assert sizes.watch.hurries()


def test_a_worker_without_a_sandbox_removes_what_was_set_aside_and_judges_nobody(tmp_path: Path) -> None:
    sizes = Sizes(tmp_path, 1)
    sizes.watch._confined = False
    (sizes.place / "file").write_bytes(bytes(MIB))
    (tmp_path / "handlers" / ".gone-1" / "deep").mkdir(parents=True)
    sizes.watch.start()
    eventually("it is removed", lambda: [path.name for path in (tmp_path / "handlers").iterdir()] == ["one"])
    assert not sizes.watch.hurries()
    sizes.watch.stop()
    assert sizes.told == []


def test_a_walk_over_very_many_files_does_not_hold_up_the_end_of_the_worker(tmp_path: Path) -> None:
    sizes = Sizes(tmp_path, 1)
    for number in range(300):
        (sizes.place / str(number)).touch()
    sizes.watch._stopped.wait = lambda seconds: True  # type: ignore[method-assign, assignment, misc]
    sizes.watch._serve(sizes.watch.look)
    assert sizes.told == [], "the walk ended early, and that is no failure"


# -- removal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1100, pytest.param(10_000, marks=pytest.mark.long)])
def test_what_is_nested_deeper_than_a_path_can_say_can_be_removed(tmp_path: Path, depth: int) -> None:
    place = tmp_path / "one"
    place.mkdir()
    nest(place, depth)
    (place / "closed").mkdir(mode=0)
    (place / "elsewhere").symlink_to(tmp_path)
    (tmp_path / "kept").touch()
    remove(place, breathe)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_directory_that_somebody_moves_while_it_is_removed_leads_nowhere_else(tmp_path: Path) -> None:
    """Its owner should be dead by now; if not, ``..`` is where he wants it to be."""
    (tmp_path / "one" / "inner").mkdir(parents=True)
    (tmp_path / "one" / "inner" / "file").touch()
    (tmp_path / "others" / "inner").mkdir(parents=True)

    def move() -> None:
        with contextlib.suppress(FileNotFoundError):
            if not (tmp_path / "one" / "inner" / "file").exists():
                return
            moves.append(1)
            if len(moves) == 2:
                (tmp_path / "one" / "inner").rename(tmp_path / "others" / "moved")

    moves: list[int] = []
    with pytest.raises(OSError, match="was moved while it was removed"):
        remove(tmp_path / "one", move)
    assert (tmp_path / "others" / "inner").is_dir()


def test_what_is_set_aside_is_out_of_the_way_at_once_and_goes_by_and_by(tmp_path: Path) -> None:
    place = tmp_path / "one"
    set_aside(place, tmp_path)
    (place / "cache").mkdir(parents=True)
    (place / "cache" / "file").touch()
    set_aside(place, tmp_path)
    assert not place.exists()
    (aside,) = tmp_path.iterdir()
    assert (aside / "cache" / "file").exists()
    remove_set_aside(tmp_path, breathe)
    assert list(tmp_path.iterdir()) == []
    remove_set_aside(tmp_path / "none", breathe)


def test_temporary_files_go_with_their_process_and_nothing_else_does(tmp_path: Path) -> None:
    home = tmp_path / "one"
    (home / "tmp").mkdir(parents=True)
    set_tmp_aside(home)
    assert (home / "tmp").is_dir(), "there was nothing in it"
    (home / "tmp" / "file").touch()
    (home / "kept").touch()
    set_tmp_aside(home)
    assert [path.name for path in home.iterdir()] == ["kept"]
    remove_set_aside(tmp_path, breathe)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    set_tmp_aside(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_shared_memory_that_a_dead_handler_left_is_given_back_and_that_of_others_is_not(tmp_path: Path) -> None:
    for name, uid in (("psm_dead", 64871), ("sem.dead", 64871), ("psm_others", 64872)):
        (tmp_path / name).write_bytes(bytes(4096))
        os.chown(tmp_path / name, uid, uid)
    (tmp_path / "link").symlink_to("psm_others")
    with subprocess.Popen(["cat"], stdin=-1, user=64871) as another:
        eventually("it has changed its user", lambda: running_as(64871) == [another.pid])
        assert free_shared_memory(64871, tmp_path) == 0, "they may be those of another worker's handler"
        another.communicate()
    assert free_shared_memory(64871, tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "psm_others"]
    assert free_shared_memory(64871, tmp_path / "none") == 0
