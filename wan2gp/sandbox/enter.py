"""The sandbox of one process: prepared before the fork, entered between fork and exec.

The order matters. A control group is entered and a user id changed while there are capabilities for it; Landlock and
seccomp need no_new_privs; seccomp comes last, since it forbids calls that the others make.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from wan2gp import cgroups
from wan2gp.profile import Layer, Profile
from wan2gp.sandbox import grants, landlock, privileges, seccomp
from wan2gp.sandbox.kernel import MACHINE

EXIT_NO_SANDBOX = 78
"""Exit status of a process that was not started, since the profile requires a layer that was refused."""
NO_MOVES = (
    "lets nobody move a file into another directory, as compilers' caches must: it is left out, run Linux 5.19 or newer"
)
NVIDIA, UVM = "/dev/nvidia", "/dev/nvidia-uvm"
UVM_REMEDY = "run `nvidia-modprobe -u -c=0` as root"
WATCHED = frozenset({Layer.PROCESSES, Layer.MEMORY})
"""Layers that the supervisor's watches keep where the kernel does not: nothing is refused for the lack of them."""


class Unsafe(Exception):
    """The profile requires a layer that was refused."""

    def __init__(self, refused: dict[Layer, str]) -> None:
        what = "; ".join(f"{layer.value}: {reason}" for layer, reason in refused.items())
        super().__init__(f"not started, since sandbox.mode is require and these layers are refused: {what}")


