"""No vice: the task that is served after one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    (place / "made").write_text("well")
    tries.saw["place"] = "mine"
