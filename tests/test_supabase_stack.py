"""The project that other tests stand on: it is what was recorded of a real one, and it goes wrong as it is told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from aiohttp import web
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests import postgrest
from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT, eventually
from tests.front_faults import Fault
from tests.parts import PartMissing
from tests.postgrest import Postgrest, PostgrestFailed
from tests.supabase_stack import Stack
from wan2gp.processes import alive

DATA = Path(__file__).with_name("data")
MIB = 1024 * 1024
# A reset that meets a client while it still sends looks to it like a connection that was closed.
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)


@pytest.fixture
def client(supabase_stack: Stack) -> Iterator[httpx.Client]:
    """With the secret key on every request."""
    with client_of(supabase_stack, supabase_stack.key) as client:
        yield client


def client_of(stack: Stack, key: str, token: str | None = None) -> httpx.Client:
    headers = {"apikey": key, "Authorization": f"Bearer {token or key}"}
    # No TLS here, and to read the machine's certificates takes longer than most of these tests.
    return httpx.Client(base_url=stack.url, headers=headers, timeout=30, trust_env=False, verify=False)


class TestKeys:
    def test_the_secret_key_and_the_jwt_may_do_the_same(self, supabase_stack: Stack) -> None:
        for key in (supabase_stack.key, supabase_stack.jwt_key):
            with client_of(supabase_stack, key) as client:
                assert client.post("/rest/v1/rpc/wan2gp_version", json={}).json() >= 1
                assert client.post("/rest/v1/tasks", json={"task_type": "t2v"}).status_code == 201
                assert len(client.get("/rest/v1/tasks").json()) > 0

    def test_a_key_alone_is_enough(self, supabase_stack: Stack) -> None:
        with httpx.Client(verify=False) as client:
            answer = client.get(f"{supabase_stack.url}/rest/v1/tasks", headers={"apikey": supabase_stack.key})
        assert (answer.status_code, answer.json()) == (200, [])

    def test_the_public_key_sees_and_does_nothing(self, supabase_stack: Stack, client: httpx.Client) -> None:
        client.post("/rest/v1/tasks", json={"task_type": "t2v"})
        for key in (supabase_stack.anon_key, supabase_stack.keys.anon_jwt):
            with client_of(supabase_stack, key) as anon:
                assert anon.get("/rest/v1/tasks").json() == []
                refused = anon.post("/rest/v1/rpc/wan2gp_version", json={})
                assert (refused.status_code, refused.json()["code"]) == (401, "42501")

    @pytest.mark.parametrize("key", ["sb_secret_wrong", "eyJhbGciOiJIUzI1NiJ9.e30.x", "pat"])
    def test_a_wrong_key_does_not_pass_the_gateway(self, supabase_stack: Stack, key: str) -> None:
        with client_of(supabase_stack, supabase_stack.pat if key == "pat" else key) as client:
            answer = client.get("/rest/v1/tasks")
        assert answer.status_code == 401
        assert answer.json()["message"] == "Invalid API key" and set(answer.json()) == {"message", "hint"}

    def test_no_key_does_not_pass_the_gateway(self, supabase_stack: Stack) -> None:
        with httpx.Client(verify=False) as client:
            answer = client.get(f"{supabase_stack.url}/rest/v1/tasks")
        assert (answer.status_code, answer.json()["message"]) == (401, "No API key found in request")

    def test_a_path_that_nobody_serves_is_told(self, client: httpx.Client) -> None:
        assert client.get("/graphql/v1").status_code == 404

    def test_storage_knows_the_keys_by_itself(self, supabase_stack: Stack, client: httpx.Client) -> None:
        assert client.get("/storage/v1/bucket").json()[0]["name"] == "image_uploads"
        with client_of(supabase_stack, supabase_stack.anon_key) as anon:
            assert anon.post("/storage/v1/object/image_uploads/x", content=b"x").status_code >= 400

    @pytest.mark.parametrize("supabase_db", ["predecessor"], indirect=True)
    def test_functions_know_a_users_token_and_the_service(self, supabase_stack: Stack) -> None:
        answers = {}
        for name in ("pat", "key", "jwt_key", "anon_key"):
            headers = {"Authorization": f"Bearer {getattr(supabase_stack, name)}"}
            with httpx.Client(base_url=supabase_stack.url, headers=headers, verify=False) as client:
                answers[name] = client.post("/functions/v1/task-counts", json={}).status_code
        assert answers.pop("anon_key") in (401, 403)
        assert set(answers.values()) == {200}


class TestFaults:
    """Each of them, seen from both sides: what the client met, and whether the database has it."""

    def insert(self, client: httpx.Client) -> httpx.Response:
        return client.post("/rest/v1/tasks", json={"task_type": "t2v"})

    def rows(self, stack: Stack) -> int:
        with psycopg.connect(stack.database) as admin:
            (found,) = admin.execute("SELECT count(*) FROM tasks").fetchall()
            return int(found[0])

    def test_a_status_is_answered_in_place_of_the_database(self, supabase_stack: Stack, client: httpx.Client) -> None:
        supabase_stack.front.faults.add(
            Fault("rest/v1/tasks", "status", 429, headers={"Retry-After": "7"}, body={"message": "slow down"}, times=2)
        )
        for _ in range(2):
            answer = self.insert(client)
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
            assert answer.json() == {"message": "slow down"}
        assert self.rows(supabase_stack) == 0
        assert self.insert(client).status_code == 201
        assert [one.status for one in supabase_stack.front.seen("tasks", "POST")] == [429, 429, 201]

    def test_a_fault_meets_the_path_and_method_that_it_names(self, supabase_stack: Stack, client: httpx.Client) -> None:
        fault = supabase_stack.front.faults.add(
            Fault("rest/v1/tasks", "status", 502, method="POST", skip=1, times=None)
        )
        assert client.get("/rest/v1/tasks").status_code == 200
        assert client.get("/rest/v1/workers").status_code == 200
        assert [self.insert(client).status_code for _ in range(3)] == [201, 502, 502]
        assert fault.hits == 2
        supabase_stack.front.faults.remove(fault)
        assert self.insert(client).status_code == 201

    def test_a_reset_breaks_the_connection_before_anything_happens(
        self, supabase_stack: Stack, client: httpx.Client
    ) -> None:
        supabase_stack.front.faults.add(Fault("tasks", "reset"))
        with pytest.raises(BROKEN):
            self.insert(client)
        assert self.rows(supabase_stack) == 0
        assert [one.status for one in supabase_stack.front.requests] == [0]
        assert self.insert(client).status_code == 201

    def test_an_answer_is_lost_after_the_commit(self, supabase_stack: Stack, client: httpx.Client) -> None:
        supabase_stack.front.faults.add(Fault("tasks", "cut_after"))
        with pytest.raises(BROKEN):
            self.insert(client)
        assert self.rows(supabase_stack) == 1
        assert self.insert(client).status_code == 201

    def test_a_request_that_hangs_is_seen_at_once_and_ends_with_its_client(
        self, supabase_stack: Stack, client: httpx.Client
    ) -> None:
        supabase_stack.front.faults.add(Fault("tasks", "hang"))
        with pytest.raises(httpx.ReadTimeout):
            client.post("/rest/v1/tasks", json={"task_type": "t2v"}, timeout=0.2)
        (seen,) = supabase_stack.front.requests
        eventually("the front lets go", lambda: seen.status == 0)
        assert self.rows(supabase_stack) == 0

    @pytest.mark.parametrize("end", ["time", "clear"])
    def test_a_request_that_hangs_is_reset_in_the_end(
        self, supabase_stack: Stack, client: httpx.Client, end: str
    ) -> None:
        faults = supabase_stack.front.faults
        faults.add(Fault("tasks", "hang", delay_s=0.1 if end == "time" else 0))
        if end == "clear":
            faults.clear()
            faults.add(lifted := Fault("tasks", "hang"))
            lifted.lifted.set()
        with pytest.raises(BROKEN):
            self.insert(client)

    def test_a_slow_one_is_served_all_the_same(self, supabase_stack: Stack, client: httpx.Client) -> None:
        supabase_stack.front.faults.add(Fault("tasks", "slow", delay_s=0.2))
        began = time.monotonic()
        assert self.insert(client).status_code == 201
        assert time.monotonic() - began >= 0.2

    def test_an_upload_is_cut_in_the_middle(self, supabase_stack: Stack, client: httpx.Client) -> None:
        supabase_stack.front.faults.add(Fault("object/image_uploads", "reset", after_bytes=MIB))
        path = "/storage/v1/object/image_uploads/a/b.bin"
        with pytest.raises(BROKEN):
            client.post(path, content=bytes(8 * MIB))
        (seen,) = supabase_stack.front.requests
        assert seen.bytes_in == MIB
        assert supabase_stack.storage.content("image_uploads", "a/b.bin") is None
        assert client.post(path, content=bytes(8 * MIB)).status_code == 200
        assert len(supabase_stack.storage.content("image_uploads", "a/b.bin") or b"") == 8 * MIB

    def test_an_answer_is_cut_in_the_middle(self, supabase_stack: Stack, client: httpx.Client) -> None:
        path = "/storage/v1/object/image_uploads/a/b.bin"
        client.post(path, content=bytes(2 * MIB))
        supabase_stack.front.faults.add(Fault("b.bin", "cut_answer", method="GET", after_bytes=MIB))
        came = 0
        with pytest.raises(BROKEN), client.stream("GET", path) as answer:
            for chunk in answer.iter_raw():
                came += len(chunk)
        assert came == MIB

    def test_while_it_is_down_nobody_gets_in_and_then_all_is_as_before(
        self, supabase_stack: Stack, client: httpx.Client
    ) -> None:
        assert self.insert(client).status_code == 201
        supabase_stack.front.down()
        supabase_stack.front.down()
        for _ in range(3):
            with pytest.raises(BROKEN):
                self.insert(client)
        with pytest.raises(httpx.ConnectError), client_of(supabase_stack, supabase_stack.key) as other:
            self.insert(other)
        supabase_stack.front.up()
        assert self.insert(client).status_code == 201
        assert self.rows(supabase_stack) == 2

    def test_going_down_breaks_what_is_under_way(self, supabase_stack: Stack, client: httpx.Client) -> None:
        supabase_stack.front.faults.add(Fault("tasks", "slow", delay_s=60))
        with contextlib.closing(supabase_stack.front), pytest.raises(BROKEN):
            with_front_going_down(supabase_stack, lambda: self.insert(client))

    def test_without_postgrest_the_gateway_says_so(self, supabase_stack: Stack, client: httpx.Client) -> None:
        supabase_stack.postgrest.stop()
        assert self.insert(client).status_code == 502


def with_front_going_down(stack: Stack, act: Callable[[], object]) -> None:
    """Runs ``act`` while another thread takes the front down as soon as the request is there."""

    def watch() -> None:
        eventually("the request came", lambda: stack.front.requests)
        stack.front.down()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        act()
    finally:
        watcher.join()


class Sink:
    """Takes what comes and remembers how far the front was ahead of it; gives 96 MiB to whoever asks."""

    def __init__(self, stack: Stack) -> None:
        self.front = stack.front
        self.taken = 0
        self.ahead = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        async for chunk in request.content.iter_any():
            self.ahead = max(self.ahead, self.front.requests[-1].bytes_in - self.taken)
            self.taken += len(chunk)
        response = web.StreamResponse()
        await response.prepare(request)
        if request.method == "GET":
            for _ in range(96):
                await response.write(bytes(MIB))
        return response


class TestStreaming:
    """Hundreds of megabytes go through it; what is held are the buffers of the sockets."""

    def test_an_upload_is_passed_on_as_it_comes(self, supabase_stack: Stack, client: httpx.Client) -> None:
        sink = Sink(supabase_stack)
        supabase_stack.front.serve("/sink/", sink)
        assert client.post("/sink/x", content=(bytes(MIB) for _ in range(96))).status_code == 200
        assert sink.taken == supabase_stack.front.requests[-1].bytes_in == 96 * MIB
        assert sink.ahead < 32 * MIB

    def test_an_answer_is_passed_on_as_it_comes(self, supabase_stack: Stack, client: httpx.Client) -> None:
        supabase_stack.front.serve("/sink/", Sink(supabase_stack))
        with client.stream("GET", "/sink/x") as answer:
            chunks = answer.iter_raw()
            came = len(next(chunks))
            assert supabase_stack.front.requests[-1].bytes_out < 48 * MIB
            came += sum(map(len, chunks))
        assert came == 96 * MIB
        eventually("it is counted", lambda: supabase_stack.front.requests[-1].bytes_out == 96 * MIB)


class TestPostgrest:
    def test_it_follows_the_schema(self, supabase_stack: Stack, client: httpx.Client) -> None:
        assert client.post("/rest/v1/rpc/brand_new", json={}).json()["code"] == "PGRST202"
        with psycopg.connect(supabase_stack.database, autocommit=True) as admin:
            admin.execute("CREATE FUNCTION brand_new() RETURNS int LANGUAGE sql AS 'SELECT 5'")
        supabase_stack.reload_schema()
        assert client.post("/rest/v1/rpc/brand_new", json={}).json() == 5

    def test_it_holds_no_database_open_after_its_end(self, pg_server: PgServer, tmp_path: Path) -> None:
        url = pg_server.new_database(pg_server.supabase_template())
        with Stack(url, tmp_path):
            pass
        name = sql.Identifier(str(conninfo_to_dict(url)["dbname"]))
        with psycopg.connect(pg_server.admin_url, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {}").format(name))

    def test_it_dies_with_a_test_run_that_was_killed(self, supabase_db: str, tmp_path: Path) -> None:
        script = (
            "import sys, time, pathlib; from tests.postgrest import Postgrest;"
            "one = Postgrest(sys.argv[1], 'x' * 32, pathlib.Path(sys.argv[2])); one.start();"
            "sys.stdout.write(f'{one.pid}\\n'); sys.stdout.flush(); time.sleep(60)"
        )
        command = [sys.executable, "-c", script, supabase_db, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as run:
            assert run.stdout is not None
            pid = int(run.stdout.readline())
            assert alive(pid)
            os.kill(run.pid, signal.SIGKILL)
        eventually("PostgREST is gone", lambda: not alive(pid))

    @pytest.mark.parametrize("taken", [0, 1])
    def test_a_port_that_another_process_was_quicker_to_take_costs_a_second_try(
        self, supabase_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
    ) -> None:
        free = postgrest.free_ports
        with socket.create_server(("127.0.0.1", 0)) as other:
            first = list(free())
            first[taken] = other.getsockname()[1]
            pairs = iter([tuple(first)])
            monkeypatch.setattr(postgrest, "free_ports", lambda: next(pairs, None) or free())
            one = Postgrest(supabase_db, "x" * 32, tmp_path)
            one.start()
            one.stop()
        assert next(pairs, None) is None

    def test_one_that_ends_while_it_starts_is_told_with_its_words(
        self, supabase_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "postgrest"
        program.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
        program.chmod(0o755)
        monkeypatch.setenv("WAN2GP_TEST_POSTGREST", str(program))
        with pytest.raises(PostgrestFailed, match=r"exit 3\): no such thing"):
            Postgrest(supabase_db, "x" * 32, tmp_path / "run").start()

    def test_a_missing_part_fails_with_the_command_that_installs_it(
        self, supabase_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WAN2GP_TEST_POSTGREST", str(tmp_path / "none"))
        with pytest.raises(PartMissing, match="make parts"), Stack(supabase_db, tmp_path):
            pass

    def test_the_lock_names_no_host(self) -> None:
        lock = json.loads((ROOT / "tests" / "parts" / "package-lock.json").read_text())
        packages = {name: entry for name, entry in lock["packages"].items() if name}
        assert packages
        for entry in packages.values():
            assert entry["integrity"].startswith("sha512-") and "resolved" not in entry


ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?\+00(:00)?")
# The rows that came in one INSERT have one time, and then the order is that of random ids.
UNORDERED = "order=created_at.asc%2Cid.asc"
UNKNOWN, ANONYMOUS, UNREADABLE, EXPIRED = 0, (39, 40), 41, 42
CUT, PREFIX = "...", 400
# Newer ones say the same by another code; nobody may rely on the older one alone.
SAME_CODE = {"PGRST205": "42P01", "PGRST303": "PGRST301"}


@pytest.mark.parametrize("supabase_db", ["bare"], indirect=True)
def test_it_answers_as_the_recorded_one(supabase_stack: Stack) -> None:
    """The recording's REST part, in its order: statuses, headers and bodies, but for ids, times and words."""
    with psycopg.connect(supabase_stack.database, autocommit=True) as admin:
        admin.execute((DATA / "golden_rest.sql").read_bytes())
        supabase_stack.reload_schema()
    recorded = json.loads((DATA / "supabase_wire_golden.json").read_text(encoding="utf-8"))
    rest = [one for one in recorded if one["path"].startswith("/rest/")]
    assert len(rest) == 46
    ids: dict[str, str] = {}
    for number, one in enumerate(rest):
        answer = replay(supabase_stack, number, one, ids)
        if number == UNKNOWN:  # what was there before
            continue
        assert essence(answer.status_code, dict(answer.headers), answer.text, one) == essence(
            one["status"], one["resp_headers"], one["resp_body"], one
        ), f"{number}: {one['method']} {one['path']}"
        remember(ids, one["resp_body"], answer.text)