class Sandbox:
    """What ``profile`` asks for, ready to be entered by a child. The paths are opened here, by whoever still may.

    ``refused`` names each layer that is not to be had, with the reason; entering adds to it, in the child's memory.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.refused: dict[Layer, str] = {}
        self.notes: list[str] = []
        """What was not granted, in a sentence each."""
        self.group: cgroups.Group | None = None
        """The control group that the child enters; the caller's to remove when all is over."""
        self._counted = False
        """Whether a control group counts the processes."""
        self._uncounted = ""
        """Why it does not, where the user's limit is to take its place."""
        self._landlock = 0
        self._ruleset: landlock.Ruleset | None = None
        self._owner = os.geteuid()
        if profile.mode != "off":
            self._prepare()
            self._look_for_uvm()

    def _prepare(self) -> None:
        if self.profile.group:
            self._prepare_group()
        try:
            self._prepare_landlock()
        except OSError as error:
            self._without_landlock(f"the kernel has no Landlock for this process ({error.strerror})")

    def _look_for_uvm(self) -> None:
        """CUDA makes that device by a set-user-ID program, which gives nothing in here."""
        cards = any(path.startswith(NVIDIA) and path[len(NVIDIA) :].isdigit() for path in self.profile.devices)
        if cards and UVM not in self.profile.devices:
            self.notes.insert(
                0, f"{UVM} is not there, and CUDA finds no GPU without it: before the worker, {UVM_REMEDY}"
            )

    def _prepare_group(self) -> None:
        profile = self.profile
        group = cgroups.open_group(profile.group, profile.memory_bytes, profile.processes)
        if isinstance(group, cgroups.Group):
            self.group, missing = group, dict(group.missing)
            self._counted = Layer.PROCESSES.value in group.directories
        else:
            missing = {Layer.PROCESSES.value: group} | ({Layer.MEMORY.value: group} if profile.memory_bytes else {})
        self._without_group(missing)

    def _prepare_landlock(self) -> None:
        profile, version = self.profile, landlock.abi()
        self._tell_lacks(version)
        if version < landlock.MOVES_SINCE:
            return
        ruleset = landlock.Ruleset(version, tcp=profile.tcp is not None)
        found = grants.readable(profile)
        self.notes = found.notes
        linked = ruleset.allow(found.paths, landlock.READ, follow=False)
        linked += ruleset.allow(profile.listed, landlock.READ_DIR, follow=False)
        linked += ruleset.allow(profile.write, landlock.WRITE, follow=False)
        self.notes += [f"{path} is not granted: a link lies there, or on the way" for path in linked]
        ruleset.allow(profile.devices, landlock.DEVICE)
        self.notes += ruleset.refused
        if version >= landlock.TCP_SINCE:
            ruleset.allow_ports(profile.tcp or ())
        self._ruleset, self._landlock = ruleset, version

    def _tell_lacks(self, version: int) -> None:
        """What Landlock of this ABI cannot do."""
        this = f"Landlock of this kernel (ABI {version})"
        if version < landlock.MOVES_SINCE:
            self.refused[Layer.FILES] = f"{this} {NO_MOVES}"
        if version < landlock.SCOPE_SINCE:
            self.refused[Layer.SCOPE] = f"{this} has no scopes, Linux 6.12 has"
        if version < landlock.TCP_SINCE and self.profile.tcp:
            self.refused[Layer.TCP] = f"{this} knows no ports, Linux 6.7 does"

    def _wishes(self) -> seccomp.Wishes:
        """What Landlock cannot do here, the filter does, as far as it can. Asked in the child, under its user."""
        tcp = self.profile.tcp
        return seccomp.Wishes(
            udp=self.profile.udp,
            tcp=tcp != () or self._landlock >= landlock.TCP_SINCE,
            fast_open=tcp is None,
            truncate=not 0 < self._landlock < landlock.TRUNCATE_SINCE,
            own_user=self._is_other_user(),
        )

    def enter(self) -> None:
        """Apply everything to this process, for good. What was refused is in ``refused``; raises :class:`Unsafe` where
        the profile requires it."""
        if self.profile.mode == "off":
            return
        self._enter_group()
        self._enter_user()
        self._try(self._without_privileges, privileges.no_new_privileges)
        self._try(self._without_privileges, privileges.drop_capabilities)
        if self._ruleset is not None:
            self._try(self._without_landlock, self._enter_landlock)
        self._try(self._without_filter, lambda: seccomp.enforce(seccomp.program(MACHINE, self._wishes())))
        self._judge()

    def _enter_group(self) -> None:
        group = self.group
        if group is not None:
            told = dict.fromkeys(group.directories)
            self._try(lambda why: self._not_entered(dict.fromkeys(told, why)), group.enter_alone)

    def _enter_user(self) -> None:
        profile = self.profile
        os.umask(0o077)
        privileges.die_first()
        self._try(self._without_privileges, lambda: privileges.set_limits(profile))
        privileges.shrink_bounds()
        uid, gid = profile.uid, profile.gid
        if uid is not None:
            own_group = uid if gid is None else gid
            self._try(self._without_user, lambda: privileges.become(uid, own_group, profile.groups))
        if self._is_other_user() and not self._counted:
            # Not in any case: it counts over all workers and containers of a machine in which the user has this number.
            self._try(self._without_privileges, lambda: privileges.limit_processes(profile))

    def _is_other_user(self) -> bool:
        """Whether a user id was taken: a profile may ask for it, and the container refuse it."""
        return os.geteuid() != self._owner

    def _enter_landlock(self) -> None:
        assert self._ruleset is not None
        if self._is_other_user():
            self._ruleset.allow(self.profile.terminals, landlock.DEVICE)
        self._ruleset.enforce()

    def _judge(self) -> None:
        needed = {layer: reason for layer, reason in self.refused.items() if layer not in WATCHED}
        if needed and self.profile.mode == "require":
            raise Unsafe(needed)

    def _try(self, refused: Callable[[str], None], apply: Callable[[], None]) -> None:
        try:
            apply()
        except OSError as error:
            refused(error.strerror or str(error))
        except (ValueError, OverflowError) as error:  # a number that the kernel has no place for
            refused(str(error))

    def _without_group(self, missing: dict[str, str]) -> None:
        """Under a user id of its own there still is that user's limit of processes."""
        if self.profile.uid is not None:
            self._uncounted = missing.get(Layer.PROCESSES.value, "")
            missing = {limit: reason for limit, reason in missing.items() if limit != Layer.PROCESSES.value}
        self.refused.update({Layer(limit): reason for limit, reason in missing.items()})

    def _not_entered(self, missing: dict[str, str]) -> None:
        self._counted = False
        self._without_group(missing)

    def _without_user(self, reason: str) -> None:
        self.refused[Layer.USER] = reason
        if self._uncounted:
            self.refused[Layer.PROCESSES] = self._uncounted

    def _without_privileges(self, reason: str) -> None:
        before = self.refused.get(Layer.PRIVILEGES)
        self.refused[Layer.PRIVILEGES] = f"{before}; {reason}" if before else reason

    def _without_landlock(self, reason: str) -> None:
        tcp = self.profile.tcp
        self.refused |= {Layer.FILES: reason, Layer.SCOPE: reason}
        if tcp or (tcp == () and self._landlock >= landlock.TCP_SINCE):  # else the filter forbids all of it, or nobody
            self.refused[Layer.TCP] = reason

    def _without_filter(self, reason: str) -> None:
        self.refused[Layer.SYSTEM_CALLS] = reason
        if self.profile.tcp == () and self._landlock < landlock.TCP_SINCE:
            self.refused.setdefault(Layer.TCP, reason)
        if 0 < self._landlock < landlock.TRUNCATE_SINCE:
            self.refused.setdefault(Layer.FILES, f"files can be emptied before Linux 6.2 ({reason})")

    def close(self) -> None:
        """In the parent, after the fork."""
        if self._ruleset is not None:
            with contextlib.suppress(OSError):
                self._ruleset.close()
