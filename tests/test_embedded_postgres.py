"""Disasters of the embedded database, on real processes: killed parents, stale pid files, strangers on its ground."""

from __future__ import annotations

import psycopg

from tests.conftest_db import PgServer


def test_each_test_gets_its_own_empty_database(empty_db: str, pg_server: PgServer) -> None:
    with psycopg.connect(empty_db) as connection:
        assert connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)
    pg_server.restart()
    with psycopg.connect(empty_db) as connection:
        connection.execute("create table mine ()")
