"""The sandbox of each handler, as the configuration and the handler's specification give it."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan2gp.config import Config
from wan2gp.model_places import FOLDERS
from wan2gp.profile import Layer, Profile
from wan2gp.sandbox.path_lists import directories_of
from wan2gp.supervisor.access import cannot_read, cannot_write
from wan2gp.supervisor.answers import ask
from wan2gp.supervisor.granted import ANSWER_S, Granted, Unprepared
from wan2gp.supervisor.grants import TERMINALS, device_groups, devices, private_places, user_base, user_packages
from wan2gp.supervisor.memory_watch import group_memory
from wan2gp.supervisor.needs import Needs
from wan2gp.supervisor.places import Places
from wan2gp.supervisor.registry import COURIER, Registry, courier_needs, model_folders
from wan2gp.supervisor.users import NOT_ROOT, User, closed_to, common_places, number_of, why_none

MIB = 1024 * 1024
SHARED_MEMORY = "/dev/shm"
LOOPBACK = "127.0.0.1"
OURS: Mapping[str, str] = {
    "HOME": "home",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_STATE_HOME": "home/.local/state",
    "XDG_CACHE_HOME": "cache",
    "XDG_RUNTIME_DIR": "tmp",
    "TMPDIR": "tmp",
    "TEMP": "tmp",
    "TMP": "tmp",
}
"""What lies below the handler's own directory, whatever the operator's own place for it is: programs of that user act
on what they find there."""
CACHES: Mapping[str, str] = {
    "HF_HOME": "cache/huggingface",
    "TORCH_HOME": "cache/torch",
    "TRITON_CACHE_DIR": "cache/triton",
    "TORCHINDUCTOR_CACHE_DIR": "cache/inductor",
    "MPLCONFIGDIR": "cache/matplotlib",
    "NUMBA_CACHE_DIR": "cache/numba",
    "CUDA_CACHE_PATH": "cache/cuda",
}
"""The same, where the operator has set none. One that is set is the engines' own: they may write there."""
MORE_CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE")
"""Caches that are kept where they are set, and lie below one of the others where they are not."""


@dataclass(frozen=True)
class Sandbox:
    """What one start of a handler gets."""

    profile: Profile
    ports: tuple[int, ...] = ()
    """The spare ones that were chosen for it."""
    missing: Mapping[Layer, str] = field(default_factory=dict)
    """Layers that were left out before the kernel was asked, with the reason."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the handler must know of it."""
        if not self.ports:
            return {}
        return {"ports": self.ports, "connects": self.profile.mode == "off" or self.profile.tcp is None}


