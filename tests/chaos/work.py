"""The kinds of work: what each task is given, how it ends when nobody disturbs it, and how many files it makes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Params = dict[str, Any]
LITTER, CLIP = "{litter}", "{clip}"
"""Stand in params for a path of the run's own folder and for the URL of its input video: see :func:`placed`."""


@dataclass(frozen=True)
class Kind:
    """``ends``: the status that its own work leads to. ``makes``: files of a completed one, by its params."""

    name: str
    task_type: str
    weight: int
    params: Callable[[random.Random], Params]
    ends: str = "Complete"
    makes: Callable[[Params], int] = lambda params: 0


def _text(dice: random.Random) -> Params:
    files = {f"{letter}.txt": f"{dice.getrandbits(64):x}\n" for letter in "abc"[: dice.choice((1, 1, 1, 2, 3))]}
    return {"files": files, "times": dice.choice((1, 1, 40, 20_000)), "seconds": dice.choice((0, 0, 0.1, 0.4))}


def _graph(**nodes: Any) -> Params:
    return {"workflow": {number[1:]: {"class_type": node[0], "inputs": node[1]} for number, node in nodes.items()}}


def _plain(dice: random.Random, frames: int) -> tuple[str, Params]:
    """A picture of one colour, which is the task's own: a server that has run a graph does not run it again."""
    return "EmptyImage", {"width": 64, "height": 48, "batch_size": frames, "color": dice.getrandbits(24)}


def _picture(dice: random.Random) -> Params:
    return _graph(_1=_plain(dice, 1), _2=("SaveImage", {"images": ["1", 0], "filename_prefix": "still"}))


def _video(dice: random.Random) -> Params:
    combine = {"images": ["1", 0], "frame_rate": 8, "format": "video/h264-mp4", "save_output": True}
    combine |= {"pingpong": False, "loop_count": 0, "filename_prefix": "film"}
    return _graph(_1=_plain(dice, dice.choice((6, 12))), _2=("VHS_VideoCombine", combine))


def _refilm(dice: random.Random) -> Params:
    """As the specification's row, but for what would be the same in two of them."""
    graph = _video(dice)
    graph["workflow"]["1"] = {"class_type": "VHS_LoadVideo", "inputs": {"video": "input.mp4", "force_rate": 0}}
    return {**graph, "video_url": CLIP, "video_node_id": "1", "video_input_field": "video"}


def _slow_picture(dice: random.Random) -> Params:
    """Under way long enough to be met by a fault."""
    seconds = dice.choice((0.4, 0.8, 1.6))
    sleep = ("TestSleep", {"seconds": seconds, "steps": int(seconds * 20), "nonce": dice.getrandbits(50)})
    graph = _picture(dice)
    graph["workflow"]["9"] = {"class_type": sleep[0], "inputs": sleep[1]}
    return graph


def _fault(class_type: str, **choices: Any) -> Callable[[random.Random], Params]:
    """A graph of one misbehaving node; each input is drawn from the values given."""

    def params(dice: random.Random) -> Params:
        inputs = {name: dice.choice(values) for name, values in choices.items()}
        return _graph(_1=(class_type, {"nonce": dice.getrandbits(50), **inputs}))

    return params


def _of(**choices: Any) -> Callable[[random.Random], Params]:
    return lambda dice: {name: dice.choice(values) for name, values in choices.items()}


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("noop", "noop", 16, lambda dice: {}),
        Kind("maker", "maker", 18, _text, makes=lambda params: len(params["files"])),
        Kind("sleeper", "sleeper", 12, _of(seconds=(0.05, 0.2, 0.5, 1.2))),
        Kind("picture", "comfy", 14, _picture, makes=lambda params: 1),
        Kind("video", "comfy", 8, _video, makes=lambda params: 1),
        Kind("slow picture", "comfy", 6, _slow_picture, makes=lambda params: 1),
        Kind("raiser", "raiser", 4, lambda dice: {}, ends="Failed"),
        Kind("stubborn", "raiser", 3, _of(code=("comfy.api_error",), message=("as asked",)), ends="Failed"),
        Kind("fetcher", "fetcher", 5, lambda dice: {"url": CLIP, "kind": "video"}),
        Kind("film of a film", "comfy", 3, _refilm, makes=lambda params: 1),
        Kind("crasher", "crasher", 3, _of(exit=(1, 9)), ends="Complete"),
        Kind("native crasher", "crasher", 2, _of(signal=(6, 11)), ends="Complete"),
        Kind("hanger", "hanger", 1, lambda dice: {"times": 1}, ends="Complete"),
        Kind("litterer", "litterer", 3, lambda dice: {"pids": LITTER}),
        Kind("bad node", "comfy", 3, _fault("TestRaise", message=("boom",), kind=("RuntimeError",)), ends="Failed"),
        Kind("no output", "comfy", 2, _fault("FaultNoOutput"), ends="Failed"),
        Kind("liar", "comfy", 2, _fault("FaultLieAboutSuccess", how=("absent", "truncated", "empty")), ends="Failed"),
        Kind("engine killer", "comfy", 1, _fault("FaultCrash", kind=("segv", "exit3")), ends="Failed"),
    )
}
QUICK = ("noop", "maker", "sleeper", "picture", "slow picture")
"""What the named cells run: whatever goes wrong there comes from the fault."""


def placed(params: Params, litter: str, clip: str) -> Params:
    """``params`` as they are inserted."""
    known = {LITTER: litter, CLIP: clip}
    return {name: known.get(value, value) if isinstance(value, str) else value for name, value in params.items()}


def expected_sha256(kind: str, params: Params) -> dict[str, str]:
    """By file name, where it is known what a file must hold."""
    if kind != "maker":
        return {}
    times = params.get("times", 1)
    return {name: hashlib.sha256(text.encode() * times).hexdigest() for name, text in params["files"].items()}
