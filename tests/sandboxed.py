"""A program in a sandbox, in real processes: this one, or the test's, has threads, so a launcher stands between.

The launcher is what the shim is: outside the sandbox, the parent of what is inside. `without` forbids system calls to
the launcher beforehand, as a container may; `abi` makes it believe in an older Landlock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.conftest_worker import ROOT
from wan2gp.profile import Profile, encode_profile

CAP_SETGID, CAP_SETUID = 6, 7
SYSTEM = tuple(map(os.path.realpath, ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys")))
PYTHON = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix)))
LAUNCHER = """
import json, sys
given = json.load(sys.stdin)
from wan2gp.profile import decode_profile
from wan2gp.sandbox import bpf, kernel, landlock, privileges, seccomp
from wan2gp.sandbox.start import start
if given["abi"] is not None:
    landlock.abi = lambda: given["abi"]
if given["without"]:
    privileges.no_new_privileges()
    denied = bpf.when(tuple(given["without"]), bpf.refuse(1), bpf.ALLOW)
    seccomp.enforce(bpf.assemble([*bpf.load_number(), *denied]))
started = start(given["command"], given["boot"].encode(), decode_profile(given["profile"]))
said = started.process.stdout.read().decode(errors="replace")
status = started.process.wait()
if started.group is not None:
    started.group.kill()
    started.group.remove()
json.dump({"said": said, "status": status, "refused": started.refused}, sys.stdout)
"""
TRY = """
import errno, os, sys
def attempt(what):
    try:
        return "ok" if what() is not NotImplemented else "?"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def say(name, what):
    print(name, attempt(what), flush=True)
"""
"""What the program inside begins with: `say(name, call)` prints `name ok`, or the name of the error."""


def can_change_user() -> bool:
    """Whether this process may give user ids away; root in a container may not always."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    return all(held >> capability & 1 for capability in (CAP_SETGID, CAP_SETUID))


@dataclass(frozen=True)
class Seen:
    """What came of it."""

    said: str
    status: int
    refused: Mapping[str, str]

    @property
    def answers(self) -> dict[str, str]:
        """By name, what `say` printed."""
        assert self.status == 0, self.said
        return dict(line.split(" ", 1) for line in self.said.splitlines() if " " in line)


def profile_of(folder: Path, **fields: object) -> Profile:
    """Reads the system and Python, writes the folder, opens /dev/null; `fields` add to that or replace it."""
    basic = Profile(read=(*SYSTEM, *PYTHON), write=(str(folder),), devices=("/dev/null", "/dev/urandom"))
    return replace(basic, **fields)  # type: ignore[arg-type]


def confined(
    profile: Profile,
    code: str,
    *arguments: object,
    without: Sequence[int] = (),
    abi: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Seen:
    """Run `code` by this interpreter, with `arguments` in `sys.argv[1:]`."""
    command = [sys.executable, "-I", "-c", TRY + code, *map(str, arguments)]
    return confined_command(profile, command, without=without, abi=abi, environ=environ)


def confined_command(
    profile: Profile,
    command: Sequence[str],
    *,
    boot: str = "",
    without: Sequence[int] = (),
    abi: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Seen:
    """Run a program."""
    given = {
        "profile": encode_profile(profile),
        "command": list(command),
        "boot": boot,
        "without": list(without),
        "abi": abi,
    }
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **(environ or {})},
    )
    assert done.returncode == 0, done.stderr
    return Seen(**json.loads(done.stdout))
