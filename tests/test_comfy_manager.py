"""ComfyUI is started on loopback, and its package manager installs nothing for whoever reaches it there."""

from __future__ import annotations

import configparser
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest_comfy import free_port
from wan2gp.comfy_sidecar.manager_config import disarm_manager
from wan2gp.comfy_sidecar.server import HOST, ComfyServer, Folders, Installation

OLD, NEW = "default/ComfyUI-Manager", "__manager"


def checkout(tmp_path: Path, *, system_users: bool = False, manager: str | None = None) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "folder_paths.py").write_text("def get_system_user_directory(): ...\n" if system_users else "")
    if manager is not None:
        place = folder / "custom_nodes" / "ComfyUI-Manager" / "glob"
        place.mkdir(parents=True)
        (place / "manager_core.py").write_text(manager)
    return folder


def read(user: Path, place: str) -> dict[str, str]:
    """As the Manager itself reads it."""
    config = configparser.ConfigParser(strict=False)
    config.read(user / place / "config.ini")
    return dict(config["default"])


@pytest.mark.parametrize(
    ("system_users", "manager", "places"),
    [
        (False, None, {OLD}),
        (False, "old", {OLD}),
        (False, "get_system_user_directory", {OLD}),
        (True, None, {NEW}),
        (True, "old", {OLD, NEW}),
        (True, "get_system_user_directory", {NEW}),
    ],
)
def test_every_manager_finds_that_it_may_install_nothing(
    tmp_path: Path, system_users: bool, manager: str | None, places: set[str]
) -> None:
    user = tmp_path / "user"
    disarm_manager(user, checkout(tmp_path, system_users=system_users, manager=manager))
    assert {place for place in (OLD, NEW) if (user / place).exists()} == places
    for place in places:
        found = read(user, place)
        assert (found["security_level"], found["network_mode"]) == ("strong", "offline")


def test_what_a_node_changed_is_undone_before_the_next_start(tmp_path: Path) -> None:
    """A list of commands there is executed at the start, outside of any task."""
    user, victim = tmp_path / "user", tmp_path / "victim"
    victim.write_text("precious")
    place = user / OLD
    (place / "startup-scripts").mkdir(parents=True)
    (place / "startup-scripts" / "install-scripts.txt").write_text("['.', 'sh', '-c', 'true']\n")
    (place / "config.ini").symlink_to(victim)
    disarm_manager(user, checkout(tmp_path))
    assert read(user, OLD)["security_level"] == "strong" and not (place / "startup-scripts").exists()
    assert victim.read_text() == "precious"
    (place / "startup-scripts").symlink_to(tmp_path)
    disarm_manager(user, tmp_path / "ComfyUI")
    assert not (place / "startup-scripts").is_symlink() and victim.exists()
    assert sorted(path.name for path in place.iterdir()) == ["config.ini"]


@pytest.mark.parametrize(
    "args", ["--listen 0.0.0.0", "--listen=0.0.0.0,::", "--listen --port 1", "--user-directory /x"]
)
def test_no_flag_of_the_operators_opens_comfyui_to_the_network(tmp_path: Path, args: str) -> None:
    folders = Folders(tmp_path)
    command = Installation("/x/ComfyUI", args=args).command(folders, 8188)
    assert command[2 : 2 + len(shlex.split(args))] == shlex.split(args), "theirs come first"
    ours = command[2 + len(shlex.split(args)) :]
    assert ours[:4] == ["--listen", HOST, "--port", "8188"] and HOST == "127.0.0.1"
    assert ours[ours.index("--user-directory") + 1] == str(folders.user)


PATH = os.environ.get("COMFY_PATH", "")
MANAGER = any("manager" in path.name.casefold() for path in Path(PATH or "/nowhere").glob("custom_nodes/*"))
INSTALL = {
    "/customnode/install/git_url": b"https://x.invalid/a.git",
    "/customnode/install/pip": b"x-invalid",
    "/manager/queue/install": b'{"id": "x", "version": "latest", "files": [], "pip": [], "channel": "default"}',
    "/manager/queue/install_model": b'{"filename": "x.safetensors", "url": "https://x.invalid/x", "base": "x"}',
    "/manager/queue/uninstall": b'{"id": "x", "version": "latest"}',
}


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    args = os.environ.get("COMFY_ARGS", "")
    installation = Installation(PATH, os.environ.get("COMFY_PYTHON", ""), args, free_port())
    server = ComfyServer.start(installation, tmp_path_factory.mktemp("home"))
    try:
        server.wait_ready(200.0, lambda: False)
        with urllib.request.urlopen(f"http://{HOST}:{server.port}/manager/version", timeout=20.0) as version:
            assert version.status == 200, "it is there, so that what it refuses says something"
        yield server
    finally:
        server.stop()


@pytest.mark.real_comfy
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(not MANAGER, reason="COMFY_PATH has no ComfyUI-Manager")
@pytest.mark.parametrize("path", INSTALL)
def test_the_real_manager_refuses_to_install(managed: ComfyServer, path: str) -> None:
    """404: this version has no such verb."""
    asked = urllib.request.Request(f"http://{HOST}:{managed.port}{path}", INSTALL[path], method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=20.0)
    refused.value.close()
    assert refused.value.code in (403, 404)


@pytest.mark.real_comfy
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(not MANAGER, reason="COMFY_PATH has no ComfyUI-Manager")
def test_the_real_manager_does_not_restart_comfyui(managed: ComfyServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{HOST}:{managed.port}/manager/reboot", timeout=20.0)
    refused.value.close()
    assert refused.value.code in (403, 404) and managed.exit_code() is None
