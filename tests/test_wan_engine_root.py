"""The engine's private root: what it writes stays there, and nothing that it wrote changes a later start."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract_wan import STAND_IN, driven
from wan2gp.wan_sidecar import root as roots
from wan2gp.wan_sidecar.checkout import interpreter, look
from wan2gp.wan_sidecar.root import Stores, lay_root
from wan2gp.wan_sidecar.verdict import Outcome

COMMIT = "8681e9f777f9f847f74a0bdefd13d5b9a6efe12d"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One as an operator has it: used for a while."""
    place = tmp_path / "Wan2GP"
    shutil.copytree(STAND_IN, place, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "ckpts/pose",
        "loras/wan/styles",
        "settings",
        "venv/bin",
        "wildcards",
        "ffmpeg_bins",
        ".git",
        "finetunes",
    ):
        (place / name).mkdir(parents=True, exist_ok=True)
    for name in ("ckpts/model.safetensors", "loras/wan/styles/own.safetensors", "wildcards/animals.txt"):
        (place / name).write_text("x")
    (place / "settings" / "t2v_settings.json").write_text('{"video_length": 999}')
    (place / "finetunes" / "theirs.json").write_text('{"model": {"name": "Theirs", "architecture": "t2v"}}')
    (place / "startup.lock").write_text("")
    (place / ".git" / "HEAD").write_text(f"{COMMIT}\n")
    return place


def laid(checkout: Path, **more: Any) -> Path:
    given = {"stores": Stores(), "options": {}, "finetunes": {}, **more}
    return lay_root(look(checkout), checkout.parent / "home", **given)


def config(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "wgp_config.json").read_text()))


def test_the_code_is_copied_and_all_that_the_engine_writes_is_its_own(checkout: Path) -> None:
    root = laid(checkout)
    assert not (root / "wgp.py").is_symlink() and not (root / "shared").is_symlink()
    assert (root / "shared" / "api.py").resolve() == root.resolve() / "shared" / "api.py"
    for name in ("settings", "loras", "outputs", "finetunes"):
        assert (root / name).resolve() == root.resolve() / name
    assert list((root / "settings").iterdir()) == [], "settings of another time change tasks of this one"
    for name in ("venv", "startup.lock", ".git", "ckpts"):
        assert not os.path.lexists(root / name)
    for name in ("wildcards", "ffmpeg_bins"):
        assert (root / name).resolve() == (checkout / name).resolve()


def test_weights_are_looked_for_at_ours_first_and_then_where_the_operator_has_them(checkout: Path) -> None:
    store = checkout.parent / "store"
    root = laid(checkout, stores=Stores(models=store))
    ours = str(root.parent / "ckpts")
    assert config(root)["checkpoints_paths"] == [ours, str(store), str(checkout / "ckpts"), str(checkout)]
    elsewhere = checkout.parent / "disk"
    elsewhere.mkdir()
    own = {"checkpoints_paths": [str(elsewhere), "nowhere"], "loras_root": "loras", "enhancer_enabled": 1}
    (checkout / "wgp_config.json").write_text(json.dumps(own))
    found = config(laid(checkout))
    assert found["checkpoints_paths"] == [ours, str(elsewhere)]
    assert found["enhancer_enabled"] == 0, "of the operator's configuration only the places are kept"
    assert found["keep_intermediate_sliding_windows"] == 0 and found["attention_mode"] == "sdpa"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"checkpoints_paths": 7, "loras_root": []}', "\0"])
def test_a_configuration_that_is_none_is_no_hindrance(checkout: Path, text: str) -> None:
    (checkout / "wgp_config.json").write_text(text)
    assert str(checkout / "ckpts") in config(laid(checkout))["checkpoints_paths"]


def test_loras_of_the_operator_are_found_and_can_be_moved_without_moving_his(checkout: Path) -> None:
    store = checkout.parent / "fetched"
    store.mkdir()
    (store / "new.safetensors").write_text("y")
    root = laid(checkout, stores=Stores(loras=store))
    link = root / "loras" / "wan" / "styles" / "own.safetensors"
    assert link.read_text() == "x" and (root / "loras" / "new.safetensors").read_text() == "y"
    os.rename(link, root / "loras" / "moved.safetensors")
    assert (checkout / "loras/wan/styles/own.safetensors").read_text() == "x"
    assert not (laid(checkout) / "loras" / "moved.safetensors").exists()


