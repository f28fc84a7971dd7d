"""Ways to be a bad node, one vice each. Loaded by `--extra-nodes`, not imported by the tests."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
from typing import Any, ClassVar

import numpy as np

MIB = 1 << 20
_GLTF = b'{"asset":{"version":"2.0"}}'
_GLTF += b" " * (-len(_GLTF) % 4)
SMALLEST_GLB = b"glTF" + struct.pack("<III4s", 2, 20 + len(_GLTF), len(_GLTF), b"JSON") + _GLTF
HOLD = "hold"
"""While a file of this name is among the inputs, the sleepers sleep on."""
ASLEEP = "asleep"
"""This one they make then: a node that is told of as running may not have begun."""
POLL_S = 0.005
ANY_NONCE = ("INT", {"default": 0, "min": 0, "max": 1 << 53})


class OutOfMemoryError(RuntimeError):
    """Named and placed like torch's."""


OutOfMemoryError.__module__ = "torch"


class Unserialisable:
    pass


class Fault:
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("INT",)
    FUNCTION = "go"
    CATEGORY = "faults"
    OUTPUT_NODE = True


def inputs(**required: Any) -> dict[str, Any]:
    return {
        "required": {**required, "nonce": ANY_NONCE},
        "optional": {"after": ("*",)},
        "hidden": {"run": "RUN"},
    }


def held(run: Any) -> bool:
    """A test can keep the sleepers from waking: what it does meanwhile does not race with the clock."""
    if not (run.folders.input / HOLD).exists():
        return False
    (run.folders.input / ASLEEP).touch()
    return True


class Sleep(Fault):
    """Sleeps in small steps with progress and an interrupt check at each, or in one piece without."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        seconds = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0})
        declared = inputs(seconds=seconds, steps=("INT", {"default": 10, "min": 0, "max": 100_000}))
        declared["optional"] = {"preview": ("BOOLEAN", {"default": False}), "after": ("*",)}
        return declared

    def go(
        self, seconds: float, steps: int, run: Any, nonce: int, preview: bool = False, after: Any = None
    ) -> dict[str, Any]:
        """`steps` 0: cannot be interrupted."""
        if steps == 0:
            time.sleep(seconds)
        for step in range(1, steps + 1):
            time.sleep(seconds / steps)
            run.progress(step, steps, np.full((48, 64, 3), step, np.uint8) if preview else None)
        while held(run):
            run.check()
            time.sleep(POLL_S)
        return {"ui": {"text": [f"slept {seconds}"]}, "result": (nonce,)}


class BlockSleep(Fault):
    """Sleeps in one piece and shows nothing."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(seconds=("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0}))

    def go(self, seconds: float, run: Any, nonce: int, after: Any = None) -> tuple[int]:
        time.sleep(seconds)
        while held(run):
            time.sleep(POLL_S)
        return (nonce,)


class Raise(Fault):
    KINDS: ClassVar[dict[str, type[BaseException]]] = {
        "RuntimeError": RuntimeError,
        "ValueError": ValueError,
        "MemoryError": MemoryError,
        "OutOfMemoryError": OutOfMemoryError,
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
    }

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(message=("STRING", {"default": "boom"}), kind=(list(cls.KINDS),))

    def go(self, message: str, kind: str, run: Any, nonce: int, after: Any = None) -> tuple[int]:
        raise self.KINDS[kind](message)


def recovered(run: Any, key: str, until: str) -> bool:
    """False the first time. Later: `again` True; `fresh` in another process than the first; `never` False."""
    mark = run.folders.input / f"failed-{key}"
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        return False
    return until == "again" or (until == "fresh" and mark.read_text() != str(os.getpid()))


UNTIL = (["again", "fresh", "never"],)


