"""`wan2gp-ctl db`: the URL alone, the SQL alone, and a sentence when there is no database to be had."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.test_ctl import CTL, ctl, environment, one_sentence


def test_the_configured_url_is_printed_alone(tmp_path: Path) -> None:
    url = "postgresql://u:p%40ss@db.example.com:5432/x?sslmode=require"
    assert ctl(tmp_path, "db", "url", DATABASE_URL=url).stdout == url + "\n"
    assert ctl(tmp_path, "db", "url", "--database-url", url).stdout == url + "\n"
    assert json.loads(ctl(tmp_path, "db", "url", "--json", DATABASE_URL=url).stdout) == {"url": url}


def test_the_url_may_stand_in_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('database_url = "postgresql://h/x"\n')
    done = subprocess.run(
        [*CTL, "--config", str(file), "db", "url"], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "postgresql://h/x\n")


def test_an_embedded_database_that_does_not_run_is_exit_3(tmp_path: Path) -> None:
    for action in ("url", "migrate"):
        assert "no embedded Postgres runs" in one_sentence(ctl(tmp_path, "db", action), 3)


def test_a_supabase_project_is_told_where_its_database_url_is(tmp_path: Path) -> None:
    said = one_sentence(ctl(tmp_path, "db", "url", SUPABASE_URL="https://x.supabase.co"), 2)
    assert "set DATABASE_URL" in said and "db sql" in said


def test_a_postgres_queue_without_a_url_is_exit_2(tmp_path: Path) -> None:
    assert "set DATABASE_URL" in one_sentence(ctl(tmp_path, "db", "url", WAN2GP_QUEUE="postgres"), 2)


def test_every_problem_of_the_configuration_is_said_before_anything_happens(tmp_path: Path) -> None:
    done = ctl(tmp_path, "db", "url", COMFY_PORT="x", WAN2GP_QUEUE="redis")
    assert (done.returncode, done.stdout) == (2, "")
    assert "COMFY_PORT" in done.stderr and "WAN2GP_QUEUE" in done.stderr and "Traceback" not in done.stderr


def test_a_database_that_cannot_be_reached_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://u:hunter2@127.0.0.1:1/x"
    said = one_sentence(ctl(tmp_path, "db", "migrate", DATABASE_URL=url), 1)
    assert "cannot connect to the database" in said and "hunter2" not in said


def test_migrating_twice_is_as_good_as_once(tmp_path: Path, empty_db: str) -> None:
    for _ in range(2):
        done = ctl(tmp_path, "db", "migrate", DATABASE_URL=empty_db)
        assert (done.returncode, done.stdout) == (0, "the database is up to date\n"), done.stderr
    _assert_migrated(empty_db)


def test_the_printed_sql_does_what_migrate_does(tmp_path: Path, empty_db: str) -> None:
    done = ctl(tmp_path, "db", "sql")
    assert done.returncode == 0
    with psycopg.connect(empty_db, autocommit=True) as connection:
        connection.execute(done.stdout.encode())
    _assert_migrated(empty_db)


def _assert_migrated(url: str) -> None:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{}', 'queued') RETURNING status::text"
        ).fetchone()
    assert row == ("Queued",)


@pytest.mark.parametrize("arguments", [["db"], ["db", "drop"]])
def test_a_wrong_action_is_exit_2(tmp_path: Path, arguments: list[str]) -> None:
    assert ctl(tmp_path, *arguments).returncode == 2
