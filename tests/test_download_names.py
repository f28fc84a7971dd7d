"""URLs taken apart, files told by their bytes and named so that no shell, file system or engine is surprised."""

from __future__ import annotations

import io
import os
import string
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.download import Download
from wan2gp.handlers.input_names import input_name, place
from wan2gp.handlers.locations import parse_location, shown_url
from wan2gp.handlers.sniff import EMPTY, UNKNOWN, sniff
from wan2gp.handlers.webstream import Limits
from wan2gp.protocol import Source

if TYPE_CHECKING:
    from tests.bad_web_server import BadWebServer

MP4 = sniff(b"\x00\x00\x00\x20ftypisom")
SAFE = set(string.ascii_letters + string.digits + "._-")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "not with http:// or https://"),
        ("clip.mp4", "not with http:// or https://"),
        ("/etc/passwd", "not with http:// or https://"),
        ("file:///etc/passwd", "begins with 'file:'"),
        ("ftp://host/x", "begins with 'ftp:'"),
        ("data:video/mp4;base64,AAAA", "begins with 'data:'"),
        ("http://", "names no host"),
        ("http:///clip.mp4", "names no host"),
        ("http://host:port/", "ort"),
        ("http://host:99999/", "ort out of range"),
        ("http://[::1/", "Invalid IPv6 URL"),
        ("http://ho st/", "a blank"),
        ("http://host/a\r\nHost: other", "a blank or a control character"),
        ("http://host/" + "a" * 9000, "the limit is 8192"),
        ("http://" + "ü" * 80 + ".example/", "not a valid name"),
    ],
)
def test_url_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(TaskFailure, match="the URL cannot be used: ") as caught:
        parse_location(url)
    assert caught.value.code == "input.bad_url" and words in caught.value.message


def test_url_is_shown_without_what_may_be_secret() -> None:
    url = "https://user:password@Host.Example:8443/a%20b/clip.mp4?token=secret#part"
    location = parse_location(url)
    assert shown_url(url) == location.shown == "https://host.example:8443/a%20b/clip.mp4"
    assert location.target == "/a%20b/clip.mp4?token=secret"
    assert not {"secret", "password", "user"} & set(repr(location).replace("'", " ").split())
    assert shown_url("http://[broken?secret") == "(a malformed URL)"


def test_url_with_letters_of_other_languages() -> None:
    location = parse_location("  http://bücher.example/über/clip (1).mp4?q=ü  ".replace(" (", "%20("))
    assert location.host == "xn--bcher-kva.example"
    assert location.target == "/%C3%BCber/clip%20(1).mp4?q=%C3%BC" and location.file_name == "clip (1).mp4"


@pytest.mark.parametrize(
    ("url_name", "name"),
    [
        ("clip.mp4", ("clip", ".mp4")),
        ("clip.MOV", ("clip", ".mov")),
        ("clip", ("clip", ".mp4")),
        ("", ("input", ".mp4")),
        ("watch.php", ("watch", ".mp4")),
        ("clip.exe", ("clip", ".mp4")),
        ("../../etc/passwd", ("etc_passwd", ".mp4")),
        ("..", ("input", ".mp4")),
        (".bashrc", ("bashrc", ".mp4")),
        ("-rf", ("rf", ".mp4")),
        ("a b;$(rm -rf ~).mp4", ("a_b_rm_-rf", ".mp4")),
        ("Élan vital.mp4", ("Elan_vital", ".mp4")),
        ("动画.mp4", ("mp4", ".mp4")),
        ("x" * 300 + ".mp4", ("x" * 80, ".mp4")),
        ("a\x00b\n.mp4", ("a_b", ".mp4")),
    ],
)
def test_name_of_the_file(url_name: str, name: tuple[str, str]) -> None:
    assert input_name(url_name, MP4) == name


@given(st.text(max_size=300))
def test_no_text_makes_an_unsafe_name(text: str) -> None:
    for found in (MP4, UNKNOWN):
        stem, extension = input_name(text, found)
        assert stem and set(stem + extension) <= SAFE and stem[0] not in ".-"
        assert len(stem + extension) <= 90 and os.sep not in stem


