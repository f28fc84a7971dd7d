"""What a handler may have the courier fetch besides what its row names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wan2gp.config import ConfigError, load_config
from wan2gp.lora_names import resolved
from wan2gp.protocol import Source
from wan2gp.supervisor import wanted
from wan2gp.supervisor.places import NotHanded, Places
from wan2gp.supervisor.registry import wan_may_fetch
from wan2gp.supervisor.wanted import KEPT_WISHES_MAX, WISHES_MAX, MayFetch, Named, refusal
from wan2gp.wan_types import OWN_URLS

TRUSTED = "https://huggingface.co/DeepBeepMeep/Wan2.1/resolve/main/pose/dw-ll_ucoco_384.onnx"
PAGE = "https://huggingface.co/someone/loras/blob/main/a.safetensors"
FILE = "https://huggingface.co/someone/loras/resolve/main/a.safetensors"
WAN = wan_may_fetch(load_config(environ={}))


def why(params: Any, url: str, kind: str, may_fetch: MayFetch = WAN, wishes: int = 1) -> str | None:
    found = refusal(Named(params), {"x": Source(url, kind)}, wishes, may_fetch)
    return None if found is None else found.message


def test_weights_come_only_from_whom_the_operator_trusts() -> None:
    assert why({}, TRUSTED, "weights") is None
    assert "wan.model_sources" in str(why({"url": FILE}, FILE, "weights"))  # whatever the row says


@pytest.mark.parametrize(
    "url",
    [
        "http://huggingface.co/DeepBeepMeep/Wan2.1/resolve/main/x.pth",
        "https://huggingface.co:444/DeepBeepMeep/Wan2.1/resolve/main/x.pth",
        "https://huggingface.co.evil.example/DeepBeepMeep/x.pth",
        "https://huggingface.co@evil.example/DeepBeepMeep/x.pth",
        "https://user@huggingface.co/DeepBeepMeep/x.pth",
        "https://huggingface.co/DeepBeepMeepX/Wan2.1/resolve/main/x.pth",
        "https://huggingface.co/DeepBeepMeep/../evil/repo/resolve/main/x.pth",
        "https://huggingface.co/DeepBeepMeep/%2e%2e/evil/repo/resolve/main/x.pth",
        "https://huggingface.co/DeepBeepMeep/%252e%252e/evil/x.pth",
        "https://huggingface.co/DeepBeepMeep/..%5cevil/x.pth",
        "https://huggingface.co//DeepBeepMeep/x.pth",
        "https://huggingface.co/DeepBeepMeep",
        "https://[::1/DeepBeepMeep/x.pth",
        "storage://DeepBeepMeep/x.pth",
        "",
    ],
)
def test_a_url_that_only_looks_trusted_is_refused(url: str) -> None:
    assert why({"url": url}, url, "weights") is not None


def test_loras_of_the_types_and_of_the_row_are_fetched_and_no_other() -> None:
    for url in OWN_URLS:
        assert why({}, url, "lora") is None
    assert why({"loras": [PAGE]}, FILE, "lora") is None
    assert why({"additional_loras": {PAGE: 1}}, FILE, "lora") is None
    assert why({"activated_loras": f"x.safetensors, {PAGE}"}, FILE, "lora") is None
    assert why({"loras": [f" {PAGE} "]}, FILE, "lora") is None
    assert "does not stand" in str(why({"loras": ["https://[::1/x"]}, FILE, "lora"))


def test_other_kinds_gain_nothing_by_it() -> None:
    own = next(iter(OWN_URLS))
    assert why({}, own, "any") is not None
    assert why({"a": PAGE}, FILE, "image") is not None
    assert why({}, TRUSTED, "image") is not None


def test_a_handler_that_needs_no_models_gets_none() -> None:
    assert "no such name or kind" in str(why({"a": FILE}, FILE, "lora", MayFetch()))


def test_downloads_that_are_switched_off_are_said_to_be() -> None:
    off = wan_may_fetch(load_config(environ={"WAN2GP_DOWNLOAD": "0"}))
    assert "wan.download" in str(why({}, TRUSTED, "weights", off))
    assert why({"a": FILE}, FILE, "lora", off) is None  # the row names it


def test_a_first_load_may_ask_for_many_files_and_a_loop_may_not() -> None:
    assert why({}, TRUSTED, "weights", wishes=WISHES_MAX + 1) is None
    assert why({}, TRUSTED, "weights", wishes=KEPT_WISHES_MAX + 1) is not None
    assert why({"a": FILE}, FILE, "image", wishes=WISHES_MAX + 1) is not None


def test_a_mirror_in_the_house_can_be_trusted() -> None:
    config = load_config(environ={"WAN2GP_MODEL_SOURCES": "http://mirror.lan:8080/hub/, huggingface.co/DeepBeepMeep"})
    assert why({}, "http://mirror.lan:8080/hub/a/b.pth", "weights", wan_may_fetch(config)) is None
    assert why({}, TRUSTED, "weights", wan_may_fetch(config)) is None


@pytest.mark.parametrize("source", ["ftp://h/x", "h/../x", "user@h/x", "h/x?y", "https://", "h/x y"])
def test_a_source_that_is_none_is_a_wrong_configuration(source: str) -> None:
    with pytest.raises(ConfigError, match="WAN2GP_MODEL_SOURCES"):
        load_config(environ={"WAN2GP_MODEL_SOURCES": source})


def test_a_courier_cannot_hand_out_what_it_does_not_keep(tmp_path: Path) -> None:
    shelf = tmp_path / "models" / "loras"
    (shelf / "x").mkdir(parents=True)
    (shelf / "x" / "a.safetensors").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"s")
    (shelf / "link").symlink_to(tmp_path / "secret")
    (shelf / "folder").symlink_to(tmp_path)
    places = Places(tmp_path, 0)
    assert places.kept(str(shelf / "x" / "a.safetensors"), shelf) == str(shelf / "x" / "a.safetensors")
    wrong = ["link", "folder/secret", "x", "x/none", "../../secret", "x/../../../secret", ""]
    for name in (*(f"{shelf}/{each}" for each in wrong), str(tmp_path / "secret"), "relative"):
        with pytest.raises(NotHanded):
            places.kept(name, shelf)


def page(number: int) -> str:
    return f"https://huggingface.co/a/b/blob/main/{number}.safetensors"


def test_the_pages_that_a_row_names_are_read_once_however_many_files_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    monkeypatch.setattr(wanted, "resolved", lambda url: read.append(url) or resolved(url))
    row = Named({"junk": ",".join(["a:1"] * 10_000), "loras": ",".join(map(page, range(20)))})
    for number in range(20):
        assert refusal(row, {"x": Source(resolved(page(number)), "lora")}, 1, MayFetch(models=True)) is None
    assert sorted(read) == sorted({*map(page, range(20)), ",".join(map(page, range(20)))}), "and nothing of the junk"


def test_a_row_of_more_pages_than_anybody_means_costs_no_more_than_some(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(wanted, "resolved", lambda url: read.append(url) or resolved(url))
    row = Named({"junk": [f"x://{number}" for number in range(2 * wanted.PAGES_MAX)]})
    for _ in range(3):
        assert refusal(row, {"x": Source(resolved(page(1)), "lora")}, 1, MayFetch(models=True)) is not None
    assert len(read) == wanted.PAGES_MAX


def test_a_graph_in_a_string_is_not_searched_without_end() -> None:
    url = "https://example.org/x.png"
    row = Named({"workflow": '{"1": "' + url + '"}' + " " * 8_000_000})
    heard = [refusal(row, {"x": Source(url, "image")}) is None for _ in range(100)]
    searches = wanted.SEARCHED_MAX // 8_000_000
    assert heard == [True] * searches + [False] * (100 - searches)
