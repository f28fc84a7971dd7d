"""Who goes first: what is loaded is preferred, the oldest is passed only so often, and engines in turn get one task."""

from __future__ import annotations

import os
import random
import subprocess

import pytest

from wan2gp.supervisor.fairness import Fairness
from wan2gp.supervisor.gpu_look import GpuLook
from wan2gp.supervisor.gpu_turns import GpuSeen
from wan2gp.supervisor.queue import Warm
from wan2gp.supervisor.registry import HandlerSpec
from wan2gp.supervisor.warm_choice import Loaded, shared_rooms, warm_types
from wan2gp.supervisor.weight import Root

CLAIMS = 8


def spec(name: str, *types: str, **models: str) -> HandlerSpec:
    return HandlerSpec(name=name, target="none:None", task_types=types, models=models)


SPECS = {
    "comfy": spec("comfy", "comfy"),
    "wan": spec("wan", "t2v", "i2v", t2v="small", i2v="large"),
    "media": spec("media", "stitch"),
    "alone": spec("alone", "voice", voice="v1"),
}
SHARED = ("comfy", "wan")


def warm(on_gpu: str | None, **models: str | None) -> tuple[Warm, ...]:
    loaded = [Loaded(name, models.get(name)) for name in SPECS]
    return warm_types(SPECS, SHARED, on_gpu, loaded)


# -- what is preferred -------------------------------------------------------------------------------------------------


def test_the_loaded_model_is_preferred_to_what_would_throw_it_out() -> None:
    assert warm("wan", wan="small") == (Warm({"t2v": "small", "i2v": "large"}, "small", ("comfy",)),)


def test_an_engine_that_names_no_model_is_preferred_while_it_has_the_gpu() -> None:
    assert warm("comfy") == (Warm({"comfy": None}, None, ("t2v", "i2v")),)


@pytest.mark.parametrize("on_gpu", [None, "comfy"])
def test_a_model_that_had_to_go_is_not_preferred(on_gpu: str | None) -> None:
    assert all("t2v" not in one.types for one in warm(on_gpu, wan="small"))


def test_an_engine_that_has_unloaded_is_not_preferred() -> None:
    assert warm("wan", wan=None) == ()


def test_a_model_beside_the_gpu_is_preferred_to_others_of_its_handler_alone() -> None:
    assert warm(None, alone="v1") == (Warm({"voice": "v1"}, "v1", ()),)


# -- how much is claimed -----------------------------------------------------------------------------------------------


def test_engines_that_take_turns_have_one_task_between_them() -> None:
    rooms = {"comfy": 1, "wan": 1, "media": 1}
    assert shared_rooms(rooms, SHARED, claimed=0, ahead=0) == rooms
    assert shared_rooms(rooms, SHARED, claimed=1, ahead=0) == {"comfy": 0, "wan": 0, "media": 1}
    assert shared_rooms(rooms, SHARED, claimed=1, ahead=1) == rooms  # the queue says whose task is fetched ahead
    assert shared_rooms(rooms, SHARED, claimed=5, ahead=1) == {"comfy": 0, "wan": 0, "media": 1}


# -- how long the oldest waits -----------------------------------------------------------------------------------------


def test_after_so_many_claims_the_oldest_is_next() -> None:
    fair = Fairness(CLAIMS, 120)
    for _ in range(CLAIMS):
        assert fair.may_pass(0)
        fair.claimed(passed=True, now=0)
    assert not fair.may_pass(0)
    fair.claimed(passed=False, now=0)
    assert fair.may_pass(0)


def test_after_so_many_seconds_the_oldest_is_next() -> None:
    fair = Fairness(CLAIMS, 120)
    fair.claimed(passed=True, now=10)
    fair.claimed(passed=True, now=100)
    assert fair.may_pass(129.9) and not fair.may_pass(130)


@pytest.mark.parametrize(("claims", "seconds"), [(0, 120.0), (8, 0.0)])
def test_a_limit_of_nothing_switches_the_preference_off(claims: int, seconds: float) -> None:
    assert not Fairness(claims, seconds).may_pass(0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_the_oldest_is_never_passed_longer_than_the_limits_allow(seed: int) -> None:
    """A queue of two models that is filled at random; every claim takes a random time."""
    dice, fair = random.Random(seed), Fairness(CLAIMS, 120)
    queue = [(n, dice.choice("AB")) for n in range(30)]
    loaded, now, loads, passed = "A", 0.0, 0, dict.fromkeys(range(400), 0)
    first: dict[int, float] = {}
    for n in range(30, 300):
        ready = [row for row in queue if row[1] == loaded]
        head = queue[0]
        row = ready[0] if ready and fair.may_pass(now) else head
        if row is not head:
            first.setdefault(head[0], now)
            assert now - first[head[0]] < 120
        for older in queue[: queue.index(row)]:
            passed[older[0]] += 1
        fair.claimed(row is not head, now)
        loads += row[1] != loaded
        loaded = row[1]
        queue.remove(row)
        queue.append((n, dice.choice("AB")))
        now += dice.uniform(0, 20)
    assert max(passed.values()) <= CLAIMS
    assert loads < 270 / 4


# -- who holds the GPU -------------------------------------------------------------------------------------------------


class PaperMemory:
    """What a driver tells: memory by pid, and of the whole."""

    def __init__(self) -> None:
        self.pids: dict[int, int] | None = {}
        self.whole: int | None = 0

    def by_pid(self) -> dict[int, int] | None:
        return self.pids

    def used(self) -> int | None:
        return self.whole


def look_of(memory: PaperMemory, *roots: Root) -> GpuLook:
    return GpuLook(memory, lambda: roots, lambda seen: None, lambda error: None, lambda: 1.0)  # type: ignore[arg-type]


def test_without_a_driver_nothing_is_told() -> None:
    memory = PaperMemory()
    memory.pids = memory.whole = None
    assert look_of(memory).look() == GpuSeen(1.0)


def test_a_driver_that_names_no_process_of_ours_is_asked_for_the_whole() -> None:
    """As in a container, where the pids are the host's."""
    memory, mib = PaperMemory(), 1 << 20
    memory.pids, memory.whole = {1: 900 * mib}, 900 * mib
    look = look_of(memory)
    assert look.look() == GpuSeen(1.0, beyond=0)  # somebody else's, from before
    memory.whole = 20_900 * mib
    assert look.look() == GpuSeen(1.0, beyond=20_000 * mib)
    memory.whole = 1_300 * mib
    assert look.look() == GpuSeen(1.0, beyond=400 * mib)


def test_what_the_driver_counts_for_a_process_that_has_ended_is_of_the_dead() -> None:
    """A handler that died between two looks left memory that nobody knew of: the next engine came too early."""
    memory = PaperMemory()
    gone = subprocess.Popen(["true"])
    gone.wait()
    memory.pids = {os.getpid(): 7, gone.pid: 5}
    assert look_of(memory, Root("wan", b"", os.getpid())).look() == GpuSeen(1.0, {"wan": 7}, of_the_dead=5)


def test_memory_that_stays_when_our_process_is_gone_is_somebody_elses() -> None:
    memory = PaperMemory()
    look = look_of(memory)
    look.look()
    memory.whole = 5 << 30
    assert look.look().beyond == 5 << 30
    look._anew = True
    assert look.look().beyond == 0 and look.look().beyond == 0
