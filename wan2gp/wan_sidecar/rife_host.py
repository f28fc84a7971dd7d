"""Runs as a script, by its path and with ``-I``, in Wan2GP's own interpreter: pictures between two pictures, by RIFE.

Argument: the number of a stream socket. Both ways go messages: four bytes, big-endian, the length of a JSON object; the
object; and, where it has ``bytes``, so many bytes of RGB pixels, row by row.

::

    down  {"do": "load", "root", "weights", "version", "device"}      up  {"is": "ready", "torch", "device"}
    down  {"do": "pair", "width", "height", "times", "bytes"}         up  nothing
    down  {"do": "more"}, once for each of the times, in their order  up  {"is": "picture", "bytes"}
    what cannot be done                                               up  {"is": "failed", "why", "cause"}

The bytes of a pair are its first and its last picture; times rise, each above 0 and below 1. Each picture is asked for,
so whoever no longer wants them stops asking.

The engine's own ``temporal_interpolation`` is not used: it knows powers of two alone, repeats pictures where two differ
much, and makes anew every source picture past the hundredth. Its models take any moment, or, the older, the middle.

It imports nothing of this package, whose interpreter it does not share, and nothing of Wan2GP but the models.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Json = dict[str, Any]
MODULES = {"v4": "postprocessing.rife.RIFE_V4", "v3": "postprocessing.rife.RIFE_HDv3"}
GRIDS = "postprocessing.rife.IFNet_HDv3"
OLD_PAD = 32
"""The older model says of no multiple that the sides must be of."""
MOST_HALVINGS = 8


class Failure(Exception):
    """``why`` is one of ``import``, ``weights``, ``device``, ``memory``."""

    def __init__(self, why: str, cause: str) -> None:
        super().__init__(cause)
        self.why = why


def main(descriptor: int) -> None:
    """Serves until the other end is closed."""
    if prefix := os.environ.get("PYTHONPYCACHEPREFIX"):  # which -I makes Python pass over
        sys.pycache_prefix = prefix
    server = Server()
    with socket.socket(fileno=descriptor) as channel, channel.makefile("rwb") as stream:
        while (message := receive(stream)) is not None:
            try:
                answer, pixels = server.serve(message)
            except Failure as failure:
                answer, pixels = {"is": "failed", "why": failure.why, "cause": str(failure)[:2000]}, b""
            if answer:
                try:
                    send(stream, answer, pixels)
                except (BrokenPipeError, ConnectionResetError):  # the other end no longer wants it
                    return


def receive(stream: Any) -> Json | None:
    """None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    message: Json = json.loads(stream.read(int.from_bytes(head, "big")))
    message["pixels"] = stream.read(message.get("bytes", 0))
    return message if len(message["pixels"]) == message.get("bytes", 0) else None


def send(stream: Any, message: Json, pixels: bytes = b"") -> None:
    said = json.dumps({**message, "bytes": len(pixels)} if pixels else message).encode()
    stream.write(len(said).to_bytes(4, "big") + said + pixels)
    stream.flush()


class Server:
    """What was loaded, and the pictures that are still to be asked for."""

    def __init__(self) -> None:
        self.model: Any = None
        self.version = "v4"
        self.device = "cpu"
        self.size = (0, 0)
        self.pictures: Iterator[bytes] = iter(())

    def serve(self, message: Json) -> tuple[Json, bytes]:
        """The answer to one message, empty where there is none. Raises :class:`Failure`."""
        if message["do"] == "load":
            self.version, self.device = message["version"], message["device"]
            self.model, torch_version = load(message["root"], message["weights"], self.version, self.device)
            return {"is": "ready", "torch": torch_version, "device": described(self.device)}, b""
        if message["do"] == "pair":
            self.forget((message["width"], message["height"]))
            self.pictures = pictures(self, message)
            return {}, b""
        return {"is": "picture"}, guarded("device", lambda: next(self.pictures))

    def forget(self, size: tuple[int, int]) -> None:
        """The models keep a grid for each size that they have ever met."""
        if size != self.size:
            self.size = size
            getattr(self.model, "_grid_cache", {}).clear()
            getattr(sys.modules.get(GRIDS), "backwarp_tenGrid", {}).clear()


def guarded(why: str, work: Callable[[], Any]) -> Any:
    """What ``work`` returns. Whatever PyTorch, a file of weights and the engine's models raise is this answer: there is
    no class for memory that all releases share."""
    try:
        return work()
    except Failure:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        lacks = "out of memory" in said.lower() or "allocate memory" in said.lower() or isinstance(error, MemoryError)
        raise Failure("memory" if lacks else why, said) from error


