"""`wan2gp-ctl doctor`: the sandbox of this machine and of each handler, and what handlers were denied.

Needs no supervisor: the kernel is asked in the same way as at a worker's start. Where one runs, its processes count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wan2gp.config import Config, ConfigError, load_config
from wan2gp.control import (
    DeniedPath,
    DoctorReply,
    HandlerReport,
    LayerReport,
    StatusReply,
    StatusRequest,
    WorkerStatus,
)
from wan2gp.ctl_exit import CtlError, Exit
from wan2gp.ctl_link import connect
from wan2gp.ctl_output import grid, plain, screen, table, write_json
from wan2gp.denials import denied_paths
from wan2gp.profile import Layer
from wan2gp.sandbox.enter import WATCHED
from wan2gp.supervisor.granted import Unprepared
from wan2gp.supervisor.grants import private_places
from wan2gp.supervisor.profiles import Profiles
from wan2gp.supervisor.protection import OFF, REMEDIES, Protection, protection, unkept_limits
from wan2gp.supervisor.registry import RegistryError, load_registry
from wan2gp.supervisor.users import NOT_ROOT, why_none

ABOUT: Mapping[Layer, str] = {
    Layer.PRIVILEGES: "no capabilities, no set-uid programs, limits of open files, file size and core dumps",
    Layer.USER: "a user id of its own for each handler",
    Layer.FILES: "only the paths below, by Landlock",
    Layer.TCP: "only its own ports, by Landlock",
    Layer.SYSTEM_CALLS: "no UDP, no raw sockets, no kernel interfaces that no engine needs, by seccomp",
    Layer.SCOPE: "no signals and no abstract sockets to processes outside, by Landlock",
    Layer.PROCESSES: "a limit of processes and threads, by control group or user",
    Layer.MEMORY: "a limit of memory, by control group",
}
STYLES = {
    "kept": "green",
    "unneeded": "",
    "watched": "yellow",
    "partly": "bold red",
    "missing": "bold red",
    "off": "red",
}
UNSOUND = frozenset({"partly", "missing", "off"})
MANY = 50
"""So many denied paths of a handler are shown."""


def doctor(args: argparse.Namespace) -> int:
    """The command."""
    try:
        config = load_config(flags={"data_dir": args.data_dir, "config": args.config})
        profiles = Profiles(config, load_registry(config))
        reply = examine(config, profiles, _asked(args))
    except ConfigError as error:
        raise CtlError(Exit.USAGE, "\nwan2gp-ctl: ".join(error.problems)) from error
    except RegistryError as error:
        raise CtlError(Exit.USAGE, str(error)) from error
    except Unprepared as error:  # a disk that does not answer: nobody waits for it
        raise CtlError(Exit.FAILED, str(error)) from error
    if args.json:
        write_json(reply)
    else:
        show(screen(), reply)
    return Exit.OK if reply.sound else Exit.FAILED


def _asked(args: argparse.Namespace) -> WorkerStatus | None:
    """What the supervisor says that runs, if one does."""
    try:
        with connect(args) as link:
            return link.ask(StatusRequest(), StatusReply).worker
    except CtlError as error:
        if error.exit_code is Exit.NO_SUPERVISOR:
            return None
        raise


def examine(config: Config, profiles: Profiles, worker: WorkerStatus | None) -> DoctorReply:
    """Everything, for one worker's configuration; ``worker``: the one that runs with it."""
    limits = unkept_limits() if worker is None else {}
    found = protection(config, profiles, limits)
    if worker is not None:  # only it knows of its control groups
        told = {Layer(name): reason for name, reason in worker.unprotected.items() if Layer(name) in WATCHED}
        found = Protection(found.mode, {**found.missing, **told})
    layers = tuple(_layer(layer, config, profiles, found) for layer in Layer)
    handlers = tuple(_handler(name, profiles, worker) for name in profiles.names)
    return DoctorReply(
        config.sandbox,
        not any(layer.state in UNSOUND for layer in layers),
        worker is not None,
        layers,
        handlers,
        profiles.common_read,
        tuple(_denied(config, profiles)),
        profiles.notes,
    )


def _layer(layer: Layer, config: Config, profiles: Profiles, found: Protection) -> LayerReport:
    reason, remedy = found.missing.get(layer), REMEDIES[layer] or None
    if found.mode == OFF:
        return LayerReport(layer.value, ABOUT[layer], OFF, "sandbox.mode is off", "set sandbox.mode to best")
    if layer is Layer.USER and why_none(config) == NOT_ROOT:
        return LayerReport(layer.value, ABOUT[layer], "unneeded", NOT_ROOT)
    if reason is None:
        return LayerReport(layer.value, ABOUT[layer], "kept")
    if layer in WATCHED:
        return LayerReport(layer.value, ABOUT[layer], "watched", reason, remedy)
    some = layer is Layer.USER and any(layer not in profiles.lacks(name) for name in profiles.names)
    return LayerReport(layer.value, ABOUT[layer], "partly" if some else "missing", reason, remedy)


