"""A worker, what there is to steal and to break around it, and the vices that are let loose in it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict

import wan2gp
from tests.comfy_jobs import picture
from tests.conftest_comfy import free_port
from tests.conftest_db import PgServer
from tests.conftest_worker import PATIENCE_S, ROOT, Row, Worker, eventually
from tests.hostile.victim import SECRET
from tests.shared_worker import shared_worker

NODES = Path(__file__).parent / "hostile" / "node.py"
PLUGIN = "hostile = tests.hostile.specs:hostile\nvictim = tests.hostile.specs:victim\nnoop = tests.vices.specs:noop\n"
STRANGER = "import signal, time\nsignal.signal(signal.SIGUSR1, lambda *_: print('hit', flush=True))\ntime.sleep(600)"
PACK = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.hostile.node import NODE_CLASS_MAPPINGS\n"
COMFY = os.environ.get("COMFY_PATH", "")
START_S = 200.0
"""A real ComfyUI imports torch at its start."""
REAL = pytest.param(
    "real",
    marks=[
        pytest.mark.long,
        pytest.mark.real_comfy,
        pytest.mark.timeout(300),
        pytest.mark.skipif(not (Path(COMFY) / "main.py").is_file(), reason="COMFY_PATH names no ComfyUI"),
    ],
)
IN_HANDLER = ("handler", "user")
USER = pytest.param(
    "user",
    marks=[pytest.mark.long, pytest.mark.skipif(os.geteuid() != 0, reason="only root can give user ids away")],
)
BUILTIN = pytest.param("builtin", marks=pytest.mark.long)
Saw = Mapping[str, str]


def plugin(directory: Path) -> Path:
    """A folder which, on PYTHONPATH, is an installed plug-in with the vices and their victim."""
    info = directory / "wan2gp_hostile-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wan2gp-hostile\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[wan2gp.handlers]\n{PLUGIN}")
    return directory


@dataclass
class Ears:
    """Ports and names of this machine that stand for everything a handler has no business with."""

    tcp: socket.socket = field(default_factory=socket.socket)
    udp: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    names: tuple[socket.socket, socket.socket] = field(
        default_factory=lambda: (socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    )

    def __post_init__(self) -> None:
        for one in (self.tcp, self.udp):
            one.bind(("127.0.0.1", 0))
        self.name = f"w2g-hostile-{os.getpid()}-{self.tcp.getsockname()[1]}"
        self.names[0].bind(f"\0{self.name}")
        self.names[1].bind(f"\0{self.name}-datagrams")
        self.tcp.listen()
        self.names[0].listen()

    @property
    def ports(self) -> dict[str, Any]:
        return {"tcp": {"elsewhere": self.tcp.getsockname()[1]}, "udp": {"elsewhere": self.udp.getsockname()[1]}}

    def heard(self) -> list[str]:
        """What got through, as seen from here."""
        found = []
        for what, one in (("TCP", self.tcp), ("UDP", self.udp), ("name", self.names[0]), ("names", self.names[1])):
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    if one.type == socket.SOCK_STREAM:
                        one.accept()[0].close()
                    else:
                        one.recv(100)
                    found.append(what)
        return found

    def close(self) -> None:
        for one in (self.tcp, self.udp, *self.names):
            one.close()


@dataclass
class Scene:
    """`kind` is where the vices run: in a ``handler`` of their own, in one that surely has its own ``user``, or in a
    ComfyUI that is ``builtin`` or ``real``.
    `home` is that of the worker's user; `stranger` is a process that has nothing to do with it."""

    kind: str
    worker: Worker
    home: Path
    ears: Ears
    stranger: subprocess.Popen[str]
    terminal: str
    postgres: dict[str, Any]
    nonces: Iterator[int] = field(default_factory=lambda: iter(range(1, 1 << 20)))

    @property
    def data_dir(self) -> Path:
        return self.worker.data_dir

    @property
    def run_dir(self) -> Path:
        return Path(self.worker.environ["WAN2GP_RUN_DIR"])

    @property
    def handler(self) -> str:
        return "hostile" if self.kind in IN_HANDLER else "comfy"

    def insert(self, vice: str, **prey: Any) -> str:
        """A task in which it may do its worst."""
        if self.kind in IN_HANDLER:
            return self.worker.insert(vice, prey, max_attempts=1)
        inputs = {"vice": vice, "prey": json.dumps(prey), "nonce": next(self.nonces)}
        graph = {"1": {"class_type": "TestHostile", "inputs": inputs}}
        return self.worker.insert("comfy", {"workflow": graph}, max_attempts=1)

    def saw(self, vice: str, **prey: Any) -> Saw:
        """What became of its tries. The worker then serves the next task."""
        row = self.ended(self.insert(vice, **prey))
        assert row["status"] == "Complete", row["error_message"]
        self.serves()
        result = row["result_data"]
        found: dict[str, str] = result["saw"] if self.kind in IN_HANDLER else json.loads(result["text"]["1"][0])
        assert found
        return found

    def ended(self, task: str) -> Row:
        return self.worker.ended(task, START_S if self.kind == "real" else PATIENCE_S)

    def serves(self) -> None:
        """The same handler and another one take the next tasks, and do them well."""
        nonce = next(self.nonces)
        harmless = self.insert("nothing") if self.kind in IN_HANDLER else None
        task = harmless or self.worker.insert("comfy", {"workflow": picture(color=nonce)}, max_attempts=1)
        tasks = [task, self.worker.insert("noop")]
        rows = [self.ended(task) for task in tasks]
        assert [row["status"] for row in rows] == ["Complete", "Complete"], [row["error_message"] for row in rows]

    def pids(self) -> dict[str, int]:
        """Processes that are none of a handler's business."""
        victims_task(self)
        victim, shim = self.worker.handler_pid("victim"), psutil.Process(self.worker.handler_pid(self.handler)).ppid()
        supervisor = self.worker.process.pid
        return {"supervisor": supervisor, "shim": shim, "victim": victim, "stranger": self.stranger.pid}

    def has_own_user(self) -> bool:
        """What a kernel's mode bits protect is closed to it."""
        return psutil.Process(self.worker.handler_pid(self.handler)).uids().real != os.geteuid()

    def kernel_limits_memory(self) -> bool:
        """Whether it runs in a control group of its own that counts memory."""
        groups = Path(f"/proc/{self.worker.handler_pid(self.handler)}/cgroup").read_text().splitlines()
        return any("wan2gp" in line for line in groups if ":memory:" in line or line.startswith("0::"))

    def work_of(self, task: str) -> Path:
        """The directory of a task's only attempt."""

        def look() -> Path | None:
            return next((path.parent for path in (self.data_dir / "work").rglob("out") if task in str(path)), None)

        found: Path = eventually("the victim works", look)
        return found


