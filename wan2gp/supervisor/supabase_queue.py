"""The task queue behind a Supabase project: the contract's functions, called by supabase-py through PostgREST."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from wan2gp.supervisor.bell import Bell
from wan2gp.supervisor.contract_queue import ContractQueue, Json, MisshapenReply, UnreadableReply, shaped
from wan2gp.supervisor.postgres_json import clean
from wan2gp.supervisor.queue import QueueUnavailable
from wan2gp.supervisor.rest_errors import Again, Verdict, judge_answer, judge_transport, not_ours
from wan2gp.supervisor.rest_patience import LEAST_S, RETRY_AFTER_MAX_S, Patience
from wan2gp.supervisor.supabase_project import Seen, SupabaseProject

if TYPE_CHECKING:
    from supabase import Client

CALL_S = 15.0
"""Within which every call ends, with all its repeats, seconds."""
SILENCE_S = 8.0
"""Longest wait for the next bytes within a call: a connection that died unseen leaves time for a fresh one, seconds."""
_NO_CONTENT = 204


@dataclass(frozen=True)
class _Answer:
    value: Any


@dataclass(frozen=True)
class _Failure:
    verdict: Verdict
    retry_after_s: float | None = None


class SupabaseQueue(ContractQueue):
    """A :class:`~wan2gp.supervisor.queue.TaskQueue` on a project, which stays its owner's to close.

    It hears of nothing by itself: :meth:`wait` only waits.
    """

    name = "supabase"
    listening = False

    def __init__(
        self, project: SupabaseProject, *, call_timeout_s: float = CALL_S, silence_s: float = SILENCE_S
    ) -> None:
        """``call_timeout_s``: within which every call ends, with all its repeats. ``silence_s``: longest wait for the
        next bytes of one try."""
        self._project = project
        self._call_timeout_s = self.call_s = call_timeout_s
        self._silence_s = silence_s
        self._host = urlsplit(project.url).netloc
        self._bell = Bell()
        self._hold_until = 0.0

    def wait(self, timeout_s: float) -> bool:
        """Always False: nobody tells of new tasks."""
        self._bell.wait(timeout_s)
        return False

    def interrupt(self) -> None:
        """Ends a wait; a claim that failed is not repeated any more by itself."""
        self._bell.ring()

    def close(self) -> None:
        """Ends waits and repeats, also those to come."""
        self._bell.stop()

    def _call(self, verb: str, arguments: Mapping[str, Any], shape: Any) -> Any:
        """Repeated within its time, for a failure that another try may cure."""
        sent = {name: clean(value.value if isinstance(value, Json) else value) for name, value in arguments.items()}
        patience = Patience(time.monotonic() + self._call_timeout_s)
        client = self._project.client
        # Whoever claims has better to do as soon as it is interrupted.
        rung = self._bell.rung if verb.startswith("claim") else None
        self._hold(rung)
        while True:
            outcome = self._try(client, verb, sent, shape, patience.deadline)
            if isinstance(outcome, _Answer):
                return outcome.value
            pause = patience.pause(outcome.verdict.again, time.monotonic(), outcome.retry_after_s)
            if pause is None or self._bell.heard(pause, since=rung):
                raise outcome.verdict.error

    def _try(
        self, client: Client, verb: str, arguments: dict[str, Any], shape: Any, deadline: float
    ) -> _Answer | _Failure:
        """One request. Its errors become values here: a traceback of HTTP frames could show the key."""
        from postgrest.exceptions import APIError

        if self._is_over():
            return self._stops()
        with self._project.watch(deadline, self._silence_s) as seen:
            try:
                value = client.rpc(f"wan2gp_{verb}", arguments).execute().data
                return self._read(verb, value, shape, seen)
            except MisshapenReply as error:
                return _Failure(not_ours(self._host, seen.status or 0, str(error)))
            except APIError as error:
                return self._failed(error.code, error.message, seen)
            except httpx.RequestError as error:
                return _Failure(judge_transport(self._host, error))
            except (ValueError, RecursionError, RuntimeError) as error:
                if self._is_over():
                    return self._stops()
                if seen.status is None:
                    raise  # it is our arguments that cannot be written
                why = str(error)
        raise UnreadableReply(why)

    def _read(self, verb: str, value: Any, shape: Any, seen: Seen) -> _Answer:
        """supabase-py makes an empty list of an empty body and a text of what is no JSON: neither is an answer."""
        if seen.status == _NO_CONTENT:
            value = None
        elif not seen.json or not seen.bytes:
            raise MisshapenReply(f"{seen.bytes} bytes of {'JSON' if seen.json else 'no JSON'}")
        return _Answer(shaped(verb, value, shape))

    def _failed(self, code: object, message: object, seen: Seen) -> _Failure:
        if seen.retry_after_s is not None:
            # The limit is the project's: none of our threads is to call before.
            self._hold_until = time.monotonic() + min(seen.retry_after_s, RETRY_AFTER_MAX_S)
        status = seen.status or 0
        return _Failure(judge_answer(self._host, code, message, status, seen.location), seen.retry_after_s)

    def _hold(self, rung: int | None) -> None:
        """Waits where the project asked for a pause."""
        left = self._hold_until - time.monotonic()
        if left > 0 and (left + LEAST_S > self._call_timeout_s or self._bell.heard(left, since=rung)):
            raise QueueUnavailable(f"the Supabase project at {self._host} asked for a pause")

    def _is_over(self) -> bool:
        return self._bell.is_stopped() or self._project.http.is_closed

    def _stops(self) -> _Failure:
        error = QueueUnavailable(f"the Supabase project at {self._host} is not called any more: the worker stops")
        return _Failure(Verdict(error, Again.NEVER))
