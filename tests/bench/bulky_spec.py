"""What the supervisor gets to know of it."""

from __future__ import annotations

from wan2gp.supervisor.registry import HandlerSpec

SPEC = HandlerSpec(name="bulky", target="tests.bench.bulky:Bulky", task_types=("bulky",))
