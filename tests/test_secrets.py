"""Credentials planted everywhere a supervisor may get them from, and looked for everywhere else."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.comfy_jobs import picture
from tests.conftest_comfy import free_port
from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT, Worker, eventually, worker_environment
from tests.shared_worker import shared_worker

Start = Callable[..., Worker]
PASSWORD = "p4ss/w%rd planted"
"""Needs quoting in a URL: it must not show in either form."""
PLANTED = {
    "SUPABASE_SERVICE_ROLE_KEY": "planted-service-role-key",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "HF_TOKEN": "planted-hf-token",
    "HF_ENDPOINT": "https://somebody:planted-in-url@mirror.example.com",
    "MY_API_KEY": "planted-api-key",
    "REPLICATE_API_TOKEN": "planted-replicate",
    "PGPASSWORD": "planted-pgpassword",
    "GITHUB_PAT": "planted-pat",
    "SOMETHING_NOBODY_KNOWS": "planted-unknown-variable",
    "CUDA_SECRET": "planted-under-an-allowed-prefix",
    "WAN2GP_SECRET_CONFIDANT": "planted-for-one-handler",
    "WAN2GP_SECRET_NOBODY": "planted-for-nobody",
}
FLAG = "planted-by-flag"
SECRETS = [*(value for name, value in PLANTED.items() if name != "HF_ENDPOINT"), "planted-in-url", FLAG]
SECRETS += [PASSWORD, quote(PASSWORD, safe="")]
KEPT = {"HF_HOME": "/models/hf", "CUDA_VISIBLE_DEVICES": "0", "LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.long)])
def kinds(request: pytest.FixtureRequest) -> str:
    """Of tasks that the worker has run: each costs a process."""
    return str(request.param)


@pytest.fixture(scope="module")
def planted(kinds: str, tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    """A worker that has run tasks and whose database password is one of the planted secrets."""
    _pg_session.start_server()
    with psycopg.connect(_pg_session.admin_url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS planted")
        admin.execute(sql.SQL("CREATE ROLE planted SUPERUSER LOGIN PASSWORD {}").format(sql.Literal(PASSWORD)))
        place = tmp_path_factory.mktemp("planted")
        comfy = {"COMFY_PORT": str(free_port())}
        database = _pg_session.new_database(_pg_session.contract_template())
        known = conninfo_to_dict(database)
        query = f"?host={quote(str(known['host']), safe='')}&port={known['port']}"
        url = f"postgresql://planted:{quote(PASSWORD, safe='')}@/{known['dbname']}{query}"
        options = ("--database-url", url, "--supabase-access-token", FLAG)
        with shared_worker(place, _pg_session, *options, **{**PLANTED, **KEPT, **comfy}) as worker:
            worker.url = url
            for task in [worker.insert(kind, params, max_attempts=1) for kind, params in TASKS[kinds]]:
                worker.ended(task)
            yield worker
        _pg_session.drop_database(database)
        admin.execute("DROP ROLE planted")


FEW: list[tuple[str, dict[str, Any]]] = [
    ("witness", {}),
    ("confidant", {"how": "tell"}),
    ("confidant", {"how": "fail"}),
    ("confidant", {"how": "die"}),
]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("raiser", {}),
    ("crasher", {"exit": 3}),
    ("babbler", {}),
    ("maker", {"files": {"a.txt": "x"}}),
    ("fetcher", {"url": "http://127.0.0.1:1/x"}),
    ("comfy", {"workflow": picture()}),
]
TASKS = {"few": FEW, "all": FEW + OTHERS}
LEAST = {"few": 3, "all": 10}
"""How many processes there are at least."""
LOGS = {"few": {"confidant.log"}, "all": {"comfy.log", "crasher.log"}}


def found_in(data: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in data]


def processes(worker: Worker) -> list[int]:
    return [worker.process.pid, *(process.pid for process in worker.family())]


def test_no_process_shows_a_secret_in_environment_or_arguments(planted: Worker, kinds: str) -> None:
    pids = processes(planted)
    assert len(pids) > LEAST[kinds]
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for name in ("environ", "cmdline"):
                assert found_in(Path(f"/proc/{pid}/{name}").read_bytes()) == [], (pid, name)


def test_no_process_has_a_file_open_that_holds_a_secret(planted: Worker) -> None:
    """Anonymous ones too: the supervisor's own has been read and closed."""
    seen = 0
    for pid in processes(planted):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                kind = os.stat(entry.path)
                assert "wan2gp-sealed" not in os.readlink(entry.path)
                if stat.S_ISREG(kind.st_mode):
                    assert found_in(Path(entry.path).read_bytes()) == [], (pid, os.readlink(entry.path))
                    seen += 1
    assert seen > 5