class Profiles:
    """Made once in a life of the supervisor; asked before each start of a handler."""

    def __init__(
        self, config: Config, registry: Registry, environ: Mapping[str, str] | None = None, *, make: bool = False
    ) -> None:
        """``make``: whether places that settings name for writing are made where they are missing."""
        self._config = config
        self._registry = registry
        self._environ = dict(os.environ if environ is None else environ)
        self.places = Places(config.data_dir, config.sandbox_uid_base)
        self._why_no_users = why_none(config)
        self._device_groups = device_groups()
        self._needs = {name: self._specified(name) for name in self.names}
        group = config.sandbox_uid_base if self._why_no_users is None else 0
        self._granted = Granted(config, self._needs, self._shared_caches(), group if make else None)
        self._never = tuple(map(str, private_places(config)))
        self._users = self._decide()
        self.common_read = () if config.sandbox == "off" else self._granted.common(self._environ)
        self._listed = self._granted.listed(self.common_read)

    @property
    def names(self) -> list[str]:
        """All handlers, the courier last."""
        return [*self._registry.specs, COURIER]

    def user(self, name: str) -> tuple[User | None, str | None]:
        """The user that a handler gets, or None and the reason. Decided once: the sockets are opened to groups only at
        the start."""
        return self._users[name]

    @property
    def notes(self) -> tuple[str, ...]:
        """What settings name and no handler gets, in a sentence each."""
        return () if self._config.sandbox == "off" else tuple(self._granted.notes)

    def _decide(self) -> dict[str, tuple[User | None, str | None]]:
        if self._config.sandbox == "off" or self._why_no_users is not None:
            reason = None if self._config.sandbox == "off" else self._why_no_users
            return dict.fromkeys(self.names, (None, reason))
        users = {name: self._candidate(name) for name in self.names}
        looks = {name: functools.partial(self._why_not, name, user) for name, user in users.items()}
        decided: dict[str, tuple[User | None, str | None]] = {}
        for name, answer in ask(looks, ANSWER_S).items():
            reason = answer.get(
                f"a disk that {name} reads did not answer within {ANSWER_S:g} s when the worker started"
            )
            decided[name] = (None, reason) if reason else (users[name], None)
        return decided

    def _candidate(self, name: str) -> User:
        base = self._config.sandbox_uid_base
        uid = base + number_of(name, self._registry.specs)
        return User(uid, uid, (base, *self._device_groups))

    def _why_not(self, name: str, user: User) -> str | None:
        """Why a handler could not do its work as this user. May wait for a disk."""
        needs = self._needs[name]
        stores = [*needs.models, *(place for path in needs.path_lists for place in directories_of(path))]
        stores += [folder for folder, levels in needs.links.items() if levels]
        read = [*needs.read, *needs.path_lists, *filter(os.path.exists, needs.interpreters)]
        read.append(str(self._config.models_directory()))
        write = [] if name == COURIER else list(self._granted.writes(name))  # its shelves are given to it
        return (
            closed_to(user, (*common_places(self._config), *read, *write))
            or cannot_write(user, write)
            or cannot_read(user, stores)
        )

    @property
    def socket_group(self) -> int | None:
        """The group that must reach the ROUTER's socket; None when all handlers run under our own id."""
        return self._config.sandbox_uid_base if any(user for user, _ in self._users.values()) else None

    def lacks(self, name: str) -> dict[Layer, str]:
        """Layers that this handler does not get, whatever the kernel says, with the reason."""
        reason = self.user(name)[1]
        return {} if reason in (None, NOT_ROOT) else {Layer.USER: str(reason)}

    def example(self) -> Profile:
        """A small one that asks the kernel for every layer that any handler gets."""
        user = next((user for user, _ in self._users.values() if user is not None), None)
        return Profile(
            mode=self._config.sandbox,
            uid=user.uid if user else None,
            gid=user.gid if user else None,
            groups=user.groups if user else (),
            tcp=(self._config.comfy_port,),
            open_files=self._config.sandbox_open_files,
            file_bytes=self._config.sandbox_file_mib * MIB,
            processes=self._config.sandbox_processes,
        )

    def of(self, name: str) -> Sandbox:
        """For the next start of a handler: ports and devices as they are now. Raises :class:`OSError`."""
        needs = self._needs[name]
        ports = free_ports(needs.spare_ports)
        if self._config.sandbox == "off":
            return Sandbox(Profile(mode="off"), ports)
        profile = self._profile(name, needs, self.user(name)[0], _ports(needs, ports))
        return Sandbox(profile, ports, self.lacks(name))

    def prepare(self, name: str) -> None:
        """Make the directories that :meth:`of` grants. Raises :class:`Unprepared`."""
        try:
            self.places.prepare(name, self.user(name)[0])
            if name == COURIER or self._registry.specs[name].may_fetch(self._config).models:
                self.places.prepare_shelves(model_folders(self._config), self.user(COURIER)[0])
        except OSError as error:
            where = self.places.home(name) if error.filename is None else error.filename
            raise Unprepared(
                f"{where} cannot be made ready for the handler ({error.strerror}): see to its owner and its disk, or "
                "set sandbox.uid_base to 0 where that disk lets no file be given away"
            ) from error

    def make_run(self, name: str, work_dir: str | Path) -> None:
        """Make the directory of a run, or of an errand, for a handler that cannot make its own. Raises
        :class:`OSError`."""
        if (user := self.user(name)[0]) is not None:
            self.places.make_run(work_dir, user)

    def make_errand(self, directory: Path) -> None:
        """The same for the courier, whose directory is made in any case."""
        self.places.make_run(directory, self.user(COURIER)[0])

    def hand_over(self, name: str, files: Mapping[str, str], errand: Path, work_dir: str) -> dict[str, str]:
        """See :meth:`Places.hand_over`: from the courier to the handler of that name."""
        return self.places.hand_over(files, errand, work_dir, (self.user(COURIER)[0], self.user(name)[0]))

    def kept(self, kind: str, path: str) -> str:
        """See :meth:`Places.kept`."""
        return self.places.kept(path, self._config.models_directory() / FOLDERS[kind])

    def needs(self, name: str) -> Needs:
        """What the handler's specification asks for, as it was when the worker started."""
        return self._needs[name]

    def _specified(self, name: str) -> Needs:
        return courier_needs(self._config) if name == COURIER else self._registry.specs[name].needs(self._config)

    def _profile(self, name: str, needs: Needs, user: User | None, tcp: tuple[int, ...] | None) -> Profile:
        config = self._config
        environ = dict(self._directories(name))
        return Profile(
            mode=config.sandbox,
            uid=user.uid if user else None,
            gid=user.gid if user else None,
            groups=user.groups if user else (),
            read=tuple(dict.fromkeys((*self.common_read, *self._granted.reads(name)))),
            listed=(*self._listed, *self._granted.checkouts(name)),
            write=tuple(dict.fromkeys((*self._own(name), *self._granted.writes(name)))),
            devices=devices(),
            terminals=TERMINALS,
            models=needs.models,
            path_lists=needs.path_lists,
            links=dict(needs.links),
            interpreters=needs.interpreters,
            untrusted=self._granted.untrusted,
            never=self._never,
            tcp=tcp,
            udp=needs.udp,
            open_files=config.sandbox_open_files,
            file_bytes=config.sandbox_file_mib * MIB,
            processes=config.sandbox_processes,
            memory_bytes=group_memory(config),
            group=name,
            environ=environ,
        )

    def _directories(self, name: str) -> Iterator[tuple[str, str]]:
        home = self.places.home(name)
        for variable, place in OURS.items():
            yield variable, str(home / place)
        for variable, place in CACHES.items():
            if not self._environ.get(variable):
                yield variable, str(home / place)
        # Else Python would run, in every later life, what a handler leaves in its home for it, and would not find the
        # packages that the worker's own user has installed.
        if user_packages(self._environ):
            yield "PYTHONUSERBASE", user_base(self._environ)
        else:
            yield "PYTHONNOUSERSITE", "1"

    def _own(self, name: str) -> Iterator[str]:
        """In directories of ours, so the only links on the way are the operator's."""
        for place in (self.places.home(name), self.places.work(name)):
            yield f"{os.path.realpath(place.parent)}/{place.name}"
        yield os.path.realpath(SHARED_MEMORY)

    def _shared_caches(self) -> tuple[str, ...]:
        places = (self._environ.get(variable, "") for variable in (*CACHES, *MORE_CACHES))
        return tuple(dict.fromkeys(place for place in places if place.startswith("/")))


def _ports(needs: Needs, ports: tuple[int, ...]) -> tuple[int, ...] | None:
    """All that it may use. A port at which somebody else listens now is not its own: what answers there is not to be
    reached."""
    if needs.tcp is None:
        return None
    return (*(port for port in needs.tcp if not needs.own_ports or _is_free(port)), *ports)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended just now do not count
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody uses on this machine now; somebody may have taken one by the time it is used."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return tuple(probe.getsockname()[1] for probe in probes)
    finally:
        for probe in probes:
            probe.close()
