"""The way from a handler's work directory to the user, with the power cut between any two of its steps."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest_db import PgServer
from tests.conftest_worker import eventually
from tests.publish_bench import (
    PATIENCE_S,
    Bench,
    CutQueue,
    CutStaging,
    CutStore,
    Power,
    artifact,
)
from wan2gp.supervisor import staging
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.publish import LocalStore, PublishFailed
from wan2gp.supervisor.queue import Verb
from wan2gp.supervisor.spool import Spool
from wan2gp.supervisor.staging import Refused, safe_name

FILES = {"a.txt": "eins", "x/a.txt": "zwei", "b.txt": "drei"}
SHOWN = {"a.txt": "eins", "1_a.txt": "zwei", "b.txt": "drei"}


@pytest.fixture
def bench(tmp_path: Path, queue_db: str) -> Iterator[Bench]:
    queue = PostgresQueue(queue_db)
    yield Bench(tmp_path, queue)
    queue.close()


def cut(bench: Bench, ending: Any, **life: Any) -> None:
    """One life of the worker that ends in a power cut on the way of this ending."""
    with bench.life(**life) as settler:
        settler.submit(ending)
        eventually("the power goes off", lambda: bench.failures)
    assert [type(failure) for failure in bench.failures] == [Power]
    bench.failures.clear()


def next_life(bench: Bench) -> None:
    """Whatever the last one left is settled, with nothing new."""
    with bench.life() as settler:
        assert settler.flush(PATIENCE_S)
    assert not bench.failures


CUTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "when the files were taken": lambda bench: {"store": CutStaging(bench.outputs)},
    "before the database was told": lambda bench: {"queue": CutQueue(bench.queue, after=False)},
    "before the database's answer": lambda bench: {"queue": CutQueue(bench.queue, after=True)},
    "before the first file was shown": lambda bench: {"store": CutStore(bench.outputs, moves=0)},
    "after the first file": lambda bench: {"store": CutStore(bench.outputs, moves=1)},
    "after the second file": lambda bench: {"store": CutStore(bench.outputs, moves=2)},
    "after the last file": lambda bench: {"store": CutStore(bench.outputs, moves=3)},
}


@pytest.mark.parametrize("when", list(CUTS))
def test_a_power_cut_at_any_step_costs_nothing_and_doubles_nothing(bench: Bench, when: str) -> None:
    task = bench.claim()
    ending = bench.ending(task, FILES)
    cut(bench, ending, **CUTS[when](bench))
    next_life(bench)
    assert bench.shown() == SHOWN
    row = bench.row(task)
    assert (row["status"], row["attempts"], bench.completions(task)) == ("Complete", 1, 1)
    paths = [Path(made["path"]) for made in row["result_data"]["artifacts"]]
    assert [path.read_text() for path in paths] == ["eins", "zwei", "drei"]
    assert Path(row["output_location"]).read_text() == "eins"
    assert bench.rest() == []
    assert not Path(ending.work_dir).exists()


@pytest.mark.parametrize("when", list(CUTS))
def test_the_cut_may_come_again_and_again(bench: Bench, when: str) -> None:
    task = bench.claim()
    ending = bench.ending(task, FILES)
    cut(bench, ending, **CUTS[when](bench))
    for _ in range(2):
        with bench.life(**CUTS[when](bench)):
            eventually("the power goes off again", lambda: bench.failures)
        bench.failures.clear()
    next_life(bench)
    assert (bench.shown(), bench.completions(task), bench.rest()) == (SHOWN, 1, [])


def test_a_result_that_comes_too_late_leaves_no_file_behind(bench: Bench) -> None:
    task = bench.claim()
    ending = bench.ending(task, FILES)
    assert bench.queue.cancel(task.id) == "In Progress"
    with bench.life() as settler:
        settler.submit(ending)
        assert settler.flush(PATIENCE_S)
    assert (bench.shown(), bench.rest(), bench.row(task)["status"]) == ({}, [], "Cancelled")
    assert "task.refused" in bench.facts.names()
    assert not Path(ending.work_dir).exists()


def test_a_refused_result_leaves_no_file_behind(bench: Bench) -> None:
    task = bench.claim()
    ending = bench.ending(task, {"a.txt": "as promised", "b.txt": "another"})
    (Path(ending.work_dir) / "f1").write_text("changed!")
    with bench.life() as settler:
        settler.submit(ending)
        assert settler.flush(PATIENCE_S)
    row = bench.row(task)
    assert row["status"] == "Failed" and row["error_message"].startswith("output.refused: ")
    assert (bench.shown(), bench.rest()) == ({}, [])


def test_a_refusal_survives_a_power_cut_too(bench: Bench) -> None:
    task = bench.claim()
    ending = bench.ending(task, {"a.txt": "as promised"})
    (Path(ending.work_dir) / "f0").write_text("as changed")
    cut(bench, ending, queue=CutQueue(bench.queue, after=True))
    next_life(bench)
    row = bench.row(task)
    assert row["status"] == "Failed" and row["error_message"].startswith("output.refused: ")
    assert (bench.shown(), bench.rest()) == ({}, [])


@pytest.mark.parametrize("how", ["gone", "a link", "a file", "closed"])
def test_a_handler_that_spoils_its_own_directory_holds_up_nobody(bench: Bench, tmp_path: Path, how: str) -> None:
    bad, good = bench.claim(), bench.claim()
    spoiled, fine = bench.ending(bad, {"a.txt": "x"}), bench.ending(good, {"a.txt": "y"})
    work_dir = Path(spoiled.work_dir)
    aside = tmp_path / "aside"
    work_dir.rename(aside)
    if how == "a link":
        work_dir.symlink_to(aside)
    elif how == "a file":
        work_dir.write_text("")
    elif how == "closed":
        work_dir.mkdir(0)
    with bench.life() as settler:
        settler.submit(spoiled)
        settler.submit(fine)
        assert settler.flush(PATIENCE_S)
    assert bench.row(bad)["error_message"].startswith("output.refused: ")
    assert bench.row(good)["status"] == "Complete"
    assert bench.rest() == []


def special(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(path.parent, os.O_PATH)
            listener.bind(f"/proc/self/fd/{here}/{path.name}")  # the whole path may be too long for a socket
            os.close(here)
    elif kind == "folder":
        path.mkdir()
        (path / "inner").write_text("x")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "dangling link", "link to a device"])
def test_what_is_no_plain_file_is_refused_without_being_read(bench: Bench, kind: str) -> None:
    task = bench.claim()
    ending = bench.ending(task, {"a.txt": "x"})
    special(Path(ending.work_dir) / "f0", kind)
    with bench.life() as settler:
        settler.submit(ending)
        assert settler.flush(PATIENCE_S)
    assert bench.row(task)["error_message"].startswith("output.refused: ")
    assert (bench.shown(), bench.rest()) == ({}, [])


def test_what_ends_during_an_outage_is_on_the_disk_at_once_not_behind_it(
    bench: Bench, pg_server: PgServer, tmp_path: Path
) -> None:
    tasks = [bench.claim() for _ in range(3)]
    endings = [bench.ending(task, {"a.txt": "x"}) for task in tasks]
    pg_server.stop_server()
    with bench.life() as settler:
        for number, ending in enumerate(endings, 1):
            settler.submit(ending)
            # As another life would see it: what is not there now would be lost by a kill.
            eventually("it is on the disk", lambda number=number: len(read_again(bench, tmp_path)) == number)
    assert bench.shown() == {}
    pg_server.start_server()
    next_life(bench)
    assert [bench.row(task)["status"] for task in tasks] == ["Complete"] * 3
    assert [bench.completions(task) for task in tasks] == [1, 1, 1]


def read_again(bench: Bench, tmp_path: Path) -> list[Any]:
    """The endings in a copy of the spool's journal."""
    copy = tmp_path / "copy"
    copy.mkdir(exist_ok=True)
    (copy / "journal").write_bytes((bench.spool_dir / "journal").read_bytes())
    spool = Spool(copy)
    spool.close()
    return spool.leftovers()


