"""Where models really lie: links and lists are followed, but none that a handler could have made itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sandboxed import confined, profile_of
from wan2gp.profile import Profile
from wan2gp.sandbox import grants
from wan2gp.sandbox.path_lists import directories_of

# As ComfyUI's own example has it: sections, a base, kinds with one path or several, comments.
LIST = """
#Rename this to extra_model_paths.yaml and ComfyUI will load it

comfyui:
     base_path: "{base}"
     # is_default: true
     checkpoints: models/checkpoints/
     text_encoders: |
          models/text_encoders/
          models/clip/  # legacy location still supported

     loras: |
          {elsewhere}

relative:
    is_default: true
    vae: vae
    unet:
      - 'unet'
empty:
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A model directory, a large disk beside it, the handler's own place, and one that is closed."""
    for name in ("models/loras", "large/deep", "own", "data/spool", "data/pg", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("large/base.safetensors", "large/deep/lora.safetensors", "elsewhere/vae.pt", "data/spool/secret"):
        (tmp_path / name).write_text("x")
    return tmp_path


def profile(disk: Path, **fields: object) -> Profile:
    never = (str(disk / "data/spool"), str(disk / "data/pg"))
    return profile_of(disk / "own", models=(str(disk / "models"),), never=never, **fields)


def granted(disk: Path, **fields: object) -> set[str]:
    """Relative to the disk, without the system's."""
    found = grants.readable(profile(disk, **fields)).paths
    return {path.removeprefix(f"{disk}/") for path in found if path.startswith(str(disk))}


def test_links_below_the_model_directory_are_followed_one_after_the_other(disk: Path) -> None:
    (disk / "models/base.safetensors").symlink_to(disk / "large/base.safetensors")
    (disk / "models/loras/all").symlink_to("../../large/deep")
    (disk / "large/deep/vaes").symlink_to(disk / "elsewhere")
    (disk / "elsewhere/back").symlink_to(disk / "models")  # a circle
    (disk / "models/gone").symlink_to(disk / "no-such-place")
    expected = {"models", "large/base.safetensors", "large/deep", "elsewhere", "no-such-place"}
    assert granted(disk) == expected


def test_the_handler_reads_a_model_behind_links_and_nothing_beside_it(disk: Path) -> None:
    (disk / "models/base.safetensors").symlink_to(disk / "large/base.safetensors")
    code = """
disk = sys.argv[1]
say("model", lambda: open(disk + "/models/base.safetensors"))
say("beside", lambda: open(disk + "/large/deep/lora.safetensors"))
say("write", lambda: open(disk + "/models/base.safetensors", "a"))
"""
    assert confined(profile(disk), code, disk).answers == {"model": "ok", "beside": "EACCES", "write": "EACCES"}


@pytest.mark.parametrize("target", ["/", ".", "data", "data/spool", "data/spool/secret", "data/pg"])
def test_a_link_that_would_open_a_closed_place_opens_nothing(disk: Path, target: str) -> None:
    (disk / "models/link").symlink_to(disk / target)
    found = grants.readable(profile(disk))
    assert granted(disk) == {"models"} and "/" not in found.paths
    assert len(found.notes) == 1 and found.notes[0].startswith(f"{disk}/models/link is not followed: ")


def test_a_link_that_the_handler_can_have_made_opens_nothing(disk: Path) -> None:
    """Custom nodes may write to `comfy.writable_paths`: the next start must not take their word."""
    (disk / "models/loras/planted").symlink_to(disk / "elsewhere")
    (disk / "models/planned").symlink_to(disk / "large")
    write = (str(disk / "own"), str(disk / "models/loras"))
    assert granted(disk, write=write) == {"models", "large"}
    notes = grants.readable(profile(disk, write=write)).notes
    assert notes == [f"{disk}/models/loras/planted is not followed: a handler may have made it itself"]


def test_a_list_of_paths_is_read_as_comfyui_reads_it(disk: Path) -> None:
    file = disk / "extra_model_paths.yaml"
    file.write_text(LIST.format(base=disk / "large", elsewhere=disk / "elsewhere"))
    named = {path.removeprefix(f"{disk}/") for path in directories_of(str(file))}
    kinds = {"large/models/checkpoints", "large/models/text_encoders", "large/models/clip"}
    assert named == kinds | {"elsewhere", "vae", "unet"}
    assert granted(disk, path_lists=(str(file),)) == named | {"models"}


def test_a_list_that_the_handler_can_have_written_names_nothing(disk: Path) -> None:
    file = disk / "own/extra_model_paths.yaml"
    file.write_text(f"mine:\n  base_path: {disk}\n  loras: elsewhere\n")
    assert granted(disk, path_lists=(str(file),)) == {"models"}


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "key: value\n", "\x00\xff", "a:\n  base_path:\n  b:\n", "a: {b: c}"]
)
def test_what_is_no_list_of_paths_names_nothing(disk: Path, text: str) -> None:
    file = disk / "list.yaml"
    file.write_text(text)
    assert directories_of(str(file)) == []
    assert directories_of(str(disk / "none.yaml")) == []


def test_a_chain_of_links_that_nobody_can_follow_costs_no_start(disk: Path) -> None:
    for number in range(1500):
        (disk / f"models/{number}").symlink_to(f"{number + 1}")
    (disk / "models/1500").symlink_to(disk / "large")
    (disk / "models/self").symlink_to("self")
    (disk / "list.yaml").write_text("a:\n  loras: x\0y\n  vae: v\udcff\n", errors="surrogateescape")
    profile_with_list = profile(disk, path_lists=(str(disk / "list.yaml"),))
    seen = confined(profile_with_list, "say('ran', lambda: os.listdir(sys.argv[1]))", disk / "models")
    assert (seen.answers, seen.refused) == ({"ran": "ok"}, {})


def test_a_model_directory_of_endless_links_ends(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "ENTRIES_MAX", 20)
    for number in range(100):
        (disk / f"models/{number}").symlink_to(disk / f"large/deep/{number}")
        (disk / f"large/deep/{number}").mkdir()
        (disk / f"large/deep/{number}/up").symlink_to(disk / "large")
    assert len(granted(disk)) <= 202
    assert "sandbox.read_paths" in grants.readable(profile(disk)).notes[-1]


def test_packs_of_nodes_with_many_files_leave_the_models_their_links(disk: Path) -> None:
    """Web assets by the ten thousand: they are not looked at one by one at each start."""
    looked_at: list[str] = []
    for number in range(30):
        deep = disk / f"nodes/{number}/web/x/y"
        deep.mkdir(parents=True)
        (deep / "link").symlink_to(disk / "elsewhere")
    (disk / "models/loras/deep").mkdir()
    (disk / "models/loras/deep/link").symlink_to(disk / "large")
    (disk / "nodes/linked").symlink_to(disk / "data")
    (disk / "nodes/7/linked").symlink_to(disk / "large/deep")
    with pytest.MonkeyPatch.context() as patch:
        real_entries = grants._entries
        patch.setattr(grants, "_entries", lambda folder: (looked_at.append(folder), real_entries(folder))[1])
        assert granted(disk, links={str(disk / "nodes"): 2}) == {"models", "large", "large/deep"}
    assert not [folder for folder in looked_at if folder.endswith("/y")]


def test_a_walk_that_takes_long_ends(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "SECONDS_MAX", -1.0)
    (disk / "models/link").symlink_to(disk / "large")
    (disk / "models/loras/link").symlink_to(disk / "elsewhere")
    assert "elsewhere" not in granted(disk)
    assert "sandbox.read_paths" in grants.readable(profile(disk)).notes[-1]
