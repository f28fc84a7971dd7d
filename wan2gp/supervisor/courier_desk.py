"""The desk of the courier: several downloads at once, one per task, asked for by handlers' desks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from wan2gp.model_places import KINDS as KEPT
from wan2gp.protocol import SIGNATURE, Cancel, Failed, Fetch, Fetched, Progress, ProtocolError, Source, Up
from wan2gp.storage_address import NO_STORAGE, BadAddress, StorageAddress, is_storage, parse_address
from wan2gp.supervisor.child import Death
from wan2gp.supervisor.desk import Desk
from wan2gp.supervisor.lifecycle import On, State
from wan2gp.supervisor.places import NotHanded
from wan2gp.supervisor.router import Unreachable
from wan2gp.supervisor.running import Running, unplaced
from wan2gp.supervisor.signer import Sign, Signatures

TRIES = 3
"""How often a download may take the courier down with it before it is given up."""


@dataclass
class _Errand:
    running: Running
    request: Fetch
    asked_at: float
    addresses: dict[str, StorageAddress]
    """Of the sources in Storage, by name."""
    sent: bool = False
    deaths: int = 0
    signing: bool = False
    """It waits for its signatures."""
    refused: bool = False
    """Storage did not take the signatures, once."""
    drop_signing: Callable[[], None] = lambda: None


def _no_storage(addresses: Mapping[str, StorageAddress], done: Callable[[Signatures], None]) -> Callable[[], None]:
    """Until the worker says how."""
    first = next(iter(addresses.values()))
    done(Failed("input.no_storage", f"{first.shown} {NO_STORAGE}"))
    return lambda: None


@dataclass
class CourierDesk(Desk):
    """``answered`` gets every answer, also the ones that are made up here because the courier died."""

    answered: Callable[[Running, Fetched], None] = lambda running, answer: None
    progressed: Callable[[Running], None] = lambda running: None
    sign: Sign = _no_storage
    errands: dict[tuple[str, str], _Errand] = field(default_factory=dict)

    def fetch(self, running: Running, sources: Mapping[str, Source]) -> None:
        """Download for a task; replaces what was asked for it before."""
        running.sources = dict(sources)
        earlier = self.errands.pop(running.key, None)
        if earlier is not None:
            earlier.drop_signing()
        try:
            addresses = {name: parse_address(each.url) for name, each in sources.items() if is_storage(each.url)}
        except BadAddress as error:
            failure = Failed("input.bad_url", f"an input's URL {error}")
            self.answered(running, Fetched(*running.key, failure=failure))
            return
        try:
            directory = self._directory(running, sources)
        except OSError as error:
            self.answered(running, Fetched(*running.key, failure=unplaced("the inputs", error)))
            return
        request = Fetch(*running.key, dict(sources), directory)
        errand = self.errands[running.key] = _Errand(running, request, self.around.clock(), addresses)
        self._sign(errand)
        if self.life.state is State.STOPPED:
            self.on(On.WANTED)
        self.ready()

    def _directory(self, running: Running, sources: Mapping[str, Source]) -> str:
        """A place for the files, made, among the courier's own: it may write nowhere else. None is made for what stays
        where it is kept."""
        if all(each.kind in KEPT for each in sources.values()):
            return ""
        directory = self.around.profiles.places.errand(self.name, running.task.id)
        running.left = (*running.left, str(directory))
        self.around.profiles.make_errand(directory)
        return str(directory)

    def _sign(self, errand: _Errand) -> None:
        """Have what is in Storage signed, before the errand is sent."""
        if errand.addresses:
            errand.signing = True
            errand.drop_signing = self.sign(errand.addresses, functools.partial(self._signed, errand))

    def _signed(self, errand: _Errand, found: Signatures) -> None:
        if self.errands.get(errand.running.key) is not errand:
            return
        errand.signing = False
        if isinstance(found, Failed):
            self._done(errand, Fetched(*errand.running.key, failure=found))
            self.relieve()
            return
        errand.request = msgspec.structs.replace(errand.request, signed=dict(found))
        self.ready()

    def _sign_anew(self, errand: _Errand) -> bool:
        """After a refusal, which may be a signature's old age. False when there is no second chance."""
        if errand.refused:
            return False
        try:
            directory = self._directory(errand.running, errand.request.sources)
        except OSError:
            return False
        errand.refused, errand.sent = True, False
        errand.request = msgspec.structs.replace(errand.request, directory=directory)
        self._sign(errand)
        return True

    def forget(self, running: Running) -> None:
        """The task is over: its download, if any, may end."""
        errand = self.errands.pop(running.key, None)
        if errand is not None:
            errand.drop_signing()
        if errand is not None and errand.sent and self.child is not None:
            self._tell(Cancel(*running.key))

    def ready(self) -> None:
        """Send what has not been sent. The courier counts as busy while anything is under way."""
        for errand in list(self.errands.values()):
            if self.life.state not in (State.IDLE, State.BUSY):
                return
            if not errand.sent and not errand.signing:
                self._send(errand)

    def _send(self, errand: _Errand) -> None:
        try:
            errand.sent = self._tell(errand.request)
        except ProtocolError as error:
            failure = Failed("input.bad_url", f"the task's inputs are too many or too long to be fetched: {error}")
            self._done(errand, Fetched(*errand.running.key, failure=failure))
            return
        if errand.sent:
            self.on(On.DISPATCHED)

    def _tell(self, message: Fetch | Cancel) -> bool:
        assert self.child is not None
        try:
            self.around.router.send(self.child.identity, message)
        except Unreachable as error:
            self.hang(str(error))
            return False
        return True

    def task_ids(self) -> set[str | None]:
        """See :meth:`Desk.task_ids`."""
        return {task_id for task_id, _ in self.errands}

    def work(self, message: Up) -> None:
        """Answers and progress, of errands that somebody still waits for."""
        if not isinstance(message, (Fetched, Progress)):
            return
        errand = self.errands.get((message.task_id, message.lease_id))
        if errand is None:
            return
        if isinstance(message, Progress):
            errand.running.progressed_at = self.around.clock()
            errand.running.detail = message.detail
            self.progressed(errand.running)
            return
        refused = message.failure is not None and message.failure.detail.get(SIGNATURE) == "refused"
        if refused and self._sign_anew(errand):
            return
        self._done(errand, message)
        if not self.errands:
            self.on(On.FINISHED)

    def _done(self, errand: _Errand, answer: Fetched) -> None:
        running = errand.running
        del self.errands[running.key]
        running.fetched_s = self.around.clock() - errand.asked_at
        self.answered(running, answer if answer.failure is not None else self._handed_over(errand, answer))

    def _handed_over(self, errand: _Errand, answer: Fetched) -> Fetched:
        """The answer, with the files where the task's handler may have them."""
        running, request = errand.running, errand.request
        kinds = {name: request.sources[name].kind for name in answer.files if name in request.sources}
        kept = {name: path for name, path in answer.files.items() if kinds.get(name) in KEPT}
        moved = {name: path for name, path in answer.files.items() if name not in kept}
        try:
            files = {name: self.around.profiles.kept(kinds[name], path) for name, path in kept.items()}
            if moved:
                directory = Path(request.directory)
                files |= self.around.profiles.hand_over(running.handler, moved, directory, running.work_dir)
        except NotHanded as error:
            self.hang(f"broke the protocol: {error}", "handler.protocol")
            return Fetched(*running.key, failure=Failed("handler.protocol", f"the courier failed: {error}", True))
        except OSError as error:
            return Fetched(*running.key, failure=unplaced("the inputs", error))
        return Fetched(*running.key, files)

    def lose_work(self, code: str, cause: str, death: Death) -> None:
        """A courier's death costs no task: what it was fetching is fetched again by the next one."""
        for errand in self.errands.values():
            errand.sent = False

    def hand_back(self) -> None:
        """It died by itself: a few times, and what it was fetching counts as the reason."""
        cause = self.last_cause or "the worker stops"
        for errand in list(self.errands.values()):
            errand.deaths += 1
            errand.sent = False
            if errand.deaths >= TRIES:
                failure = Failed("input.courier_died", f"the download process ended: {cause}", retryable=True)
                self._done(errand, Fetched(*errand.running.key, failure=failure))

    def interrupt(self) -> None:
        """The tasks it fetches for are interrupted by themselves."""

    def relieve(self) -> None:
        """After the last errand was forgotten the courier is idle."""
        if not self.errands:
            self.on(On.FINISHED)