@contextlib.contextmanager
def _stranger() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", STRANGER]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _terminal() -> Iterator[str]:
    ours, theirs = pty.openpty()
    try:
        yield os.ttyname(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A directory that other users may enter: pytest's own are closed to them."""
    path = Path(tempfile.mkdtemp(prefix="w2g-hostile-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def scene(kind: str, server: PgServer, *options: str, **environ: str) -> Iterator[Scene]:
    """A worker with the vices' plug-in, among things worth a theft; ready to serve."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(open_folder())
        (home := place / "home" / ".ssh").mkdir(parents=True)
        (home / "id_ed25519").write_text(SECRET)
        path = f"{plugin(place / 'hostile-plugin')}:{ROOT}"
        variables = {"HOME": str(home.parent), "PYTHONPATH": path, **engine(kind, place), **environ}
        within = opened_interpreter(place) if kind == "user" else ()
        worker = stack.enter_context(shared_worker(place, server, *options, within=within, **variables))
        plant(worker)
        ears = Ears()
        stack.callback(ears.close)
        stranger, terminal = stack.enter_context(_stranger()), stack.enter_context(_terminal())
        one = Scene(kind, worker, home.parent, ears, stranger, terminal, postgres(worker.url))
        one.serves()
        yield one


def opened_interpreter(place: Path) -> tuple[str, ...]:
    """What to start a worker within where other users do not reach the interpreter, as below /root: there, for the
    worker alone, the closed directory is one that holds nothing but the interpreter and is open."""
    base = Path(sys.base_prefix).resolve()
    closed = next((path for path in reversed(base.parents) if not path.stat().st_mode & 0o001), None)
    if closed is None:
        return ()
    (held := place / "python").mkdir()
    script = 'mount --bind "$1" "$2"; mount -t tmpfs -o mode=755 none "$3"; mkdir -p "$1"; mount --bind "$2" "$1"'
    script = f'set -e; {script}; shift 3; exec "$@"'
    return (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
        str(base),
        str(held),
        str(closed),
    )


def engine(kind: str, place: Path) -> dict[str, str]:
    """Settings of the ComfyUI that has the vices' node."""
    if kind != "real":
        return {"COMFY_ARGS": f"--extra-nodes {NODES}", "COMFY_PORT": str(free_port())}
    (pack := place / "nodes" / "hostile").mkdir(parents=True)
    (pack / "__init__.py").write_text(PACK)
    (listed := place / "paths.yaml").write_text(f"tests:\n  custom_nodes: {pack.parent}\n")
    args = f"{os.environ.get('COMFY_ARGS', '--cpu')} --extra-model-paths-config {listed}"
    python = os.environ.get("COMFY_PYTHON", "")
    return {"COMFY_PATH": COMFY, "COMFY_PYTHON": python, "COMFY_ARGS": args, "COMFY_PORT": str(free_port())}


def plant(worker: Worker) -> None:
    """What a worker that is in use has: a result, and the directory of a database."""
    for name in ("outputs", "pg"):
        (folder := worker.data_dir / name).mkdir(exist_ok=True)
        (folder / "secret").write_text(SECRET)


def postgres(url: str) -> dict[str, Any]:
    known = conninfo_to_dict(url)
    socket_path = f"{known['host']}/.s.PGSQL.{known['port']}"
    return {"path": socket_path, "user": known.get("user", "postgres"), "database": known["dbname"]}


def loot(scene: Scene) -> dict[str, str]:
    """Files to read, by what they are."""
    data, work = scene.data_dir, scene.work_of(victims_task(scene))
    return {
        "the database": str(data / "pg" / "secret"),
        "another task's file": str(work / "out"),
        "another handler's home": str(data / "handlers" / "victim" / "kept"),
        "the user's key": str(scene.home / ".ssh" / "id_ed25519"),
        "the spool": str(data / "spool" / "journal"),
        "a result": str(data / "outputs" / "secret"),
        "the log": str(data / "logs" / "worker.log"),
        "the way to the supervisor": str(data / "run.json"),
        "the word that it asks for": str(data / "control.token"),
    }


def victims_task(scene: Scene) -> str:
    """The task under way at the honest handler; begun at the first call."""
    rows = scene.worker.sql("SELECT id FROM tasks WHERE task_type = 'victim' AND status <> 'Cancelled'")
    task = str(rows[0]["id"]) if rows else scene.worker.insert("victim")
    scene.worker.running(task)
    return task


def code_folders(scene: Scene) -> dict[str, str]:
    """Where a file that is put there would be run by others, and where it would be taken for theirs."""
    package = Path(wan2gp.__file__).parent
    return {
        "our package": str(package),
        "our bytecode": str(package / "__pycache__"),
        "installed packages": sysconfig.get_path("purelib"),
        "the tests": str(NODES.parent),
        "the data directory": str(scene.data_dir),
        "the results": str(scene.data_dir / "outputs"),
        "the spool": str(scene.data_dir / "spool"),
        "another handler's home": str(scene.data_dir / "handlers" / "victim"),
        "the user's home": str(scene.home),
        "the user's keys": str(scene.home / ".ssh"),
        "the sockets": scene.worker.environ["WAN2GP_RUN_DIR"],
    }
