"""Turns ``storage://bucket/path`` into a URL that opens that one file for a while: the courier never gets the key.

The loop asks and goes on; threads of the signer's own speak to Storage, and the answer is posted back into the loop.
What they make is a secret: it goes into :class:`~wan2gp.protocol.Signed`, which shows nothing, and nowhere else.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Union

from wan2gp.protocol import Failed, Signed
from wan2gp.storage_address import NO_STORAGE, StorageAddress
from wan2gp.supervisor.publish import PublishFailed

SIMULTANEOUS = 4
"""Signatures that are asked for at a time."""
TTL_S = 3600.0
"""How long a signed URL opens its file: from now to the start of the download, seconds."""
PATIENCE_S = 30.0
"""How long Storage may be away before the task goes back to the queue, seconds."""
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 8.0

MISSING = ("publish.object_missing", "publish.bucket_missing")
FORBIDDEN = "publish.forbidden"

SignOne = Callable[[str, str, float], str]
"""``sign(bucket, path, seconds)``: a URL; raises :class:`PublishFailed`."""
Signatures = Union[Mapping[str, Signed], Failed]
Sign = Callable[[Mapping[str, StorageAddress], Callable[[Signatures], None]], Callable[[], None]]
"""``sign(addresses, done)``: ``done`` is called later in the loop's thread, unless what is returned was called."""


class _Request:
    """The signatures for one task; the first failure is the answer."""

    def __init__(self, addresses: Mapping[str, StorageAddress], done: Callable[[Signatures], None]) -> None:
        self.over = threading.Event()
        self._addresses = addresses
        self._done = done
        self._lock = threading.Lock()
        self._found: dict[StorageAddress, Signed] = {}

    def note(self, address: StorageAddress, found: Signed | Failed) -> Callable[[], None] | None:
        """Returns how to answer, once there is an answer."""
        with self._lock:
            if self.over.is_set():
                return None
            if isinstance(found, Signed):
                self._found[address] = found
                if len(self._found) < len(set(self._addresses.values())):
                    return None
            self.over.set()
        answer = found if isinstance(found, Failed) else {name: self._found[a] for name, a in self._addresses.items()}
        return lambda: self._done(answer)


class Signer:
    """Give :meth:`sign` to the courier's desk. Its threads begin with the first request."""

    def __init__(
        self,
        project_url: str,
        sign: SignOne | None,
        post: Callable[[Callable[[], None]], None],
        *,
        buckets: Collection[str] = (),
        patience_s: float = PATIENCE_S,
        first_pause_s: float = RETRY_FIRST_S,
    ) -> None:
        """``sign`` None: there is no project. ``post`` has the loop call something. ``buckets``: the only
        ones that inputs may come from, if any are given: the worker's key opens more than a row's author may see. A
        first pause of ``first_pause_s`` grows; after ``patience_s`` the task goes back to the queue."""
        self._signed_place = f"{project_url.rstrip('/')}/storage/v1/object/sign/"
        self._sign = sign
        self._post = post
        self._buckets = frozenset(buckets)
        self._patience_s = patience_s
        self._first_pause_s = first_pause_s
        self._jobs: queue.SimpleQueue[tuple[_Request, StorageAddress] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def sign(self, addresses: Mapping[str, StorageAddress], done: Callable[[Signatures], None]) -> Callable[[], None]:
        """See :data:`Sign`. Called by the loop only; returns at once."""
        request = _Request(dict(addresses), done)
        refused = self._refused(addresses.values())
        if refused is not None:
            self._answer(request, *refused)
        else:
            self._start()
            for address in dict.fromkeys(addresses.values()):
                self._jobs.put((request, address))
        return request.over.set

    def _refused(self, addresses: Iterable[StorageAddress]) -> tuple[StorageAddress, Failed] | None:
        """What needs no answer from Storage."""
        for address in addresses:
            if self._sign is None:
                return address, Failed("input.no_storage", f"{address.shown} {NO_STORAGE}")
            if self._buckets and address.bucket not in self._buckets:
                sentence = f"{address.shown}: this worker takes inputs from other buckets only (inputs.buckets)"
                return address, Failed("input.storage_denied", sentence)
        return None

    def stop(self) -> None:
        """Answer nothing more. A call that hangs is left to its own time-out."""
        self._stopping.set()
        for _ in self._threads:
            self._jobs.put(None)

    def _start(self) -> None:
        while len(self._threads) < SIMULTANEOUS:
            thread = threading.Thread(target=self._run, name="signer", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopping.is_set():
            self._serve(*job)

    def _serve(self, request: _Request, address: StorageAddress) -> None:
        until, pause_s = time.monotonic() + self._patience_s, self._first_pause_s
        while not (request.over.is_set() or self._stopping.is_set()):
            found = self._try(address)
            if isinstance(found, Signed):
                self._answer(request, address, found)
                return
            failure, asked_s = found
            wait_s = max(pause_s * random.uniform(0.5, 1.5), asked_s)
            if not failure.retryable or time.monotonic() + wait_s > until:
                self._answer(request, address, failure)
                return
            request.over.wait(wait_s)
            pause_s = min(RETRY_MAX_S, pause_s * 2)

    def _try(self, address: StorageAddress) -> Signed | tuple[Failed, float]:
        """A signature, or why there is none, and for how many seconds Storage asked not to be asked."""
        assert self._sign is not None
        try:
            return Signed(self._own(self._sign(address.bucket, address.path, TTL_S)))
        except PublishFailed as error:
            return _failure(address, error), error.retry_after_s or 0.0
        except Exception as error:
            # The catch-all around a signature: a defect that one row's address shows is the end of that row alone.
            # What the error says is left out: it may hold what was signed.
            sentence = f"{address.shown} cannot be signed: {type(error).__name__}"
            return Failed("handler.crashed", sentence), 0.0

    def _own(self, url: str) -> str:
        """The courier is let through to this URL's host, whatever address it has: so it must be the project's own."""
        if not url.startswith(self._signed_place):
            raise ValueError("signed for another place")
        return url

    def _answer(self, request: _Request, address: StorageAddress, found: Signed | Failed) -> None:
        answer = request.note(address, found)
        if answer is not None and not self._stopping.is_set():
            self._post(answer)


def _failure(address: StorageAddress, error: PublishFailed) -> Failed:
    """In the words of inputs."""
    # It begins with what could not be done.
    why = error.message.partition(f"{address.bucket}/{address.path}: ")[2] or error.message
    if not error.permanent:
        return Failed("input.unreachable", f"{address.shown} cannot be fetched now: {why}", retryable=True)
    if error.code in MISSING:
        return Failed("input.not_found", f"{address.shown} is not in the project's Storage: check bucket and path")
    if error.code == FORBIDDEN:
        return Failed(
            "input.storage_denied",
            f"{address.shown}: Storage does not accept the worker's key for it: "
            "give the project's own service role key in SUPABASE_SERVICE_ROLE_KEY",
        )
    # And it ends with advice, which is about files that wait to be sent.
    said = why.rpartition(": ")[0] or why
    return Failed(
        "input.storage_denied", f"{address.shown} cannot be signed: {said}: check the address, and SUPABASE_URL"
    )
