"""The engine's three ways to fetch a file, each replaced by a question to the other side. Standard library only.

All weights pass ``hf_hub_download``, ``snapshot_download`` or ``urlretrieve``, which the engine imports where it calls
them. It asks in the thread that works, which waits for the answer here; the answer comes to the main thread.
"""

from __future__ import annotations

import importlib
import os
import threading
import urllib.request
from pathlib import Path
from typing import Any

from wan2gp.wan_sidecar.host_line import Line

HUB = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
"""The hub's own library reads the same variable: an operator may have a mirror."""
CANCELLED = "the task was cancelled"


class MissingFile(FileNotFoundError):
    """The engine needs a file that cannot be had."""


class Asked:
    """One question, and its answer when there is one."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.path: str | None = None
        self.why = ""


class Downloads:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._asked: dict[int, Asked] = {}
        self._last = 0
        self._open = False
        self._urlretrieve = urllib.request.urlretrieve
        self._hub: tuple[Any, Any] | None = None
        self.missing: list[dict[str, str]] = []
        """What was refused since the job began."""

    def interpose(self) -> None:
        """Before the engine is imported."""
        urllib.request.urlretrieve = self.urlretrieve
        try:
            hub: Any = importlib.import_module("huggingface_hub")
        except ImportError:  # then the engine, which imports it, says so itself
            return
        self._hub = hub.hf_hub_download, hub.snapshot_download
        hub.hf_hub_download = self.hf_hub_download
        hub.snapshot_download = self.snapshot_download

    def job_begins(self) -> None:
        with self._lock:
            self._open = True
            self.missing = []

    def refuse_all(self) -> None:
        """The job is cancelled or over: who waits is told so, and so is who asks from now on."""
        with self._lock:
            self._open = False
            waiting = list(self._asked.values())
            self._asked = {}
        for asked in waiting:
            asked.why = CANCELLED
            asked.answered.set()

    def answer(self, request: dict[str, Any]) -> None:
        with self._lock:
            asked = self._asked.pop(request["want"], None)
        if asked is not None:
            asked.path, asked.why = request["path"], request["why"]
            asked.answered.set()

    def hf_hub_download(
        self, repo_id: str, filename: str, *, subfolder: str | None = None, local_dir: Any = None, **options: Any
    ) -> Any:
        """As the hub's own, for what the engine asks of it. Libraries, which name no directory, look for files that
        need not be there, and want its own answers."""
        if local_dir is None:
            assert self._hub is not None
            return self._hub[0](repo_id, filename, subfolder=subfolder, **options)
        path = "/".join(part for part in (subfolder, filename) if part)
        revision = options.get("revision") or "main"
        place = os.path.join(os.fspath(local_dir), path)
        return self._at(place, repo_id, path, f"{HUB}/{repo_id}/resolve/{revision}/{path}")

    def snapshot_download(
        self, repo_id: str, *, allow_patterns: Any = None, local_dir: Any = None, **options: Any
    ) -> Any:
        """A folder of a repository, which is all that the engine asks of it."""
        if local_dir is None:
            assert self._hub is not None
            return self._hub[1](repo_id, allow_patterns=allow_patterns, **options)
        patterns = [allow_patterns] if isinstance(allow_patterns, str) else list(allow_patterns or ["*"])
        root = os.fspath(local_dir)
        for pattern in patterns:
            folder = pattern.rstrip("*")
            self._at(os.path.join(root, folder.rstrip("/")), repo_id, folder or "./", "")
        return root

    def urlretrieve(self, url: str, filename: Any = None, *options: Any, **more: Any) -> tuple[str, Any]:
        if not url.startswith(("http://", "https://")):
            return self._urlretrieve(url, filename, *options, **more)
        place = os.fspath(filename) if filename is not None else os.path.basename(url)
        return self._at(place, "", os.path.basename(url.partition("?")[0]), url), None

    def _at(self, place: str, repo: str, file: str, url: str) -> str:
        place = os.path.abspath(place)
        if os.path.exists(place):
            return place
        found, why = self._ask(repo, file, url, place)
        if found is None:
            name = f"{repo}/{file}" if repo else url
            self.missing.append({"repo": repo, "file": file, "url": url, "why": why})
            raise MissingFile(f"missing file {name}: {why}")
        _link(Path(found), Path(place))
        return place

    def _ask(self, repo: str, file: str, url: str, place: str) -> tuple[str | None, str]:
        asked = Asked()
        with self._lock:
            if not self._open or threading.current_thread() is threading.main_thread():
                return None, "no job is running" if not self._open else "it was wanted outside of a job"
            self._last += 1
            number = self._last
            self._asked[number] = asked
        self._line.say("want", want=number, repo=repo, file=file, url=url, place=place)
        asked.answered.wait()
        return asked.path, asked.why


def _link(found: Path, place: Path) -> None:
    """Whole at once, also over a link to what is no longer there."""
    if found == place:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.{threading.get_ident()}")
    new.symlink_to(found)
    os.replace(new, place)
