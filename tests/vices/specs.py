"""What the supervisor gets to know of them: the entry points of the tests' plug-in name these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan2gp.config import Config
from wan2gp.supervisor.lifecycle import Patience
from wan2gp.supervisor.needs import Needs
from wan2gp.supervisor.registry import HandlerSpec

NAMES = (
    "noop",
    "maker",
    "sleeper",
    "raiser",
    "crasher",
    "hanger",
    "unimportable",
    "unstartable",
    "litterer",
    "liar",
    "linker",
    "climber",
    "babbler",
    "windbag",
    "deaf",
    "fetcher",
    "witness",
    "stamp",
    "forger",
    "tardy",
    "late",
    "diarist",
    "framer",
    "hog",
    "hoarder",
    "sulker",
    "locker",
    "stubborn",
    "lazy",
    "breaker",
    "glutton",
    "frozen",
    "breeder",
    "gusher",
    "intruder",
    "confidant",
)
HASTY = Patience(backoff_first_s=0.02, half_open_s=1.0)
OTHERWISE: Mapping[str, Mapping[str, Any]] = {
    "hanger": {"limits_s": {"step": 1.0, "start": 5.0}},
    "stubborn": {"patience": HASTY},
    "lazy": {"patience": HASTY},
    "breaker": {"patience": HASTY},
    "glutton": {"patience": HASTY},
    "intruder": {"patience": HASTY},
    "frozen": {"silence_s": 8.0},
    "deaf": {"cancel_grace_s": 1.0},
    "confidant": {
        "secrets": lambda config: {
            name: token.reveal() for name, token in config.handler_secrets.items() if name == "confidant"
        }
    },
    "litterer": {"cancel_grace_s": 0.3, "limits_s": {"step": 0.5}},
}
"""What differs from the defaults, by handler."""


def needs(config: Config) -> Needs:
    """These vices are not about the sandbox: they leave notes in their test's directory, and find orders there."""
    return Needs(write=(str(config.data_dir.parents[1]),))


def spec(name: str) -> HandlerSpec:
    """`<name>` tasks go to `tests/vices/<name>.py`."""
    return HandlerSpec(
        name=name,
        target=f"tests.vices.{name}:Vice",
        task_types=(name,),
        settings=lambda config: {"data_dir": str(config.data_dir)},
        start_s=20.0,
        warm_start_s=lambda config: 20.0,
        needs=(lambda config: Needs()) if name == "noop" else needs,  # beside hostile ones: all is trusted there
        **OTHERWISE.get(name, {}),
    )


globals().update({name: spec(name) for name in NAMES})
