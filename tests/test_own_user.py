"""When a handler gets a user of its own: only where that user can do what the operator has set it up for."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sandboxed import can_change_user, confined_command
from tests.test_ctl import ctl
from tests.test_doctor import report
from tests.test_profiles import config
from wan2gp.profile import Layer
from wan2gp.supervisor import access, users
from wan2gp.supervisor import profiles as module
from wan2gp.supervisor.granted import Unprepared
from wan2gp.supervisor.grants import device_groups
from wan2gp.supervisor.profiles import Profiles
from wan2gp.supervisor.registry import COURIER, Registry, comfy_spec, wan_spec

root = pytest.mark.skipif(not can_change_user(), reason="only root can give user ids away")
BASE = 64_000
"""Of nobody: no handler of a worker beside this test runs under what follows."""
COMFY = BASE + 2


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What every user may enter, as an image's root directory; pytest's own are closed. The interpreter is open too."""
    made = Path(tempfile.mkdtemp(prefix="w2g-"))
    for name in ("", "data", "cache", "ComfyUI/models/loras", "ComfyUI/custom_nodes/that"):
        (made / name).mkdir(parents=True, exist_ok=True)
        (made / name).chmod(0o755)
    (made / "ComfyUI/main.py").write_text("")
    (made / "ComfyUI/models/loras/a.safetensors").write_text("weights")
    for folder in ("ComfyUI", "ComfyUI/models"):
        (made / folder).chmod(0o755)
    for file in (made / "ComfyUI/main.py", made / "ComfyUI/models/loras/a.safetensors"):
        file.chmod(0o644)
    monkeypatch.setattr(module, "why_none", lambda config: None)
    monkeypatch.setattr(module, "common_places", lambda config: ())
    yield made
    shutil.rmtree(made)


def made(disk: Path, caches: Mapping[str, str] | None = None, /, **settings: str) -> Profiles:
    given = {"COMFY_PATH": str(disk / "ComfyUI"), "WAN2GP_SANDBOX_UID_BASE": str(BASE), **settings}
    settled = config(disk / "data", **given)
    return Profiles(settled, Registry([comfy_spec(), wan_spec(settled)]), caches or {}, make=True)


def test_what_is_readable_by_all_is_enough(disk: Path) -> None:
    user, reason = made(disk).user("comfy")
    assert user is not None and user.uid == COMFY and reason is None


def test_a_cache_of_roots_stays_of_use_and_the_lack_is_told_with_the_remedy(disk: Path) -> None:
    """As in every container whose image sets HF_HOME: what worked before the sandbox goes on to work."""
    profiles = made(disk, {"HF_HOME": str(disk / "cache")})
    user, reason = profiles.user("comfy")
    assert user is None and reason is not None
    assert f"{disk}/cache cannot be written by the user id {COMFY}" in reason
    assert f"`chown -R {COMFY} {disk}/cache`" in reason
    assert set(profiles.lacks("comfy")) == {Layer.USER}
    assert profiles.user(COURIER)[0] is not None and profiles.user("wan")[0] is not None, "they have no use for it"


def test_a_cache_below_roots_home_is_looked_at_from_the_root_on(disk: Path) -> None:
    """`HF_HOME=/root/.cache/huggingface`, as the page says."""
    (disk / "root/.cache/huggingface").mkdir(parents=True)
    (disk / "root/.cache/huggingface").chmod(0o777)
    (disk / "root").chmod(0o700)
    reason = made(disk, {"HF_HOME": str(disk / "root/.cache/huggingface")}).user("comfy")[1]
    assert reason is not None and f"{disk}/root is closed to the user id {COMFY}" in reason


def test_a_folder_that_a_node_may_write_to_is_looked_at_too(disk: Path) -> None:
    node = disk / "ComfyUI/custom_nodes/that"
    reason = made(disk, COMFY_WRITABLE_PATHS=str(node)).user("comfy")[1]
    assert reason is not None and f"`chown -R {COMFY} {node}`" in reason


def test_files_that_root_left_in_a_cache_of_its_own_are_found(disk: Path) -> None:
    (disk / "cache").chmod(0o777)
    (disk / "cache/hub").mkdir(mode=0o755)
    reason = made(disk, {"HF_HOME": str(disk / "cache")}).user("comfy")[1]
    assert reason is not None and f"{disk}/cache/hub cannot be written" in reason


def test_a_model_that_only_root_may_read_leaves_the_user_out(disk: Path) -> None:
    """Downloaded under umask 077, say."""
    model = disk / "ComfyUI/models/loras/a.safetensors"
    model.chmod(0o600)
    reason = made(disk).user("comfy")[1]
    assert (
        reason is not None and f"{model} cannot be read by the user id {COMFY}" in reason and "chmod -R o+rX" in reason
    )


def test_a_link_to_a_model_below_a_closed_directory_leaves_the_user_out(disk: Path) -> None:
    (disk / "closed").mkdir(mode=0o700)
    (disk / "closed/b.safetensors").write_text("weights")
    (disk / "ComfyUI/models/loras/b.safetensors").symlink_to(disk / "closed/b.safetensors")
    reason = made(disk).user("comfy")[1]
    assert reason is not None and f"{disk}/closed is closed to the user id {COMFY}" in reason