def test_a_disk_that_is_broken_for_a_while_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    task = bench.claim()
    ending = bench.ending(task, {"a.txt": "x"})
    mended = threading.Event()
    real_rename = os.rename

    def broken(*given: Any, **more: Any) -> None:
        if not mended.is_set():
            raise OSError(errno.EROFS, "Read-only file system")
        real_rename(*given, **more)

    with bench.life() as settler:
        monkeypatch.setattr(staging.os, "rename", broken)
        settler.submit(ending)
        eventually("it is told of", lambda: "worker.warning" in bench.facts.names())
        mended.set()
        assert settler.flush(PATIENCE_S)
    assert (bench.shown(), bench.row(task)["status"]) == ({"a.txt": "x"}, "Complete")


def test_a_disk_that_is_full_while_a_result_is_withheld_ends_no_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(LocalStore):
        """Takes nothing, until a person mends it."""

        open = False

        def upload(self, ending: Any, staged: Any, stop: Any, sent: Any = None) -> Any:
            if not self.open:
                raise PublishFailed("publish.too_large", "too large", permanent=True)
            return super().upload(ending, staged, stop, sent)

    task = bench.claim()
    store, full = Closed(bench.outputs), threading.Event()
    with bench.life(store=store) as settler:
        add, full_disk = Spool.add, OSError(errno.ENOSPC, "No space left on device")

        def refuse_once(spool: Spool, endings: Any) -> None:
            withheld = [ending for ending in endings if ending.withheld]
            if withheld and not full.is_set():
                full.set()
                raise full_disk
            add(spool, endings)

        monkeypatch.setattr(Spool, "add", refuse_once)
        settler.submit(bench.ending(task, {"a.txt": "x"}))
        assert settler.flush(PATIENCE_S) and full.is_set() and not bench.failures
        row = bench.row(task)
        assert row["status"] == "Failed" and row["error_message"].startswith("publish.too_large: ")
        assert [one["state"] for one in settler.publishing()] == ["withheld"]
        store.open = True
        assert settler.retry_publishing(task.id) == 1
        assert settler.flush(PATIENCE_S)
    assert (bench.row(task)["status"], bench.shown(), bench.rest()) == ("Complete", {"a.txt": "x"}, [])


