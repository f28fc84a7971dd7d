"""Configuration: read once, complained about all at once, never showing a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


PROJECT = {"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_hunter2"}


def problem(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(environ=environ)
    (one,) = caught.value.problems
    return one


def test_blanks_around_the_projects_address_and_a_slash_behind_it_are_nothing() -> None:
    """As a secret's file with a line break at its end has them."""
    for url in ("https://abc.supabase.co", " https://abc.supabase.co/\n", "https://abc.supabase.co//"):
        config = load_config(environ={**PROJECT, "SUPABASE_URL": url})
        assert (config.supabase_url, config.warnings) == ("https://abc.supabase.co", ())
    assert (
        load_config(environ={"SUPABASE_URL": "http://10.0.0.7:8000/base"}).supabase_url == "http://10.0.0.7:8000/base"
    )
    assert load_config(environ={"SUPABASE_URL": "  "}).supabase_url == ""


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("https://abc.supabase.co:99999", "port"),
        ("https://abc.supabase.co:0", "port"),
        ("https://abc.supabase.co:https", "port"),
        ("https://abc .supabase.co", "blank"),
        ("https://abc.supabase.co/\x07", "control character"),
        ("https://abc.supabase.co/rest/v1", "leave out /rest/v1"),
        ("https://abc.supabase.co/rest/v1/", "leave out /rest/v1/"),
        ("https://abc.supabase.co/functions/v1", "leave out"),
        ("https://supabase.com/dashboard/project/abc", "leave out /dashboard"),
        ("https://abc.supabase.co?apikey=x", "supabase.co"),
        ("https://abc.supabase.co#", "supabase.co"),
        ("postgresql://abc.supabase.co", "supabase.co"),
        ("abc.supabase.co", "supabase.co"),
        ("https://", "supabase.co"),
        ("https://[::1", "SUPABASE_URL"),
    ],
)
def test_an_address_that_is_no_projects_names_its_remedy(url: str, remedy: str) -> None:
    said = problem(**{**PROJECT, "SUPABASE_URL": url})
    assert said.startswith("SUPABASE_URL = ") and remedy in said and "hunter2" not in said


def test_a_password_in_an_address_is_not_repeated() -> None:
    assert "hunter2" not in problem(**{**PROJECT, "SUPABASE_URL": "https://me:hunter2@abc.supabase.co"})


def test_a_port_that_there_is_not_is_no_comfyui_either() -> None:
    assert "COMFY_URL" in problem(COMFY_URL="http://10.0.0.7:81880")


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://abc.supabase.co", True),
        ("http://8.8.8.8:8000", True),
        ("http://[2606:4700::1]", True),
        ("https://abc.supabase.co", False),
        ("http://localhost:54321", False),
        ("http://127.0.0.1:54321", False),
        ("http://10.1.2.3:8000", False),
        ("http://192.168.1.2", False),
        ("http://[::1]:8000", False),
        ("http://[fd00::7]", False),
        ("http://kong:8000", False),
        ("http://host.docker.internal:8000", False),
    ],
)
def test_a_key_that_would_travel_in_clear_is_warned_of(url: str, warned: bool) -> None:
    warnings = load_config(environ={**PROJECT, "SUPABASE_URL": url}).warnings
    assert [("not https" in one, url in one, "hunter2" in one) for one in warnings] == [(True, True, False)] * warned


@pytest.mark.parametrize("bucket", ["a/b", "a b", "/", "..", "a\tb", "\x00", "  "])
def test_a_bucket_has_one_name(bucket: str) -> None:
    assert "SUPABASE_VIDEO_BUCKET" in problem(SUPABASE_VIDEO_BUCKET=bucket)
    assert load_config(environ={"SUPABASE_VIDEO_BUCKET": " results\n"}).storage_bucket == "results"


ALL = "{task_id}/{attempt}-{lease}/{filename}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (ALL.replace("{attempt}", "{attempt:>30}"), "{attempt} stands as it is"),
        (ALL.replace("{attempt}", "{attempt:{worker}}"), "{attempt} stands as it is"),
        (ALL.replace("{task_id}", "{task_id!r}"), "{task_id} stands as it is"),
        (ALL.replace("{task_id}", "{task_id.__class__}"), "unknown"),
        (ALL.replace("{task_id}", "{task_id[0]}"), "unknown"),
        (ALL + "{}", "unknown"),
        (ALL + "{0}", "unknown"),
        (ALL + "{", "braces"),
        ("{task_id}/{filename}", "{attempt} must be in it"),
        ("/" + ALL, "no empty part"),
        (ALL + "/", "no empty part"),
        ("out//" + ALL, "no empty part"),
        ("./" + ALL, "no empty part"),
        ("out/../" + ALL, "no empty part"),
        ("out\x07/" + ALL, "no empty part"),
        ("x" * 1000 + ALL, "bytes"),
    ],
)
def test_a_template_that_would_fail_at_every_result_fails_at_the_start(template: str, words: str) -> None:
    said = problem(WAN2GP_STORAGE_PATH=template)
    assert said.startswith("WAN2GP_STORAGE_PATH = ") and words in said


@pytest.mark.parametrize("template", ["", ALL, "out/{worker}/{user_id}/{project_id}/{{{task_type}}}/" + ALL])
def test_templates_that_hold(template: str) -> None:
    assert load_config(environ={"WAN2GP_STORAGE_PATH": template}).storage_path == template


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WAN2GP_PUBLISH_TO": "storage"}, "needs SUPABASE_URL"),
        ({**PROJECT, "WAN2GP_PUBLISH_TO": "storage", "WAN2GP_QUEUE": "embedded"}, "does not go with queue = embedded"),
    ],
)
def test_results_never_stay_here_against_the_settings(environ: dict[str, Any], words: str) -> None:
    assert words in problem(**environ)
