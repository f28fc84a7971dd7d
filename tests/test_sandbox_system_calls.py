"""The filter of system calls: in a real process what this machine can do, on paper what the other one would."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest

from tests.bpf_machine import verdict
from tests.sandboxed import confined, profile_of
from wan2gp.sandbox import seccomp
from wan2gp.sandbox.kernel import MACHINE
from wan2gp.sandbox.seccomp import ABSENT, FORBIDDEN, MODE_CALLS, OWNERS_CALLS, SCHEDULING_CALLS, Wishes, program
from wan2gp.sandbox.syscalls import NUMBERS

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+)\s+(\d+)$"),
    "aarch64": ("/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)$"),
}
NEWER = {"open_tree_attr", "fchmodat2", "setxattrat", "removexattrat", "file_setattr"}
"""Than some headers."""
known_machine = pytest.mark.skipif(MACHINE not in NUMBERS, reason="no filter for this machine")

CALLS = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
status = open("/proc/self/status").read()
assert "CapEff:\\t0000000000000000" in status and "Seccomp:\\t2" in status  # else nothing below is harmless
def call(number, *arguments):
    given = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    if libc.syscall(ctypes.c_long(number), *given) < 0:
        raise OSError(ctypes.get_errno(), "")
for name, number in json.loads(sys.argv[1]).items():
    say(name, lambda: call(number))
"""


@known_machine
def test_every_call_that_no_engine_needs_is_refused(tmp_path: Path) -> None:
    numbers = {name: NUMBERS[MACHINE][name] for name in (*FORBIDDEN, *ABSENT) if name in NUMBERS[MACHINE]}
    seen = confined(profile_of(tmp_path), CALLS, json.dumps(numbers))
    assert seen.refused == {}
    assert seen.answers == {name: "ENOSYS" if name in ABSENT else "EPERM" for name in numbers}


NAMESPACES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
kinds = dict(mount=0x20000, cgroup=0x2000000, uts=0x4000000, ipc=0x8000000, user=0x10000000, pid=0x20000000,
             net=0x40000000, time=0x80)
def unshare(flags):
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "")
def clone(number, flags):
    pid = libc.syscall(ctypes.c_long(number), ctypes.c_ulong(flags | 17), None, None, None, None)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "")
    os.waitpid(pid, 0)
for name, flag in kinds.items():
    say("unshare_" + name, lambda: unshare(flag))
    if name != "time":  # for clone that bit belongs to a signal
        say("clone_" + name, lambda: clone(int(sys.argv[1]), flag))
say("unshare_user_and_more", lambda: unshare(0x10000000 | 0x40000000))
say("unshare_files", lambda: unshare(0x400))
say("clone", lambda: clone(int(sys.argv[1]), 0))
import threading, subprocess
def threads():
    thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
