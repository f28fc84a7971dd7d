"""What a hostile handler leaves as its result or in its directory: checked, refused or removed, and nobody waits."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wan2gp.protocol import Artifact
from wan2gp.supervisor import emptying, staging
from wan2gp.supervisor.emptying import GONE, remove_set_aside, set_tmp_aside
from wan2gp.supervisor.finisher import clear
from wan2gp.supervisor.publish import LocalStore
from wan2gp.supervisor.queue import Verb
from wan2gp.supervisor.spool import Ending
from wan2gp.supervisor.staging import Refused, take

TEXT = b"what was checked"


def made(path: str, data: bytes = TEXT, **more: object) -> Artifact:
    fields = {"name": "x", "kind": "text", "mime": "text/plain", "bytes": len(data)}
    return Artifact(path, sha256=hashlib.sha256(data).hexdigest(), **{**fields, **more})  # type: ignore[arg-type]


class Run:
    """One run's directory below a handler's and a task's, a spool's folder, and where results are shown."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.work = base / "work" / "maker" / "task" / "lease"
        self.folder = base / "spool" / "task-lease"
        self.work.mkdir(parents=True)
        self.folder.mkdir(parents=True)
        self.store = LocalStore(base / "outputs")

    def ending(self, *artifacts: Artifact) -> Ending:
        names = ("task", "maker", 1, "lease", "token", Verb.COMPLETE, str(self.work))
        return Ending(*names, artifacts=artifacts)

    def shown(self, *artifacts: Artifact, meanwhile: object = None) -> list[bytes]:
        """What a user gets, when ``meanwhile()`` happens between the check and the publication."""
        ending = self.ending(*artifacts)
        staged = self.store.stage(ending, self.folder)
        if callable(meanwhile):
            meanwhile()
        self.store.commit(ending, staged)
        return [path.read_bytes() for path in sorted((self.base / "outputs").rglob("*")) if path.is_file()]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_file_that_its_maker_keeps_open_cannot_be_changed_after_the_check(run: Run) -> None:
    path = run.work / "x"
    path.write_bytes(TEXT)
    with path.open("r+b", buffering=0) as kept:
        assert run.shown(made("x"), meanwhile=lambda: kept.write(b"WHAT WAS NEVER CH")) == [TEXT]


def test_nor_one_that_is_mapped_into_its_makers_memory(run: Run) -> None:
    path = run.work / "x"
    path.write_bytes(TEXT)
    with path.open("r+b") as kept:
        mapped = mmap.mmap(kept.fileno(), len(TEXT))

    def change() -> None:
        mapped[:4] = b"EVIL"

    assert run.shown(made("x"), meanwhile=change) == [TEXT]
    mapped.close()


def test_a_file_that_nobody_holds_is_moved_and_not_copied(run: Run) -> None:
    (run.work / "x").write_bytes(TEXT)
    number = (run.work / "x").stat().st_ino
    assert run.shown(made("x")) == [TEXT]
    (shown,) = (path for path in (run.base / "outputs").rglob("*") if path.is_file())
    assert shown.stat().st_ino == number


def test_terabytes_of_holes_are_refused_without_being_read(run: Run) -> None:
    with (run.work / "x").open("wb") as file:
        file.write(TEXT)
        file.truncate(1 << 42)
    with pytest.raises(Refused, match="holes"):
        run.store.stage(run.ending(made("x", bytes=1 << 42)), run.folder)


def test_a_file_that_is_nothing_but_holes_is_refused_too(run: Run) -> None:
    with (run.work / "x").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Refused, match="holes"):
        run.store.stage(run.ending(made("x", bytes=1 << 40)), run.folder)


def test_a_second_name_of_somebody_elses_file_is_refused_and_stays_where_it_is(run: Run, tmp_path: Path) -> None:
    prey = tmp_path / "prey"
    prey.write_bytes(TEXT)
    os.link(prey, run.work / "x")
    with pytest.raises(Refused, match="of its own"):
        run.store.stage(run.ending(made("x")), run.folder)
    assert prey.read_bytes() == TEXT and list(run.folder.iterdir()) == []


