"""A large input for a ComfyUI elsewhere: what arrives is the file, and the sender never holds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest_comfy import BuiltinServer
from wan2gp.comfy_sidecar.client import ComfyClient

LARGE = 90 * 10**6
SEND = """
import sys
from pathlib import Path
from wan2gp.comfy_sidecar.client import ComfyClient

def peak_kib():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

client = ComfyClient(sys.argv[1])
before = peak_kib()
print(client.upload(Path(sys.argv[2]), "large.mp4", "a/b"))
print(peak_kib() - before)
client.close()
"""


def test_a_large_upload_is_sent_piece_by_piece(builtin_server: BuiltinServer, tmp_path: Path) -> None:
    source = tmp_path / "large.mp4"
    source.write_bytes(bytes(range(250)) * (LARGE // 250))
    command = [sys.executable, "-c", SEND, builtin_server.url, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    name, grown_kib = done.stdout.split()
    assert name == "a/b/large.mp4"
    assert int(grown_kib) * 1024 < LARGE / 4
    assert (builtin_server.input / name).read_bytes() == source.read_bytes()


def test_an_empty_file_is_uploaded_too(builtin_server: BuiltinServer, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    client = ComfyClient(builtin_server.url)
    assert client.upload(tmp_path / "x", "empty.bin", "") == "empty.bin"
    client.close()
    assert (builtin_server.input / "empty.bin").read_bytes() == b""
