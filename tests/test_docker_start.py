"""The image's start script with a real worker behind it: ssh for the owner, any user, health, and an orderly stop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.comfy_jobs import gone, picture
from tests.conftest_worker import eventually
from tests.dockerfile_parts import ROOT, only

START = str(ROOT / "docker" / "start.sh")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIexample owner@example.com"
SECRET = "service-key-that-nobody-may-see"
STRANGER = 1000


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
    path.chmod(0o755)
    return str(path)


@dataclass
class Machine:
    """A folder in the place of a container's file system."""

    path: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.path / "root"),
            "PYTHONPATH": str(ROOT),
            "WAN2GP_DATA_DIR": str(self.data),
            "TMPDIR": str(self.path / "tmp"),
            "WAN2GP_STOP_GRACE_S": "1",
            "WAN2GP_SSH_ETC": str(self.path / "ssh"),
            "WAN2GP_SSHD": str(self.path / "sshd"),
            "WAN2GP_ENVIRONMENT_FILE": str(self.path / "environment"),
            "COMFY_PATH": "builtin",
            "SUPABASE_SERVICE_ROLE_KEY": SECRET,
        }

    def run(self, *command: str, prefix: tuple[str, ...] = (), **environ: str) -> subprocess.CompletedProcess[str]:
        """The script with a command that ends."""
        variables = {**self.environ, **environ}
        words = [*prefix, START, *command]
        return subprocess.run(words, capture_output=True, text=True, env=variables, timeout=60)

    def start(self, *command: str, prefix: tuple[str, ...] = (), **environ: str) -> subprocess.Popen[bytes]:
        """The script with a worker; returns when it claims."""
        with (self.path / "screen").open("ab") as screen:
            process = subprocess.Popen(
                [*prefix, START, *command],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
                cwd="/",
            )
        self.started.append(process)

        def claims() -> bool:
            assert process.poll() is None, (self.path / "screen").read_text()
            log = self.data / "logs" / "worker.log"
            return log.exists() and "started. Polling" in log.read_text()

        eventually("the worker starts", claims, 60.0)
        return process


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Below the temp folder, where any user can go: pytest's own folders are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="w2g-"))
    path.chmod(0o755)
    one = Machine(path)
    for name in ("root", "ssh", "bin"):
        (path / name).mkdir()
    for folder in (one.data, path / "tmp"):
        folder.mkdir()
        folder.chmod(0o1777)
    # As /usr/local/bin of the image: the programs by their names.
    python = reachable_python() if os.geteuid() == 0 else sys.executable
    site = next(part for part in sys.path if part.endswith("site-packages"))
    for name, module in (("wan2gp-supervisor", "wan2gp.entry"), ("wan2gp-ctl", "wan2gp.ctl")):
        # `python -m` with the packages of this environment: the interpreter may be another than ours.
        script(path / "bin" / name, f'PYTHONPATH={ROOT}:{site} exec {python} -m {module} "$@"\n')
    script(path / "bin" / "ssh-keygen", f"touch {path}/ssh/ssh_host_ed25519_key\n")
    script(
        path / "sshd", f"env >{path}/sshd-environment\nsetsid sleep 300 >/dev/null 2>&1 &\necho $! >>{path}/sshd-pid\n"
    )
    yield one
    for process in one.started:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()
    daemons = path / "sshd-pid"
    for pid in daemons.read_text().split() if daemons.exists() else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)


def reachable_python() -> str:
    """An interpreter of our version in a folder that every user may enter: ours may be in root's home."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        if os.access(candidate, os.X_OK) and all(
            parent.stat().st_mode & 1 for parent in Path(candidate).resolve().parents
        ):
            return candidate
    return sys.executable


def as_stranger() -> tuple[str, ...]:
    """The words that make a command run as a user whom the machine need not know; skips where that is impossible."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to become another user")
    python = reachable_python()
    prefix = ("setpriv", "--reuid", str(STRANGER), "--regid", str(STRANGER), "--clear-groups")
    tried = subprocess.run([*prefix, python, "-c", "import sys"], capture_output=True, cwd="/")
    if tried.returncode != 0 or subprocess.run([*prefix, "test", "-r", str(ROOT / "setup.cfg")]).returncode != 0:
        pytest.skip("no interpreter, or no checkout, in a folder that another user may enter")
    return prefix


# --- the script ---


def test_the_command_takes_the_scripts_place(machine: Machine) -> None:
    done = machine.run("sh", "-c", "echo $$ $PPID; cat /proc/$$/cmdline | tr '\\0' ' '")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) == os.getpid()


@pytest.mark.parametrize("given", [(), ("--version",)])
def test_options_alone_are_the_supervisors(machine: Machine, given: tuple[str, ...]) -> None:
    script(machine.path / "bin" / "wan2gp-supervisor", 'echo "supervisor $*"\n')
    assert machine.run(*given).stdout.strip() == " ".join(["supervisor", *given]).strip()


def test_a_data_directory_that_cannot_be_written_is_named_at_once(machine: Machine) -> None:
    done = machine.run("true", WAN2GP_DATA_DIR="/proc/nowhere")
    assert done.returncode == 2
    assert "/proc/nowhere" in done.stderr and "WAN2GP_DATA_DIR" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="an sshd is started for root alone")
