"""`wan2gp-ctl doctor` and the start-up line: a missing protection is told, and where it is required nothing starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_jobs import picture
from tests.comfy_worker import SERVE, checkout
from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT, Worker
from tests.shared_worker import shared_worker
from tests.test_ctl import ctl, one_sentence
from tests.test_sandbox_refused import LANDLOCK
from wan2gp.denials import denied_connection, denied_path, denied_paths
from wan2gp.profile import Layer
from wan2gp.sandbox import landlock
from wan2gp.sandbox.kernel import MACHINE, SECCOMP
from wan2gp.supervisor.users import NOT_ROOT

CONTAINER = """
import os, sys
from wan2gp.sandbox import bpf, privileges, seccomp
privileges.no_new_privileges()
forbidden = tuple(map(int, sys.argv[1].split(",")))
seccomp.enforce(bpf.assemble([*bpf.load_number(), *bpf.when(forbidden, bpf.refuse(1), bpf.ALLOW)]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Forbids system calls, as a container's profile may, to the program that it becomes."""


def in_container(
    without: Sequence[int], data_dir: Path, module: str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CONTAINER, ",".join(map(str, without)), "-m", module, "--data-dir", str(data_dir)]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    env = {**kept, "PYTHONPATH": str(ROOT), "COMFY_PATH": "builtin", "WAN2GP_SANDBOX_UID_BASE": "0", **environ}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, timeout=60)


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout or done.stderr)
    assert (done.returncode == 0) == found["sound"], done.stderr
    return found


def layers(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {layer["name"]: layer for layer in found["layers"]}


# --- without a supervisor ---------------------------------------------------------------------------------------------


def test_the_doctor_needs_no_supervisor_and_leaves_nothing(tmp_path: Path) -> None:
    found = report(ctl(tmp_path, "doctor", "--json", COMFY_PATH="builtin"))
    assert not found["running"] and list(tmp_path.iterdir()) == []
    assert list(layers(found)) == [layer.value for layer in Layer]
    assert {handler["name"] for handler in found["handlers"]} == {"comfy", "wan", "media", "courier"}
    for layer in found["layers"]:
        assert layer["about"] and (layer["state"] == "kept") == (layer["reason"] is None), layer
    shown = ctl(tmp_path, "doctor", COMFY_PATH="builtin").stdout
    assert all(layer.value in shown for layer in Layer) and "none runs" in shown


def test_a_layer_that_a_container_forbids_is_named_with_a_remedy(tmp_path: Path) -> None:
    found = report(in_container([LANDLOCK], tmp_path, "wan2gp.ctl", "doctor", "--json"))
    assert not found["sound"]
    for name in ("files", "scope", "tcp"):
        assert layers(found)[name]["state"] == "missing" and "Landlock" in layers(found)[name]["remedy"]
    assert layers(found)["system_calls"]["state"] == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give user ids away")
def test_a_base_of_no_user_ids_is_a_missing_layer_for_root(tmp_path: Path) -> None:
    found = report(ctl(tmp_path, "doctor", "--json", COMFY_PATH="builtin", WAN2GP_SANDBOX_UID_BASE="0"))
    assert layers(found)["user"]["state"] == "missing" and "sandbox.uid_base is 0" in layers(found)["user"]["reason"]


def test_a_sandbox_that_is_off_is_not_sound(tmp_path: Path) -> None:
    found = report(ctl(tmp_path, "doctor", "--json", COMFY_PATH="builtin", WAN2GP_SANDBOX="off"))
    assert {layer["state"] for layer in found["layers"]} == {"off"} and not found["sound"]


def test_a_mistake_in_the_configuration_is_one_sentence(tmp_path: Path) -> None:
    assert "COMFY_PORT" in one_sentence(ctl(tmp_path, "doctor", COMFY_PORT="x"), 2)


def test_what_handlers_were_denied_is_listed_with_the_setting_that_allows_it(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "handlers"
    logs.mkdir(parents=True)
    (logs / "comfy.log.1").write_text("PermissionError: [Errno 13] Permission denied: '/srv/nodes/cache.json'\n")
    (logs / "comfy.log").write_text(
        "PermissionError: [Errno 13] Permission denied: '/srv/nodes/cache.json'\n"
        "touch: cannot touch '/usr/share/x': Permission denied\n"
        f"cat: {tmp_path}/spool/journal: Permission denied\n"
        "PermissionError: [Errno 13] Permission denied: '/srv/allowed/x'\n"
    )
    done = ctl(tmp_path, "doctor", "--json", COMFY_PATH="builtin", WAN2GP_SANDBOX_READ_PATHS="/usr")
    found = {one["path"]: one for one in report(done)["denied"]}
    assert found["/srv/nodes/cache.json"]["count"] == 2
    assert "sandbox.read_paths" in found["/srv/nodes/cache.json"]["setting"]
    assert found["/usr/share/x"]["setting"] == "comfy.writable_paths", "it may be read already"
    assert found[f"{tmp_path}/spool/journal"]["setting"] is None, "nothing opens that"


# --- how programs say it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("PermissionError: [Errno 13] Permission denied: '/a/b c/d.json'", "/a/b c/d.json"),
        ("OSError: [Errno 18] Invalid cross-device link: '/a/x' -> '/b/y'", "/a/x"),
        ("sh: 1: cannot create /a/b: Permission denied", "/a/b"),
        ("bash: line 1: /a/b: Permission denied", "/a/b"),
        ("[out#0 @ 0x5d] Error opening output /a/out.mp4: Permission denied", "/a/out.mp4"),
        ("fopen(/a/b.bin): Operation not permitted", "/a/b.bin"),
        ("PermissionError: [Errno 1] Operation not permitted", None),
        ("wrote '/a/b'", None),
    ],
)
def test_a_denied_path_is_found_however_it_is_said(line: str, path: str | None) -> None:
    assert denied_path(line) == path


