"""What every test shares: the fixtures of the modules beside this file."""

from __future__ import annotations

import signal

pytest_plugins = [
    "tests.conftest_db",
    "tests.conftest_worker",
    "tests.conftest_supabase",
    "tests.lasting_databases",
    "tests.lasting_stacks",
    "tests.conftest_comfy",
    "tests.builtin_fixtures",
    "tests.bad_web_server",
    "tests.model_server",
    "tests.comfy_jobs",
    "tests.comfy_worker",
    "tests.put_server",
    "tests.storage_server",
    "tests.conftest_tls",
    "tests.edge_projects",
]

# A shell starts what it puts into the background with Ctrl-C ignored, and every process of a test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
