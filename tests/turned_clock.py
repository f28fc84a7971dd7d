"""The database's clock, set forward or back by a test; time passes in it as fast as the test likes."""

from __future__ import annotations

from tests.contract_bench import Admin

_STAMPS = {
    "tasks": ("created_at", "updated_at", "run_after", "generation_started_at", "generation_processed_at"),
    "task_leases": ("claimed_at", "expires_at", "wait_until"),
    "task_dependencies": ("missing_since",),
    "task_events": ("at",),
    "worker_contacts": ("since", "last_seen", "rescued_at"),
    "workers": ("last_heartbeat", "updated_at"),
}
_START = "server_start"


def turn_clock(admin: Admin, seconds: float) -> None:
    """Sets it forward, or back: seen from the clock, all stamps lie further back then, or ahead."""
    stamps = dict(_STAMPS)
    if admin.execute("SELECT to_regclass(%s)", (_START,)).fetchone() != (None,):
        stamps[_START] = ("at",)
    with admin.transaction():
        for table, columns in stamps.items():
            changes = ", ".join(f"{name} = {name} - make_interval(secs => {seconds})" for name in columns)
            admin.execute(f"UPDATE {table} SET {changes}".encode())


def own_server_start(admin: Admin) -> None:
    """Postgres stamps its start too, where nobody can move it: from now on it is read from a table. It is a day ago."""
    admin.execute(f"CREATE TABLE {_START} AS SELECT now() - interval '1 day' AS at".encode())
    found = admin.execute("SELECT pg_get_functiondef('wan2gp_quiet_s'::regproc)").fetchone()
    assert found is not None and "pg_postmaster_start_time()" in found[0]
    admin.execute(found[0].replace("pg_postmaster_start_time()", f"(SELECT at FROM {_START})").encode())
