"""500 MB in and 500 MB out: what that costs the supervisor and the courier in memory."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.bench.stage import all_ended, connect, say, working
from tests.conftest_worker import ROOT, Worker
from wan2gp.demo_stage import make_video

LARGE = 500 * 10**6
GROWTH_MB = 20.0
CHUNK = 1 << 20


def bulk() -> bool:
    """Peaks, not what is left: a file held in memory for a moment would count."""
    folder = Path(tempfile.mkdtemp(prefix="w2g-bulk-"))
    try:
        _plugin(folder)
        with working(PYTHONPATH=f"{folder}:{ROOT}", WAN2GP_ALLOW_PRIVATE_URLS="1") as worker, _serve(folder) as url:
            return _input(worker, url) & _output(worker)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _input(worker: Worker, url: str) -> bool:
    """Through the engine, which reads the whole file for its hash, and once more from the cache."""
    run(worker, "comfy", _row(f"{url}/small.mp4"))
    pids = {"supervisor": worker.process.pid, "courier": worker.handler_pid("courier")}
    good = True
    for what in ("input, downloaded", "input, from the cache"):
        before = {name: mark(pid) for name, pid in pids.items()}
        seconds = run(worker, "comfy", _row(f"{url}/large.mp4"))
        good &= report(what, pids, before, seconds)
    return good


def _output(worker: Worker) -> bool:
    run(worker, "bulky", {"bytes": 1000})
    pids = {"supervisor": worker.process.pid}
    before = {name: mark(pid) for name, pid in pids.items()}
    seconds = run(worker, "bulky", {"bytes": LARGE})
    return report("output, published", pids, before, seconds)


def _row(url: str) -> dict[str, Any]:
    graph = {
        "1": {"class_type": "VHS_LoadVideo", "inputs": {"video": "x.mp4", "frame_load_cap": 1}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    return {"workflow": graph, "inputs": [{"url": url, "node_id": "1"}]}


def run(worker: Worker, task_type: str, params: dict[str, Any]) -> float:
    """The task's seconds. It must complete."""
    started = time.monotonic()
    with connect(worker) as connection:
        insert = "INSERT INTO tasks (task_type, params, status) VALUES (%s, %s, 'queued') RETURNING id"
        row = connection.execute(insert, [task_type, json.dumps(params)]).fetchone()
        all_ended(connection, task_type)
        ended = connection.execute("SELECT status, error_message FROM tasks WHERE id = %s", row).fetchone()
    assert ended is not None and ended[0] == "Complete", ended
    return time.monotonic() - started


def mark(pid: int) -> float:
    """Forget the peak so far; what is resident now, MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status(pid, "VmRSS")


def _status(pid: int, name: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) * 1024 / 1e6


def report(what: str, pids: dict[str, int], before: dict[str, float], seconds: float) -> bool:
    good = True
    for name, pid in pids.items():
        growth = max(0.0, _status(pid, "VmHWM") - before[name])
        title = f"500 MB {what}: {name} grows by ({seconds:.1f} s)"
        good &= say(title, f"{growth:.1f} MB", f"<= {GROWTH_MB:.0f} MB", growth <= GROWTH_MB)
    return good


def _plugin(folder: Path) -> None:
    info = folder / "wan2gp_bulky-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wan2gp-bulky\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[wan2gp.handlers]\nbulky = tests.bench.bulky_spec:SPEC\n")


@contextmanager
def _serve(folder: Path) -> Iterator[str]:
    """Two clips of the same content, one of which is padded to its size by a box that players skip."""
    small = make_video(folder / "small.mp4").path
    padding = LARGE - small.stat().st_size
    with (folder / "large.mp4").open("wb") as file:
        file.write(small.read_bytes() + padding.to_bytes(4, "big") + b"free")
        file.truncate(LARGE)

    class Files(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """The report is elsewhere."""

        def do_GET(self) -> None:
            path = folder / self.path.strip("/")
            etag = f'"{path.stat().st_size}"'
            fresh = self.headers.get("If-None-Match") == etag
            self.send_response(304 if fresh else 200)
            self.send_header("ETag", etag)
            if not fresh:
                self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            if not fresh:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, self.wfile, CHUNK)

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
