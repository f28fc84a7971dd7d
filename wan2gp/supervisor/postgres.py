"""The task queue on a Postgres that is reached directly: the contract's functions, called through psycopg."""

from __future__ import annotations

import functools
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from wan2gp.supervisor.migrate import CONTRACT_VERSION
from wan2gp.supervisor.postgres_errors import (
    DeadlinePassed,
    explain,
    parse_url,
    pooler_lost_statement,
    refuses_connections,
    session_lost,
    try_again_at_once,
)
from wan2gp.supervisor.postgres_json import clean, to_json
from wan2gp.supervisor.postgres_listen import Listener
from wan2gp.supervisor.postgres_sessions import Session, Sessions
from wan2gp.supervisor.queue import (
    ClaimedTask,
    ClaimReply,
    FinishReply,
    FunctionsMissing,
    HeartbeatReply,
    LeaseBeat,
    QueueError,
    Settlement,
    SpawnedChild,
)

_ROUNDS = 6
"""How often one call is tried at most, when each failure is of a kind that a fresh try at once may cure."""
_WITHOUT_PARAMS = """SELECT jsonb_set(reply, '{{tasks}}', coalesce(
    (SELECT jsonb_agg(task - 'params') FROM jsonb_array_elements(reply -> 'tasks') AS task), '[]')) FROM {} AS reply"""