say("threads", threads)
say("programs", lambda: subprocess.run(["/bin/true"], check=True))
say("terminal", lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"))
"""


@known_machine
def test_no_name_space_of_its_own_in_which_it_would_be_root(tmp_path: Path) -> None:
    """Most holes in the kernel of the last years are reached by whoever may make one."""
    answers = confined(profile_of(tmp_path), NAMESPACES, NUMBERS[MACHINE]["clone"]).answers
    for name in ("unshare_files", "clone", "threads", "programs"):
        assert answers.pop(name) == "ok"
    assert set(answers.values()) == {"EPERM"} and len(answers) == 8 + 7 + 1 + 1


INT_80 = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000" "cd80" "c3"))  # mov eax, 20 (getpid of i386); int 0x80; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
child = os.fork()
if child == 0:
    answer = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    os._exit(0 if answer == os.getpid() else 1)
status = os.waitpid(child, 0)[1]
print("foreign", "served" if status == 0 else "refused")
libc = ctypes.CDLL(None, use_errno=True)
number = 0x40000000 | 39  # getpid of x32
print("third", "served" if libc.syscall(ctypes.c_long(number)) == os.getpid() else "refused")
"""


@pytest.mark.skipif(MACHINE != "x86_64", reason="x86_64 alone has three kinds of call")
def test_calls_in_the_way_of_another_architecture_pass_no_filter(tmp_path: Path) -> None:
    answers = confined(profile_of(tmp_path), INT_80).answers
    assert answers == {"foreign": "refused", "third": "refused"}


@pytest.mark.parametrize("machine", list(HEADERS))
def test_the_numbers_are_those_of_the_kernels_own_headers(machine: str) -> None:
    path, pattern = HEADERS[machine]
    if not Path(path).exists():
        pytest.skip(f"no {path}: apt install linux-libc-dev")
    theirs = {
        found[1]: int(found[2]) for line in Path(path).read_text().splitlines() if (found := re.match(pattern, line))
    }
    known = {name: number for name, number in NUMBERS[machine].items() if name in theirs}
    assert known == {name: theirs[name] for name in known}
    assert set(NUMBERS[machine]) - set(known) <= NEWER
    assert len(set(NUMBERS[machine].values())) == len(NUMBERS[machine])


@pytest.mark.parametrize("machine", list(NUMBERS))
def test_every_name_that_is_filtered_has_a_number(machine: str) -> None:
    """`create_module` and the like never were on aarch64; a typing error would be on no machine."""
    for name in (*FORBIDDEN, *ABSENT, *OWNERS_CALLS, *MODE_CALLS, *SCHEDULING_CALLS):
        assert any(name in numbers for numbers in NUMBERS.values()), name
    only_x86 = {"chmod", "chown", "create_module", "ioperm", "iopl", "lchown", "modify_ldt", "open", "sysfs", "uselib"}
    assert set(NUMBERS["x86_64"]) - set(NUMBERS["aarch64"]) == only_x86
    assert not set(NUMBERS["aarch64"]) - set(NUMBERS["x86_64"])


class Filter:
    """One machine's filter on paper."""

    def __init__(self, machine: str, **wishes: bool) -> None:
        self.machine = machine
        self.program = program(machine, Wishes(**wishes))

    def __call__(self, name: str, *arguments: int) -> int | None:
        return verdict(self.program, ARCHITECTURES[self.machine], NUMBERS[self.machine][name], *arguments)

    def foreign(self, architecture: str, number: int) -> int | None:
        return verdict(self.program, ARCHITECTURES[architecture], number)


@pytest.mark.parametrize("machine", list(NUMBERS))
def test_both_machines_filter_alike(machine: str) -> None:
    check = Filter(machine)
    for name in FORBIDDEN:
        assert name not in NUMBERS[machine] or check(name) == errno.EPERM, name
    assert {check(name) for name in ABSENT} == {errno.ENOSYS}
    assert {check.foreign(other, 20) for other in ARCHITECTURES if other != machine} == {errno.ENOSYS}
    assert check("clone", 17) is None and check("clone", 0x10000000 | 17) == errno.EPERM
    assert check("clone", 0x80 | 17) is None and check("unshare", 0x80) == errno.EPERM
    assert check("ioctl", 0, 0x5401) is None and check("ioctl", 0, 0x5412) == errno.EPERM
    assert check("ioctl", 0, 0xFFFFFFFF00005412) == errno.EPERM  # the kernel looks at the low half alone
    unknown = max(NUMBERS[machine].values()) + 50
    assert verdict(check.program, ARCHITECTURES[machine], unknown) is None


@pytest.mark.parametrize("machine", list(NUMBERS))
@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("tcp", [False, True])
def test_sockets_as_wished_and_no_others(machine: str, udp: bool, tcp: bool) -> None:
    check = Filter(machine, udp=udp, tcp=tcp)
    closed = errno.EPERM
    nonblocking = 0o4000 | 0o2000000
    for family in (2, 10):
        for protocol, stream, datagram in ((0, tcp, udp), (6, tcp, False), (17, False, udp), (262, False, False)):
            assert check("socket", family, 1 | nonblocking, protocol) == (None if stream else closed)
            assert check("socket", family, 2 | nonblocking, protocol) == (None if datagram else closed)
        assert {check("socket", family, kind, 0) for kind in (0, 3, 4, 5, 6, 10)} == {closed}
    assert {check("socket", 1, kind, 0) for kind in (1, 2, 5)} == {None}
    assert check("socket", 16, 3, 0) is None and check("socket", 16, 3, 9) == closed
    assert {check("socket", family, 1, 0) for family in range(50) if family not in (1, 2, 10, 16)} == {closed}
    assert check("socketpair", 1, 1, 0) is None and check("socketpair", 2, 1, 0) == closed


@pytest.mark.parametrize("machine", list(NUMBERS))
def test_a_connection_by_sending_only_where_all_ports_are_open(machine: str) -> None:
    flags = {"sendto": (0, 0, 0), "sendmmsg": (0, 0, 0), "sendmsg": (0, 0)}
    for name, before in flags.items():
        assert Filter(machine)(name, *before, 0x20000000) == errno.EPERM
        assert Filter(machine)(name, *before, 0x4000) is None
        assert Filter(machine, fast_open=True)(name, *before, 0x20000000) is None


@pytest.mark.parametrize("machine", list(NUMBERS))
def test_truncation_by_name_where_landlock_does_not_see_it(machine: str) -> None:
    check = Filter(machine, truncate=False)
    assert check("truncate") == errno.EACCES and check("openat2") == errno.ENOSYS
    assert Filter(machine)("truncate") is None and Filter(machine)("openat2") is None
    for access, refused in ((0, True), (1, False), (2, False), (3, True)):
        assert check("openat", 0, 0, access | 0o1000) == (errno.EACCES if refused else None)
        assert check("openat", 0, 0, access) is None


def test_a_machine_without_a_list_has_no_filter_and_says_so() -> None:
    with pytest.raises(seccomp.Unsupported, match="riscv64"):
        program("riscv64", Wishes())
