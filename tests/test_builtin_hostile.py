"""The built-in engine and those who mean it harm, or simply vanish: it refuses them and serves the next one."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.builtin_prompts import fault, saved_image

if TYPE_CHECKING:
    from tests.conftest_comfy import BuiltinServer


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def still_works(server: BuiltinServer) -> None:
    assert server.run(saved_image())["status"]["status_str"] == "success"


@pytest.mark.parametrize("levels", [200, 900])
@pytest.mark.parametrize("place", ["prompt", "extra_data"])
def test_body_nested_without_end_does_not_kill_the_worker(server: BuiltinServer, levels: int, place: str) -> None:
    prompt, extra = saved_image(), {}
    if place == "prompt":
        prompt["2"]["inputs"]["surplus"] = nested(levels)
    else:
        extra = {"surplus": nested(levels)}
    assert server.post(prompt, extra_data=extra).status_code in (400, 500)
    still_works(server)


def test_body_too_deep_to_read_is_an_error_of_the_client(server: BuiltinServer) -> None:
    assert server.call("POST", "/prompt", data=b"[" * 100_000).status_code == 500
    still_works(server)


@pytest.mark.parametrize("extra", [None, 7, "text", [1]])
def test_extra_data_that_is_no_object_is_refused_before_it_is_queued(server: BuiltinServer, extra: Any) -> None:
    assert server.post(saved_image(), extra_data=extra).status_code == 500
    assert server.get("/prompt") == {"exec_info": {"queue_remaining": 0}}
    still_works(server)


@pytest.mark.parametrize("client_id", [7, None, [], {"a": 1}])
def test_client_id_that_is_no_string_reaches_nobody_and_harms_nobody(server: BuiltinServer, client_id: Any) -> None:
    """40"""
    server.run(fault("TestSleep", seconds=0.01, steps=2, preview=True), client_id=client_id)
    still_works(server)


@pytest.mark.parametrize("path", ["/prompt", "/queue", "/history", "/free", "/interrupt"])
def test_nonsense_in_the_body_is_answered(server: BuiltinServer, path: str) -> None:
    for body in (b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b'{"delete": 7}', b'{"delete": [[]]}'):
        assert server.call("POST", path, data=body).status_code in (200, 400, 500), body
    still_works(server)


def test_bodies_over_the_limit_are_refused_unread(start_builtin: Callable[..., BuiltinServer]) -> None:
    """77"""
    server = start_builtin("--max-upload-size", "1")
    big = b"x" * (2 << 20)
    for answer in (
        server.call("POST", "/prompt", data=big),
        server.call("POST", "/upload/image", files={"image": ("big.bin", big)}),
    ):
        assert (answer.status_code, answer.text) == (413, "Maximum request body size 1048576 exceeded.")
    assert list(server.input.iterdir()) == []
    still_works(server)


@pytest.mark.parametrize(
    ("class_type", "field", "sink", "link"),
    [
        ("LoadImage", "image", "SaveImage", "images"),
        ("LoadVideo", "file", "SaveVideo", "video"),
        ("VHS_LoadVideo", "video", "SaveImage", "images"),
    ],
)
def test_loader_stays_in_its_folder(server: BuiltinServer, class_type: str, field: str, sink: str, link: str) -> None:
    (server.path / "secret.png").write_bytes(b"secret")
    values = {link: ["1", 0], "filename_prefix": "leak", "format": "auto", "codec": "auto"}
    for name in ("../secret.png", "/etc/hostname", "a/../../secret.png", "x.png\0", "n" * 5000):
        loader = {"class_type": class_type, "inputs": {field: name}}
        answer = server.post({"1": loader, "2": {"class_type": sink, "inputs": values}})
        assert answer.status_code == 400, name
    assert not list(server.output.glob("leak*"))


def test_view_stays_in_its_folder(server: BuiltinServer) -> None:
    (server.path / "secret.png").write_bytes(b"secret")
    for name in ("..%2fsecret.png", "%2fetc%2fhostname", "x%00.png", "input.mp4&subfolder=..", "%ff"):
        assert server.call("GET", f"/view?type=input&filename={name}").status_code in (400, 403, 404), name


def reset(connected: socket.socket) -> None:
    """Closes with RST: no goodbye of any layer."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()


def test_client_that_vanishes_in_mid_run_takes_nobody_along(server: BuiltinServer) -> None:
    with server.listen("stays") as stays, server.listen("gone") as gone:
        server.post(fault("TestSleep", seconds=0.3, steps=30, preview=True), client_id="gone", prompt_id="p")
        gone.until("progress")
        reset(gone.socket.sock)
        assert server.finished("p")["status"]["status_str"] == "success"
        server.post(saved_image(), client_id="stays")
        assert stays.until("executing", node=None)[-2]["data"]["status"]["exec_info"]["queue_remaining"] == 0


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\nHost",
        b"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n{",
        b"POST /upload/image HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 9000\r\n\r\n--b\r\nContent-Disposition: form-data; name=image; filename=half.png\r\n\r\nhal",
        b"GET /ws?clientId=x HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\xff\xff\xff",
    ],
)
def test_connection_that_breaks_off_leaves_nothing(server: BuiltinServer, begun: bytes) -> None:
    connected = socket.create_connection(("127.0.0.1", server.port), 5)
    connected.sendall(begun)
    reset(connected)
    still_works(server)
    assert not (server.input / "half.png").exists()


def test_page_of_another_site_is_kept_out_whatever_it_calls_itself(server: BuiltinServer) -> None:
    """96"""
    for host in ("127.0.0.1", "localhost", "[::1]"):
        headers = {"Origin": "http://evil.example", "Host": f"{host}:{server.port}"}
        assert server.call("POST", "/prompt", json={}, headers=headers).status_code == 403
    for host in ("a..b", "x" * 300, "[::1"):
        headers = {"Origin": "http://evil.example", "Host": host}
        assert server.call("GET", "/prompt", headers=headers).status_code in (200, 400, 500)
    still_works(server)
