"""The courier: the child that downloads inputs. It has the network and no credentials; handlers have neither.

One :class:`Fetch` is an errand: all its sources at once, one answer. The first failure ends the others. Errands that
want the same URL at the same time share its download, and what was downloaded is kept within a budget.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from wan2gp.errors import retryable
from wan2gp.handlers.api import HandlerContext, Interrupted, TaskFailure
from wan2gp.handlers.download import Download, Downloaded
from wan2gp.handlers.flights import Flights, SharedDownload
from wan2gp.handlers.input_cache import InputCache
from wan2gp.handlers.link import Link
from wan2gp.handlers.locations import shown_url
from wan2gp.handlers.model_download import ModelDownload
from wan2gp.handlers.model_store import Shelf
from wan2gp.handlers.webstream import Limits
from wan2gp.model_places import FOLDERS, LORA, WEIGHTS
from wan2gp.model_places import KINDS as KEPT
from wan2gp.protocol import Cancel, Event, Failed, Fetch, Fetched, Progress, ProtocolError, Shutdown, Signed, Source

SIMULTANEOUS = 4
"""Downloads of one errand at a time; errands do not wait for each other."""
_NO_LIMIT_S = 7 * 24 * 3600.0  # a socket's time-out must fit into a C int of milliseconds
CACHE = "cache"
"""Below the courier's directory."""
Told = Callable[[int, "int | None"], None]
"""``(done, total)`` in bytes."""


class Fetching(Protocol):
    """A download under way."""

    def run(self) -> Downloaded: ...

    def cancel(self) -> None: ...


Make = Callable[[Source, "Signed | None", Path, Told], Fetching]
PROGRESS_EVERY_S = 1.0
"""Least time between two progress messages of an errand, seconds."""


