"""docs/security.md: the tests and options that it names are there, and it leaves no layer out."""

from __future__ import annotations

import re

import pytest

from tests.conftest_worker import ROOT
from tests.test_reliability_page import NAMED, cases_in, is_skipped
from wan2gp.config_options import OPTIONS
from wan2gp.profile import Layer

PAGE = (ROOT / "docs" / "security.md").read_text()
CITED = sorted(set(NAMED.findall(PAGE)))


@pytest.mark.parametrize(("file", "name"), CITED, ids=[name for _, name in CITED])
def test_every_test_that_is_named_is_there_and_runs(file: str, name: str) -> None:
    cases = cases_in(ROOT / file)
    assert name in cases, f"{file} has no {name}"
    assert not is_skipped(cases[name])


def test_every_layer_is_told_of() -> None:
    told = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert told == [layer.value for layer in Layer]


def test_every_option_that_is_named_exists() -> None:
    known = {option.key for option in OPTIONS.values()} | {option.env for option in OPTIONS.values()}
    sections = "|".join(sorted({key.partition(".")[0] for key in known if key and "." in key}))
    named = set(re.findall(rf"`((?:{sections})\.\w+)`", PAGE)) | set(
        re.findall(r"\b((?:WAN2GP|COMFY)_[A-Z_]+)\b", PAGE)
    )
    assert named
    assert named - known - {"COMFY_PATH", "WAN2GP_SECRET_"} == set()
