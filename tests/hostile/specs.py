"""The handler of all vices, as its plug-in's entry point names it: it asks for nothing that others do not get."""

from __future__ import annotations

from pathlib import Path

from wan2gp.supervisor.lifecycle import Patience
from wan2gp.supervisor.registry import HandlerSpec

NO_VICES = ("__init__", "tries", "calls", "handler", "node", "specs", "victim")
VICES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NO_VICES))

hostile = HandlerSpec(
    name="hostile",
    target="tests.hostile.handler:Vice",
    task_types=VICES,
    start_s=20.0,
    patience=Patience(backoff_first_s=0.02, half_open_s=1.0),
    cancel_grace_s=0.5,
)

victim = HandlerSpec(name="victim", target="tests.hostile.victim:Victim", task_types=("victim",), start_s=20.0)