def test_no_file_of_ours_holds_a_secret(planted: Worker, kinds: str) -> None:
    folders = [planted.data_dir, Path(planted.environ["WAN2GP_RUN_DIR"])]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"worker.log", "journal", "run.json", "screen", *LOGS[kinds]}
    for path in files:
        assert found_in(path.read_bytes()) == [], path


@pytest.mark.parametrize("table", ["tasks", "task_events", "workers", "task_leases", "worker_contacts"])
def test_no_row_holds_a_secret(planted: Worker, table: str) -> None:
    rows = planted.sql(f"SELECT to_jsonb(x)::text AS x FROM {table} x")
    assert rows
    assert found_in(json.dumps([row["x"] for row in rows]).encode()) == []


def test_a_handler_sees_what_it_needs_and_nothing_else(planted: Worker) -> None:
    (row,) = planted.sql("SELECT result_data FROM tasks WHERE task_type = 'witness'")
    saw = row["result_data"]
    assert found_in(json.dumps(saw).encode()) == []
    assert KEPT.items() <= saw["environ"].items()
    assert "WORKER_ID" not in saw["environ"]
    assert not {name for name in saw["environ"] if name in PLANTED}
    opened = [where for where in saw["files"].values() if not where.startswith(("/proc", "/dev", "anon_inode:"))]
    assert not [where for where in opened if str(planted.data_dir) in where or "memfd" in where]
    assert saw["files"]["0"] == os.devnull


def test_a_handler_gets_its_own_token_and_no_other_and_can_tell_it_to_nobody(planted: Worker) -> None:
    rows = planted.sql("SELECT * FROM tasks WHERE task_type = 'confidant' ORDER BY params->>'how' DESC")
    told, failed, died = (row["result_data"] for row in rows)
    assert told["names"] == ["confidant"] and told["length"] == len(PLANTED["WAN2GP_SECRET_CONFIDANT"])
    assert told["seen"] == [] and (told["shown"], told["token"]) == ("***", "***")
    assert rows[1]["error_message"] == "confidant.refused: 401 for ***"
    assert failed["attempts"][0]["detail"] == {"header": "***"}
    assert died["attempts"][0]["last_lines"] == ["cannot reach the API with ***"]
    assert "text=***" in planted.log


LOOK = """
import ctypes, json, os, sys
found = {}
for pid in sys.argv[1:]:
    for name in ("environ", "mem", "maps", "fd"):
        place = f"/proc/{pid}/{name}"
        try:
            os.readlink(f"{place}/0") if name == "fd" else open(place, "rb").read(0 if name == "mem" else 1)
            found[f"{pid} {name}"] = "open"
        except OSError as error:
            found[f"{pid} {name}"] = error.strerror
print(json.dumps(found))
"""
WITHOUT_PTRACE = "import ctypes\nfor each in (19, 21, 38): ctypes.CDLL(None).prctl(24, each, 0, 0, 0)\n"
"""PR_CAPBSET_DROP of CAP_SYS_PTRACE, SYS_ADMIN and PERFMON: from the next execution root has what containers give."""