def test_a_withheld_result_whose_row_is_gone_is_forgotten_without_being_sent(bench: Bench) -> None:
    sent: list[str] = []

    class Closed(LocalStore):
        def upload(self, ending: Any, staged: Any, stop: Any, sent_: Any = None) -> Any:
            sent.append(ending.task_id)
            raise PublishFailed("publish.bucket_missing", "no such bucket", permanent=True)

    task = bench.claim()
    with bench.life(store=Closed(bench.outputs)) as settler:
        settler.submit(bench.ending(task, {"a.txt": "x"}))
        assert settler.flush(PATIENCE_S) and len(sent) == 1
        bench.queue.retry(task.id)
        bench.queue.cancel(task.id)
        assert settler.retry_publishing() == 1
        assert settler.flush(PATIENCE_S)
    assert (len(sent), bench.shown(), bench.rest(), bench.row(task)["status"]) == (1, {}, [], "Cancelled")


def rename_within(source: Any, target: Any, _real: Any = os.rename, **more: Any) -> None:
    if more:
        raise OSError(errno.EXDEV, "Invalid cross-device link")
    _real(source, target)


@pytest.mark.parametrize("kind", [None, "pipe", "socket", "folder", "dangling link", "link to a device"])
def test_a_spool_on_another_file_system_gets_a_copy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    task = bench.claim()
    ending = bench.ending(task, {"a.txt": "x"})
    if kind is not None:
        special(Path(ending.work_dir) / "f0", kind)
    with bench.life() as settler:
        monkeypatch.setattr(staging.os, "rename", rename_within)
        settler.submit(ending)
        assert settler.flush(PATIENCE_S)
    assert bench.shown() == ({} if kind else {"a.txt": "x"})
    assert bench.row(task)["status"] == ("Failed" if kind else "Complete")
    assert bench.rest() == []


def test_the_same_result_of_a_second_run_and_another_one_both_have_their_place(bench: Bench) -> None:
    task = bench.claim()
    with bench.life() as settler:
        for text in ("x", "x", "y"):
            settler.submit(bench.ending(task, {"a.txt": text}))
            assert settler.flush(PATIENCE_S)
            assert bench.row(task)["status"] == "Complete"
            bench.queue.retry(task.id)
            (task,) = bench.queue.claim(f"again {text} {task.attempt}", "w", ["maker"], 1, 90).tasks
    assert bench.shown() == {"a.txt": "x", "0_a.txt": "y"}


@pytest.mark.parametrize("verb", [Verb.RETRY, Verb.LOSS, Verb.RELEASE, Verb.FAIL, Verb.CANCEL])
def test_every_kind_of_end_may_be_told_twice(bench: Bench, verb: Verb) -> None:
    task = bench.claim()
    ending = bench.ending(task, verb=verb, error_message="a.b: c", retry_in_s=60.0)
    cut(bench, ending, queue=CutQueue(bench.queue, after=True))
    before = bench.row(task)
    next_life(bench)
    assert bench.row(task) == before
    assert bench.settled == [msgspec.structs.replace(ending, resumed=True)]


def test_a_settler_that_fails_says_so(bench: Bench) -> None:
    cut(bench, bench.ending(bench.claim()), queue=CutQueue(bench.queue, after=False))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a b.mp4", "a b.mp4"),
        ("../../x", "x"),
        ("..", "output"),
        ("", "output"),
        ("a\nb\x00c", "a_b_c"),
        ("C:\\temp\\x.png", "x.png"),
        (".ssh", "ssh"),
        ("日本語.mp4", "日本語.mp4"),
    ],
)
def test_names_become_harmless(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_keep_their_suffix_and_are_cut_between_characters() -> None:
    cut_name = safe_name("ü" * 500 + ".webm")
    assert cut_name.endswith("ü.webm") and len(cut_name.encode()) <= staging.NAME_MAX_BYTES
    assert len(safe_name("x." + "y" * 500).encode()) <= staging.NAME_MAX_BYTES


def test_a_place_outside_the_directory_is_refused(tmp_path: Path, bench: Bench) -> None:
    store, spool = LocalStore(tmp_path / "outputs"), Spool(tmp_path / "spool")
    for path in ("../x", "/etc/hostname", "", ".", "a/../../x", "x" * 5000, "a\x00b"):
        ending = bench.ending(bench.claim(), artifacts=(artifact(path, "x", "x"),))
        with pytest.raises(Refused):
            store.stage(ending, spool.folder(ending))
    spool.close()
