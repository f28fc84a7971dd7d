"""Starting ComfyUI: missing, broken, slow, robbed of its port, or impersonated; and nothing stays behind."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.comfy_jobs import Bench, gone, picture, until
from tests.conftest_comfy import BuiltinServer, free_port
from wan2gp.comfy_sidecar.errors import StartFailed
from wan2gp.comfy_sidecar.server import Folders, Installation
from wan2gp.handlers.api import TaskFailure
from wan2gp.protocol import Cancelled

Make = Callable[..., Bench]
SERVE = """
from wan2gp.comfy_sidecar.builtin.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[str], str]:
    """A ComfyUI whose main.py is the given text; it may end in SERVE."""

    def make(text: str) -> str:
        folder = tmp_path / "ComfyUI"
        folder.mkdir(exist_ok=True)
        (folder / "main.py").write_text("import os, subprocess, sys, time\n" + textwrap.dedent(text))
        return str(folder)

    return make


def own(bench: Make, path: str, **settings: object) -> Bench:
    return bench(path=path, python=sys.executable, args="", **settings)


def test_a_worker_without_comfyui_says_the_sentence_and_starts_nothing(bench: Make, tmp_path: Path) -> None:
    one = bench(path=str(tmp_path / "nowhere"))
    failure = one.fails({"workflow": picture()})
    assert (failure.code, failure.message) == ("comfy.not_installed", "ComfyUI not available on this worker")
    assert not failure.retryable and not failure.engine_down
    assert one.facts == []


def test_a_prewarmed_worker_without_comfyui_lives(bench: Make, tmp_path: Path) -> None:
    one = bench(path=str(tmp_path / "nowhere"))
    one.handler.warm()
    assert one.states == [("failed", {"reason": "ComfyUI not available on this worker"})]


def test_a_comfyui_installed_meanwhile_is_found(bench: Make, checkout: Callable[[str], str], tmp_path: Path) -> None:
    """Nothing is latched."""
    one = own(bench, str(tmp_path / "ComfyUI"))
    assert one.fails({"workflow": picture()}).code == "comfy.not_installed"
    checkout(SERVE)
    one.succeeds({"workflow": picture()})


def test_a_server_that_ends_while_starting_gives_its_last_lines(bench: Make, checkout: Callable[[str], str]) -> None:
    one = own(bench, checkout("print('loading'); raise ImportError('no module named torch')"))
    failure = one.fails({"workflow": picture()})
    assert failure.code == "comfy.start_failed" and failure.engine_down
    assert failure.message.startswith("ComfyUI startup failed: ")
    assert "exit code 1" in failure.message and "no module named torch" in failure.message
    assert one.states[-1][0] == "failed"
    assert "comfy.start_failed" in one.names()


def test_a_start_that_failed_is_tried_again(bench: Make, checkout: Callable[[str], str]) -> None:
    one = own(bench, checkout("sys.exit('broken')"))
    assert one.fails({"workflow": picture()}).code == "comfy.start_failed"
    checkout(SERVE)
    one.succeeds({"workflow": picture()})
    assert "comfy.restarting" in one.names()


def test_a_server_that_never_answers_is_given_up_with_its_family(bench: Make, checkout: Callable[[str], str]) -> None:
    """Also what made a session of its own."""
    path = checkout("""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        print("child", child.pid, flush=True)
        time.sleep(60)
    """)
    one = own(bench, path, start_timeout_s=1.0)
    failure = one.fails({"workflow": picture()})
    assert failure.code == "comfy.not_ready" and failure.engine_down
    assert failure.message.startswith("ComfyUI failed to become ready")
    child = int(failure.message.rpartition("child ")[2].split()[0])
    assert gone(one.server_pid()) and gone(child)


def test_a_killed_servers_children_do_not_go_on_alone(bench: Make, checkout: Callable[[str], str]) -> None:
    """An ffmpeg that lost its server would finish a file nobody wants."""
    path = checkout(
        """
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open("child", "w").write(str(child.pid))
    """
        + textwrap.dedent(SERVE).replace("\n", "\n        ")
    )
    one = own(bench, path)
    one.succeeds({"workflow": picture()})
    child = int((Path(path) / "child").read_text())
    os.kill(one.server_pid(), signal.SIGKILL)
    until(lambda: gone(child))
    one.succeeds({"workflow": picture()})


def test_an_interpreter_that_is_not_there_is_named(bench: Make, checkout: Callable[[str], str]) -> None:
    one = bench(path=checkout(SERVE), python="/nowhere/python")
    failure = one.fails({"workflow": picture()})
    assert failure.code == "comfy.start_failed"
    assert "/nowhere/python" in failure.message


def test_flags_that_cannot_be_read_are_a_failed_start(bench: Make) -> None:
    failure = bench(args="--cpu 'unclosed").fails({"workflow": picture()})
    assert failure.code == "comfy.start_failed" and "COMFY_ARGS" in failure.message


def test_a_users_flags_do_not_move_the_port_or_the_directories(bench: Make, tmp_path: Path) -> None:
    one = bench(args=f"--port 1 --listen 203.0.113.1 --output-directory {tmp_path} --user-directory {tmp_path}")
    one.succeeds({"workflow": picture()})
    assert list(tmp_path.glob("*.png")) == []


