"""What handlers are granted: never more than was meant, wherever the operator has put things."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest_comfy import free_port
from tests.sandboxed import confined
from wan2gp.config import Config, load_config
from wan2gp.profile import Layer
from wan2gp.sandbox.grants import readable
from wan2gp.supervisor import grants as grants_module
from wan2gp.supervisor import profiles as module
from wan2gp.supervisor.comfy_needs import comfy_needs
from wan2gp.supervisor.grants import around, common_reads, own_places, private_places, public_etc
from wan2gp.supervisor.profiles import Profiles, free_ports
from wan2gp.supervisor.registry import COURIER, HandlerSpec, Registry, comfy_spec
from wan2gp.supervisor.users import User, closed_to, number_of


def config(data_dir: Path, **environ: str) -> Config:
    return load_config(
        flags={"data_dir": data_dir}, environ={"COMFY_PATH": "builtin", "WAN2GP_RUN_DIR": f"{data_dir}/run", **environ}
    )


def profiles(data_dir: Path, environ: Mapping[str, str] | None = None, /, **settings: str) -> Profiles:
    return Profiles(config(data_dir, **settings), Registry([comfy_spec()]), environ or {})


def opened(grants: tuple[str, ...] | list[str], place: Path) -> list[str]:
    """Those grants that open a place."""
    return [grant for grant in grants if place == Path(grant) or Path(grant) in place.parents]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """One directory for everything, as on a rented pod: the worker's data, a checkout, models, and a secret link."""
    for name in ("ComfyUI/models", "data/spool", "data/outputs", "data/handlers", "elsewhere/models"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ComfyUI" / "main.py").write_text("")
    (tmp_path / "way-out").symlink_to("/")
    return tmp_path.resolve()


def test_a_data_directory_below_a_granted_one_stays_closed(disk: Path) -> None:
    closed = own_places(config(disk / "data"))
    grants = around(disk, closed)
    assert opened(grants, disk / "ComfyUI" / "main.py") and opened(grants, disk / "elsewhere")
    for name in ("spool", "outputs", "handlers/comfy", "supervisor.lock", "pg/base", "logs/worker.log", "run/router"):
        assert opened(grants, disk / "data" / name) == [], name
    assert "/" not in grants, "a link among the parts was followed"
    assert around(disk / "data" / "spool" / "x", closed) == []


def test_settings_that_name_the_disk_as_a_whole_open_no_part_of_the_data_directory(disk: Path) -> None:
    wide = {"WAN2GP_SANDBOX_READ_PATHS": disk, "COMFY_WRITABLE_PATHS": disk, "COMFY_PATH": disk}
    (disk / "main.py").write_text("")
    profile = profiles(disk / "data", None, **{name: str(value) for name, value in wide.items()}).of("comfy").profile
    for grants in (profile.read, profile.write):
        assert opened(grants, disk / "elsewhere") and not opened(grants, disk / "data" / "spool" / "journal")


def test_what_the_environment_names_opens_no_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    named = {"PATH": f"{home}:{home}/bin:/:.", "LD_LIBRARY_PATH": str(tmp_path), "SSL_CERT_FILE": f"{home}/cert.pem"}
    grants = common_reads(config(tmp_path / "data"), named)
    assert str(home / "bin") in grants and str(home / "cert.pem") in grants
    assert opened(grants, home / ".ssh" / "id_rsa") == []


def test_the_working_directory_is_no_place_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert opened(common_reads(config(tmp_path / "data"), {}), tmp_path / "notes") == []
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert opened(common_reads(config(tmp_path / "data"), {}), tmp_path / "notes")


def test_an_interpreter_in_a_home_directory_gets_its_own_parts_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lib" / "python3.11").mkdir(parents=True)
    made = profiles(tmp_path / "data", COMFY_PATH=str(tmp_path / "none"), COMFY_PYTHON=str(tmp_path / "bin" / "python"))
    grants = readable(made.of("comfy").profile).paths
    assert opened(grants, tmp_path / "lib" / "python3.11") and opened(grants, tmp_path / ".netrc") == []


def test_an_environment_brings_the_interpreter_that_it_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "venv" / "pyvenv.cfg").write_text("home = /opt/some/python/bin\nversion = 3.12.1\n")
    made = profiles(tmp_path / "data", COMFY_PATH=str(tmp_path))
    grants = readable(made.of("comfy").profile).paths
    assert {str(tmp_path / "venv"), "/opt/some/python"} <= set(grants)
    assert opened(grants, Path(os.path.realpath(sys.executable)))


