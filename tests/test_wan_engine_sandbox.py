"""The engine in the sandbox of its handler: it has all that it needs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from tests.contract_wan import STAND_IN
from tests.sandboxed import confined, profile_of
from tests.test_profiles import config, opened
from wan2gp.supervisor.grants import common_reads
from wan2gp.supervisor.wan_needs import wan_needs

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
say("linked", lambda: (checkout / "ckpts" / "all" / "a.safetensors").read_bytes())
say("network", lambda: __import__("socket").create_connection(("127.0.0.1", 9), 1))
"""


def test_an_engine_works_with_what_it_is_granted_and_writes_to_its_home_alone(tmp_path: Path) -> None:
    checkout, data, disk = tmp_path / "Wan2GP", tmp_path / "data", tmp_path / "disk"
    for place in (data / "models", data / "spool", disk / "loras", checkout / "ckpts", tmp_path / "home"):
        place.mkdir(parents=True)
    for entry in STAND_IN.iterdir():
        (checkout / entry.name).symlink_to(entry)
    (disk / "a.safetensors").write_text("weights")
    (checkout / "ckpts" / "all").symlink_to(disk)
    needs = wan_needs(config(data, WAN2GP_PATH=str(checkout)))
    read = (*common_reads(config(data), {}), *needs.read)
    profile = profile_of(tmp_path / "home", read=read, models=needs.models, tcp=needs.tcp, udp=needs.udp)
    root = Path(__file__).parent.parent
    seen = confined(profile, WORKS, root, checkout, tmp_path / "home", data / "models")
    assert seen.answers["outcome"].split()[0] == "ok", seen.said
    assert seen.answers["linked"] == "ok"
    assert {seen.answers[name] for name in ("checkout", "weights", "network")} == {"EACCES"}


def test_weights_are_readable_wherever_the_operator_has_told_the_engine_they_are(tmp_path: Path) -> None:
    checkout, data, disk = tmp_path / "Wan2GP", tmp_path / "data", tmp_path / "disk"
    for place in (checkout / "ckpts", data / "models", data / "pg", disk / "weights", disk / "loras"):
        place.mkdir(parents=True)
    own = {"checkpoints_paths": [str(disk / "weights"), "."], "loras_root": str(disk / "loras")}
    (checkout / "wgp_config.json").write_text(json.dumps(own))
    needs = wan_needs(config(data, WAN2GP_PATH=str(checkout)))
    for place in (checkout, disk / "weights", disk / "loras", data / "models"):
        assert opened(needs.read, place), place
    assert {str(disk / "weights"), str(checkout / "ckpts"), str(data / "models")} <= set(needs.models)
    assert needs.write == () and needs.tcp == () and not needs.udp
    assert not opened(needs.read, data / "pg") and not opened(needs.read, data / "handlers" / "comfy")
    assert not wan_needs(config(data)).read


def test_a_checkout_above_the_data_directory_opens_no_part_of_it(tmp_path: Path) -> None:
    for place in ("data/spool", "data/pg", "data/models", "shared"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "wgp_config.json").write_text(json.dumps({"checkpoints_paths": ["data/pg", "/"]}))
    needs = wan_needs(config(tmp_path / "data", WAN2GP_PATH=str(tmp_path)))
    assert opened(needs.read, tmp_path / "shared") and opened(needs.read, tmp_path / "data" / "models")
    assert not opened(needs.read, tmp_path / "data" / "spool") and not opened(
        needs.read, tmp_path / "data" / "pg" / "x"
    )
