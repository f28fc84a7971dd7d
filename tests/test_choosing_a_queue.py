"""``queue = auto`` on a real project: Edge Functions where our own are absent, never because something is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.edge_projects import Heard
from tests.front_faults import Fault
from tests.supabase_stack import Stack
from wan2gp.config import load_config
from wan2gp.supervisor.backends import Backend, chosen_kind, open_backend
from wan2gp.supervisor.queue import AccessDenied, ContractTooOld, FunctionsMissing, QueueRefused, QueueUnavailable

UNTOUCHED = pytest.mark.parametrize("supabase_db", ["untouched"], indirect=True)


@contextlib.contextmanager
def opened(stack: Stack, key: str | None = None, queue: str = "auto") -> Iterator[Backend]:
    key = stack.key if key is None else key
    config = load_config(
        environ={"SUPABASE_URL": stack.url, "SUPABASE_SERVICE_ROLE_KEY": key, "WAN2GP_QUEUE": queue, "WORKER_ID": "w"}
    )
    backend = open_backend(config, chosen_kind(config), Path("/nonexistent"), Heard())
    try:
        yield backend
    finally:
        backend.close()


def change(stack: Stack, statement: str) -> None:
    with psycopg.connect(stack.database, autocommit=True) as connection:
        connection.execute(statement.encode())


def functions_asked(stack: Stack) -> int:
    return len(stack.front.seen("/functions/v1/"))


def test_a_migrated_project_is_worked_by_its_own_functions(supabase_stack: Stack) -> None:
    for key in (supabase_stack.key, supabase_stack.jwt_key):
        with opened(supabase_stack, key) as backend:
            assert (backend.kind, backend.queue.name, backend.notes) == ("supabase", "supabase", ())
    assert functions_asked(supabase_stack) == 0


@pytest.mark.long
@UNTOUCHED
def test_a_project_that_nobody_migrated_is_worked_by_edge_functions_and_says_so(supabase_stack: Stack) -> None:
    with opened(supabase_stack) as backend:
        assert (backend.kind, backend.queue.name) == ("edge", "edge")
        assert "Edge Functions" in backend.notes[0]


@pytest.mark.long
@UNTOUCHED
def test_asked_for_by_name_nothing_else_is_tried(supabase_stack: Stack) -> None:
    with pytest.raises(FunctionsMissing, match="wan2gp-ctl db migrate"), opened(supabase_stack, queue="supabase"):
        pass
    with pytest.raises(AccessDenied), opened(supabase_stack, supabase_stack.pat, queue="supabase"):
        pass
    assert functions_asked(supabase_stack) == 0


def test_a_personal_access_token_opens_the_functions(supabase_stack: Stack) -> None:
    with opened(supabase_stack, supabase_stack.pat) as backend:
        assert backend.kind == "edge"


def test_an_old_version_is_migrated_and_not_worked_around(supabase_stack: Stack) -> None:
    change(supabase_stack, "CREATE OR REPLACE FUNCTION wan2gp_version() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    with pytest.raises(ContractTooOld, match="version 1 .*run `wan2gp-ctl db migrate`"), opened(supabase_stack):
        pass
    assert functions_asked(supabase_stack) == 0


def test_a_refusal_is_told_and_not_worked_around(supabase_stack: Stack) -> None:
    """Whoever may not call our functions would change rows under the leases of those who may."""
    with pytest.raises(QueueRefused, match="service_role") as caught, opened(supabase_stack, supabase_stack.anon_key):
        pass
    assert caught.value.code == "42501"
    change(supabase_stack, "REVOKE EXECUTE ON FUNCTION wan2gp_version() FROM service_role, PUBLIC")
    with pytest.raises(QueueRefused) as caught, opened(supabase_stack):
        pass
    assert caught.value.code == "42501" and functions_asked(supabase_stack) == 0


def test_a_key_that_nothing_knows_is_called_the_wrong_service_key(supabase_stack: Stack) -> None:
    with pytest.raises(AccessDenied, match="refuses the key") as caught, opened(supabase_stack, "sb_secret_planted"):
        pass
    assert "planted" not in str(caught.value) and "Edge Function" not in str(caught.value)


@pytest.mark.parametrize("status", [403, *(pytest.param(each, marks=pytest.mark.long) for each in (404, 308))])
def test_an_address_that_is_no_project_is_not_asked_for_functions(supabase_stack: Stack, status: int) -> None:
    supabase_stack.front.faults.add(Fault("rpc/wan2gp_version", "status", status=status, times=None))
    with pytest.raises(AccessDenied), opened(supabase_stack):
        pass
    assert functions_asked(supabase_stack) == 0


def test_a_database_that_is_away_is_no_reason_to_work_without_leases(supabase_stack: Stack) -> None:
    supabase_stack.front.faults.add(Fault("rpc/wan2gp_version", "status", status=540, times=None))
    with pytest.raises(QueueUnavailable, match="paused"), opened(supabase_stack):
        pass
    assert functions_asked(supabase_stack) == 0


@UNTOUCHED
@pytest.mark.parametrize("status", [404, *(pytest.param(each, marks=pytest.mark.long) for each in (503, 401))])
def test_what_is_wrong_with_the_queue_that_was_meant_is_what_is_told(supabase_stack: Stack, status: int) -> None:
    """Neither our functions nor the app's: the way out is to migrate, whatever the app's functions say."""
    supabase_stack.front.faults.add(Fault("/functions/v1/", "status", status=status, body="no", times=None))
    with pytest.raises(FunctionsMissing, match="lacks the queue's functions.*wan2gp-ctl db migrate"):
        with opened(supabase_stack):
            pass
    assert functions_asked(supabase_stack) > 0
