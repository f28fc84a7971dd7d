"""Two lives of a handler, and what the first one lays for the second: nothing that it may write opens anything else."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest_worker import ROOT
from tests.sandboxed import confined
from tests.test_profiles import config, opened, profiles
from wan2gp.profile import Profile
from wan2gp.sandbox import links
from wan2gp.sandbox.grants import readable
from wan2gp.sandbox.links import Way, way
from wan2gp.supervisor import granted as granted_module
from wan2gp.supervisor.profiles import CACHES, MORE_CACHES, Profiles
from wan2gp.supervisor.registry import Registry, comfy_spec, wan_spec
from wan2gp.supervisor.write_places import trusted

LOOK = """
import pathlib
disk = pathlib.Path(sys.argv[1])
say("spool", lambda: (disk / "data/spool/journal").write_text("forged"))
say("home", lambda: (disk / "home/.bashrc").write_text("evil"))
say("key", lambda: (disk / "home/.ssh/id").read_text())
say("beside", lambda: (disk / "beside/secret").read_text())
say("shadow", lambda: open("/etc/shadow").read())
"""
CLOSED = dict.fromkeys(("spool", "home", "key", "beside", "shadow"), "EACCES")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("data/spool", "home/.ssh", "beside", "cache/hub", "ComfyUI/models", "ComfyUI/custom_nodes/own"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("home/.ssh/id", "beside/secret", "data/spool/journal", "ComfyUI/main.py"):
        (tmp_path / name).write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path.resolve()


def life(disk: Path, code: str, caches: Mapping[str, str], **settings: str) -> tuple[Profile, dict[str, str]]:
    """A start of the handler in a new life of the worker, as it would be without a user of its own."""
    given = {"COMFY_PATH": str(disk / "ComfyUI"), "WAN2GP_SANDBOX_UID_BASE": "0", **settings}
    made = profiles(disk / "data", caches, **given)
    made.prepare("comfy")
    profile = replace(made.of("comfy").profile, group="")
    return profile, confined(profile, code, disk).answers


PLACES = [*CACHES, *MORE_CACHES, "comfy.writable_paths"]


KINDS = [pytest.param(kind, marks=() if kind == "HF_HUB_CACHE" else pytest.mark.long) for kind in PLACES]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_below_another_that_becomes_a_link_opens_nothing(disk: Path, kind: str) -> None:
    outer, inner = str(disk / "cache"), str(disk / "cache/hub")
    above = "TORCH_HOME" if kind == "HF_HOME" else "HF_HOME"
    caches = {above: outer} if kind == "comfy.writable_paths" else {above: outer, kind: inner}
    settings = {"COMFY_WRITABLE_PATHS": inner} if kind == "comfy.writable_paths" else {}
    plant = 'hub = disk / "cache/hub"; hub.rename(disk / "cache/old"); hub.symlink_to(disk)'
    profile, first = life(disk, f"{LOOK}\n{plant}", caches, **settings)
    assert first == CLOSED and opened(profile.write, Path(inner))
    profile, second = life(disk, LOOK, caches, **settings)
    assert second == CLOSED and opened(profile.write, disk / "cache/x"), "and the cache itself is lost to nobody"


def test_a_link_that_is_laid_after_the_worker_has_looked_is_not_followed(disk: Path) -> None:
    """Between two starts of the same handler in one life of the worker."""
    caches = {"HF_HOME": str(disk / "cache"), "HF_HUB_CACHE": str(disk / "cache/hub")}
    profile, _ = life(disk, "", caches)
    (disk / "cache/hub").rename(disk / "cache/old")
    (disk / "cache/hub").symlink_to(disk)
    assert confined(profile, LOOK, disk).answers == CLOSED


def test_a_cache_above_the_data_directory_and_above_a_home_opens_neither(disk: Path) -> None:
    _, seen = life(disk, LOOK + 'say("cache", lambda: (disk / "cache/x").write_text(""))', {"HF_HOME": str(disk)})
    assert {name: seen[name] for name in ("spool", "home", "key")} == dict.fromkeys(("spool", "home", "key"), "EACCES")
    noted = profiles(disk / "data", {"HF_HOME": str(disk)}, COMFY_PATH=str(disk / "ComfyUI")).notes
    assert any("it is a home directory, or above one" in note for note in noted)


def test_a_cache_above_the_data_directory_opens_what_lies_beside_it(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/root")
    _, seen = life(disk, LOOK + 'say("cache", lambda: (disk / "cache/x").write_text(""))', {"HF_HOME": str(disk)})
    assert (seen["spool"], seen["cache"]) == ("EACCES", "ok")


def test_no_setting_lets_a_handler_write_what_the_worker_runs(tmp_path: Path) -> None:
    profile = profiles(tmp_path, COMFY_WRITABLE_PATHS=str(ROOT)).of("comfy").profile
    assert opened(profile.write, ROOT / "docs") and not opened(profile.write, ROOT / "wan2gp" / "entry.py")


PLANTS = {
    "a link at the top": 'os.symlink("/", disk / "ComfyUI/zz"); os.symlink(disk / "beside", disk / "ComfyUI/yy")',
    "a link among the models": 'os.symlink(disk / "beside", disk / "ComfyUI/models/x")',
    "a link among the nodes": 'os.symlink(disk / "beside", disk / "ComfyUI/custom_nodes/x")',
    "an environment": """
