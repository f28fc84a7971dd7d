"""Which layers of the sandbox this worker has, asked of the kernel once at start, and what to do about a lack.

What a process may still do after it has entered a sandbox is found in a process made for that: a fork of ours, which is
cheap and sees what our children will see.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from wan2gp.cgroup_places import LIMITS, Unplaced, find
from wan2gp.config import Config, ConfigError
from wan2gp.logs import Facts
from wan2gp.profile import Layer, Profile
from wan2gp.sandbox.enter import WATCHED, Sandbox, Unsafe
from wan2gp.supervisor.profiles import Profiles

OFF, REQUIRE = "off", "require"
WATCH = "a watch ends what goes beyond, a second later: "
"""Before the reason why the kernel does not keep a limit."""
LANDLOCK = (
    "run Linux 6.12 or newer with Landlock (`cat /sys/kernel/security/lsm` names it), in a container that allows it"
)
REMEDIES: Mapping[Layer, str] = {
    Layer.PRIVILEGES: "let the container's security profile allow prctl and setrlimit",
    Layer.USER: "",  # its reason says it
    Layer.FILES: LANDLOCK,
    Layer.TCP: LANDLOCK,
    Layer.SYSTEM_CALLS: "run a kernel with seccomp filters on x86_64 or aarch64",
    Layer.SCOPE: LANDLOCK,
    Layer.PROCESSES: "give the container a cgroup that it may write to",
    Layer.MEMORY: "give the container a cgroup that it may write to",
}


@dataclass(frozen=True)
class Protection:
    """The sandbox of this worker's handlers, as far as it is known before one starts."""

    mode: str
    missing: Mapping[Layer, str] = field(default_factory=dict)
    """By layer that no process here gets, or not every handler, why."""

    @property
    def lacking(self) -> dict[Layer, str]:
        """Without those limits that a watch keeps instead."""
        return {layer: reason for layer, reason in self.missing.items() if layer not in WATCHED}

    def require(self) -> None:
        """Raise :class:`ConfigError` where the configuration requires what is missing."""
        if self.mode == REQUIRE and self.lacking:
            raise ConfigError([_refusal(layer, reason) for layer, reason in self.lacking.items()])

    def tell(self, facts: Facts) -> None:
        """The start-up line."""
        if self.mode == OFF:
            facts("sandbox.off")
        elif self.missing:
            reasons = "; ".join(f"{layer.value}: {reason}" for layer, reason in self.missing.items())
            facts("sandbox.partial", layers=", ".join(layer.value for layer in self.missing), reasons=reasons)
        else:
            facts("sandbox.whole", layers=", ".join(layer.value for layer in Layer))


def _refusal(layer: Layer, reason: str) -> str:
    remedy = f"{REMEDIES[layer]}, or " if REMEDIES[layer] else ""
    return f"sandbox.mode = require, and the layer {layer.value} is missing: {reason}: {remedy}set sandbox.mode to best"


def protection(config: Config, profiles: Profiles, limits: Mapping[str, str]) -> Protection:
    """``limits``: those (``memory``, ``processes``) that no control group can keep here, with the reason."""
    if config.sandbox == OFF:
        return Protection(OFF)
    found: dict[Layer, str] = dict(probe(profiles.example()))
    for name in profiles.names:
        for layer, reason in profiles.lacks(name).items():
            found.setdefault(layer, f"{name}: {reason}" if layer not in found else reason)
    for limit, reason in limits.items():
        found.setdefault(Layer(limit), WATCH + reason)
    return Protection(config.sandbox, {layer: found[layer] for layer in Layer if layer in found})


def unkept_limits() -> dict[str, str]:
    """Limits that no control group could keep for a worker that was started here now, with the reason; changes
    nothing."""
    unkept = {}
    for limit in LIMITS:
        try:
            place = find(limit)
            if not os.access(place.base, os.W_OK):
                unkept[limit] = f"the control group {place.base} cannot be written to"
            elif place.version == 2 and not place.ours:
                unkept[limit] = f"the control group {place.base} is not delegated to the worker"
        except (Unplaced, OSError) as error:
            unkept[limit] = str(error)
    return unkept


def probe(profile: Profile) -> dict[Layer, str]:
    """By layer that is refused, why. Takes some milliseconds; to be called before there is a second thread."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _enter(profile, theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    if not told:
        return dict.fromkeys((Layer.PRIVILEGES, Layer.SYSTEM_CALLS), "the process that tried it ended")
    return {Layer(name): reason for name, reason in json.loads(told).items()}


def _enter(profile: Profile, answer: int) -> None:
    """In the child, which ends here whatever happens."""
    try:
        sandbox = Sandbox(profile)
        with contextlib.suppress(Unsafe):
            sandbox.enter()
        os.write(answer, json.dumps(sandbox.refused).encode())
    finally:
        os._exit(0)
