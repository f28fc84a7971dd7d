"""Which layers of a profile this machine refuses, found by entering it in a process made for that."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace

from wan2gp.environment import SAFE_PATH
from wan2gp.profile import Layer, Profile, decode_profile, encode_profile
from wan2gp.sandbox.enter import Sandbox, Unsafe

PROBE_S = 60.0
"""Longest wait for it, seconds: a machine that is short of processor time makes it slow, nothing else does."""


def missing(profile: Profile) -> dict[Layer, str]:
    """By layer that the kernel or the container refuses, why. Takes some 50 ms.

    No control group is made for it: of processes and memory :func:`wan2gp.cgroups.prepare` tells. Raises
    :class:`OSError` or :class:`subprocess.SubprocessError` when not even a process can be had.
    """
    command = [sys.executable, *SAFE_PATH, "-m", "wan2gp.sandbox.probe"]
    given = encode_profile(replace(profile, group=""))
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=PROBE_S, check=True)
    return {Layer(name): reason for name, reason in json.loads(done.stdout).items()}


def main() -> int:
    """Read a profile, enter it, write what was refused."""
    sandbox = Sandbox(decode_profile(sys.stdin.read()))
    with contextlib.suppress(Unsafe):
        sandbox.enter()
    json.dump(sandbox.refused, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
