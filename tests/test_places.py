"""The directories that a hostile handler or courier shares with the supervisor: what it lays there leads nowhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from wan2gp.supervisor.places import NotHanded, Places
from wan2gp.supervisor.users import User

BASE = 65_300
COURIER, COMFY = User(BASE + 1, BASE + 1), User(BASE + 2, BASE + 2)
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
Lay = Callable[[Path, Path], object]


class Errand:
    """A task at a handler, and what the courier has fetched for it."""

    def __init__(self, data_dir: Path) -> None:
        self.places = Places(data_dir, BASE)
        for name in ("comfy", "courier"):
            self.places.prepare(name, None)
        self.work_dir = self.places.run("comfy", "task", "lease" * 8)
        self.place = self.places.errand("courier", "task")
        self.places.make_run(self.place, None)

    def fetched(self, name: str = "clip.mp4") -> str:
        (self.place / name).write_bytes(b"frames")
        return str(self.place / name)

    def hand_over(self, *paths: str) -> dict[str, str]:
        files = {f"source{number}": path for number, path in enumerate(paths)}
        return self.places.hand_over(files, self.place, self.work_dir, (None, None))


@pytest.fixture
def errand(tmp_path: Path) -> Errand:
    return Errand(tmp_path)


def test_what_was_fetched_is_moved_into_the_tasks_own_directory(errand: Errand) -> None:
    one = errand.fetched()
    files = errand.hand_over(one, errand.fetched("b.png"), one)
    assert files["source0"] == files["source2"] != files["source1"]
    assert all(Path(path).parent.parent == Path(errand.work_dir) for path in files.values())
    assert Path(files["source0"]).read_bytes() == b"frames" and not list(errand.place.iterdir())


@pytest.mark.parametrize(
    "lay",
    [
        lambda place, prey: place.symlink_to(prey),
        lambda place, prey: os.mkfifo(place),
        lambda place, prey: place.mkdir(),
        lambda place, prey: None,
    ],
    ids=["link", "pipe", "directory", "nothing"],
)
def test_a_courier_that_hands_over_what_is_no_file_is_found_out(errand: Errand, tmp_path: Path, lay: Lay) -> None:
    prey = tmp_path / "prey"
    prey.write_text("secret")
    lay(errand.place / "x", prey)
    with pytest.raises(NotHanded):
        errand.hand_over(str(errand.place / "x"))
    assert prey.read_text() == "secret" and prey.stat().st_nlink == 1


@pytest.mark.parametrize("path", ["{data}/spool", "{place}/../x", "{place}/..", "{place}/", ""])
def test_a_courier_that_names_another_tasks_file_does_not_get_it_moved(
    errand: Errand, tmp_path: Path, path: str
) -> None:
    for other in (tmp_path / "spool", errand.place.parent / "x"):
        other.write_text("somebody else's")
    with pytest.raises(NotHanded):
        errand.hand_over(path.format(data=tmp_path, place=errand.place))
    assert (tmp_path / "spool").exists() and (errand.place.parent / "x").exists()


def test_a_courier_that_makes_its_directory_a_link_hands_over_nothing(errand: Errand, tmp_path: Path) -> None:
    prey = tmp_path / "prey"
    prey.mkdir()
    (prey / "clip.mp4").write_text("secret")
    errand.place.rmdir()
    errand.place.symlink_to(prey)
    with pytest.raises(OSError):
        errand.hand_over(str(errand.place / "clip.mp4"))
    assert (prey / "clip.mp4").exists()


@pytest.mark.parametrize("what", ["inputs", "run", "task"])
def test_a_handler_that_lays_a_link_in_the_way_of_its_inputs_gets_none(
    errand: Errand, tmp_path: Path, what: str
) -> None:
    prey = tmp_path / "prey"
    prey.mkdir()
    run = Path(errand.work_dir)
    place = {"inputs": run / errand.place.name, "run": run, "task": run.parent}[what]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(prey)
    with pytest.raises(OSError):
        errand.hand_over(errand.fetched())
    assert not list(prey.iterdir())


def test_work_on_another_disk_by_a_link_of_the_operators_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "work").symlink_to(tmp_path / "disk")
    errand = Errand(tmp_path / "data")
    files = errand.hand_over(errand.fetched())
    assert Path(files["source0"]).read_bytes() == b"frames" and list((tmp_path / "disk" / "comfy").iterdir())


@ROOT
def test_a_handler_owns_its_input_and_cannot_write_into_what_the_courier_keeps(errand: Errand) -> None:
    fresh, kept = errand.fetched("fresh"), errand.fetched("kept")
    cache = errand.places.home("courier") / "blob"
    os.link(kept, cache)
    for path in (fresh, kept):
        os.chown(path, COURIER.uid, COURIER.gid)
        os.chmod(path, 0o600)
    files = errand.places.hand_over({"a": fresh, "b": kept}, errand.place, errand.work_dir, (COURIER, COMFY))
    own, shared = os.stat(files["a"]), os.stat(files["b"])
    assert own.st_uid == COMFY.uid and os.stat(Path(files["a"]).parent).st_uid == COMFY.uid
    assert shared.st_uid == COURIER.uid and stat.S_IMODE(shared.st_mode) == 0o644
    assert os.stat(errand.work_dir).st_uid == COMFY.uid and os.stat(Path(errand.work_dir).parent).st_uid == 0


@ROOT
def test_a_courier_that_hands_over_somebody_elses_file_is_found_out(errand: Errand, tmp_path: Path) -> None:
    prey = tmp_path / "prey"
    prey.write_text("secret")
    os.chown(prey, COMFY.uid, COMFY.gid)
    os.chmod(prey, 0o600)
    os.link(prey, errand.place / "x")
    with pytest.raises(NotHanded):
        errand.places.hand_over({"x": str(errand.place / "x")}, errand.place, errand.work_dir, (COURIER, COMFY))
    assert stat.S_IMODE(prey.stat().st_mode) == 0o600


@ROOT
def test_a_directory_changes_hands_when_its_handler_gets_another_user(tmp_path: Path) -> None:
    places = Places(tmp_path, BASE)
    places.prepare("comfy", None)
    home = places.home("comfy")
    (home / "engine" / "user").mkdir(parents=True)
    (home / "engine" / "user" / "comfyui.db").write_text("state")
    prey = tmp_path / "prey"
    prey.write_text("the worker's own")
    (home / "link").symlink_to(prey)
    os.link(prey, home / "second-name")
    places.prepare("comfy", COMFY)
    assert (home / "engine" / "user" / "comfyui.db").stat().st_uid == COMFY.uid == home.stat().st_uid
    assert prey.stat().st_uid == 0, "the worker's own file was given away"
    assert (home / "link").lstat().st_uid == COMFY.uid
    places.prepare("comfy", None)
    assert home.stat().st_uid == 0 and (home / "engine").stat().st_uid == 0


@pytest.mark.parametrize("part", ["home", "cache", "tmp", "engine"])
def test_what_a_handler_lays_in_the_way_of_its_next_life_is_removed(tmp_path: Path, part: str) -> None:
    places = Places(tmp_path, BASE)
    for lay in (Path.touch, lambda place: place.symlink_to("nowhere"), lambda place: place.symlink_to(tmp_path)):
        places.prepare("comfy", None)
        place = places.home("comfy") / part
        if place.is_dir():
            place.rmdir()
        lay(place)
        places.prepare("comfy", None)
        assert not place.is_symlink() and (part == "engine" or place.is_dir())
        assert part != "engine" or not place.exists()


@ROOT
def test_a_start_after_a_death_walks_through_nothing_that_the_handler_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(tmp_path, BASE)
    places.prepare("comfy", COMFY)
    (places.home("comfy") / "tmp").rmdir()
    monkeypatch.setattr(os, "fwalk", lambda *_, **__: pytest.fail("it may be a million files, and the loop waits"))
    places.prepare("comfy", COMFY)
    assert {path.stat().st_uid for path in (places.home("comfy"), *places.home("comfy").iterdir())} == {COMFY.uid}
