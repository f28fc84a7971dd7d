"""LoRAs and weights that are kept on this machine for all tasks: found or fetched, and locked while they are in use.

A file that nobody has locked may be removed to make room for another. LoRAs are in use for a task; weights for as long
as their model is in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from wan2gp.handlers.api import Job, TaskFailure
from wan2gp.handlers.model_checks import damage
from wan2gp.handlers.model_store import lock
from wan2gp.handlers.wan_loras import Lora
from wan2gp.lora_names import found_below
from wan2gp.model_places import LORA, WEIGHTS, place_of
from wan2gp.protocol import Source
from wan2gp.wan_sidecar.work import Want

TRIES = 3
MOST_NOTED = 200
"""Files of one model that are remembered, by the URL of each."""
FOLDER_WANTED = "it is a whole folder, which is not fetched: put it into the engine's directory for checkpoints"
NO_ADDRESS = "the engine does not say where it is to be had: put it into its directory for checkpoints"
PASSING = ("worker.disk_full", "input.unplaced")


class Held:
    """Files that stay where they are until :meth:`close`."""

    def __init__(self) -> None:
        self._locks = contextlib.ExitStack()
        self.got: dict[str, tuple[Source, Path, int]] = {}
        """By name, with the number of the file on its disk."""

    def fetch(self, job: Job, sources: Mapping[str, Source]) -> dict[str, Path]:
        """By the same names, each locked. Raises :class:`TaskFailure`, or ``Interrupted``."""
        got: dict[str, Path] = {}
        for _ in range(TRIES):
            wanted = {name: source for name, source in sources.items() if name not in got}
            if not wanted:
                break
            for name, path in job.fetch(wanted).items():
                inode = self._hold(path)
                if inode is not None:
                    got[name] = path
                    self.got[name] = replace(sources[name], doubt=False), path, inode
        for name in sources:
            if name not in got:
                raise TaskFailure("input.unplaced", f"{name} was removed before it could be used", retryable=True)
        return got

    def _hold(self, path: Path) -> int | None:
        """None: it is being removed."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        self._locks.callback(os.close, descriptor)
        found = os.fstat(descriptor)
        return found.st_ino if lock(descriptor, fcntl.LOCK_SH) and found.st_nlink else None

    def close(self) -> None:
        """They may be removed from now on."""
        self._locks.close()


class KeptLoras:
    """Of one task."""

    def __init__(self, job: Job, folders: Sequence[Path]) -> None:
        """``folders``: where LoRAs lie that a row names by their file."""
        self._job = job
        self._folders = folders
        self._held = Held()

    def all_of(self, loras: Sequence[Lora]) -> dict[str, str]:
        """What the engine is given for the source of each. Raises :class:`TaskFailure`, or ``Interrupted``: none is
        left out."""
        found = {lora.source: str(self._named(lora)) for lora in loras if not lora.is_url}
        wanted = {self._label(lora): lora for lora in loras if lora.is_url}
        if wanted:
            found |= self._fetched(wanted)
        return found

    def _fetched(self, wanted: Mapping[str, Lora]) -> dict[str, str]:
        got = self._fetch({label: Source(lora.source, LORA) for label, lora in wanted.items()})
        return {lora.source: str(got[label]) for label, lora in wanted.items()}

    def _fetch(self, sources: Mapping[str, Source]) -> dict[str, Path]:
        try:
            return self._held.fetch(self._job, sources)
        except TaskFailure as failure:
            code = "wan.lora_corrupt" if failure.code == "input.corrupt" else "wan.lora_unavailable"
            if not failure.code.startswith("input."):
                code = failure.code
            raise TaskFailure(
                code, f"a LoRA cannot be had: {failure.message}", retryable=failure.retryable, detail=failure.detail
            ) from failure

    def renewed(self) -> bool:
        """Every byte of them is compared. True: one was spoilt on the disk, and has been fetched again. Raises as
        :meth:`all_of`."""
        return _renewed(self._held, self._job, self._fetch)

    def _label(self, lora: Lora) -> str:
        return lora.label or f"a LoRA of {self._job.task_type} ({place_of(LORA, lora.source).name})"[:200]

    def _named(self, lora: Lora) -> Path:
        found = found_below(lora.source, self._folders)
        where = " or ".join(map(str, self._folders)) or "no directory"
        if not found:
            raise TaskFailure(
                "wan.lora_unavailable",
                f"`{lora.label}`: there is no {lora.source} in {where}: put it there, or give its URL",
                retryable=False,
            )
        if len(found) > 1:
            names = ", ".join(map(str, found))
            raise TaskFailure(
                "wan.lora_unavailable",
                f"`{lora.label}`: there are several {lora.source}: {names}; give it with its directory",
                retryable=False,
            )
        fault = damage(found[0], found[0].name)
        if fault is not None:
            raise TaskFailure("wan.lora_corrupt", f"`{lora.label}`: {found[0]} {fault}: replace it")
        return found[0]

    def close(self) -> None:
        """They may be removed from now on."""
        self._held.close()