def test_a_folder_in_place_of_a_file_brings_nothing_along(run: Run) -> None:
    (run.work / "x" / "inner").mkdir(parents=True)
    with pytest.raises(Refused, match="not a plain file"):
        run.store.stage(run.ending(made("x")), run.folder)
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize("part", ["maker", "task", "lease"])
def test_a_directory_on_the_way_that_was_exchanged_for_a_link_is_not_followed(
    run: Run, tmp_path: Path, part: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    above = next(path for path in (run.work, *run.work.parents) if path.name == part)
    (run.work / "x").write_bytes(TEXT)
    above.rename(elsewhere)
    above.symlink_to(elsewhere)
    with pytest.raises(Refused):
        run.store.stage(run.ending(made("x")), run.folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_another_user_made_is_ours_before_it_is_checked(run: Run) -> None:
    path = run.work / "x"
    path.write_bytes(TEXT)
    os.chown(path, 65_123, 65_123)
    path.chmod(0o6777)
    (staged,) = run.store.stage(run.ending(made("x")), run.folder)
    found = staged.path.stat()
    assert (found.st_uid, found.st_mode & 0o6022) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_another_user_made_is_copied_where_the_file_system_gives_nothing_away(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and FUSE may refuse it; whoever made the file would own what is shown."""
    path = run.work / "x"
    path.write_bytes(TEXT)
    path.chmod(0o6777)
    os.chown(path, 65_123, 65_123)
    inode = path.stat().st_ino

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(staging.os, "fchown", refused)
    (staged,) = run.store.stage(run.ending(made("x")), run.folder)
    found = staged.path.stat()
    assert (found.st_uid, found.st_mode & 0o6022, found.st_nlink) == (0, 0, 1) and found.st_ino != inode
    assert staged.path.read_bytes() == TEXT and os.listdir(run.folder) == [staged.path.name]


ANYBODY = 2**32 - 1
ACCESS_LIST = [(0x01, 6, ANYBODY), (0x02, 6, 65_123), (0x04, 4, ANYBODY), (0x10, 6, ANYBODY), (0x20, 0, ANYBODY)]
"""`user::rw- user:65123:rw- group::r-- mask::rw- other::---`, of `linux/posix_acl.h`."""


def test_an_access_list_gives_nobody_a_result_that_is_shown(run: Run) -> None:
    path = run.work / "x"
    path.write_bytes(TEXT)
    try:
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in ACCESS_LIST)
        os.setxattr(path, "system.posix_acl_access", value)
    except OSError as error:
        pytest.skip(f"no access lists on this file system: {error}")
    (staged,) = run.store.stage(run.ending(made("x")), run.folder)
    assert "system.posix_acl_access" not in os.listxattr(staged.path)
    assert staged.path.stat().st_mode & 0o022 == 0


PARTS = st.sampled_from(
    ["..", ".", "", "x", "sub", "link", "prey", "pipe", "\0", "\ud800", "é" * 200, "task", "/", " "]
)


@settings(max_examples=40)
@given(st.lists(PARTS, max_size=6).map("/".join), st.booleans())
@example("../prey", False)
@example("link/prey", False)
@example("sub/../../prey", False)
@example("sub/x", False)
def test_no_path_leads_out_of_the_directory(path: str, absolute: bool) -> None:
    with tempfile.TemporaryDirectory() as base:
        run = Run(Path(base))
        prey = run.work.parent / "prey"
        prey.write_bytes(TEXT)
        (run.work / "sub").mkdir()
        for inner in ("x", "sub/x"):
            (run.work / inner).write_bytes(TEXT)
        (run.work / "link").symlink_to(run.work.parent)
        os.mkfifo(run.work / "pipe")
        named = f"{run.work.parent if absolute else ''}{'/' if absolute else ''}{path}"
        try:
            take(run.ending(), made(named), run.folder / "0")
            assert (run.folder / "0").read_bytes() == TEXT
            left = [inner for inner in ("x", "sub/x") if (run.work / inner).exists()]
            assert len(left) == 1
        except Refused:
            assert list(run.folder.iterdir()) == []
        assert prey.read_bytes() == TEXT


# -- what is left behind ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[1500, pytest.param(10_000, marks=pytest.mark.long)])
def bottomless(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A run's directory with so many others below one another that neither a path nor a recursion reaches the last."""
    work = tmp_path / "work" / "maker" / "task" / "lease"
    work.mkdir(parents=True)
    here = os.open(work, os.O_RDONLY)
    for _ in range(request.param):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    yield work


def test_thousands_of_directories_below_one_another_hold_nobody_up(bottomless: Path, tmp_path: Path) -> None:
    aside = tmp_path / "handlers"
    aside.mkdir()
    clear(bottomless, aside)
    assert not bottomless.exists() and not bottomless.parent.exists()
    assert [path.name[: len(GONE)] for path in aside.iterdir()] == [GONE]
    remove_set_aside(aside, lambda: None)
    assert list(aside.iterdir()) == []


def test_more_files_than_are_removed_in_passing_are_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emptying, "MUCH", 2)
    work, aside = tmp_path / "work" / "maker" / "task" / "lease", tmp_path / "handlers"
    aside.mkdir()
    work.mkdir(parents=True)
    for number in range(3 * emptying.BREATH):
        (work / str(number)).touch()
    clear(work, aside)
    assert not work.parent.exists()
    (left,) = aside.iterdir()
    assert len(list(left.iterdir())) > 0
    remove_set_aside(aside, lambda: None)
    assert list(aside.iterdir()) == []


def test_a_directory_that_was_exchanged_for_a_link_is_removed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    work, elsewhere = tmp_path / "work" / "maker" / "task" / "lease", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    work.parent.mkdir(parents=True)
    work.symlink_to(elsewhere)
    clear(work, tmp_path)
    assert not work.is_symlink() and (elsewhere / "kept").exists()


def test_a_link_in_place_of_the_temporary_files_is_not_kept_for_ever(tmp_path: Path) -> None:
    home = tmp_path / "handlers" / "comfy"
    home.mkdir(parents=True)
    for _ in range(3):
        (home / "tmp").symlink_to(tmp_path)
        set_tmp_aside(home)
    assert [path.name for path in home.parent.iterdir()] == ["comfy"] and list(home.iterdir()) == []