def _handler(name: str, profiles: Profiles, worker: WorkerStatus | None) -> HandlerReport:
    profile, needs = profiles.of(name).profile, profiles.needs(name)
    missing = {layer.value: reason for layer, reason in profiles.lacks(name).items()}
    for one in worker.handlers if worker is not None else ():
        if one.name == name:
            missing |= one.unprotected
    common = frozenset(profiles.common_read)
    read = tuple(path for path in profile.read if path not in common)
    return HandlerReport(name, profile.uid, missing, profile.write, read, needs.tcp, needs.udp)


# -- what was denied -------------------------------------------------------------------------------------------------


def _denied(config: Config, profiles: Profiles) -> Iterator[DeniedPath]:
    """From the handlers' logs; what is allowed by now is left out."""
    closed = private_places(config)
    for name in profiles.names:
        profile = profiles.of(name).profile
        allowed = (*profile.read, *profile.write) if profile.mode != OFF else ("/",)
        paths = denied_paths(_lines(config.data_dir / "logs" / "handlers" / f"{name}.log"))
        for path, count in paths.most_common(MANY):
            real = os.path.realpath(path)
            written = _is_below(real, profile.read) and not _is_below(real, profile.write)
            if written or not _is_below(real, allowed):
                shut = _is_below(real, map(str, closed))
                yield DeniedPath(name, path, count, None if shut else _setting(name, written))


def _is_below(path: str, places: Iterable[str]) -> bool:
    return any(place == "/" or path == place or path.startswith(f"{place}/") for place in places)


def _setting(name: str, written: bool) -> str | None:
    if not written:
        return "sandbox.read_paths, or comfy.writable_paths to write" if name == "comfy" else "sandbox.read_paths"
    return "comfy.writable_paths" if name == "comfy" else None


def _lines(log: Path) -> Iterator[str]:
    """Of both parts of a log, which is there once the handler has run."""
    for part in (log.with_name(f"{log.name}.1"), log):
        with contextlib.suppress(FileNotFoundError), part.open(errors="replace") as lines:
            yield from lines


# -- for people ------------------------------------------------------------------------------------------------------


def show(console: Console, reply: DoctorReply) -> None:
    """All tables; those without a row are left out."""
    head = grid(console)
    head.add_row("sandbox", plain(f"{reply.mode}: {'sound' if reply.sound else 'a layer is missing'}"))
    head.add_row("supervisor", plain("runs, and was asked" if reply.running else "none runs for this data directory"))
    for note in reply.not_opened:
        head.add_row("not opened", plain(note))
    console.print(head)
    for part in (
        _layers(console, reply),
        _handlers(console, reply),
        _commons(console, reply),
        _denials(console, reply),
    ):
        if part.row_count:
            console.print()
            console.print(part)


def _layers(console: Console, reply: DoctorReply) -> Table:
    shape = table(console, ("layer", "state", "what it does", "why not", "remedy"), "layers")
    for layer in reply.layers:
        state = Text(layer.state, style=STYLES[layer.state])
        shape.add_row(plain(layer.name), state, plain(layer.about), plain(layer.reason), plain(layer.remedy))
    return shape


def _handlers(console: Console, reply: DoctorReply) -> Table:
    shape = table(console, ("handler", "user>", "missing", "TCP ports", "UDP", "writes", "reads besides"), "handlers")
    for one in reply.handlers:
        shape.add_row(
            plain(one.name),
            plain(one.user_id),
            plain(", ".join(one.missing)),
            plain("all" if one.tcp is None else " ".join(map(str, one.tcp))),
            plain("yes" if one.udp else "no"),
            plain(" ".join(one.write)),
            plain(" ".join(one.read)),
        )
    return shape


def _commons(console: Console, reply: DoctorReply) -> Table:
    """Without the many parts of directories of which only a part is granted."""
    shape = table(console, ("path",), "every handler may read")
    folders: dict[str, int] = {}
    for path in reply.common_read:
        folders[os.path.dirname(path)] = folders.get(os.path.dirname(path), 0) + 1
    parted = {folder for folder, count in folders.items() if count > MANY // 2}
    for path in reply.common_read:
        if os.path.dirname(path) not in parted:
            shape.add_row(plain(path))
    for folder in sorted(parted):
        shape.add_row(plain(f"{folder}: {folders[folder]} parts of it (--json names them)"))
    return shape


def _denials(console: Console, reply: DoctorReply) -> Table:
    shape = table(console, ("handler", "path", "times>", "what would allow it"), "denied so far, by the handlers' logs")
    for one in reply.denied:
        shape.add_row(plain(one.handler), plain(one.path), str(one.count), plain(one.setting))
    return shape
