"""A file that the engine misses: asked for by the thread that wants it, answered by another."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wan2gp.wan_sidecar.host_downloads import CANCELLED, Downloads, MissingFile
from wan2gp.wan_sidecar.host_line import LINE_BYTES, Line, LineClosed

REPO = "DeepBeepMeep/Wan2.1"


class Other:
    """The other end of the line."""

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(20)
        self.channel = channel
        self._lines = channel.makefile("rb")

    def heard(self) -> dict[str, Any]:
        return dict(json.loads(self._lines.readline()))

    def close(self) -> None:
        self._lines.close()
        self.channel.close()


@pytest.fixture
def ends() -> Iterator[tuple[Downloads, Other, Line]]:
    ours, theirs = socket.socketpair()
    line, other = Line(ours), Other(theirs)
    downloads = Downloads(line)
    downloads.job_begins()
    yield downloads, other, line
    downloads.refuse_all()
    other.close()
    ours.close()


class Asking(threading.Thread):
    """One of the engine's threads."""

    def __init__(self, downloads: Downloads, file: str, place: Path) -> None:
        super().__init__(daemon=True)
        self._ask = lambda: downloads.hf_hub_download(repo_id=REPO, filename=file, subfolder="pose", local_dir=place)
        self.found: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.found = self._ask()
        except MissingFile as error:
            self.found = error

    def answer(self) -> Any:
        self.join(20)
        return self.found


def test_two_threads_get_their_own_answers_in_whatever_order_they_come(ends: Any, tmp_path: Path) -> None:
    downloads, other, _ = ends
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    threads = {name: Asking(downloads, name, tmp_path / "ckpts") for name in ("a", "b")}
    for asked in sorted((other.heard(), other.heard()), key=lambda asked: str(asked["file"]), reverse=True):
        name = asked["file"].removeprefix("pose/")
        assert asked["url"] == f"https://huggingface.co/{REPO}/resolve/main/pose/{name}"
        downloads.answer({"want": asked["want"], "path": str(tmp_path / name), "why": ""})
    for name, thread in threads.items():
        assert Path(thread.answer()).read_text() == name and thread.answer() == f"{tmp_path}/ckpts/pose/{name}"


def test_a_file_that_is_there_is_not_asked_for_and_a_link_to_nothing_is_replaced(ends: Any, tmp_path: Path) -> None:
    downloads, other, _ = ends
    (tmp_path / "pose").mkdir()
    (tmp_path / "pose" / "a").symlink_to(tmp_path / "evicted")
    thread = Asking(downloads, "a", tmp_path)
    (tmp_path / "again").write_text("again")
    downloads.answer({"want": other.heard()["want"], "path": str(tmp_path / "again"), "why": ""})
    assert Path(thread.answer()).read_text() == "again"
    assert Path(Asking(downloads, "a", tmp_path).answer()).read_text() == "again"


def test_a_refusal_names_the_file_and_is_kept_for_the_verdict(ends: Any, tmp_path: Path) -> None:
    downloads, other, _ = ends
    thread = Asking(downloads, "a", tmp_path)
    downloads.answer({"want": other.heard()["want"], "path": None, "why": "there is no room"})
    assert f"{REPO}/pose/a" in str(thread.answer()) and "no room" in str(thread.answer())
    assert [missing["why"] for missing in downloads.missing] == ["there is no room"]
    downloads.job_begins()
    assert downloads.missing == []


def test_a_cancel_frees_who_waits_and_refuses_who_comes_late(ends: Any, tmp_path: Path) -> None:
    downloads, other, _ = ends
    thread = Asking(downloads, "a", tmp_path)
    asked = other.heard()
    downloads.refuse_all()
    assert CANCELLED in str(thread.answer())
    assert isinstance(Asking(downloads, "b", tmp_path).answer(), MissingFile)
    downloads.answer({"want": asked["want"], "path": str(tmp_path), "why": ""})  # it comes too late, and is nothing


def test_the_thread_that_hears_answers_never_waits_for_one(ends: Any, tmp_path: Path) -> None:
    downloads, _, _ = ends
    with pytest.raises(MissingFile, match="outside of a job"):
        downloads.hf_hub_download(REPO, "a", local_dir=tmp_path)


def test_what_is_no_download_stays_what_it_was(ends: Any, tmp_path: Path) -> None:
    downloads, _, _ = ends
    (tmp_path / "a").write_text("a")
    downloads.urlretrieve(f"file://{tmp_path}/a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "a" and downloads.missing == []


def test_nobody_at_the_other_end_is_an_end(ends: Any) -> None:
    _, other, line = ends
    other.close()
    with pytest.raises(LineClosed):
        line.hear(5)
    with pytest.raises(LineClosed):
        for _ in range(3):
            line.say("said", id=1, text="x" * 100_000)


def test_a_line_that_is_too_long_becomes_a_word_on_it(ends: Any) -> None:
    _, other, line = ends
    line.say("model", found=True, definition={"x": "x" * LINE_BYTES})
    assert other.heard()["is"] == "too_long"
    line.say("said", id=1, text="é\n\ud800")
    assert other.heard()["text"] == "é\n\ud800"


def test_requests_come_one_by_one_however_they_are_cut(ends: Any) -> None:
    _, other, line = ends
    other.channel.sendall(b'{"do": "models"}\n{"do": "unl')
    assert line.hear(5) == {"do": "models"} and line.hear(0) is None
    other.channel.sendall(b'oad"}\n')
    assert line.hear(5) == {"do": "unload"}
