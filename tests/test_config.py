"""Configuration: read once, complained about all at once, never showing a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan2gp.config import ConfigError, describe, load_config


def test_the_specs_defaults_hold(tmp_path: Path) -> None:
    config = load_config(flags={"data_dir": tmp_path}, environ={})
    assert (config.comfy_path, config.comfy_port, config.poll_interval_s) == (
        "/workspace/ComfyUI",
        8188,
        10.0,
    )


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('worker = "from-file"\npoll_interval_s = 3\n[comfy]\nport = 1000\n')
    env = {"WAN2GP_CONFIG": str(file), "WORKER_ID": "from-env", "COMFY_PORT": "2000"}
    config = load_config(flags={"worker_id": "from-flag"}, environ=env)
    assert (config.worker_id, config.comfy_port, config.poll_interval_s) == ("from-flag", 2000, 3.0)


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("comfy_prot = 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(environ={"COMFY_PORT": "x", "WAN2GP_QUEUE": "redis", "WAN2GP_CONFIG": str(file)})
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "COMFY_PORT" in text and "WAN2GP_QUEUE" in text and "comfy_prot" in text


def test_a_literal_dollar_name_is_read_from_the_environment_with_a_warning() -> None:
    config = load_config(flags={"worker_id": "$POD"}, environ={"POD": "pod-7"})
    assert config.worker_id == "pod-7"
    assert "$POD" in config.warnings[0]


def test_no_secret_is_shown() -> None:
    config = load_config(environ={"DATABASE_URL": "postgresql://u:hunter2@h/d"})
    assert "hunter2" not in repr(config) + str(describe(config))
    assert config.database_url.reveal().endswith("@h/d")
