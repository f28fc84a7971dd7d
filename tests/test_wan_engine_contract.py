"""The same contract for the stand-in and for a real Wan2GP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract_wan import STAND_IN, Contract, Driven, Jobs, driven, files_of
from tests.wan_models import MODEL_DEFS
from tests.wan_without_cuda import told_of_a_card
from wan2gp.wan_sidecar.errors import Unavailable
from wan2gp.wan_sidecar.work import WanLimits

REAL = os.environ.get("WAN2GP_PATH", "")
PYTHON = os.environ.get("WAN2GP_PYTHON", "")
PLAIN = {
    "t2v__plain": {"model": {"name": "Plain", "architecture": "t2v", "URLs": "t2v", "description": "", "loras": []}}
}


def start(checkout: Path, place: Path, python: str, **options: Any) -> Iterator[Driven | Unavailable]:
    with driven(checkout, place, python, finetunes=PLAIN, **options) as found:
        try:
            found.ensure()
        except Unavailable as error:
            yield error
        else:
            yield found


class TestStandIn(Contract, Jobs):
    def checkout(self) -> Path:
        return STAND_IN

    @pytest.fixture(scope="class")
    @classmethod
    def before(cls) -> dict[str, Any]:
        return files_of(STAND_IN)

    @pytest.fixture(scope="class")
    @classmethod
    def started(cls, before: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        yield from start(STAND_IN, tmp_path_factory.mktemp("stand-in"), "", environ={"PYTHONDONTWRITEBYTECODE": "1"})

    def test_its_models_are_those_that_the_other_tests_know(self, engine: Driven) -> None:
        for name, known in MODEL_DEFS.items():
            found = engine.engine.model_def(name)
            assert {key: found[key] for key in known} == {key: listed(value) for key, value in known.items()}


@pytest.mark.skipif(not REAL, reason="WAN2GP_PATH names no Wan2GP")
@pytest.mark.timeout(400)
class TestReal(Contract):
    """Runs on a machine without a GPU too: then its first and its last test say something."""

    def checkout(self) -> Path:
        return Path(REAL)

    @pytest.fixture(scope="class")
    @classmethod
    def before(cls) -> dict[str, Any]:
        return files_of(Path(REAL))

    @pytest.fixture(scope="class")
    @classmethod
    def started(cls, before: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        # The files of compiled modules would be the first thing that it writes.
        environ = {"PYTHONDONTWRITEBYTECODE": "1"}
        limits = WanLimits(start_s=300, answer_s=120)
        yield from start(Path(REAL), tmp_path_factory.mktemp("real"), PYTHON, environ=environ, limits=limits)


@pytest.mark.skipif(not REAL, reason="WAN2GP_PATH names no Wan2GP")
@pytest.mark.timeout(400)
class TestRealToldOfACard(Contract, Jobs):
    """The real engine's own code, where there is no card: what the stand-in says of it is checked here."""

    MODEL = "t2v_1.3B"
    changed = Path()

    def checkout(self) -> Path:
        return self.changed

    @pytest.fixture(scope="class")
    @classmethod
    def before(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        cls.changed = told_of_a_card(Path(REAL), tmp_path_factory.mktemp("told") / "Wan2GP")
        return files_of(cls.changed)

    @pytest.fixture(scope="class")
    @classmethod
    def started(cls, before: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        environ = {"PYTHONDONTWRITEBYTECODE": "1"}
        limits = WanLimits(start_s=300, answer_s=120)
        yield from start(cls.changed, tmp_path_factory.mktemp("real"), PYTHON, environ=environ, limits=limits)


def listed(value: Any) -> Any:
    """As it comes out of JSON."""
    if isinstance(value, (list, tuple)):
        return [listed(one) for one in value]
    return {key: listed(one) for key, one in value.items()} if isinstance(value, dict) else value