def test_the_owners_key_is_installed_once_and_sshd_learns_no_secret(machine: Machine) -> None:
    for _ in range(2):
        assert machine.run("true", PUBLIC_KEY=KEY).returncode == 0
    keys = machine.path / "root" / ".ssh" / "authorized_keys"
    assert keys.read_text() == KEY + "\n"
    assert (keys.stat().st_mode & 0o777, keys.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (machine.path / "ssh" / "ssh_host_ed25519_key").exists()
    assert (machine.path / "environment").read_text() == f"WAN2GP_DATA_DIR={machine.data}\n"
    assert SECRET not in (machine.path / "sshd-environment").read_text()


def test_without_a_key_there_is_no_ssh(machine: Machine) -> None:
    assert machine.run("true").stderr == ""
    assert not (machine.path / "sshd-environment").exists() and not (machine.path / "root" / ".ssh").exists()


@pytest.mark.parametrize("trouble", ["exit 1", None])
def test_an_sshd_in_trouble_costs_no_task(machine: Machine, trouble: str | None) -> None:
    if trouble is None:
        (machine.path / "sshd").unlink()
    else:
        script(machine.path / "sshd", trouble + "\n")
    done = machine.run("echo", "worker", PUBLIC_KEY=KEY)
    assert (done.returncode, done.stdout) == (0, "worker\n")
    assert "going on without ssh" in done.stderr


def test_a_user_whom_the_image_does_not_know_has_a_home_and_a_name(machine: Machine) -> None:
    done = machine.run("sh", "-c", "echo $HOME; echo $USER; echo $LOGNAME", prefix=as_stranger(), PUBLIC_KEY=KEY)
    home, user, logname = done.stdout.splitlines()
    assert home == str(machine.data / "home") and Path(home).stat().st_uid == STRANGER
    assert user and user == logname
    assert "going on without ssh" in done.stderr


# --- a worker behind it ---


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="an sshd is started for root alone")
def test_the_base_images_sshd_lives_as_long_as_the_container(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    process = machine.start(PUBLIC_KEY=KEY)
    sshd = int((machine.path / "sshd-pid").read_text())
    look_for_strays(machine, process.pid)
    assert not gone(sshd)
    process.terminate()
    assert process.wait(30) == 0
    assert not gone(sshd)


@pytest.mark.long
def test_what_an_entry_script_started_before_it_became_the_worker_is_not_ours_to_end(machine: Machine) -> None:
    """`service ssh start; exec wan2gp-supervisor`: as pid 1 of a container the worker is the sshd's parent."""
    entry = f"setsid sleep 300 & echo $! >{machine.path}/sshd-pid; exec wan2gp-supervisor"
    process = machine.start("sh", "-c", entry)
    daemon = int((machine.path / "sshd-pid").read_text())
    assert psutil.Process(daemon).ppid() == process.pid
    look_for_strays(machine, process.pid)
    assert not gone(daemon)
    process.terminate()
    assert process.wait(30) == 0
    assert not gone(daemon)


def look_for_strays(machine: Machine, supervisor: int) -> None:
    """Make a real stray, and wait until the worker has ended it: then it has looked at all its children."""
    submitted(machine)
    shim = next(
        child
        for child in psutil.Process(supervisor).children()
        if any("wan2gp.handlers" in " ".join(below.cmdline()) for below in child.children())
    )
    (handler,) = [one for one in shim.children() if "wan2gp.handlers" in " ".join(one.cmdline())]
    handler.suspend()  # it would end by itself with its shim
    shim.kill()
    eventually("the stray is ended", lambda: gone(handler.pid))


def submitted(machine: Machine, prefix: tuple[str, ...] = ()) -> str:
    """A task that is done, by `wan2gp-ctl`; what it printed."""
    params = machine.data / "params.json"
    params.write_text(json.dumps({"workflow": picture()}))
    params.chmod(0o644)
    command = [*prefix, str(machine.path / "bin" / "wan2gp-ctl")]
    done = subprocess.run(
        [*command, "submit", "comfy", "--params", str(params), "--wait"],
        capture_output=True,
        text=True,
        env=machine.environ,
        cwd="/",
        timeout=90,
    )
    assert done.returncode == 0, done.stderr + (machine.path / "screen").read_text()[-3000:]
    return done.stdout


@pytest.mark.long
def test_any_user_can_run_a_worker_from_its_database_to_a_result(machine: Machine) -> None:
    """`docker run --user 1000` without a configured database: the embedded one, the engine, the files."""
    prefix = as_stranger()
    process = machine.start(prefix=prefix)
    place = Path(submitted(machine, prefix).splitlines()[-1])
    assert place.is_file() and place.stat().st_uid == STRANGER
    process.terminate()
    assert process.wait(30) == 0


@pytest.mark.long
def test_the_health_check_tells_a_worker_that_answers_from_one_that_does_not(machine: Machine) -> None:
    check = only("worker", "HEALTHCHECK").exec_form()
    assert not healthy(machine, check)
    process = machine.start()
    assert healthy(machine, check)
    process.send_signal(signal.SIGSTOP)
    try:
        assert not healthy(machine, check, 2.0)
    finally:
        process.send_signal(signal.SIGCONT)
    process.terminate()
    assert process.wait(30) == 0
    assert not healthy(machine, check)


def healthy(machine: Machine, check: list[str], limit_s: float | None = None) -> bool:
    """As the engine asks: a failure, or no answer within the limit (the Dockerfile's), is sickness."""
    words = [str(machine.path / "bin" / check[0]), *check[1:]]
    if limit_s is None:
        limit_s = float(only("worker", "HEALTHCHECK").rest.partition("--timeout=")[2].partition("s")[0])
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(words, env=machine.environ, cwd="/", capture_output=True, timeout=limit_s)
        return done.returncode == 0
    return False


@pytest.mark.long
@pytest.mark.skipif(shutil.which("tini") is None, reason="tini is not installed here")
def test_a_stop_goes_through_the_images_init(machine: Machine) -> None:
    entrypoint = only("worker", "ENTRYPOINT").exec_form()
    assert entrypoint[-1] == "wan2gp-start"
    process = machine.start(prefix=tuple(entrypoint[:-1]))
    process.terminate()
    assert process.wait(30) == 0