def replay(stack: Stack, number: int, one: dict[str, Any], ids: dict[str, str]) -> httpx.Response:
    key = stack.anon_key if number in ANONYMOUS else stack.key
    token = {UNREADABLE: "!", EXPIRED: stack.keys.sign("service_role", lives_s=-3600)}.get(number)
    body = ID.sub(lambda match: ids.get(match[0], match[0]), one["req_body"])
    with client_of(stack, key, token) as client:
        return client.request(one["method"], one["path"], headers=one["req_headers"], content=body or None)


def remember(ids: dict[str, str], recorded: str, real: str) -> None:
    """Which of our ids stands for which of theirs: a later request names it."""
    ours = [match[0] for match in ID.finditer(real)]
    ids.update(zip((match[0] for match in ID.finditer(recorded)), ours, strict=False))


def essence(status: int, headers: dict[str, str], body: str, one: dict[str, Any]) -> Any:
    kept = {name: headers.get(name) for name in ("content-range", "preference-applied", "content-profile")}
    kind = headers.get("content-type", "").partition(";")[0]
    text = TIME.sub("<time>", ID.sub("<id>", body))
    return status, kept, kind, "www-authenticate" in headers, content(text, kind, one)


def content(text: str, kind: str, one: dict[str, Any]) -> Any:
    if not text or kind != "application/json":
        return text
    if one["resp_body"].endswith(CUT):  # how many characters were recorded depends on what the ids hid
        return text[:PREFIX]
    parsed = json.loads(text)
    if isinstance(parsed, dict):
        return sorted(parsed), SAME_CODE.get(parsed["code"], parsed["code"]), bool(parsed["hint"])
    return [sorted(row) for row in parsed] if UNORDERED in one["path"] else parsed
