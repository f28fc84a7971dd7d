"""The warm-up workflow: run once after each start of our server, so that the first task finds its models loaded.

Whatever goes wrong with it is a warning: a worker must not be idle because of a graph that nobody waits for.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wan2gp.comfy_sidecar.errors import ApiError, PromptRefused, SidecarError, StartAbandoned, Unreachable
from wan2gp.comfy_sidecar.graph_shape import Graph, parse_workflow
from wan2gp.comfy_sidecar.outputs import read_ending
from wan2gp.comfy_sidecar.server import ComfyServer
from wan2gp.comfy_sidecar.workflow import describe_node, fill_missing, rewrite_prefixes
from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.comfy_collect import remove_files, remove_tree

FOLDER = ("wan2gp", "warm-up")
"""Below the server's output and temp directories: what it makes there is deleted."""
LOOK_S = 0.1
WITHDRAW_S = 5.0
LARGEST_BYTES = 16 * 1024 * 1024


class WarmUpFailed(Exception):
    """The message says why, in words for a person. ``spoilt``: the server must not be used after it."""

    def __init__(self, message: str, *, spoilt: bool = False) -> None:
        super().__init__(message)
        self.spoilt = spoilt


def warm_up(
    server: ComfyServer,
    path: Path,
    limit_s: float,
    node_info: Callable[[str], dict[str, Any] | None],
    abandoned: Callable[[], bool],
) -> float:
    """Runs the graph and deletes what it made; returns the seconds it took.

    Raises :class:`WarmUpFailed`, or :class:`StartAbandoned` when nobody waits any more; then nothing of it runs on.
    """
    began_s = monotonic()
    run = _WarmUp(server, _read(path), began_s + limit_s, abandoned)
    try:
        run.run(node_info)
    except PromptRefused as error:
        details = " ".join(str(error.error.get("details") or "").split())[:300]
        raise WarmUpFailed(f"ComfyUI refused it: {error} {details}".rstrip()) from error
    except (ApiError, Unreachable) as error:
        raise WarmUpFailed(str(error)) from error
    finally:
        run.clean()
    return monotonic() - began_s


def _read(path: Path) -> Graph:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise WarmUpFailed(f"{path} is larger than {LARGEST_BYTES >> 20} MiB")
        return parse_workflow(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise WarmUpFailed(f"cannot read {path}: {error}") from error
    except SidecarError as error:
        raise WarmUpFailed(f"{path}: {error}") from error


class _WarmUp:
    def __init__(self, server: ComfyServer, graph: Graph, end_s: float, abandoned: Callable[[], bool]) -> None:
        self._server = server
        self._client = server.client
        self._graph = graph
        self._end_s = end_s
        self._abandoned = abandoned
        self._prompt_id = f"warm-up-{uuid.uuid4()}"
        self._printed = server.process.printed

    def run(self, node_info: Callable[[str], dict[str, Any] | None]) -> None:
        folder = "/".join(FOLDER)
        rewrite_prefixes(self._graph, folder)
        fill_missing(self._graph, folder, node_info)
        # With an id of its own nobody else's event stream hears of it.
        node_errors = self._client.post_prompt(self._graph, self._prompt_id, self._prompt_id)
        if node_errors:
            self._withdraw()
            names = ", ".join(describe_node(self._graph, str(node_id)) for node_id in node_errors)
            raise WarmUpFailed(f"ComfyUI refused {names[:500]}")
        self._judge(self._await())

    def _await(self) -> dict[str, Any]:
        while True:
            if self._server.process.wait(LOOK_S) is not None:
                raise WarmUpFailed(f"ComfyUI died of it: {self._server.obituary()}", spoilt=True)
            if self._server.worker_died(self._printed):
                raise WarmUpFailed("ComfyUI's worker thread ended: no prompt would ever run again", spoilt=True)
            with contextlib.suppress(Unreachable):  # a model that loads may silence the server: the limit counts
                if (entry := self._client.history(self._prompt_id)) is not None:
                    return entry
            if self._abandoned():
                self._withdraw()
                raise StartAbandoned
            if monotonic() > self._end_s:
                reason = "it did not end within the limit for a start (COMFY_START_TIMEOUT_S)"
                raise WarmUpFailed(reason, spoilt=not self._withdraw())

    def _judge(self, entry: dict[str, Any]) -> None:
        ending = read_ending(entry)
        remove_files(ending.temporary, self._server.folders.temp)
        if ending.error is not None:
            error = ending.error
            where = describe_node(self._graph, error.node_id)
            raise WarmUpFailed(f"{where} raised {error.exception}: {error.message}")
        if not ending.success:
            raise WarmUpFailed("it was interrupted")

    def _withdraw(self) -> bool:
        """Until it is in neither list. False when it cannot be interrupted: the next prompt would wait behind it."""
        end_s = monotonic() + WITHDRAW_S
        while monotonic() < end_s and self._server.process.wait(LOOK_S) is None:
            with contextlib.suppress(Unreachable, ApiError):
                self._client.delete_pending(self._prompt_id)
                self._client.interrupt(self._prompt_id)
                if self._prompt_id not in self._client.queue():
                    return True
        return False

    def clean(self) -> None:
        """Its files, and its entry in the history."""
        folders = self._server.folders
        for root in (folders.output, folders.temp):
            remove_tree(root, *FOLDER)
        with contextlib.suppress(Unreachable, ApiError):
            if self._server.exit_code() is None:
                self._client.forget(self._prompt_id)
