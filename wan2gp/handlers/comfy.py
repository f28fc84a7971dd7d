"""The handler of ``comfy`` tasks: a graph for ComfyUI, with any number of files for it, becomes files."""

from __future__ import annotations

import re
import shutil
import threading
from typing import Any

from wan2gp.comfy_sidecar.errors import Unreachable
from wan2gp.comfy_sidecar.file_names import declared_files
from wan2gp.comfy_sidecar.outputs import Ending, OutputFile, rerun
from wan2gp.comfy_sidecar.workflow import PREFIX_FIELD, describe_node, fill_missing, rewrite_prefixes
from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.api import Handler, HandlerContext, Interrupted, Job, TaskFailure
from wan2gp.handlers.comfy_collect import OUT, Collected, GoneFromCache, collect, remove_files, remove_tree
from wan2gp.handlers.comfy_engine import OUR_FOLDER, ComfyEngine
from wan2gp.handlers.comfy_errors import BROKEN, OUT_OF_MEMORY, node_failed, swallowed, why_nothing
from wan2gp.handlers.comfy_input_files import InputFiles
from wan2gp.handlers.comfy_killed import KilledTasks
from wan2gp.handlers.comfy_live import Live
from wan2gp.handlers.comfy_params import ComfyRequest, ComfySettings, check_names, read_params
from wan2gp.handlers.comfy_preflight import preflight
from wan2gp.handlers.comfy_prompt import PromptRun
from wan2gp.handlers.poster import add_posters
from wan2gp.protocol import Cancelled, Outcome, Succeeded

PATIENCE_S, ASK_AGAIN_S = 60.0, 0.2
START_REPORT_S = 5.0
AGAIN = {
    1: "ComfyUI ran out of memory and was asked to free what it held: the graph was run again",
    2: "ComfyUI ran out of memory and was started anew: the graph was run again",
}
"""Said to the user, by the rung of the ladder."""


class ComfyHandler(Handler):
    """Starts ComfyUI at the first task. One that cannot start costs no task and is tried again."""

    def __init__(self, context: HandlerContext) -> None:
        super().__init__(context)
        self._settings = ComfySettings.of(context.settings)
        self._engine = ComfyEngine(context, self._settings)
        self._killed = KilledTasks()

    def warm(self) -> None:
        """A worker without ComfyUI serves on: each of its comfy tasks is told so."""
        with self._engine.turn():
            try:
                self._engine.ensure(self.context.event, lambda: False, for_task=False)
            except TaskFailure as failure:
                if failure.code != "comfy.not_installed":
                    raise
                self.context.engine_state("failed", reason=failure.message)

    def run(self, job: Job) -> Outcome:
        request = read_params(job.params, self._settings.allowed())
        with self._engine.turn():
            try:
                return ComfyRun(self._engine, self._settings, job, request).run()
            except Interrupted:
                return Cancelled()
            except TaskFailure as failure:
                raise self._killed.judge(job.task_id, failure) from failure.__cause__

    def unload(self) -> None:
        with self._engine.turn():
            self._engine.unload()

    def close(self) -> None:
        self._engine.close()