def test_two_files_of_the_same_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        draft = tmp_path / "draft"
        draft.write_text(str(number))
        names.append(place(draft, tmp_path, "clip", ".mp4").name)
    assert names == ["clip.mp4", "clip-2.mp4", "clip-3.mp4"]
    assert [(tmp_path / name).read_text() for name in names] == ["0", "1", "2"]


def test_planted_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "clip.mp4").symlink_to(victim)
    (tmp_path / "draft").write_text("new")
    assert place(tmp_path / "draft", tmp_path, "clip", ".mp4").name == "clip-2.mp4"
    assert victim.read_text() == "precious"


def encoded(container: str, codec: str) -> bytes:
    """A real, tiny video."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(numpy.zeros((64, 64, 3), numpy.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "extension"),
    [
        ("mp4", "mpeg4", ".mp4"),
        ("mov", "mpeg4", ".mov"),
        ("matroska", "mpeg4", ".mkv"),
        ("webm", "libvpx", ".webm"),
        ("avi", "mpeg4", ".avi"),
        ("mpegts", "mpeg2video", ".ts"),
        ("mpeg", "mpeg1video", ".mpg"),
        ("flv", "flv", ".flv"),
        ("asf", "mpeg4", ".wmv"),
    ],
)
def test_real_videos_are_known(container: str, codec: str, extension: str) -> None:
    found = sniff(encoded(container, codec)[:4096])
    assert found.extension == extension and found.serves("video") and not found.serves("image")


@pytest.mark.parametrize(
    ("format", "extension"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("TIFF", ".tif")]
)
def test_real_pictures_are_known(format: str, extension: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format)
    found = sniff(buffer.getvalue()[:4096])
    assert found.extension == extension and found.serves("image") and not found.serves("video")


def test_animated_pictures_serve_as_videos() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for format in ("GIF", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
        assert sniff(buffer.getvalue()).serves("video") and sniff(buffer.getvalue()).serves("image")


@pytest.mark.parametrize(("container", "codec", "extension"), [("wav", "pcm_s16le", ".wav"), ("flac", "flac", ".flac")])
def test_real_sounds_are_known(container: str, codec: str, extension: str) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=8000)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 4096), numpy.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    found = sniff(buffer.getvalue()[:4096])
    assert found.extension == extension and found.serves("audio") and not found.serves("video")


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\n <!DOCTYPE HTML><p>", "a web page (HTML)"),
        (b"\xef\xbb\xbf<html>", "a web page (HTML)"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document"),
        (b'{"error": "expired"}', "a JSON document"),
        (b"Not found", "a text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer instead of the file"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\xff\xfe<\x00h\x00t\x00m\x00l\x00", "data of an unknown format"),
        (b"\x00\x01\x02\x03", "data of an unknown format"),
    ],
)
def test_what_is_no_medium_is_named(head: bytes, name: str) -> None:
    found = sniff(head)
    assert found.name == name and not found.kinds and found.serves("any")


def test_sounds_without_a_container_are_known() -> None:
    assert sniff(b"\xff\xfb\x90\x64" + bytes(400)).extension == ".mp3"
    assert sniff(b"\xff\xf1\x50\x80" + bytes(400)).extension == ".aac"
    assert sniff(b"ID3\x04" + bytes(400)).extension == ".mp3"


@given(st.binary(max_size=5000))
def test_no_bytes_confuse_the_sniffer(head: bytes) -> None:
    assert (sniff(head) is EMPTY) == (head == b"")


def test_file_is_named_after_what_it_is(bad_web: BadWebServer, tmp_path: Path) -> None:
    limits = Limits(allow_private_hosts=frozenset({"127.0.0.1"}))
    got = Download(Source(bad_web.url("/download?name=x.exe&sig=secret"), "video"), tmp_path, limits).run()
    assert got.path.name == "download.mp4" and got.url == bad_web.url("/download")
    again = Download(Source(bad_web.url("/download"), "any"), tmp_path, limits).run()
    assert again.path.name == "download-2.mp4"