def test_a_loop_of_links_among_the_loras_has_an_end(checkout: Path) -> None:
    (checkout / "loras" / "wan" / "again").symlink_to("..")
    root = laid(checkout)
    assert len(list((root / "loras").rglob("own.safetensors"))) == 1


def test_a_directory_of_very_many_files_is_not_linked_file_by_file(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "MANY_LORAS", 3)
    for number in range(9):
        (checkout / "loras" / f"{number}.safetensors").touch()
    assert len(list((laid(checkout) / "loras").rglob("*.safetensors"))) <= 3


def test_a_start_changes_nothing_that_has_not_changed_and_all_that_has(checkout: Path) -> None:
    root = laid(checkout)
    (root / "settings" / "t2v_settings.json").write_text("{}")
    (root / "leftover.txt").write_text("of the start before")
    assert (laid(checkout) / "leftover.txt").exists() and not (root / "settings" / "t2v_settings.json").exists()
    edited = checkout / "shared" / "utils" / "download.py"
    edited.write_text(edited.read_text() + "# edited\n")
    assert not (laid(checkout) / "leftover.txt").exists()
    assert (root / "shared" / "utils" / "download.py").read_text().endswith("# edited\n")


def test_a_root_that_was_half_laid_is_laid_again(checkout: Path) -> None:
    root = laid(checkout)
    (root / roots.STAMP).unlink()
    (root / "shared" / "api.py").unlink()
    (root.parent / "root.new").mkdir()
    (root.parent / "root.new" / "wgp.py").write_text("half")
    assert (laid(checkout) / "shared" / "api.py").exists() and not (root.parent / "root.new").exists()


def test_a_fetched_file_outlives_the_root(checkout: Path) -> None:
    root = laid(checkout)
    (root.parent / "ckpts" / "fetched.pt").write_text("weights")
    os.utime(checkout / "wgp.py", ns=(1, 1))
    assert (laid(checkout).parent / "ckpts" / "fetched.pt").read_text() == "weights"


def test_a_large_file_among_the_code_is_linked(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "LARGE_BYTES", 100)
    (checkout / "models" / "weights.bin").write_bytes(b"x" * 101)
    root = laid(checkout)
    assert (root / "models" / "weights.bin").is_symlink() and (root / "models" / "weights.bin").stat().st_size == 101


def test_finetunes_are_the_operators_and_ours_and_no_earlier_ones(checkout: Path) -> None:
    laid(checkout, finetunes={"old": {"model": {}}})
    root = laid(checkout, finetunes={"new": {"model": {"architecture": "t2v"}}})
    assert sorted(path.name for path in (root / "finetunes").iterdir()) == ["new.json", "theirs.json"]


def test_an_engine_runs_in_a_used_checkout_without_its_settings(checkout: Path) -> None:
    with driven(checkout, checkout.parent) as engine:
        assert engine.ensure().commit == COMMIT
        found = engine.run()
        assert found.outcome is Outcome.OK
        assert engine.noted("task")[0]["settings"]["video_length"] == 5
        assert engine.engine.models().count("theirs") == 1


def test_the_version_and_the_commit_are_read_and_nothing_is_imported(checkout: Path) -> None:
    (checkout / "wgp.py").write_text('raise SystemExit\nWanGP_version = "13.7"\n')
    assert (look(checkout).version, look(checkout).commit) == ("13.7", COMMIT)
    git = checkout / ".git"
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert look(checkout).commit == ""
    (git / "packed-refs").write_text(f"# pack-refs\n{'0' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n")
    assert look(checkout).commit == COMMIT
    git.rename(checkout.parent / "elsewhere")
    git.write_text(f"gitdir: {checkout.parent / 'elsewhere'}\n")
    assert look(checkout).commit == COMMIT


def test_the_interpreter_is_the_given_one_else_the_checkouts_else_ours(checkout: Path) -> None:
    assert interpreter(checkout, "/opt/python") == "/opt/python"
    assert interpreter(checkout, "").endswith(os.path.basename(sys.executable))
    (checkout / "venv" / "bin" / "python").symlink_to("/bin/sh")
    assert interpreter(checkout, "") == str(checkout / "venv" / "bin" / "python")
