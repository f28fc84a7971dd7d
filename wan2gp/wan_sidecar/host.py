"""Runs as a script, by its path, in the engine's own interpreter: Wan2GP, driven over a socket.

Arguments: the number of that socket, which nothing else knows, so that whatever prints reaches the log alone. The first
line that comes says where the engine is; then one request at a time, each a JSON object on a line (see
``protocol.py``, which spells them once more, for the other side: a test compares them).

Standard library only: of our package nothing but this directory is there, and of that nothing is on the path, where
the engine's own ``shared`` must come first.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    _ours = types.ModuleType("wan2gp")
    _ours.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["wan2gp"] = _ours
    sys.path[:] = [place for place in sys.path if place and Path(place) != Path(__file__).parent]

from wan2gp.wan_sidecar.host_downloads import Downloads
from wan2gp.wan_sidecar.host_job import HostJob
from wan2gp.wan_sidecar.host_line import Line, LineClosed
from wan2gp.wan_sidecar.host_plain import plain

TAIL_LINES = 30
CANNOT_START = 3
"""Exit code after ``unavailable``: never 0, which the engine's own bare ``exit()`` would give."""
UNFIT = 4
"""Exit code after a job that did not end properly."""


class Engine:
    """The engine's API, in the private root, and the one session through which questions are asked."""

    def __init__(self, boot: dict[str, Any]) -> None:
        """Imports and initialises the engine: takes from ten seconds to some minutes, and raises whatever it does."""
        self._root = boot["root"]
        self._arguments = tuple(boot["arguments"])
        os.chdir(self._root)
        self.api: Any = importlib.import_module("shared.api")
        self.questions = self.api.init(**self._options(None))

    def _options(self, output: str | None) -> dict[str, Any]:
        """The same root, configuration and arguments each time: other ones the engine refuses."""
        return {
            "root": self._root,
            "config_path": os.path.join(self._root, "wgp_config.json"),
            "output_dir": output,
            "cli_args": self._arguments,
            "console_output": False,
            "console_isatty": False,
        }

    def session(self, output: str) -> Any:
        """A new one for each job: its list of files is empty, and its directory the job's own. Models stay in memory,
        which all sessions share."""
        return self.api.WanGPSession(**self._options(output))

    @property
    def module(self) -> Any:
        return sys.modules["wgp"]

    def loaded(self) -> str | None:
        """The model in memory. The name alone says nothing: it is set from the start."""
        module = self.module
        if getattr(module, "wan_model", None) is None or getattr(module, "reload_needed", False):
            return None
        name = getattr(module, "transformer_type", None)
        return str(name) if name else None

    def about(self) -> dict[str, Any]:
        gpu, total = _card()
        return {"version": str(getattr(self.module, "WanGP_version", "")), "gpu": gpu, "gpu_total_mib": total}

    def models(self) -> list[str]:
        return sorted(str(record["model_type"]) for record in self.questions.list_model_defs())


def _card() -> tuple[str, int]:
    """Name and memory (MiB) of the card that the engine uses."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "", 0
    found = torch.cuda.get_device_properties(0)
    return str(found.name), int(found.total_memory) >> 20


class Host:
    """Answers requests until there is nobody to ask any more."""

    def __init__(self, line: Line, downloads: Downloads, engine: Engine) -> None:
        self._line = line
        self._downloads = downloads
        self._engine = engine
        self._answers: dict[str, Callable[[dict[str, Any]], None]] = {
            "models": lambda request: line.say("models", names=engine.models()),
            "describe": self._describe,
            "availability": self._availability,
            "run": self._run,
            "finish": self._run,
            "unload": self._unload,
            "leave": lambda request: leave(0),
            # A cancel that crossed the end of its job, and an answer to a question that nobody asks any more.
            "cancel": lambda request: None,
            "have": lambda request: None,
        }

    def serve(self) -> NoReturn:
        while True:
            request = self._line.hear(None)
            if request is not None:
                self._answers[request["do"]](request)

    def _describe(self, request: dict[str, Any]) -> None:
        found = self._engine.questions.get_model_def(request["model"])
        self._line.say("model", found=found is not None, definition=plain(found) if found is not None else {})

    def _availability(self, request: dict[str, Any]) -> None:
        known = self._engine.questions.get_model_def(request["model"]) is not None
        status = self._engine.questions.get_model_availability(request["model"])["status"] if known else ""
        self._line.say("availability", found=known, status=str(status))

    def _unload(self, request: dict[str, Any]) -> None:
        self._engine.questions.close()
        self._line.say("unloaded", model=self._engine.loaded())

    def _run(self, request: dict[str, Any]) -> None:
        job = HostJob(self._engine, self._line, self._downloads, request)
        if not job.run():
            leave(UNFIT)


def start(line: Line, boot: dict[str, Any]) -> Engine:
    """The engine. Ends this process where there is none to be had: what failed once fails again in this process."""
    printed = sys.stdout, sys.stderr
    try:
        engine = Engine(boot)
        line.say("ready", model=engine.loaded(), **engine.about())
    except BaseException as error:
        sys.stdout, sys.stderr = printed
        traceback.print_exc()
        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
        line.say("unavailable", kind=_kind(error), cause=_cause(error), tail=lines[-TAIL_LINES:])
        leave(CANNOT_START)
    return engine


def _kind(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "exit"
    if isinstance(error, ImportError):  # of libcudart, say: the card may be there, the environment is not whole
        return "import"
    torch = sys.modules.get("torch")
    if "cuda" in str(error).lower() or "nvidia driver" in str(error).lower():
        return "import" if torch is not None and torch.cuda.is_available() else "no_cuda"
    return "import"


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ended its own process (exit code {error.code})"
    return f"{type(error).__name__}: {error}"[:2000]


def leave(code: int) -> NoReturn:
    """Without the engine's and PyTorch's own ends, which take seconds and may hang: nothing here needs them."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(code)


def main(descriptor: int) -> NoReturn:
    os.set_inheritable(descriptor, False)
    threading.current_thread().name = "wan2gp-host"
    line = Line(socket.socket(fileno=descriptor))
    try:
        boot = line.hear(None)
        assert boot is not None
        sys.path.insert(0, boot["root"])
        downloads = Downloads(line)
        downloads.interpose()
        engine = start(line, boot)
        Host(line, downloads, engine).serve()
    except LineClosed:
        leave(0)
    except BaseException:
        traceback.print_exc()
        leave(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
