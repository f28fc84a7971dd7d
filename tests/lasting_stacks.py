"""Projects that serve many tests, one after the other: a PostgREST is bound to its database, and takes longer to start
than a test of the contract takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest_db import PgServer
from tests.lasting_databases import LastingDatabase
from tests.supabase_stack import Stack


class LastingStack:
    """One project, as new whenever it is lent."""

    def __init__(self, server: PgServer, template: str, folder: Path) -> None:
        self._database = LastingDatabase(server, template)
        self._folder = folder
        self._numbers = itertools.count(1)
        self._stack: Stack | None = None

    @contextmanager
    def lend(self) -> Iterator[Stack]:
        """In the main thread. A test that changes more than rows costs a new project."""
        url, is_new = self._database.lend()
        if is_new or self._stack is None:
            self._close_stack()
            stack = Stack(url, self._folder / f"stack_{next(self._numbers)}")
            self._stack = stack.__enter__()
        self._stack.front.up()
        self._stack.front.faults.clear()
        self._stack.front.requests.clear()
        yield self._stack

    def close(self) -> None:
        self._close_stack()
        self._database.close()

    def _close_stack(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()


@pytest.fixture(scope="session")
def _lasting_stacks(
    _pg_session: PgServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, LastingStack]]:
    _pg_session.start_server()
    folder = tmp_path_factory.mktemp("stacks")
    templates = {
        "ours": _pg_session.supabase_template(),
        "predecessor": _pg_session.supabase_predecessor_template(),
        "bare": _pg_session.supabase_bare_template(),
    }
    stacks = {name: LastingStack(_pg_session, template, folder / name) for name, template in templates.items()}
    yield stacks
    for stack in stacks.values():
        stack.close()


@pytest.fixture
def lasting_stack(
    pg_server: PgServer, _lasting_stacks: dict[str, LastingStack], request: pytest.FixtureRequest
) -> Iterator[Stack]:
    """A project with our contract, or, where the test asks for that, ``predecessor`` or ``bare`` (nothing in it)."""
    with _lasting_stacks[getattr(request, "param", "ours")].lend() as stack:
        yield stack