def test_the_memory_of_supervisor_and_shims_is_closed_to_others_of_their_user(
    start_worker: Start, tmp_path: Path
) -> None:
    """Without a sandbox: so the one thing that stands between is that they are not dumpable."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT_PTRACE)
    paths = f"{tmp_path / 'without'}:{tmp_path / 'plugin'}:{ROOT}"
    worker = start_worker(environ={"PYTHONPATH": paths, "WAN2GP_SANDBOX": "off"})
    worker.ended(worker.insert("noop"))
    handler = worker.handler_pid("noop")
    shim = psutil.Process(handler).ppid()

    def look(*pids: int) -> dict[str, str]:
        start = f"{WITHOUT_PTRACE}import os, sys\nos.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
        command = [sys.executable, "-S", "-c", start, LOOK, *map(str, pids)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)  # type: ignore[no-any-return]

    assert look(handler)[f"{handler} environ"] == "open", "nothing is shown where nobody may look"
    seen = look(worker.process.pid, shim)
    assert set(seen.values()) == {"Permission denied"}, seen


def test_a_lease_token_is_the_supervisors_alone(planted: Worker) -> None:
    worker = planted
    task = worker.insert("sleeper", {"seconds": 60})
    worker.running(task)
    token = worker.sql("SELECT token FROM task_leases WHERE task_id = %s", task)[0]["token"].encode()
    files = [path for path in worker.data_dir.rglob("*") if path.is_file()]
    assert not [path for path in files if token in path.read_bytes()]
    for pid in processes(worker)[1:]:
        with contextlib.suppress(OSError):
            assert token not in Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    worker.ctl("cancel", task)
    eventually("it is told", lambda: worker.row(task)["status"] == "Cancelled")
    assert token.decode() not in json.dumps(worker.sql("SELECT to_jsonb(x)::text AS x FROM task_events x"))


WRONG_URLS = [
    "postgresql//me:sesame@db/x",
    "postgresql://me:sesame@db:port/x",
    "postgresql://me:sesame@[::1/x",
    "postgresql://me:ses%ame@db/x",
    "host=db password='sesame",
    "host=db password=sesame no_such_option=1",
    "sesame",
]


@pytest.mark.parametrize("url", [WRONG_URLS[0], *(pytest.param(url, marks=pytest.mark.long) for url in WRONG_URLS[1:])])
@pytest.mark.parametrize("command", [(), pytest.param(("check",), marks=pytest.mark.long)])
def test_a_connection_string_that_cannot_be_read_is_not_repeated(
    tmp_path: Path, url: str, command: tuple[str, ...]
) -> None:
    variables = worker_environment(tmp_path, tmp_path / "run", DATABASE_URL=url)
    run = [sys.executable, "-m", "wan2gp.entry", "--data-dir", str(tmp_path / "data"), *command]
    done = subprocess.run(run, env=variables, capture_output=True, text=True, timeout=30)
    said = done.stdout + done.stderr
    for path in (tmp_path / "data").rglob("*.log"):
        said += path.read_text()
    assert "sesame" not in said and "ses%ame" not in said, said
    assert "Traceback" not in said
    assert done.returncode == 2 and "DATABASE_URL = *** cannot be used" in done.stderr


@pytest.mark.long
def test_a_password_that_is_changed_under_a_running_worker_is_not_told(
    start_worker: Start, pg_server: PgServer, queue_db: str
) -> None:
    with psycopg.connect(pg_server.admin_url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS changing")
        admin.execute("CREATE ROLE changing SUPERUSER LOGIN PASSWORD 'open-sesame'")
        url = make_conninfo(**{**conninfo_to_dict(queue_db), "user": "changing", "password": "open-sesame"})
        worker = start_worker("--database-url", url, environ={"WAN2GP_RENEW_S": "0.3"})
        admin.execute("ALTER ROLE changing PASSWORD 'close-sesame'")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'changing'")
        eventually("it is refused", lambda: "password authentication failed" in worker.log)
        assert "open-sesame" not in worker.log + worker.screen
        admin.execute("ALTER ROLE changing PASSWORD 'open-sesame'")
        eventually("it is back", lambda: "Database reachable again" in worker.log)
        worker.ended(worker.insert("noop"))
        assert worker.stop() == 0
        admin.execute("DROP ROLE changing")


IMPORTING = """
import ctypes, runpy, sys
libc, PR_GET_DUMPABLE = ctypes.CDLL(None), 3
named = {"wan2gp.processes", "wan2gp.entry", "wan2gp.options", "argparse"}

def look(event, args):
    if event == "import" and args[0] in named:
        named.remove(args[0])
        print(args[0], libc.prctl(PR_GET_DUMPABLE), file=sys.stderr)

sys.addaudithook(look)
sys.argv = ["wan2gp-supervisor", "--version"]
runpy.run_module("wan2gp.supervisor", run_name="__main__")
"""


def test_the_supervisor_is_closed_to_others_of_its_user_before_it_imports_more_than_it_needs_for_that() -> None:
    """It has had an open file with every credential from its first moment."""
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, cwd=ROOT, timeout=60)
    seen = dict(line.split() for line in done.stderr.splitlines())
    assert seen == {"wan2gp.processes": "1", "wan2gp.entry": "0", "wan2gp.options": "0", "argparse": "0"}, done