def test_another_server_on_the_port_is_left_alone(bench: Make, builtin_server: BuiltinServer) -> None:
    one = bench(port=builtin_server.port)
    one.succeeds({"workflow": picture()})
    assert [detail["port"] for state, detail in one.states if state == "ready"] != [builtin_server.port]
    assert builtin_server.get("/history") == {}


@pytest.mark.long
def test_a_foreign_answer_on_our_port_is_never_taken_for_ours(bench: Make, checkout: Callable[[str], str]) -> None:
    """Its directories are not the ones we gave."""
    path = checkout("""
        port = sys.argv[sys.argv.index("--port") + 1]
        home = os.path.join(os.getcwd(), "foreign")
        os.makedirs(home, exist_ok=True)
        command = [sys.executable, "-m", "wan2gp.comfy_sidecar.builtin", "--port", port, "--base-directory", home]
        subprocess.run(command)
    """)
    failure = own(bench, path, start_timeout_s=4.0).fails({"workflow": picture()})
    assert failure.code == "comfy.not_ready"


def test_a_port_that_was_snatched_is_replaced_at_once(bench: Make, checkout: Callable[[str], str]) -> None:
    path = checkout("""
        if not os.path.exists("second"):
            open("second", "w").close()
            sys.exit("OSError: [Errno 98] error while attempting to bind: address already in use")
        from wan2gp.comfy_sidecar.builtin.__main__ import main
        sys.exit(main(sys.argv[1:]))
    """)
    one = own(bench, path)
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.started") == 2


def test_output_nobody_reads_does_not_stop_the_server(bench: Make, checkout: Callable[[str], str]) -> None:
    """More than any pipe holds, before it serves."""
    path = checkout("sys.stdout.write('x' * 3_000_000 + chr(10)); sys.stderr.write('y' * 3_000_000 + chr(10))" + SERVE)
    own(bench, path).succeeds({"workflow": picture()})


def test_a_task_cancelled_during_the_start_lets_the_start_go_on(bench: Make, checkout: Callable[[str], str]) -> None:
    one = own(bench, checkout("time.sleep(1.0)" + SERVE))
    one.heard = lambda name, _: one.cancel.set() if name == "comfy.started" else None
    assert isinstance(one.run({"workflow": picture()}), Cancelled)
    one.cancel.clear()
    one.succeeds({"workflow": picture()})
    assert one.names().count("comfy.started") == 1
    assert one.names().count("comfy.first_task") == 1


def test_warming_starts_the_server_before_any_task(bench: Make) -> None:
    one = bench()
    one.handler.warm()
    assert one.names() == ["comfy.starting", "comfy.started", "comfy.ready", "comfy.started_ok"]
    one.succeeds({"workflow": picture()})
    assert "comfy.first_task" not in one.names()


def test_warming_a_broken_engine_raises(bench: Make, checkout: Callable[[str], str]) -> None:
    with pytest.raises(TaskFailure, match="startup failed"):
        own(bench, checkout("sys.exit(3)")).handler.warm()


def test_the_process_has_its_own_group_no_input_and_hears_interrupts(bench: Make) -> None:
    """SIGINT is inherited as ignored from a worker started with `&`: then ComfyUI would never stop cleanly."""
    one = bench()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        one.handler.warm()
    finally:
        signal.signal(signal.SIGINT, before)
    pid = one.server_pid()
    assert os.getpgid(pid) == os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")), 16)
    assert not ignored >> (signal.SIGINT - 1) & 1


def test_what_an_earlier_life_left_is_swept(bench: Make) -> None:
    one = bench()
    old = [one.engine / "output" / "wan2gp" / "t" / "x.mp4", one.engine / "temp" / "abc" / "temp" / "y.png"]
    for path in old:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    one.handler.warm()
    assert not any(path.exists() for path in old)


def test_two_handlers_share_a_checkout_and_nothing_else(bench: Make) -> None:
    port = free_port()
    first, second = bench(port=port), bench(port=port)
    for one in (first, second):
        one.succeeds({"workflow": picture("same")})
    homes = [psutil.Process(one.server_pid()).cmdline() for one in (first, second)]
    assert not {part for part in homes[0] if part.startswith(str(first.path))} & set(homes[1])


def test_the_checkouts_own_environment_is_used(tmp_path: Path) -> None:
    for name in (".venv", "venv"):
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch(0o755)
        assert Installation(str(tmp_path)).interpreter() == str(python)
    assert Installation(str(tmp_path), python="/usr/bin/python3").interpreter() == "/usr/bin/python3"
    assert Installation("builtin").interpreter() == sys.executable


def test_only_one_that_has_a_database_is_told_where_it_is(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    assert "--database-url" not in Installation("builtin").command(folders, 1)
    assert "--database-url" not in Installation(str(tmp_path)).command(folders, 1)
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "cli_args.py").write_text('parser.add_argument("--database-url", type=str)')
    real = Installation(str(tmp_path), args="--cpu --fast 'a b'").command(folders, 1)
    assert real[real.index("--database-url") + 1] == f"sqlite:///{tmp_path}/user/comfyui.db"
    assert real[2:5] == ["--cpu", "--fast", "a b"]
    with pytest.raises(StartFailed):
        Installation(str(tmp_path), args="'").command(folders, 1)
