"""The sandbox of one process: prepared before the fork, entered between fork and exec.

The order matters. A user id is changed while there are capabilities for it; Landlock and seccomp need no_new_privs;
seccomp comes last, since it forbids calls that the others make.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from wan2gp.profile import Layer, Profile
from wan2gp.sandbox import landlock, privileges

EXIT_NO_SANDBOX = 78
"""Exit status of a process that was not started, since the profile requires a layer that was refused."""
WATCHED = frozenset({Layer.PROCESSES, Layer.MEMORY})
"""Layers that the supervisor's watchdogs keep where the kernel does not: nothing is refused for the lack of them."""


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
        self._ruleset: landlock.Ruleset | None = None
        if profile.mode != "off":
            self._prepare_landlock()

    def _prepare_landlock(self) -> None:
        profile = self.profile
        try:
            version = landlock.abi()
            ruleset = landlock.Ruleset(version, tcp=profile.tcp is not None, scope=True)
            ruleset.allow(profile.read, landlock.READ)
            ruleset.allow(profile.write, landlock.WRITE)
            ruleset.allow(profile.devices, landlock.DEVICE)
            if profile.tcp is not None and version >= landlock.TCP_SINCE:
                ruleset.allow_ports(profile.tcp)
        except OSError as error:
            self.refused[Layer.FILES] = f"Landlock: {error.strerror}"
            return
        self._ruleset = ruleset

    def enter(self) -> None:
        """Apply everything to this process, for good. What was refused is in ``refused``; raises :class:`Unsafe` where
        the profile requires it."""
        if self.profile.mode == "off":
            return
        os.umask(0o077)
        self._try(Layer.PRIVILEGES, privileges.no_new_privileges)
        if self._ruleset is not None:
            self._try(Layer.FILES, self._ruleset.enforce)
        self._judge()

    def _judge(self) -> None:
        needed = {layer: reason for layer, reason in self.refused.items() if layer not in WATCHED}
        if needed and self.profile.mode == "require":
            raise Unsafe(needed)

    def _try(self, layer: Layer, apply: Callable[[], None]) -> None:
        try:
            apply()
        except (OSError, ValueError) as error:
            self.refused[layer] = str(error)

    def close(self) -> None:
        """In the parent, after the fork."""
        if self._ruleset is not None:
            self._ruleset.close()
