"""What every test shares: the fixtures of the modules beside this file."""

from __future__ import annotations

pytest_plugins = [
    "tests.conftest_db",
    "tests.conftest_worker",
    "tests.conftest_supabase",
    "tests.lasting_databases",
    "tests.lasting_stacks",
    "tests.conftest_comfy",
    "tests.builtin_fixtures",
    "tests.bad_web_server",
    "tests.comfy_jobs",
    "tests.comfy_worker",
    "tests.put_server",
    "tests.storage_server",
    "tests.conftest_tls",
    "tests.edge_projects",
]