# --- the model -------------------------------------------------------------------------------------------------------


def load(root: str, weights: str, version: str, device: str) -> tuple[Any, str]:
    """The model with its weights, and PyTorch's version."""
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        torch = importlib.import_module("torch")
        module = importlib.import_module(MODULES[version])
    except Exception as error:  # whatever somebody else's module raises, it cannot be imported here
        raise Failure("import", f"{type(error).__name__}: {error}") from error
    if device != "cpu":
        guarded("device", lambda: torch.zeros(1, device=device))
    return guarded("weights", lambda: filled(torch, module, weights, version, device)), str(torch.__version__)


def filled(torch: Any, module: Any, weights: str, version: str, device: str) -> Any:
    """The file is a pickle, which may hold a program: only weights are read of it, also by the engine."""
    read = torch.load

    def only_weights(*given: Any, **more: Any) -> Any:
        return read(*given, **{**more, "weights_only": True})

    torch.load = only_weights
    try:
        model = module.Model()
        check_complete(model, only_weights(weights, map_location="cpu"))
        model.load_model(weights, -1, device=device)
        model.eval()
        model.to(device)
    finally:
        torch.load = read
    return model


def check_complete(model: Any, found: Any) -> None:
    """The engine leaves parts of which the file has nothing as they are drawn at random, without a word."""
    if isinstance(found, dict):
        found = found.get("state_dict", found.get("flownet", found))
    names = {name.replace("module.", "") for name in found} if isinstance(found, dict) else set()
    wanted = {*model.flownet.state_dict()}
    if hasattr(model, "encode"):
        wanted |= {f"encode.{name}" for name in model.encode.state_dict()}
    if missing := sorted(wanted - names):
        raise Failure("weights", f"{len(missing)} of its {len(wanted)} parts are not in the file, {missing[0]} for one")


def described(device: str) -> str:
    if device == "cpu":
        return "cpu"
    return str(importlib.import_module("torch").cuda.get_device_name(device))


# --- the pictures ----------------------------------------------------------------------------------------------------


def pictures(server: Server, message: Json) -> Iterator[bytes]:
    """Between the two that came with ``message``."""
    torch = importlib.import_module("torch")
    width, height, pixels = message["width"], message["height"], bytearray(message["pixels"])
    half = width * height * 3
    with torch.no_grad():
        multiple = getattr(server.model, "pad_mod", OLD_PAD)
        first, last = (
            as_tensor(torch, pixels[at : at + half], width, height, multiple, server.device) for at in (0, half)
        )
        for made in between(server, first, last, message["times"]):
            yield as_bytes(torch, made, width, height)


def between(server: Server, first: Any, last: Any, times: Sequence[float]) -> Iterator[Any]:
    if server.version == "v4":
        for time in times:
            yield server.model.inference(first, last, time)
        return
    # As close as an eighth of the distance of two pictures; powers of two are met exactly.
    yield from halves(server.model, first, last, 0.0, 1.0, times, 0.125 / (len(times) + 1), MOST_HALVINGS)


def halves(
    model: Any, first: Any, last: Any, low: float, high: float, times: Sequence[float], near: float, depth: int
) -> Iterator[Any]:
    """By a model that finds the middle alone. Holds two pictures for each halving."""
    if not times:
        return
    middle = (low + high) / 2
    here = [time for time in times if depth == 1 or abs(time - middle) <= near]
    picture = model.inference(first, last)
    yield from halves(
        model, first, picture, low, middle, [t for t in times if t < middle and t not in here], near, depth - 1
    )
    yield from (picture for _ in here)
    yield from halves(
        model, picture, last, middle, high, [t for t in times if t > middle and t not in here], near, depth - 1
    )


def as_tensor(torch: Any, pixels: bytearray, width: int, height: int, multiple: int, device: str) -> Any:
    """1 x 3 x height x width, 0 to 1, its sides grown to a multiple by repeating the border."""
    rows = torch.frombuffer(pixels, dtype=torch.uint8).view(height, width, 3)
    picture = rows.to(device).permute(2, 0, 1).unsqueeze(0).float().div(255.0)
    return torch.nn.functional.pad(picture, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def as_bytes(torch: Any, picture: Any, width: int, height: int) -> bytes:
    rows = picture[0, :, :height, :width]
    if not bool(torch.isfinite(rows).all()):
        raise Failure("weights", "the model makes no numbers: its weights are spoilt")
    made: bytes = rows.clamp(0, 1).mul(255.0).round().byte().permute(1, 2, 0).contiguous().cpu().numpy().tobytes()
    return made


if __name__ == "__main__":
    main(int(sys.argv[1]))
