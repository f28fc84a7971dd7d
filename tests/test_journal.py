"""The journal under the spool: what it has promised is there after any crash, and nothing else is."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from wan2gp.supervisor.journal import SIZE_BYTES, Journal


def reread(path: Path) -> dict[str, bytes]:
    journal = Journal(path)
    journal.close()
    return journal.live


def test_what_was_appended_and_not_forgotten_is_there_again_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append({"b": 1, "a": {"x": "ü\n"}})
    journal.append({"c": 3})
    journal.forget("b")
    journal.forget("never there")
    journal.close()
    assert list(reread(tmp_path / "j").items()) == [("a", '{"x":"ü\\n"}'.encode()), ("c", b"3")]


def test_a_record_replaced_is_there_once_with_its_last_value(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append({"a": 1})
    journal.append({"a": 2})
    journal.close()
    assert reread(tmp_path / "j") == {"a": b"2"}


@pytest.mark.parametrize("cut", range(1, 40))
def test_half_a_line_is_nothing_and_costs_nothing_else(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append({"a": "first"})
    first = journal._position
    journal.append({"b": "a second record of some length, more than forty bytes"})
    journal.close()
    with path.open("r+b") as file:  # the power went in the middle of the second
        file.seek(first + cut)
        file.write(bytes(200))
    assert reread(path) == {"a": b'"first"'}


def test_a_damaged_line_is_told_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    for key in "abc":
        journal.append({key: 1})
    journal.close()
    data = bytearray(path.read_bytes())
    data[data.index(b"b") - 2] = ord("x")  # a flipped byte in the second line
    path.write_bytes(data)
    again = Journal(path)
    again.close()
    assert again.damaged
    assert again.live == {"a": b"1", "c": b"1"}
    assert path.with_suffix(".bad").read_bytes() == data
    intact = Journal(path)
    intact.close()
    assert not intact.damaged


def test_a_renewal_that_fails_promises_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append({"first": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.append({"large": "x" * SIZE_BYTES})
    journal.append({"small": 2})
    assert set(reread(path)) >= {"first", "small"}  # as after a kill: nothing was closed before
    journal.close()


def test_a_full_file_is_replaced_by_one_with_the_live_records_only(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append({"keep": "me"})
    for number in range(60):
        journal.append({str(number): "x" * 50_000})
        journal.forget(str(number))
    journal.close()
    assert path.stat().st_size == SIZE_BYTES
    assert reread(path) == {"keep": b'"me"'}


def test_more_live_records_than_the_file_holds_make_it_larger(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    for number in range(40):
        journal.append({str(number): "x" * 100_000})
    journal.close()
    assert len(reread(path)) == 40


def test_it_is_readable_by_its_owner_alone_and_a_leftover_new_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "j.new").write_bytes(b"half of something")
    journal = Journal(tmp_path / "j")
    journal.close()
    assert os.stat(tmp_path / "j").st_mode & 0o777 == 0o600
    assert reread(tmp_path / "j") == {}


def test_two_threads_lose_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")

    def write(name: str) -> None:
        for number in range(300):
            journal.append({f"{name}{number}": "x" * 2000})
            if number % 2:
                journal.forget(f"{name}{number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert set(reread(tmp_path / "j")) == {f"{name}{number}" for name in "ab" for number in range(0, 300, 2)}


@settings(max_examples=40, deadline=None)
@given(steps=some.lists(some.tuples(some.sampled_from("abcdef"), some.integers(-1, 70_000)), max_size=60))
def test_any_history_is_read_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    journal, model = Journal(path), {}
    for key, size in steps:
        if size < 0:
            journal.forget(key)
            model.pop(key, None)
        else:
            journal.append({key: "x" * size})
            model[key] = size
    journal.close()
    assert {key: len(value) - 2 for key, value in reread(path).items()} == model
