"""A proxy before an engine: honest about HTTP, and about websockets as a file tells it to be. Runs as a process.

The file holds one of: `honest`; `refuse` (404); `swallow` (the handshake, and not a frame after it); `greet` (the
greeting, and not a frame after it); `close N` (ends the connection after N messages and refuses from then on). It is
read at each frame, so that a test can change its mind in the middle of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
START_S, STOP_S = 20.0, 5.0
REFUSED = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
GREETING = (b'"sid"', b'"feature_flags"')
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


class Proxy:
    """Listens on `port` for the engine at `target`."""

    def __init__(self, port: int, target: int, mode: Path) -> None:
        self._port = port
        self._target = target
        self._mode = mode

    async def serve(self) -> None:
        server = await asyncio.start_server(self._handle, HOST, self._port)
        await server.serve_forever()

    async def _handle(self, reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            about_events = head.startswith(b"GET /ws")
            if about_events and self._mode.read_text() == "refuse":
                writer.write(REFUSED)
                await writer.drain()
            else:
                up_reader, up_writer = await asyncio.open_connection(HOST, self._target)
                up_writer.write(head)
                back = self._frames(up_reader, writer) if about_events else pump(up_reader, writer)
                await first_to_end(pump(reader, up_writer), back)
                up_writer.close()
        writer.close()

    async def _frames(self, reader: Reader, writer: Writer) -> None:
        writer.write(await reader.readuntil(b"\r\n\r\n"))
        passed = 0
        while True:
            frame = await read_frame(reader)
            mode, _, most = self._mode.read_text().partition(" ")
            if mode == "close" and passed >= int(most):
                self._mode.write_text("refuse")
                return
            greets = mode == "greet" and any(word in frame for word in GREETING)
            if greets or mode in ("honest", "close"):
                writer.write(frame)
                await writer.drain()
                passed += 1


async def pump(reader: Reader, writer: Writer) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()


async def read_frame(reader: Reader) -> bytes:
    """One frame of a server, which masks nothing."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    if length > 125:
        more = await reader.readexactly(2 if length == 126 else 8)
        length = struct.unpack(">H" if length == 126 else ">Q", more)[0]
        head += more
    return head + await reader.readexactly(length)


async def first_to_end(*ways: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(way) for way in ways]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def hidden_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def behind(args: list[str], mode: Path) -> int:
    """Be a ComfyUI that is started with `args`: the built-in engine, in the same process tree, behind the proxy."""
    at = args.index("--port") + 1
    port, hidden = int(args[at]), hidden_port()
    command = [sys.executable, "-m", "wan2gp.comfy_sidecar.builtin", *args[:at], str(hidden), *args[at + 1 :]]
    with subprocess.Popen(command) as engine:
        try:
            asyncio.run(until_exit(engine, Proxy(port, hidden, mode).serve()))
        finally:
            engine.kill()
    return engine.returncode


async def until_exit(engine: subprocess.Popen[bytes], serving: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(serving)
    while engine.poll() is None and not task.done():
        await asyncio.sleep(0.02)
    task.cancel()


@contextlib.contextmanager
def before(target: int, mode: Path) -> Iterator[str]:
    """The URL of a proxy of its own before an engine that runs."""
    port = hidden_port()
    command = [sys.executable, "-m", "tests.ws_proxy", str(port), str(target), str(mode)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    try:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(ConnectionError), socket.create_connection((HOST, port), START_S):
                break
            assert process.poll() is None and time.monotonic() < deadline, "the proxy did not start"
            time.sleep(0.01)
        yield f"http://{HOST}:{port}"
    finally:
        process.kill()
        process.wait(STOP_S)


if __name__ == "__main__":
    asyncio.run(Proxy(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])).serve())