def test_etc_is_granted_without_what_is_not_everybodys() -> None:
    grants = public_etc()
    for folder, names, files in os.walk("/etc"):
        for path in (Path(folder, name) for name in (*names, *files)):
            if not path.is_symlink() and not path.stat().st_mode & 0o004:
                assert opened(grants, path) == [], path
    assert opened(grants, Path("/etc/passwd")) and opened(grants, Path("/etc/nsswitch.conf"))
    assert opened(grants, Path(os.path.realpath("/etc/resolv.conf"))) or not os.path.exists("/etc/resolv.conf")


def test_no_link_among_models_may_open_keys_or_our_own_files(tmp_path: Path) -> None:
    never = private_places(config(tmp_path / "data"))
    home = Path(os.path.realpath(os.path.expanduser("~")))
    assert {home / ".ssh", home / ".netrc", Path("/etc/shadow"), (tmp_path / "data" / "spool").resolve()} <= set(never)
    assert set(map(str, never)) == set(profiles(tmp_path / "data").of("comfy").profile.never)


def test_comfy_gets_models_wherever_its_operator_has_put_them(disk: Path) -> None:
    os.rmdir(disk / "ComfyUI" / "models")
    (disk / "ComfyUI" / "models").symlink_to(disk / "elsewhere" / "models")
    lists = disk / "paths.yaml"
    args = f"--extra-model-paths-config={lists} --base-directory '{disk}/elsewhere' --lowvram"
    given = {"COMFY_PATH": str(disk / "ComfyUI"), "COMFY_ARGS": args}
    profile = profiles(disk / "data", None, **given).of("comfy").profile
    read = readable(profile).paths
    assert str(disk / "elsewhere" / "models") in read and str(disk / "elsewhere") in read
    assert {str(lists), str(disk / "ComfyUI" / "extra_model_paths.yaml")} == set(profile.path_lists)
    assert {f"{disk}/ComfyUI/models", f"{disk}/elsewhere/models"} <= set(profile.models)
    assert not opened(profile.write, disk / "elsewhere" / "models")


@pytest.mark.parametrize(
    ("settings", "tcp", "udp", "spare"),
    [
        ({"COMFY_PORT": "9001"}, (9001,), False, True),
        ({"COMFY_NETWORK": "open"}, None, True, True),
        ({"COMFY_URL": "http://10.0.0.7:8188"}, (8188,), False, False),
        ({"COMFY_URL": "https://comfy.example.com"}, (443,), True, False),
    ],
)
def test_comfy_reaches_its_own_port_and_no_other(
    tmp_path: Path, settings: dict[str, str], tcp: tuple[int, ...] | None, udp: bool, spare: bool
) -> None:
    needs = comfy_needs(config(tmp_path, **settings))
    assert (needs.tcp, needs.udp, needs.spare_ports > 0) == (tcp, udp, spare)


def test_a_taken_port_costs_no_start_since_spare_ones_are_granted(tmp_path: Path) -> None:
    port = free_port()
    sandbox = profiles(tmp_path, COMFY_PORT=str(port)).of("comfy")
    assert sandbox.settings == {"ports": sandbox.ports, "connects": False} and len(set(sandbox.ports)) == 4
    assert sandbox.profile.tcp == (port, *sandbox.ports)
    assert free_ports(0) == ()


def test_a_port_where_somebody_else_listens_is_not_granted(tmp_path: Path) -> None:
    """Another worker's ComfyUI, say: with the pictures of its users."""
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        port = theirs.getsockname()[1]
        made = profiles(tmp_path, COMFY_PORT=str(port))
        taken = made.of("comfy")
        elsewhere = profiles(tmp_path, COMFY_URL=f"http://127.0.0.1:{port}").of("comfy")
    assert taken.profile.tcp == taken.ports and elsewhere.profile.tcp == (port,)
    free = made.of("comfy")
    assert free.profile.tcp == (port, *free.ports)