class PostgresQueue:
    """A :class:`~wan2gp.supervisor.queue.TaskQueue` on a libpq URL. Opens no connection before the first call."""

    name = "postgres"

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "wan2gp",
        connect_timeout_s: float = 5.0,
        call_timeout_s: float = 15.0,
        probe_interval_s: float = 5.0,
    ) -> None:
        """``call_timeout_s``: after so long without an answer the session is given up. ``probe_interval_s``: how
        often the idle LISTEN session is asked whether it still lives."""
        self._parts = parse_url(url)
        self._sessions = Sessions(
            url,
            application_name=application_name,
            connect_timeout_s=connect_timeout_s,
            call_timeout_s=call_timeout_s,
        )
        self._listener = Listener(
            self._sessions, probe_interval_s=probe_interval_s, probe_deadline_s=min(4.0, call_timeout_s)
        )

    @property
    def listening(self) -> bool:
        """Whether notifications really arrive; False means that only polling finds new tasks."""
        return self._listener.listening

    @property
    def swallowed(self) -> bool:
        """Whether a LISTEN was accepted but does not deliver: the URL leads through a transaction pooler."""
        return self._listener.swallowed

    def check(self) -> None:
        version = self._call("version", {})
        if version < CONTRACT_VERSION:
            raise FunctionsMissing(
                f"the database has version {version} of the queue's functions, this program needs {CONTRACT_VERSION}: "
                "run `wan2gp-ctl db migrate`"
            )

    def claim(self, claim_id: str, worker_id: str, types: Sequence[str], limit: int, lease_s: float) -> ClaimReply:
        arguments = {
            "p_claim_id": claim_id,
            "p_worker": worker_id,
            "p_types": list(types),
            "p_limit": limit,
            "p_lease_s": lease_s,
        }
        try:
            reply, why = self._call("claim", arguments), None
        except (ValueError, RecursionError) as error:
            # What one row holds must not end every worker that takes it. The same claim gives the same rows again.
            reply, why = self._call("claim", arguments, _WITHOUT_PARAMS), str(error)
        tasks = [{"params": None, "unreadable": why, **task} for task in reply["tasks"]]
        return ClaimReply(tuple(ClaimedTask(**task) for task in tasks), reply["next_due_s"])

    def heartbeat(
        self, worker_id: str, leases: Sequence[LeaseBeat], lease_s: float, metadata: Mapping[str, Any]
    ) -> HeartbeatReply:
        beats = [
            {
                "task_id": beat.task_id,
                "token": beat.token,
                "progress": beat.progress,
                "phase": beat.phase,
                "detail": beat.detail,
            }
            for beat in leases
        ]
        reply = self._call(
            "heartbeat",
            {
                "p_worker": worker_id,
                "p_leases": to_json(beats),
                "p_lease_s": lease_s,
                "p_metadata": to_json(metadata),
            },
        )
        return HeartbeatReply(tuple(reply["cancelled"]), tuple(reply["lost"]))

    def finish(self, settlement: Settlement) -> FinishReply:
        fields = _fields(settlement)
        for name in ("result_data", "cause"):
            fields[name] = None if fields[name] is None else to_json(fields[name])
        return FinishReply(**self._call("finish", {f"p_{name}": value for name, value in fields.items()}))

    def finish_many(self, settlements: Sequence[Settlement]) -> tuple[FinishReply, ...]:
        if not settlements:
            return ()
        replies = self._call("finish_many", {"p_settlements": to_json([_fields(one) for one in settlements])})
        return tuple(FinishReply(**reply) for reply in replies)

    def spawn(self, task_id: str, token: str, children: Sequence[SpawnedChild]) -> tuple[str, ...]:
        wanted = [
            {
                "task_type": child.task_type,
                "params": child.params,
                "priority": child.priority,
                "depends_on": child.depends_on,
            }
            for child in children
        ]
        return tuple(self._call("spawn", {"p_task_id": task_id, "p_token": token, "p_children": to_json(wanted)}))

    def enqueue(
        self,
        task_type: str,
        params: Mapping[str, Any],
        *,
        priority: int | None = None,
        max_attempts: int | None = None,
        run_after_s: float | None = None,
        depends_on: Sequence[str] = (),
    ) -> str:
        return str(
            self._call(
                "enqueue",
                {
                    "p_task_type": task_type,
                    "p_params": to_json(params),
                    "p_priority": priority,
                    "p_max_attempts": max_attempts,
                    "p_run_after_s": run_after_s,
                    "p_depends_on": to_json(list(depends_on)),
                    "p_id": str(uuid.uuid4()),
                },
            )
        )

    def cancel(self, task_id: str) -> str | None:
        return _text(self._call("cancel", {"p_task_id": task_id}))

    def retry(self, task_id: str) -> str | None:
        return _text(self._call("retry", {"p_task_id": task_id}))

    def reclaim_own(self, worker_id: str) -> tuple[str, ...]:
        return tuple(self._call("reclaim_own", {"p_worker": worker_id}))

    def rescue(self, worker_id: str) -> int:
        return int(self._call("rescue", {"p_worker": worker_id}))

    def task(self, task_id: str) -> Mapping[str, Any] | None:
        row: Mapping[str, Any] | None = self._call("task", {"p_task_id": task_id})
        return row

    def tasks(
        self, *, status: str | None = None, task_type: str | None = None, limit: int = 50
    ) -> tuple[Mapping[str, Any], ...]:
        return tuple(self._call("tasks", {"p_status": status, "p_task_type": task_type, "p_limit": limit}))

    def stats(self) -> Mapping[str, Any]:
        numbers: Mapping[str, Any] = self._call("stats", {})
        return numbers

    def event(self, task_id: str, name: str, detail: Mapping[str, Any]) -> None:
        self._call("event", {"p_task_id": task_id, "p_name": name, "p_detail": to_json(detail)})

    def wait(self, timeout_s: float) -> bool:
        return self._listener.wait(timeout_s)

    def interrupt(self) -> None:
        self._listener.interrupt()

    def close(self) -> None:
        self._listener.close()
        self._sessions.close()

    def _call(self, verb: str, arguments: Mapping[str, Any], form: str = "SELECT {}") -> Any:
        """One function, one transaction. All are safe to repeat, so a session that broke is replaced here.

        ``form`` is the query around the call. Raises also :class:`ValueError` and :class:`RecursionError`, where Python
        cannot hold what the answer's JSON can.
        """
        query = _query(verb, tuple(arguments), form)
        arguments = {name: clean(value) if isinstance(value, str) else value for name, value in arguments.items()}
        for left in reversed(range(_ROUNDS)):
            session = None
            try:
                with self._sessions.lend() as session:
                    row = session.execute(query, arguments).fetchone()
                    return None if row is None else row[0]
            except psycopg.Error as error:
                if not (left and self._curable(error, session)):
                    raise self._explain(error) from None
        raise AssertionError("the last round either returns or raises")

    def _curable(self, error: psycopg.Error, session: Session | None) -> bool:
        """Whether to call again at once. A session that was used before may have gone stale; one that is new and fails
        tells of an outage."""
        if pooler_lost_statement(error):
            self._sessions.forget_statements()
            return True
        if session_lost(error):
            self._sessions.drop_idle()
            return session is not None and session.used_at > 0 and not isinstance(error, DeadlinePassed)
        if try_again_at_once(error):
            time.sleep(random.uniform(0.0, 0.03))  # the two that met must not meet again in step
            return True
        return False

    def _explain(self, error: psycopg.Error) -> QueueError:
        return explain(error, server_down=session_lost(error) and refuses_connections(self._parts))


@functools.cache
def _query(verb: str, names: tuple[str, ...], form: str) -> bytes:
    """The call of one function with named parameters; the same bytes each time, so that it is prepared once."""
    arguments = ", ".join(f"{name} := %({name})s" for name in names)
    return form.format(f"public.wan2gp_{verb}({arguments})").encode()


def _fields(settlement: Settlement) -> dict[str, Any]:
    return {
        "task_id": settlement.task_id,
        "token": settlement.token,
        "verb": settlement.verb.value,
        "output_location": settlement.output_location,
        "error_message": settlement.error_message,
        "result_data": settlement.result_data,
        "cause": settlement.cause,
        "retry_in_s": settlement.retry_in_s,
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