class Courier:
    """Settings: ``allow_private_urls``, ``allow_private_hosts``, ``cache_bytes`` (0: keep nothing), ``shared_user``
    (handlers may have this process's user, and so write to its files), ``max_bytes``,
    ``total_s``, ``idle_s``; of the last three, 0 is no limit. ``models_dir``, ``weights_bytes``, ``loras_bytes``,
    ``lora_max_bytes``: see :mod:`wan2gp.handlers.model_store`."""

    def __init__(self, context: HandlerContext, link: Link) -> None:
        self._link = link
        self._limits = _limits(context)
        self._cache = InputCache(
            context.home / CACHE, _cache_bytes(context), links=not context.settings.get("shared_user", True)
        )
        self._flights = Flights()
        self._shelves = _shelves(context)
        self._errands: dict[tuple[str, str], _Errand] = {}
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Take errands until told to leave; then nothing of them is left but what was answered."""
        try:
            while True:
                message = self._link.receive()
                if isinstance(message, Fetch):
                    self._begin(message)
                elif isinstance(message, Cancel):
                    self._drop((message.task_id, message.lease_id))
                    self._link.forget(message.task_id, message.lease_id)
                elif isinstance(message, Shutdown):
                    return
        finally:
            for errand in [self._drop(key) for key in list(self._errands)]:
                if errand is not None:
                    errand.join()

    def _begin(self, fetch: Fetch) -> None:
        key = (fetch.task_id, fetch.lease_id)
        self._drop(key)  # asked anew: the earlier wish is void and must not be answered
        errand = _Errand(fetch, self._make, self._say)
        with self._lock:
            self._errands[key] = errand
        if not fetch.sources:
            self._say(errand, Fetched(*key))
        errand.start()

    def _make(self, source: Source, signed: Signed | None, directory: Path, progress: Told) -> Fetching:
        if source.kind in self._shelves:
            # Weights come from whom the operator trusts, and are as large as they are: only silence ends them.
            limits = self._limits if source.kind == LORA else replace(self._limits, total_s=_NO_LIMIT_S)
            return ModelDownload(source, self._shelves[source.kind], limits, signed=signed, progress=progress)

        def alone(progress: Told) -> Download:
            return Download(source, directory, self._limits, signed=signed, progress=progress, cache=self._cache)

        return SharedDownload(source, directory, self._flights, alone, progress, signed)

    def _drop(self, key: tuple[str, str]) -> _Errand | None:
        with self._lock:
            errand = self._errands.pop(key, None)
        if errand is not None:
            errand.stop()
        return errand

    def _say(self, errand: _Errand, message: Event | Progress | Fetched) -> None:
        """Send for an errand that still counts; its answer is the last that is heard of it."""
        key = (errand.fetch.task_id, errand.fetch.lease_id)
        with self._lock:
            if self._errands.get(key) is not errand:
                return
            if isinstance(message, Fetched):
                del self._errands[key]
            self._link.send(message)


class _Errand:
    """One :class:`Fetch` under way, in threads of its own."""

    def __init__(
        self,
        fetch: Fetch,
        make: Make,
        say: Callable[[_Errand, Event | Progress | Fetched], None],
    ) -> None:
        self.fetch = fetch
        self._say = say
        self._lock = threading.Lock()
        self._files: dict[str, str] = {}
        self._done: dict[str, tuple[int, int | None]] = {}
        self._told_at = time.monotonic()
        self._downloads = {name: self._plan(name, source, make) for name, source in fetch.sources.items()}
        self._threads = ThreadPoolExecutor(SIMULTANEOUS, thread_name_prefix="download")

    def start(self) -> None:
        """Begin; the threads end with the last download."""
        for name in self._downloads:
            self._threads.submit(self._download, name)
        self._threads.shutdown(wait=False)

    def stop(self) -> None:
        """End all of it, at once."""
        for download in self._downloads.values():
            download.cancel()

    def join(self) -> None:
        """Wait for the threads of an errand that was stopped: they remove what they had begun."""
        self._threads.shutdown(wait=True)

    def _download(self, name: str) -> None:
        """Fetch one source, and answer when it was the last one or failed."""
        try:
            source = self.fetch.sources[name]
            self._event("input.downloading", url=shown_url(source.url), kind=_said(source.kind))
            self._arrived(name, self._downloads[name].run())
        except Interrupted:
            return
        except TaskFailure as failure:
            self._failed(name, failure)
        except Exception as error:
            # The catch-all around a download: a defect of ours is this errand's answer, the other errands go on.
            traceback.print_exc()
            self._failed(name, TaskFailure("handler.crashed", f"the download failed: {type(error).__name__}: {error}"))

    def _plan(self, name: str, source: Source, make: Make) -> Fetching:
        signed, directory = self.fetch.signed.get(name), Path(self.fetch.directory)
        return make(source, signed, directory, lambda done, total: self._progressed(name, done, total))

    def _arrived(self, name: str, got: Downloaded) -> None:
        kept = "input.kept" if self.fetch.sources[name].kind in KEPT else "input.from_cache"
        name_of_fact = kept if got.cached else "input.downloaded"
        self._event(name_of_fact, url=got.url, bytes=got.bytes, seconds=round(got.seconds, 3))
        with self._lock:
            self._files[name] = str(got.path)
            complete = len(self._files) == len(self._downloads)
        if complete:
            self._say(self, Fetched(self.fetch.task_id, self.fetch.lease_id, dict(self._files)))

    def _failed(self, name: str, failure: TaskFailure) -> None:
        may = retryable(failure.code) if failure.retryable is None else failure.retryable
        message = f"{name}: {failure.message}"
        answer = Failed(failure.code, message, may, {"input": name, **failure.detail})
        self._say(self, Fetched(self.fetch.task_id, self.fetch.lease_id, failure=answer))
        self.stop()

    def _progressed(self, name: str, done: int, total: int | None) -> None:
        with self._lock:
            self._done[name] = (done, total)
            now = time.monotonic()
            if now - self._told_at < PROGRESS_EVERY_S:
                return
            self._told_at = now
            detail = _amount(self._done, len(self._downloads))
        self._say(self, Progress(self.fetch.task_id, self.fetch.lease_id, phase="download", detail=detail))

    def _event(self, name: str, **fields: str | int | float) -> None:
        self._say(self, Event(name, fields, self.fetch.task_id))


def _said(kind: str) -> str:
    """The kind of a source, for people."""
    return {"any": "file", LORA: "LoRA"}.get(kind, kind)


def _amount(done: dict[str, tuple[int, int | None]], sources: int) -> str:
    """``12.3 of 40.0 MB``, or without the second part when a server does not say."""
    got = sum(amount for amount, _ in done.values()) / 1e6
    totals = [total for _, total in done.values() if total is not None]
    return f"{got:.1f} of {sum(totals) / 1e6:.1f} MB" if len(totals) == sources else f"{got:.1f} MB"


def _shelves(context: HandlerContext) -> dict[str, Shelf]:
    """By kind; nothing where no place is given."""
    settings = context.settings
    if not settings.get("models_dir"):
        return {}
    try:
        root = Path(settings["models_dir"])
        largest, loras = int(settings["lora_max_bytes"]), int(settings["loras_bytes"])
        weights = int(settings["weights_bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the courier's settings are not what it takes: {error}") from error
    return {
        LORA: Shelf(root / FOLDERS[LORA], budget=loras, max_bytes=largest, option="wan.loras_bytes"),
        WEIGHTS: Shelf(root / FOLDERS[WEIGHTS], budget=weights, max_bytes=weights, option="wan.weights_bytes"),
    }


def _limits(context: HandlerContext) -> Limits:
    settings = context.settings
    unset = Limits()
    try:
        return Limits(
            max_bytes=int(settings.get("max_bytes", unset.max_bytes)) or sys.maxsize,
            total_s=float(settings.get("total_s", unset.total_s)) or _NO_LIMIT_S,
            idle_s=float(settings.get("idle_s", unset.idle_s)) or _NO_LIMIT_S,
            allow_private_urls=bool(settings.get("allow_private_urls", False)),
            allow_private_hosts=frozenset(
                str(host).lower().strip("[]") for host in settings.get("allow_private_hosts", ())
            ),
        )
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"the courier's settings are not what it takes: {error}") from error


def _cache_bytes(context: HandlerContext) -> int:
    try:
        return int(context.settings.get("cache_bytes", 0))
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"the courier's cache_bytes is not what it takes: {error}") from error