def test_the_look_ends_in_a_store_of_a_million_files(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "ENTRIES_MAX", 10)
    for number in range(50):
        (disk / f"ComfyUI/models/{number}").mkdir(mode=0o755)
    (disk / "ComfyUI/models/49/late").touch(mode=0o600)
    assert made(disk).user("comfy")[0] is not None


def test_a_store_that_does_not_answer_leaves_the_user_out(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(module, "ANSWER_S", 0.3)
    monkeypatch.setattr(module, "cannot_read", lambda user, places: answers.wait(60) and None)
    try:
        reason = made(disk).user("comfy")[1]
    finally:
        answers.set()
    assert reason is not None and "did not answer" in reason


@root
def test_a_cache_that_is_missing_is_made_for_all_handlers(disk: Path) -> None:
    profiles = made(disk, {"HF_HOME": str(disk / "cache/later/hf")})
    assert profiles.user("comfy") == (users.User(COMFY, COMFY, (BASE, *device_groups())), None)
    assert writes(profiles, disk / "cache/later/hf/x") == "ok"


@root
def test_chown_as_it_is_said_gives_a_user_of_its_own_that_can_write(disk: Path) -> None:
    caches, node = {"HF_HOME": str(disk / "cache")}, str(disk / "ComfyUI/custom_nodes/that")
    for place in (disk / "cache", node):
        subprocess.run(["chown", "-R", str(COMFY), str(place)], check=True)
    profiles = made(disk, caches, COMFY_WRITABLE_PATHS=node)
    assert profiles.user("comfy")[0] is not None
    assert [writes(profiles, Path(place) / "x") for place in (disk / "cache", node)] == ["ok", "ok"]


@root
def test_without_it_the_cache_is_written_by_root_as_before(disk: Path) -> None:
    profiles = made(disk, {"HF_HOME": str(disk / "cache")})
    assert writes(profiles, disk / "cache/x") == "ok" and (disk / "cache/x").stat().st_uid == 0


def writes(profiles: Profiles, path: Path) -> str:
    """By the shell, in the handler's sandbox: the test's interpreter may lie where only root comes."""
    profile = replace(profiles.of("comfy").profile, group="", environ={})
    seen = confined_command(profile, ["/bin/sh", "-c", f"echo x > {path} && echo ok"])
    return seen.said.strip()


# --- where handlers' directories are ----------------------------------------------------------------------------------


def test_a_work_directory_on_another_disk_is_judged_where_it_is(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (disk / "closed/work").mkdir(parents=True)
    (disk / "closed").chmod(0o700)
    (disk / "data/work").symlink_to(disk / "closed/work")
    places = users.common_places(config(disk / "data"))
    reason = users.closed_to(users.User(COMFY, COMFY), [place for place in places if disk in Path(place).parents])
    assert reason is not None and f"{disk}/closed is closed to" in reason


def test_a_life_without_users_of_their_own_closes_nothing_to_the_next(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    made(disk, WAN2GP_SANDBOX_UID_BASE="0").prepare("comfy")
    assert (disk / "data/handlers").stat().st_mode & 0o777 == 0o700, "or this shows nothing"
    places = users.common_places(config(disk / "data"))
    assert users.closed_to(users.User(COMFY, COMFY), [place for place in places if disk in Path(place).parents]) is None


@root
def test_a_disk_that_lets_nothing_be_given_away_is_found_behind_a_link(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (disk / "other").mkdir()
    (disk / "data/handlers").symlink_to(disk / "other")

    def chown(path: Path, *ids: int) -> None:
        if disk / "other" in Path(path).parents:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    reason = users.why_none(config(disk / "data", WAN2GP_SANDBOX_UID_BASE=str(BASE)))
    assert reason is not None and f"{disk}/data/handlers cannot be given to another user" in reason
    assert list((disk / "other").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_named_with_what_to_do(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = made(disk, WAN2GP_SANDBOX_UID_BASE="0")
    (disk / "data/handlers").write_text("somebody's")
    with pytest.raises(Unprepared, match=f"{disk}/data/handlers.* cannot be made ready for the handler .*see to its"):
        profiles.prepare("comfy")


# --- the doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_makes_no_directory_for_a_mistyped_name(tmp_path: Path) -> None:
    place = str(tmp_path / "mistyped" / "name")  # the last one given counts
    given = ("--data-dir", place, "doctor", "--json")
    report(ctl(tmp_path, *given, COMFY_PATH=f"{tmp_path}/ComfyUI", HF_HOME=f"{tmp_path}/hf"))
    assert list(tmp_path.iterdir()) == []


@root
def test_the_doctor_says_what_is_missing_and_what_is_not_opened(tmp_path: Path) -> None:
    given = {"COMFY_PATH": str(tmp_path), "COMFY_WRITABLE_PATHS": "/home", "WAN2GP_SANDBOX_UID_BASE": "0"}
    done = ctl(tmp_path, "doctor", **given)
    assert "/home is not opened to handlers for writing: it is a home directory, or above one" in done.stdout
    assert "a layer is missing" in done.stdout and "lacks" not in done.stdout and done.returncode == 1
