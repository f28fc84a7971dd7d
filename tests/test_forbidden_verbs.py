"""Verbs that are forbidden for a while: work that ended meanwhile counts once they are allowed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import eventually
from tests.publish_bench import PATIENCE_S, Bench
from tests.supabase_stack import Stack
from wan2gp.config_options import Secret
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.queue import AccessDenied, Settlement, TaskQueue, Verb
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.supabase_queue import SupabaseQueue

FINISH = "FUNCTION public.wan2gp_finish_many(jsonb)"
ROLE = "forbidden_worker"


@contextmanager
def over_rest(stack: Stack) -> Iterator[tuple[TaskQueue, str, str]]:
    with closing(SupabaseProject(stack.url, Secret(stack.key))) as project, closing(SupabaseQueue(project)) as queue:
        yield queue, stack.database, "service_role"


@contextmanager
def over_postgres(server: PgServer) -> Iterator[tuple[TaskQueue, str, str]]:
    for database in server.borrow(server.contract_template()):
        with psycopg.connect(database, autocommit=True) as admin:
            if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone() is None:
                admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'only here'".encode())
            admin.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {ROLE}".encode())
            url = psycopg.conninfo.make_conninfo(database, user=ROLE, password="only here")
            with closing(PostgresQueue(url)) as queue:
                yield queue, database, ROLE
            admin.execute(f"DROP OWNED BY {ROLE}".encode())


@pytest.fixture(params=["postgres", "supabase"])
def way(request: pytest.FixtureRequest) -> Iterator[tuple[TaskQueue, str, str]]:
    if request.param == "supabase":
        with over_rest(request.getfixturevalue("lasting_stack")) as found:
            yield found
    else:
        with over_postgres(request.getfixturevalue("pg_server")) as found:
            yield found


@pytest.mark.long
def test_work_that_ends_while_the_verb_is_forbidden_is_settled_once_it_is_allowed(
    way: tuple[TaskQueue, str, str], tmp_path: Path
) -> None:
    queue, database, role = way
    bench = Bench(tmp_path, queue)  # type: ignore[arg-type]
    done, failed = bench.claim(), bench.claim()
    with psycopg.connect(database, autocommit=True) as admin, bench.life() as settler:
        admin.execute(f"REVOKE ALL ON {FINISH} FROM PUBLIC, {role}".encode())
        try:
            with pytest.raises(AccessDenied, match="wan2gp"):
                queue.finish_many([Settlement(done.id, done.token, Verb.COMPLETE)])
            settler.submit(bench.ending(done, {"a.txt": "eins"}))
            settler.submit(bench.ending(failed, {}, verb=Verb.FAIL, error_message="x.y: its own"))
            eventually("it is said", lambda: "queue.refused" in bench.facts.names())
            assert [bench.row(task)["status"] for task in (done, failed)] == ["In Progress"] * 2
            assert bench.shown() == {}
        finally:
            admin.execute(f"GRANT EXECUTE ON {FINISH} TO {role}".encode())
        assert settler.flush(PATIENCE_S)
    row = bench.row(done)
    assert (row["status"], row["attempts"], row["error_message"]) == ("Complete", 1, None)
    assert bench.row(failed)["error_message"] == "x.y: its own"
    assert bench.shown() == {"a.txt": "eins"} and bench.rest() == [] and not bench.failures