(disk / "ComfyUI/venv/bin").mkdir(parents=True)
(disk / "ComfyUI/venv/bin/python").write_text("")
(disk / "ComfyUI/venv/pyvenv.cfg").write_text(f"home = {disk}/beside/bin\\n")
""",
    "a link for a Python": """
(disk / "ComfyUI/venv/bin").mkdir(parents=True)
(disk / "ComfyUI/venv/bin/python").symlink_to(disk / "beside/bin/python")
""",
    "a list": '(disk / "ComfyUI/extra_model_paths.yaml").write_text(f"a:\\n  loras: {disk}/beside\\n")',
    "a link for the models": """
(disk / "ComfyUI/models").rename(disk / "ComfyUI/old")
(disk / "ComfyUI/models").symlink_to(disk / "beside")
""",
}


@pytest.mark.parametrize("plant", [pytest.param(text, id=name) for name, text in PLANTS.items()])
def test_what_a_node_lays_in_a_checkout_that_it_may_write_opens_nothing(disk: Path, plant: str) -> None:
    settings = {"COMFY_WRITABLE_PATHS": str(disk / "ComfyUI")}
    _, first = life(disk, LOOK + plant, {}, **settings)
    _, second = life(disk, LOOK, {}, **settings)
    assert first == second == CLOSED


def test_what_a_node_lays_opens_nothing_to_another_handler(disk: Path) -> None:
    """To the Wan2GP beside it, say."""
    checkout = disk / "ComfyUI/Wan2GP"
    checkout.mkdir()
    (checkout / "zz").symlink_to(disk / "beside")
    (checkout / "wgp_config.json").write_text(f'{{"loras_root": "{disk}/beside"}}')
    given = config(disk / "data", COMFY_WRITABLE_PATHS=str(disk / "ComfyUI"), WAN2GP_PATH=str(checkout))
    profile = Profiles(given, Registry([comfy_spec(), wan_spec(given)]), {}).of("wan").profile
    found = readable(profile)
    assert opened(found.paths, checkout / "wgp.py") and not opened(found.paths, disk / "beside/secret")
    assert len(found.notes) == 2


def test_what_an_operator_links_is_followed(disk: Path) -> None:
    (disk / "link").symlink_to(disk / "cache")
    (disk / "ComfyUI/linked").symlink_to(disk / "beside")
    code = LOOK + 'say("cache", lambda: (disk / "cache/x").write_text(""))'
    _, seen = life(disk, code, {"HF_HOME": str(disk / "link")})
    assert seen == {**CLOSED, "beside": "ok", "cache": "ok"}


def test_links_of_places_that_name_each_other_are_sorted_out(tmp_path: Path) -> None:
    """A planted link must not take the others' places from them either."""
    for name in ("x", "mnt/torch", "y"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x/hub").symlink_to(tmp_path / "mnt")
    (tmp_path / "short").symlink_to("x/hub")
    (tmp_path / "mine").symlink_to("y")
    places = [str(tmp_path / name) for name in ("x", "x/hub", "short", "mnt/torch", "mine")]
    good, planted = trusted({place: found for place in places if (found := way(place)) is not None})
    assert {Path(place).name for place in good} == {"x", "torch", "mine"}
    assert {Path(place).name for place in planted} == {"hub", "short"}


@pytest.mark.parametrize("path", ["a\0b", "loop", "x/../loop/y"])
def test_what_is_no_way_leads_nowhere(tmp_path: Path, path: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert way(f"{tmp_path}/{path}") is None


def test_a_way_is_the_one_that_the_kernel_goes(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "up").symlink_to("a/b")
    for path in ("up/../c", "a/./b//..", "none/x", "up", "../" * 40 + "etc"):
        found = way(f"{tmp_path}/{path}")
        assert found is not None and found.end == os.path.realpath(tmp_path / path)


def test_a_disk_that_does_not_answer_holds_up_no_start_of_others(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network volume whose server is gone: looks at it do not return."""
    answers = threading.Event()
    real_way = links.way

    def hanging(path: str) -> Way | None:
        if path.startswith(str(disk / "ComfyUI")):
            assert answers.wait(60)
        return real_way(path)

    monkeypatch.setattr(links, "way", hanging)
    monkeypatch.setattr(granted_module, "ANSWER_S", 0.2)
    try:
        made = profiles(disk / "data", {"HF_HOME": str(disk / "ComfyUI/hf")}, COMFY_PATH=str(disk / "ComfyUI"))
        assert made.of("courier").profile.read
        with pytest.raises(OSError, match="its disk does not answer"):
            made.of("comfy")
    finally:
        answers.set()
    assert all(answer.wait(60) for answer in made._granted._grants.values())
    assert opened(made.of("comfy").profile.read, disk / "ComfyUI/main.py"), "and it is started once the disk answers"
    assert any("did not answer" in note for note in made.notes)
