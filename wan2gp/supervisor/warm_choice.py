"""What a worker tells the database of what it has loaded, and how much it claims for engines that take turns. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from wan2gp.supervisor.queue import Warm
from wan2gp.supervisor.registry import HandlerSpec


@dataclass(frozen=True)
class Loaded:
    """What one handler has loaded."""

    handler: str
    model: str | None
    """As the handler names it; None: it names none, or has none."""


def warm_types(
    specs: Mapping[str, HandlerSpec], shared: Collection[str], on_gpu: str | None, loaded: Collection[Loaded]
) -> tuple[Warm, ...]:
    """``shared``: handlers that take turns on the GPU. ``on_gpu``: whose engine has it."""
    return tuple(_warm(specs, shared, on_gpu, loaded))


def _warm(
    specs: Mapping[str, HandlerSpec], shared: Collection[str], on_gpu: str | None, loaded: Collection[Loaded]
) -> Iterator[Warm]:
    for one in loaded:
        spec = specs[one.handler]
        sharing = one.handler in shared
        if sharing and one.handler != on_gpu:
            continue  # what it had is no longer on the GPU, or will not be by the time of the claim
        others = [name for name in specs if name in shared and name != one.handler] if sharing else []
        # Who never names a model has what it needs as long as nobody else gets the GPU.
        if one.model is not None or (others and sharing and not spec.models):
            types = {kind: spec.models.get(kind) for kind in spec.task_types}
            yield Warm(types, one.model, tuple(kind for name in others for kind in specs[name].task_types))


def shared_rooms(rooms: Mapping[str, int], shared: Collection[str], claimed: int, ahead: int) -> dict[str, int]:
    """What may be claimed for, of the ``rooms`` by handler. Those that take turns get one task between them, and
    ``ahead`` more; ``claimed``: how many they have. Whose turn is next is for the queue to say, when it comes."""
    left = max(0, 1 + ahead - claimed)
    return {name: min(room, left) if name in shared else room for name, room in rooms.items()}
