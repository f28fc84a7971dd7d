"""The weights that a model's definition names, as the engine would choose them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wan2gp.wan_weights import NoWeights, weights_of

HUB = "https://huggingface.co/DeepBeepMeep/X/resolve/main"


def define(checkout: Path, name: str, folder: str = "defaults", **model: Any) -> None:
    place = checkout / folder / f"{name}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({"model": {"name": name, **model}}))


def test_of_several_precisions_one_is_taken(tmp_path: Path) -> None:
    names = ["a_mbf16", "a_quanto_mfp16_int8", "a_quanto_mbf16_int8", "a_fp8"]
    define(
        tmp_path,
        "a",
        URLs=[f"{HUB}/{name}.safetensors" for name in names],
        URLs2=[f"{HUB}/low_mbf16.safetensors|place"],
    )
    assert weights_of(tmp_path, "a") == (f"{HUB}/a_quanto_mbf16_int8.safetensors", f"{HUB}/low_mbf16.safetensors")


def test_what_another_definition_has_is_followed(tmp_path: Path) -> None:
    define(tmp_path, "base", URLs=[f"{HUB}/base.safetensors"], modules=[[f"{HUB}/m_bf16.st", f"{HUB}/m_int8.st"]])
    define(tmp_path, "a", URLs="base", modules=["base"], loras=[f"{HUB}/l.safetensors"], preload_URLs=f"{HUB}/p.pth")
    assert weights_of(tmp_path, "a") == tuple(
        f"{HUB}/{name}" for name in ("base.safetensors", "p.pth", "l.safetensors", "m_int8.st")
    )


def test_the_operators_own_definition_goes_first(tmp_path: Path) -> None:
    define(tmp_path, "a", URLs=[f"{HUB}/theirs.safetensors"])
    define(tmp_path, "a", "finetunes", URLs=[f"{HUB}/mine.safetensors"])
    assert weights_of(tmp_path, "a") == (f"{HUB}/mine.safetensors",)


@pytest.mark.parametrize("name", ["none", "../a", "a/b", "", "circle", "empty", "broken", "list", "odd"])
def test_a_definition_that_is_none_is_a_sentence(name: str, tmp_path: Path) -> None:
    define(tmp_path, "circle", URLs="circle", modules=["circle"])
    define(tmp_path, "empty", URLs=[])
    define(tmp_path, "odd", URLs=["https://[::1/x.pth"], URLs2=[{}], loras={"a": 1}, VAE_URLs=["file:///etc/passwd"])
    (tmp_path / "defaults" / "broken.json").write_text("{")
    (tmp_path / "defaults" / "list.json").write_text("[]")
    with pytest.raises(NoWeights):
        weights_of(tmp_path, name)