@pytest.mark.parametrize(
    ("line", "denied"),
    [
        ("PermissionError: [Errno 13] Permission denied", True),
        ("urllib.error.URLError: <urlopen error [Errno 13] Permission denied>", True),
        ("requests.exceptions.ConnectionError: HTTPConnectionPool(host='127.0.0.1', port=8188): Max retries exceeded"
         " with url: /prompt (Caused by NewConnectionError('Failed to establish a new connection: [Errno 13] Permission"
         " denied'))", True),
        ("aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host 127.0.0.1:8188 ssl:default"
         " [Permission denied]", True),
        ("PermissionError: [Errno 13] Permission denied: '/a/connect'", False),
        ("ConnectionRefusedError: [Errno 111] Connection refused", False),
    ],
)  # fmt: skip
def test_a_denied_connection_is_no_denied_path(line: str, denied: bool) -> None:
    """The path of a URL is no file that a setting would open."""
    assert denied_connection(line) is denied
    assert not denied or denied_path(line) is None


def test_denied_paths_are_counted_in_the_order_in_which_they_came() -> None:
    lines = ["Permission denied: '/b'", "nothing", "Permission denied: '/a'", "Permission denied: '/b'"]
    assert list(denied_paths(lines).items()) == [("/b", 2), ("/a", 1)]


# --- a worker ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_requires_what_is_missing_does_not_start(tmp_path: Path) -> None:
    required = {"WAN2GP_SANDBOX": "require", "WAN2GP_QUEUE": "embedded"}
    done = in_container([SECCOMP[MACHINE]], tmp_path, "wan2gp.entry", **required)
    assert done.returncode == 2 and "sandbox.mode = require, and the layer system_calls is missing" in done.stderr
    assert "set sandbox.mode to best" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "pg").exists() and not (tmp_path / "handlers").exists()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    with shared_worker(tmp_path_factory.mktemp("doctor"), _pg_session) as worker:
        yield worker


def test_a_handler_lives_in_directories_of_its_own(lasting: Worker) -> None:
    row = lasting.ended(lasting.insert("witness"))
    seen, own = row["result_data"]["environ"], f"{lasting.data_dir}/handlers/witness"
    assert seen["HOME"] == f"{own}/home" and seen["TMPDIR"] == f"{own}/tmp"
    assert all(Path(place).is_dir() for place in (seen["HOME"], seen["TMPDIR"], seen["XDG_CACHE_HOME"]))


def test_status_log_and_heartbeat_say_which_protection_is_missing(lasting: Worker) -> None:
    lasting.ended(lasting.insert("noop"))
    worker = lasting.status()["worker"]
    handler = next(one for one in worker["handlers"] if one["name"] == "noop")
    assert worker["sandbox"] == "best"
    assert set(handler["unprotected"]) <= set(worker["unprotected"]), "a lack that was not told at the start"
    assert (handler["user_id"] is None) == (os.geteuid() != 0 or "user" in handler["unprotected"])
    first = "Handlers run in a sandbox without all of its layers" if worker["unprotected"] else "with all its layers"
    assert first in lasting.log.partition("started. Polling")[0]
    row = lasting.sql("SELECT metadata FROM workers")[0]["metadata"]
    assert row["sandbox"] == {"mode": "best", "missing": list(worker["unprotected"])}


def test_the_doctor_asks_the_supervisor_that_runs(lasting: Worker) -> None:
    found = report(lasting.ctl("doctor", "--json"))
    told = lasting.status()["worker"]["unprotected"]
    assert found["running"]
    assert {name for name, layer in layers(found).items() if layer["reason"] not in (None, NOT_ROOT)} == set(told)


def test_a_node_that_writes_into_its_own_folder_is_denied_told_of_and_costs_nobody_else(
    start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    writes = """
        try:
            open(os.path.join(os.path.dirname(__file__), "cache.json"), "w")
        except OSError as error:
            print(type(error).__name__ + ":", error, flush=True)
        try:
            socket.create_connection(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
        except OSError as error:
            print(type(error).__name__ + ":", error, flush=True)
    """
    folder = checkout(tmp_path / "comfy", f"import socket\n{textwrap.dedent(writes)}{SERVE}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        worker = start_worker(environ={"COMFY_PATH": folder, "COMFY_PORT": str(port)})
        assert worker.ended(worker.insert("comfy", {"workflow": picture()}))["status"] == "Complete"
        assert worker.handler("comfy")["engine"]["port"] != port, "one of the spare ports is granted too"
    assert f"ComfyUI was denied {folder}/cache.json" in worker.log
    assert worker.log.count("A node in ComfyUI was denied a connection") == (1 if landlock.abi() >= 4 else 0)
    denied = report(worker.ctl("doctor", "--json"))["denied"]
    assert [(one["path"], one["setting"]) for one in denied] == [(f"{folder}/cache.json", "comfy.writable_paths")]