class KeptWeights:
    """Of the handler. What a model's load has asked for is remembered: it is looked at before the next load, so that
    what has been removed or spoilt is fetched before the engine works, and what is used is removed last."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._held: dict[str, Held] = {}
        """By model."""

    def prepare(self, job: Job, model: str) -> None:
        """Before a load. Raises :class:`TaskFailure` for what may be had later, or ``Interrupted``; what can never be
        had the engine asks for once more, and is told why not."""
        sources = {_name(url): Source(url, WEIGHTS) for url in self._read().get(model, ())}
        if not sources:
            return
        try:
            self._of(model).fetch(job, sources)
        except TaskFailure as failure:
            if failure.retryable or failure.code in PASSING:
                raise _missing(model, failure) from failure

    def renewed(self, job: Job, model: str) -> bool:
        """As :meth:`KeptLoras.renewed`."""
        held = self._of(model)
        return _renewed(held, job, lambda sources: held.fetch(job, sources))

    def supply(self, job: Job, model: Callable[[], str]) -> Callable[[Want], Path | str]:
        """For the engine, while it loads: the file, or why there is none. Raises what may pass until the next
        attempt. ``model``: that it loads."""

        def give(want: Want) -> Path | str:
            if want.file.endswith("/"):
                return FOLDER_WANTED
            if not want.url:
                return NO_ADDRESS
            name = _name(want.url)
            try:
                path = self._of(model()).fetch(job, {name: Source(want.url, WEIGHTS)})[name]
            except TaskFailure as failure:
                if failure.retryable or failure.code in PASSING:
                    raise _missing(model(), failure) from failure
                return failure.message.removeprefix(f"{name}: ")
            self._note(model(), want.url)
            return path

        return give

    def keep_only(self, model: str | None) -> None:
        """Of the model that is in memory: those of others may be removed from now on."""
        for other in [name for name in self._held if name != model]:
            self._held.pop(other).close()

    def _of(self, model: str) -> Held:
        return self._held.setdefault(model, Held())

    def _note(self, model: str, url: str) -> None:
        noted = self._read()
        urls = noted.setdefault(model, [])
        if url in urls:
            return
        noted[model] = [*urls, url][-MOST_NOTED:]
        new = self._notes.with_name(f"{secrets.token_hex(8)}.new")
        with contextlib.suppress(OSError):  # it is asked for once more then
            new.write_bytes(msgspec.json.encode(noted))
            new.replace(self._notes)

    def _read(self) -> dict[str, list[str]]:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(self._notes.read_bytes(), type=dict[str, list[str]])
        return {}


def _renewed(held: Held, job: Job, fetch: Callable[[Mapping[str, Source]], dict[str, Path]]) -> bool:
    before = dict(held.got)
    if before:
        fetch({name: replace(source, doubt=True) for name, (source, _, _) in before.items()})
    return any(held.got[name][2] != inode for name, (_, _, inode) in before.items())


def _name(url: str) -> str:
    """Of a source, for messages: where the file lies on the hub."""
    return str(place_of(WEIGHTS, url))[-200:]


def _missing(model: str, failure: TaskFailure) -> TaskFailure:
    return TaskFailure(
        "wan.missing_weights",
        f"the model {model} needs {failure.message}",
        retryable=failure.retryable,
        detail=failure.detail,
    )
