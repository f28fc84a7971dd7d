"""Projects as Supabase hosts them, and workers on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, launch, surely_end, worker_environment
from tests.supabase_stack import Stack

POLLING = ("--poll-interval", "0.2")


@pytest.fixture
def supabase_db(pg_server: PgServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a fresh database with the roles of a hosted one and our contract.

    By an indirect parameter another one: ``predecessor`` (its tables and our contract), ``untouched`` (its tables
    alone), ``bare`` (nothing).
    """
    templates = {
        "ours": pg_server.supabase_template,
        "predecessor": pg_server.supabase_predecessor_template,
        "untouched": pg_server.supabase_untouched_template,
        "bare": pg_server.supabase_bare_template,
    }
    yield from pg_server.borrow(templates[getattr(request, "param", "ours")]())


@pytest.fixture
def supabase_stack(supabase_db: str, tmp_path: Path) -> Iterator[Stack]:
    """A project of its own on ``supabase_db``."""
    with Stack(supabase_db, tmp_path / "supabase") as stack:
        yield stack


@pytest.fixture
def start_supabase_worker(
    tmp_path: Path, run_dirs: Callable[[], Path], supabase_stack: Stack
) -> Iterator[Callable[..., Worker]]:
    """Starts workers on one project; `environ` adds variables, other arguments are options."""
    started: list[Worker] = []

    def start(*options: str, name: str = "w1", environ: dict[str, str] | None = None, wait: bool = True) -> Worker:
        variables = worker_environment(
            tmp_path,
            run_dirs(),
            **{
                "SUPABASE_URL": supabase_stack.url,
                "SUPABASE_SERVICE_ROLE_KEY": supabase_stack.key,
                "WAN2GP_QUEUE": "supabase",
                "WORKER_ID": name,
                **(environ or {}),
            },
        )
        worker = launch(tmp_path / name, supabase_stack.database, variables, *POLLING, *options, wait=wait)
        started.append(worker)
        return worker

    yield start
    surely_end(started)


@pytest.fixture
def supabase_worker(start_supabase_worker: Callable[..., Worker]) -> Worker:
    """One worker on a project of its own."""
    return start_supabase_worker()