@pytest.mark.parametrize("settings", [{"COMFY_NETWORK": "open"}, {"WAN2GP_SANDBOX": "off"}])
def test_a_comfyui_with_an_open_network_connects(tmp_path: Path, settings: dict[str, str]) -> None:
    assert profiles(tmp_path, None, **settings).of("comfy").settings["connects"] is True


def test_the_courier_writes_to_no_tasks_directory_and_reaches_every_port(tmp_path: Path) -> None:
    profile = profiles(tmp_path).of(COURIER).profile
    kept = {f"{tmp_path}/models/loras", f"{tmp_path}/models/weights"}
    assert set(profile.write) == {f"{tmp_path}/handlers/courier", f"{tmp_path}/work/courier", "/dev/shm", *kept}
    assert profile.tcp is None and profile.udp


def test_a_handler_has_a_home_of_its_own_and_the_caches_that_its_operator_has_placed(tmp_path: Path) -> None:
    given = {
        "HF_HOME": "/models/hf",
        "HF_HUB_CACHE": "/models/hub",
        "HOME": "/root",
        "XDG_CONFIG_HOME": "/root/.config",
    }
    given |= {"TMPDIR": "/tmp", "PYTHONPYCACHEPREFIX": "/var/pyc"}
    profile = profiles(tmp_path, given, COMFY_PATH="/nowhere/ComfyUI").of("comfy").profile
    own = f"{tmp_path}/handlers/comfy"
    assert profile.environ["HOME"] == f"{own}/home" and profile.environ["XDG_CONFIG_HOME"] == f"{own}/home/.config"
    assert profile.environ["TMPDIR"] == f"{own}/tmp" and profile.environ["TORCH_HOME"] == f"{own}/cache/torch"
    assert "HF_HOME" not in profile.environ, "the operator's value was replaced"
    assert {"/models/hf", "/models/hub"} <= set(profile.write)
    for shared in (
        "/root",
        "/root/.config",
        "/tmp",
        "/var/pyc",
    ):  # the worker itself, or its operator, runs what is there
        assert shared not in profile.write
    assert "/var/pyc" in profile.read


def test_python_runs_nothing_in_later_lives_that_a_handler_has_left_in_its_home(tmp_path: Path) -> None:
    profile = profiles(tmp_path, {"PYTHONUSERBASE": f"{tmp_path}/nothing"}).of("comfy").profile
    assert profile.environ["PYTHONNOUSERSITE"] == "1" and "PYTHONUSERBASE" not in profile.environ


def test_packages_that_the_workers_user_has_installed_for_himself_are_found(tmp_path: Path) -> None:
    packages = tmp_path / "user" / "lib" / "python3.99" / "site-packages"
    packages.mkdir(parents=True)
    made = profiles(tmp_path / "data", {"PYTHONUSERBASE": f"{tmp_path}/user"})
    profile = made.of("comfy").profile
    assert profile.environ["PYTHONUSERBASE"] == f"{tmp_path}/user" and "PYTHONNOUSERSITE" not in profile.environ
    assert opened(made.common_read, packages) and not opened(profile.write, packages)


def test_no_handler_may_use_a_terminal(tmp_path: Path) -> None:
    assert not [path for path in profiles(tmp_path).of("comfy").profile.devices if "pt" in path]


def test_sandbox_off_confines_nothing(tmp_path: Path) -> None:
    given = profiles(tmp_path, WAN2GP_SANDBOX="off")
    assert given.of("comfy").profile.mode == "off" and given.socket_group is None
    assert given.of("comfy").profile.environ == {} and given.lacks("comfy") == {}


# --- users ------------------------------------------------------------------------------------------------------------


def test_every_handler_has_a_number_of_its_own() -> None:
    names = ["comfy", "later", "wan", "another"]
    assert [number_of(name, names) for name in (COURIER, *names)] == [1, 2, 10, 3, 11]