class ComfyRun:
    """One task. Whatever becomes of it, its files do not stay in ComfyUI's directories."""

    def __init__(self, engine: ComfyEngine, settings: ComfySettings, job: Job, request: ComfyRequest) -> None:
        self._engine = engine
        self._settings = settings
        self._job = job
        self._request = request
        self._graph = request.graph
        self._warnings = list(request.warnings)
        self._folder = (OUR_FOLDER, _segment(job.task_id), _segment(job.lease_id)[:8])
        self._files = InputFiles(job, settings, request.inputs, self._folder)
        self._prompt_id = ""
        self._previews: list[OutputFile] = []
        self._reported_s = 0.0
        self._idle = threading.Event()
        """Never set: to wait on."""

    def run(self) -> Outcome:
        self._files.take_local()
        self._live = self._ensure()
        try:
            self._preflight(self._live)
            self._files.take_remote()
            self._live = self._ensure()  # the download may have taken longer than the server lived
            self._place_inputs(self._live)
            self._prepare_graph(self._live)
            return self._succeeded(self._live, self._climb())
        finally:
            self._clean(self._live)
            self._engine.slim()

    def _ensure(self) -> Live:
        return self._engine.ensure(self._job.event, self._starting, for_task=True)

    def _starting(self) -> bool:
        """Asked while the engine starts, which has a limit of its own: whether the task was cancelled."""
        if monotonic() >= self._reported_s + START_REPORT_S:
            self._reported_s = monotonic()
            self._job.progress(0.0, "start", detail="ComfyUI")
        return self._job.cancelled()

    # --- before --------------------------------------------------------------------------------------------------

    def _preflight(self, live: Live) -> None:
        """What cannot run costs no download. The inputs that files are for have no value yet."""
        to_come = {(wanted.target.node_id, wanted.target.field) for wanted in self._request.inputs}
        preflight(self._graph, live, to_come, lambda: self._learn_classes(live))
        catalogue = live.catalogue  # its classes say more of their inputs than their names do
        check_names(self._graph, self._settings.allowed(), lambda name: declared_files(catalogue.get(name)))

    def _place_inputs(self, live: Live) -> None:
        for taken, given in self._files.place(live):
            target = taken.wanted.target
            self._graph[target.node_id]["inputs"][target.field] = given
            self._job.event("comfy.uploaded", kind=taken.shown_kind, name=taken.name)

    def _prepare_graph(self, live: Live) -> None:
        folder = "/".join(self._folder)
        for node_id in rewrite_prefixes(self._graph, folder):
            name = describe_node(self._graph, node_id)
            self._warnings.append(f"{name}: {PREFIX_FIELD} is linked and could not be made this run's own")
        self._learn_classes(live)
        for part in fill_missing(self._graph, folder, live.node_info):
            self._warnings.append(part.sentence(self._graph))
            self._job.event("comfy.filled_inputs", node_id=part.node_id, inputs=sorted(part.inputs))

    def _learn_classes(self, live: Live) -> None:
        """Ask what the graph's classes declare, with patience: a busy server may be silent for a while."""
        end_s = monotonic() + min(PATIENCE_S, self._settings.unresponsive_s or PATIENCE_S)
        while True:
            try:
                live.catalogue.learn(node["class_type"] for node in self._graph.values())
                return
            except Unreachable as error:
                self._bear(live, error, end_s)

    def _bear(self, live: Live, error: Unreachable, end_s: float) -> None:
        """Returns when it is worth asking again. A server that died or hangs is replaced."""
        if self._job.cancelled():
            raise Interrupted
        if live.server is None:
            self._idle.wait(ASK_AGAIN_S)
        elif live.server.process.wait(ASK_AGAIN_S) is not None:
            obituary = live.server.obituary()
            self._engine.lost(obituary)
            raise TaskFailure("comfy.exited", f"ComfyUI died before the run: {obituary}") from error
        if monotonic() >= end_s:
            self._engine.lost(str(error))
            raise TaskFailure("comfy.unresponsive", f"ComfyUI does not answer: {error}{live.not_ours()}") from error

    # --- the run -------------------------------------------------------------------------------------------------

    def _climb(self) -> Collected:
        """Out of memory: free and again, a fresh process and again, then fail with advice. A server that was ended
        over it has nothing to free."""
        rung = 0
        while True:
            live = self._live
            try:
                return self._attempt(live)
            except TaskFailure as failure:
                if failure.code == BROKEN:
                    self._engine.lost("its CUDA context is broken")
                if failure.code != OUT_OF_MEMORY or rung == 2 or (rung == 1 and live.server is None):
                    raise
                rung = 2 if live.exit_code() is not None else rung + 1
                self._job.event("comfy.verdict", verdict="out of memory", detail=failure.message)
            self._clean_outputs(live)
            if rung == 1:
                self._engine.make_room()
            else:
                self._engine.retire("out of memory")
                self._live = self._ensure()
            self._warnings.append(AGAIN[rung])

    def _attempt(self, live: Live) -> Collected:
        try:
            return collect(self._job, live, self._execute(live), why_nothing(self._graph))
        except GoneFromCache as gone:
            # ComfyUI names an older run's file without looking whether it is there.
            rerun(self._graph, gone.nodes, self._job.lease_id)
        shutil.rmtree(self._job.work_dir / OUT, ignore_errors=True)
        try:
            return collect(self._job, live, self._execute(live))
        except GoneFromCache as error:
            self._engine.free()
            raise TaskFailure("comfy.bad_output", f"ComfyUI names a file that is not there: {error}") from error

    def _execute(self, live: Live) -> Ending:
        printed = live.lines_printed()
        prompt = PromptRun(self._engine, live, self._job, self._graph, self._settings)
        self._prompt_id = prompt.prompt_id
        ending = prompt.run()
        self._previews += ending.temporary
        if ending.error is not None:
            raise node_failed(self._graph, ending.error)
        if ending.interrupted:
            raise TaskFailure("comfy.interrupted", "the prompt was interrupted by somebody else")
        if not ending.success:
            raise TaskFailure("comfy.api_error", "ComfyUI reports a failure and gives no reason")
        if (failure := swallowed(self._graph, ending, live.lines_since(printed))) is not None:
            rerun(self._graph, list(self._graph), self._prompt_id)  # what it remembers may be of no use
            raise failure
        self._engine.proved()
        self._job.event("comfy.completed")
        return ending

    # --- after ---------------------------------------------------------------------------------------------------

    def _succeeded(self, live: Live, made: Collected) -> Succeeded:
        engine: dict[str, Any] = {**live.engine(), "prompt_id": self._prompt_id}
        data: dict[str, Any] = {"text": made.texts} if made.texts else {}
        artifacts, warnings = made.artifacts, (*self._warnings, *made.warnings)
        if self._settings.posters:
            artifacts, of_posters = add_posters(self._job.work_dir, artifacts, self._job.cancelled)
            warnings += of_posters
        return Succeeded(artifacts, warnings, engine, data)

    def _clean(self, live: Live) -> None:
        if live.folders is not None:
            remove_tree(live.folders.input, *self._folder)
        self._clean_outputs(live)

    def _clean_outputs(self, live: Live) -> None:
        if live.folders is not None:
            for root in (live.folders.output, live.folders.temp):
                remove_tree(root, *self._folder)
            remove_files(self._previews, live.folders.temp)
        self._previews.clear()


def _segment(text: str) -> str:
    """Safe as one part of a path."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text) or "_"
