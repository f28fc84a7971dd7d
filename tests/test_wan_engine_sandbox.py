"""The engine in the sandbox of its handler: it has all that it needs, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract_wan import STAND_IN
from tests.sandboxed import confined
from tests.test_profiles import config, opened
from wan2gp.profile import Profile
from wan2gp.sandbox import grants
from wan2gp.supervisor.profiles import Profiles
from wan2gp.supervisor.registry import Registry, wan_spec

WORKS = """
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from wan2gp.wan_sidecar.engine import WanEngine
from wan2gp.wan_sidecar.work import EngineJob
checkout, home, weights = map(Path, sys.argv[2:5])
engine = WanEngine(checkout, "", home / "engine", models=weights, log_fd=2)
engine.ensure(lambda line: None, lambda: False)
settings = {"model_type": "flux", "prompt": "x", "image_mode": 1, "multi_prompts_gen_type": "FG", "resolution": "64x64"}
found = engine.run(EngineJob(settings, home / "out"), lambda event: None, lambda: False)
print("outcome", found.outcome.value, found.sentence)
engine.stop()
say("checkout", lambda: (checkout / "new").write_text(""))
say("weights", lambda: (weights / "new").write_text(""))
say("kept", lambda: (weights / "a.safetensors").read_bytes())
say("linked", lambda: (checkout / "ckpts" / "all" / "a.safetensors").read_bytes())
say("told", lambda: (checkout.parent / "told" / "a.safetensors").read_bytes())
say("private", lambda: (checkout.parent / "private" / "a.safetensors").read_bytes())
say("network", lambda: __import__("socket").create_connection(("127.0.0.1", 9), 1))
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A checkout whose parts are links, and weights in four places, of which one is nobody's business."""
    for place in ("Wan2GP/ckpts", "disk", "told", "private", "data/models", "data/spool", "data/pg", "home"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.safetensors").write_text("weights")
    for entry in STAND_IN.iterdir():
        (tmp_path / "Wan2GP" / entry.name).symlink_to(entry)
    (tmp_path / "Wan2GP" / "ckpts" / "all").symlink_to(tmp_path / "disk")
    told = {"checkpoints_paths": [str(tmp_path / "told"), "."], "loras_root": "loras"}
    (tmp_path / "Wan2GP" / "wgp_config.json").write_text(json.dumps(told))
    return tmp_path.resolve()


def profile(disk: Path, checkout: Path) -> Profile:
    """That of the handler, without a user and a group of its own."""
    settings = config(disk / "data", WAN2GP_PATH=str(checkout))
    found = Profiles(settings, Registry([wan_spec(settings)]), {}).of("wan").profile
    return replace(found, uid=None, gid=None, groups=(), group="", environ={})


def test_an_engine_works_with_what_it_is_granted_and_writes_to_its_home_alone(disk: Path) -> None:
    granted = profile(disk, disk / "Wan2GP")
    granted = replace(granted, write=(*granted.write, str(disk / "home")))
    root = Path(__file__).parent.parent
    seen = confined(granted, WORKS, root, disk / "Wan2GP", disk / "home", disk / "data" / "models")
    assert seen.answers["outcome"].split()[0] == "ok", seen.said
    assert {seen.answers[name] for name in ("kept", "linked", "told")} == {"ok"}
    assert {seen.answers[name] for name in ("checkout", "weights", "private", "network")} == {"EACCES"}


def test_a_checkout_above_the_data_directory_opens_no_part_of_it(disk: Path) -> None:
    (disk / "wgp_config.json").write_text(json.dumps({"checkpoints_paths": ["data/pg", "/"]}))
    readable = list(grants.readable(profile(disk, disk)).paths)
    assert opened(readable, disk / "Wan2GP" / "wgp.py") and opened(readable, disk / "data" / "models" / "x")
    assert not opened(readable, disk / "data" / "spool") and not opened(readable, disk / "data" / "pg" / "x")


def test_without_a_checkout_nothing_is_granted_for_one(disk: Path) -> None:
    settings = config(disk / "data")
    found = wan_spec(settings).needs(settings)
    assert (found.read, found.write, found.models, found.tcp, found.udp) == ((), (), (), (), False)