def test_a_directory_that_a_user_cannot_enter_is_named_with_the_remedy(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    closed = tmp_path / "closed"
    (closed / "inside").mkdir(parents=True)
    closed.chmod(0o750)
    user = User(65_432, 65_432, (65_400,))
    said = closed_to(user, [closed / "inside"])
    assert said is not None and "closed to the user id 65432" in said and "`chmod o+x " in said
    assert closed_to(user, ["/usr", "/nowhere/at/all"]) is None
    assert closed_to(User(os.geteuid(), os.getegid()), [closed / "inside"]) is None


def spec(name: str, **more: Any) -> HandlerSpec:
    return HandlerSpec(name, f"x.{name}:X", (name,), **more)


def test_handlers_share_the_workers_user_where_a_user_of_their_own_could_not_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "why_none", lambda config: None)  # as if everything else were well
    tmp_path.chmod(0o700)
    given = Profiles(config(tmp_path / "data"), Registry([spec("one"), spec("two")]), {})
    user, reason = given.user("one")
    if os.geteuid() == 0:
        assert user is None and reason is not None and "is closed to the user id 65010" in reason
        assert set(given.lacks("two")) == {Layer.USER} and given.socket_group is None


# --- keys in files ----------------------------------------------------------------------------------------------------


def test_the_configuration_and_the_key_files_are_closed_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a directory that every handler reads, say: /opt, or one that an operator has opened."""
    for name in ("app/config.toml", "app/key", "app/.env", "app/lib/module.py", "data/x", "start/.env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name.endswith("toml") else "secret")
    monkeypatch.chdir(tmp_path / "start")
    settings = {"WAN2GP_CONFIG": "../app/config.toml", "SUPABASE_SERVICE_ROLE_KEY_FILE": str(tmp_path / "app/key")}
    opened_to_all = {"WAN2GP_SANDBOX_READ_PATHS": str(tmp_path), "COMFY_WRITABLE_PATHS": str(tmp_path)}
    profile = profiles(tmp_path / "data", None, **settings, **opened_to_all).of("comfy").profile
    for name in ("app/config.toml", "app/key", "app/.env", "start/.env"):
        place = (tmp_path / name).resolve()
        assert not opened(profile.read, place) and not opened(profile.write, place), name
        assert str(place) in profile.never, "no link among the models opens it"
    assert opened(profile.read, tmp_path / "app/lib/module.py")


def test_of_a_checkout_that_we_are_installed_from_only_the_package_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wan2gp_worker.egg-info").mkdir()
    monkeypatch.setattr(grants_module, "PACKAGE", tmp_path / "wan2gp")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    profile = profiles(tmp_path / "data").of("comfy").profile
    found = {path for path in profile.read if Path(path).parent == tmp_path}
    assert found == {str(tmp_path / "wan2gp"), str(tmp_path / "wan2gp_worker.egg-info")}
    assert str(tmp_path) in profile.listed, "or Python would not find the package"


def test_a_checkout_that_holds_a_closed_place_can_still_be_imported_from(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker started in it, and it is a checkout of git's."""
    monkeypatch.chdir(disk / "ComfyUI")
    for name in (".git", "comfy"):
        (disk / "ComfyUI" / name).mkdir()
    (disk / "ComfyUI/.env").write_text("KEY=secret")
    (disk / "ComfyUI/comfy/one.py").write_text("")
    profile = profiles(disk / "data", COMFY_PATH=str(disk / "ComfyUI"), WAN2GP_SANDBOX_UID_BASE="0").of("comfy").profile
    code = "sys.path.insert(0, sys.argv[1]); import comfy.one; say('env', lambda: open(sys.argv[1] + '/.env'))"
    assert confined(replace(profile, group=""), code, disk / "ComfyUI").answers == {"env": "EACCES"}


def test_a_list_flag_with_several_files_names_them_all(tmp_path: Path) -> None:
    args = "--extra-model-paths-config /a.yaml /b.yaml --lowvram --extra-model-paths-config=/c.yaml --front-end-root /f"
    needs = comfy_needs(config(tmp_path, COMFY_PATH="builtin", COMFY_ARGS=args))
    assert needs.path_lists == ("/a.yaml", "/b.yaml", "/c.yaml") and {"/a.yaml", "/b.yaml", "/f"} <= set(needs.read)
