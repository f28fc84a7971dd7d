"""What the demo needs around the worker: an input video, a place that serves it, and the supervisor as a process."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from wan2gp.rundir import read_run

if TYPE_CHECKING:
    import av

WIDTH, HEIGHT, FPS, FRAMES = 320, 240, 30, 60
SAMPLE_RATE = 44100
TONE_HZ = 440

READY_S = 60.0
"""Seconds until the supervisor must be ready; the first start makes a database cluster."""

STOP_S = 20.0
"""Seconds it may take to stop before it is killed."""

_TICK_S = 0.05
_PR_SET_PDEATHSIG = 1

NOT_FOR_THE_DEMO = (
    *("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SERVICE_ROLE_KEY_FILE"),
    *("WAN2GP_QUEUE", "WAN2GP_CONFIG", "WAN2GP_DATA_DIR", "WORKER_ID"),
)
"""Variables that would send the demo's row to somebody's real queue, or the demo into their data directory."""


class DemoFailed(Exception):
    """The demo cannot go on; the text says why."""


@dataclass(frozen=True)
class Video:
    """A video file as it decodes; sizes in pixels."""

    path: Path
    frames: int
    width: int
    height: int


def make_video(path: Path) -> Video:
    """Two seconds of a moving gradient with a tone, H.264 and AAC in MP4."""
    import av

    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=FPS)
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        tone = container.add_stream("aac", rate=SAMPLE_RATE)
        tone.layout = "mono"
        for index in range(FRAMES):
            container.mux(picture.encode(_picture(index)))
        container.mux(picture.encode())
        container.mux(tone.encode(_tone()))
        container.mux(tone.encode())
    return Video(path, FRAMES, WIDTH, HEIGHT)


def _picture(index: int) -> av.VideoFrame:
    import av
    import numpy as np

    across, down = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    shift = 255 * index / FRAMES
    planes = [(across + shift) % 256, down, (across + down + shift) % 256]
    frame = av.VideoFrame.from_ndarray(np.stack(planes, axis=2).astype(np.uint8), format="rgb24")
    frame.pts = index
    return frame


def _tone() -> av.AudioFrame:
    import av
    import numpy as np

    times = np.arange(SAMPLE_RATE * FRAMES // FPS) / SAMPLE_RATE
    wave = (0.2 * np.sin(2 * np.pi * TONE_HZ * times)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    frame.pts = 0
    return frame


def read_video(path: Path) -> Video:
    """Decode every frame. Raises :class:`DemoFailed` when the file is none or broken."""
    import av

    try:
        with av.open(str(path)) as container:
            frames = [(frame.width, frame.height) for frame in container.decode(video=0)]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DemoFailed(f"{path} cannot be decoded: {error}") from error
    if not frames or len(set(frames)) != 1:
        raise DemoFailed(f"{path} decodes to frames of these sizes: {sorted(set(frames))}")
    return Video(path, len(frames), *frames[0])


class InputServer:
    """Serves one file over HTTP on loopback, at a place that cannot be guessed; a context manager."""

    def __init__(self, path: Path) -> None:
        self._place = f"/{secrets.token_hex(8)}/{path.name}"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_FileHandler, self._place, path))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="demo-input", daemon=True)

    @property
    def url(self) -> str:
        """The file's URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{self._place}"

    def __enter__(self) -> InputServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _FileHandler(BaseHTTPRequestHandler):
    def __init__(self, place: str, path: Path, *rest: object) -> None:
        self._place = place
        self._path = path
        super().__init__(*rest)  # type: ignore[arg-type]  # what the server passes

    def do_GET(self) -> None:
        if self.path != self._place:
            self.send_error(404)
            return
        data = self._path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal belongs to the demo."""


class DemoSupervisor:
    """The production entry as a child; a context manager that leaves nothing behind."""

    def __init__(self, data_dir: Path, queue: str, settings: Mapping[str, str]) -> None:
        self._data_dir = data_dir
        self._queue = queue
        environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_THE_DEMO}
        self._environment = {**environment, **settings, "WAN2GP_ALLOW_PRIVATE_URLS": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._started().pid

    def __enter__(self) -> DemoSupervisor:
        options = ["--data-dir", str(self._data_dir), "--queue", self._queue, "--worker", "demo"]
        libc = ctypes.CDLL(None)
        with (self._data_dir / "demo" / "supervisor.out").open("wb") as output:
            # A session of its own, so that Ctrl-C reaches the demo alone, which then stops the supervisor in order;
            # and the death signal, so that a killed demo leaves none running.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wan2gp.entry", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        return self

    def await_ready(self) -> None:
        """Return when it says that it is ready. Raises :class:`DemoFailed` when it ended or took too long."""
        deadline = time.monotonic() + READY_S
        while True:
            self.check()
            info = read_run(self._data_dir)
            # The pid tells its run.json from one that an earlier, killed supervisor left.
            if info is not None and info.pid == self.pid:
                return
            if time.monotonic() > deadline:
                raise DemoFailed(f"the supervisor is not ready after {READY_S:g} s")
            time.sleep(_TICK_S)

    def check(self) -> None:
        """Raise :class:`DemoFailed` when it has ended."""
        code = self._started().poll()
        if code is not None:
            raise DemoFailed(f"the supervisor ended by itself with exit status {code}")

    def stop(self) -> None:
        """SIGTERM, then wait. Raises :class:`DemoFailed` when it does not end, or not cleanly. Safe to repeat."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DemoFailed(f"the supervisor did not stop within {STOP_S:g} s") from None
        if code != 0:
            raise DemoFailed(f"the supervisor stopped with exit status {code}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.stop()
        except DemoFailed:
            if kind is None:
                raise  # else the first failure is the one to report

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the supervisor was not started: use it as a context manager")
        return self._process