class FailOnce(Fault):
    """Raises at first; well at the next try, or only in a fresh process."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        message = ("STRING", {"default": "CUDA out of memory"})
        return inputs(message=message, until=UNTIL, kind=(list(Raise.KINDS),), key=("STRING", {"default": "once"}))

    def go(
        self, message: str, until: str, kind: str, key: str, run: Any, nonce: int, after: Any = None
    ) -> dict[str, Any]:
        if not recovered(run, key, until):
            raise Raise.KINDS[kind](message)
        return {"ui": {"text": ["recovered"]}, "result": (nonce,)}


class Swallow(Fault):
    """Prints an error in place of a file, and succeeds; well at the next try, or only in a fresh process."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(
            message=("STRING", {"default": "torch.OutOfMemoryError: CUDA out of memory."}),
            until=UNTIL,
            filename_prefix=("STRING", {"default": "mesh/ComfyUI"}),
        )

    def go(
        self, message: str, until: str, filename_prefix: str, run: Any, nonce: int, after: Any = None
    ) -> dict[str, Any] | tuple[int]:
        if recovered(run, "swallow", until):
            return Save3D().go(filename_prefix, run, nonce)
        print(message, flush=True)
        return (nonce,)


class Grow(Fault):
    """Swells while it works, and stays so for a while; small at the next try, or only in a fresh process."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        mib = ("INT", {"default": 64, "min": 1, "max": 1 << 20})
        return inputs(mib=mib, seconds=("FLOAT", {"default": 30.0}), until=UNTIL)

    def go(self, mib: int, seconds: float, until: str, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        taken = []
        if not recovered(run, "grow", until):
            taken = [b"\x01" * MIB for _ in range(mib)]
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                run.check()
                time.sleep(0.05)
        return {"ui": {"text": [f"took {len(taken)} MiB"]}, "result": (nonce,)}


class Print(Fault):
    """Prints so much, in lines."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(mib=("INT", {"default": 1, "min": 1, "max": 1 << 20}))

    def go(self, mib: int, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        for _ in range(mib << 10):
            print("x" * 1023)
        return {"ui": {"text": [f"printed {mib} MiB"]}, "result": (nonce,)}


class WorkUnseen(Fault):
    """Works without a word on the websocket; all that shows it is a line now and then, or CPU time, or nothing."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(seconds=("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0}), sign=(["print", "burn", "none"],))

    def go(self, seconds: float, sign: str, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            run.check()
            if sign == "burn":
                sum(range(100_000))
                continue
            if sign == "print":
                print("working", flush=True)
            time.sleep(0.1)
        return {"ui": {"text": ["worked"]}, "result": (nonce,)}


class SysExit(Fault):
    """Ends the worker thread: the server answers on and runs nothing more."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(code=("INT", {"default": 1}))

    def go(self, code: int, run: Any, nonce: int, after: Any = None) -> tuple[int]:
        sys.exit(code)


class Crash(Fault):
    """Ends the process."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(kind=(["segv", "abort", "exit3", "sigkill"],))

    def go(self, kind: str, run: Any, nonce: int, after: Any = None) -> tuple[int]:
        if kind == "exit3":
            os._exit(3)
        number = {"segv": signal.SIGSEGV, "abort": signal.SIGABRT, "sigkill": signal.SIGKILL}[kind]
        os.kill(os.getpid(), number)
        raise RuntimeError(f"survived {kind}")


class FreezeServer(Fault):
    """Stops the whole process: it accepts connections and answers nothing, until someone sends SIGCONT."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs()

    def go(self, run: Any, nonce: int, after: Any = None) -> tuple[int]:
        os.kill(os.getpid(), signal.SIGSTOP)
        return (nonce,)


class HogMemory(Fault):
    """Takes memory and touches it. `hold`: keeps it in the node's result."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        mib = ("INT", {"default": 64, "min": 1, "max": 1 << 20})
        return inputs(mib=mib, hold=("BOOLEAN", {"default": False}))

    def go(self, mib: int, hold: bool, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        taken = []
        for _ in range(mib):
            run.check()
            taken.append(b"\x01" * MIB)
        text = f"allocated {mib} MiB hold={hold}"
        return {"ui": {"text": [text]}, "result": (taken if hold else nonce,)}


class LieAboutSuccess(Fault):
    """Reports a video that is not there, or that is the beginning of one."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(how=(["absent", "truncated", "empty"],), filename=("STRING", {"default": "lie.mp4"}))

    def go(self, how: str, filename: str, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        path = run.folders.output / filename
        if how == "empty":
            path.write_bytes(b"")
        elif how == "truncated":
            path.write_bytes(b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + b"\x00\x00\x10\x00mdat" * 9)
        entry = {"filename": filename, "subfolder": "", "type": "output", "format": "video/h264-mp4"}
        return {"ui": {"gifs": [{**entry, "fullpath": str(path)}]}, "result": (nonce,)}


class Save3D(Fault):
    """Saves the smallest model that is one, under the key `3d`, in a folder of its own."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(filename_prefix=("STRING", {"default": "mesh/ComfyUI"}))

    def go(self, filename_prefix: str, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        place = run.folders.place(filename_prefix, "output", 0, 0)
        name = f"{place.name}_{place.next_counter('_.*'):05}_.glb"
        (place.folder / name).write_bytes(SMALLEST_GLB)
        return {"ui": {"3d": [place.entry(name)]}, "result": (nonce,)}


class Say(Fault):
    """Shows whatever it is told to, as a node's own code would."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(shown=("STRING", {"default": "{}"}))

    def go(self, shown: str, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        return {"ui": json.loads(shown), "result": (nonce,)}


class Chatter(Fault):
    """Prints so many mebibytes, to both streams: in lines, as a progress bar, and one line that is a mebibyte long."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(mib=("INT", {"default": 10, "min": 1, "max": 1024}))

    def go(self, mib: int, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        for number in range(mib - 1):
            run.check()
            end = "\r" if number % 2 else "\n"
            words = ("chatter " * 12 + end) * (MIB // 97)
            (sys.stderr if number % 3 else sys.stdout).write(words)
        sys.stdout.write("x" * MIB + "\nthe chatter is over\n")
        sys.stdout.flush()
        return {"ui": {"text": [f"{mib} MiB"]}, "result": (nonce,)}


class WriteBytes(Fault):
    """Saves a file of so many bytes that cannot be compressed, and takes little memory for it."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs(
            mib=("INT", {"default": 1, "min": 1, "max": 1 << 20}), filename_prefix=("STRING", {"default": "x"})
        )

    def go(self, mib: int, filename_prefix: str, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        place = run.folders.place(filename_prefix, "output", 0, 0)
        name = f"{place.name}_{place.next_counter('_.*'):05}_.latent"
        block = os.urandom(MIB)
        with (place.folder / name).open("wb") as file:
            for number in range(mib):
                run.check()
                file.write(number.to_bytes(8, "big") + block[8:])
        return {"ui": {"latents": [place.entry(name)]}, "result": (nonce,)}


class NoOutput(Fault):
    """Succeeds and shows nothing."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs()

    def go(self, run: Any, nonce: int, after: Any = None) -> tuple[int]:
        return (nonce,)


class UiNotJson(Fault):
    """Shows a value that cannot be sent."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs()

    def go(self, run: Any, nonce: int, after: Any = None) -> dict[str, Any]:
        return {"ui": {"text": [Unserialisable()]}, "result": (nonce,)}


class NotOutput(Fault):
    """Harmless, and no output node."""

    OUTPUT_NODE = False

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return inputs()

    def go(self, run: Any, nonce: int, after: Any = None) -> tuple[int]:
        return (nonce,)


class BadInputTypes(Fault):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        raise RuntimeError("INPUT_TYPES boom")


NODE_CLASS_MAPPINGS = {
    "TestSleep": Sleep,
    "TestBlockSleep": BlockSleep,
    "TestRaise": Raise,
    "TestNotOutput": NotOutput,
    "FaultFailOnce": FailOnce,
    "FaultSwallow": Swallow,
    "FaultGrow": Grow,
    "FaultPrint": Print,
    "FaultWorkUnseen": WorkUnseen,
    "FaultSysExit": SysExit,
    "FaultCrash": Crash,
    "FaultFreezeServer": FreezeServer,
    "FaultHogMemory": HogMemory,
    "FaultLieAboutSuccess": LieAboutSuccess,
    "TestSave3D": Save3D,
    "FaultSay": Say,
    "FaultChatter": Chatter,
    "FaultWriteBytes": WriteBytes,
    "FaultNoOutput": NoOutput,
    "FaultUiNotJson": UiNotJson,
    "FaultBadInputTypes": BadInputTypes,
}
"""Those that begin with Test are called as in the captures of the real server: those can be sent as they are."""
