"""One generation: from a row to its files. What can be refused is refused before anything is fetched or loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wan2gp.engine_process.process import monotonic
from wan2gp.handlers.api import Interrupted, Job, TaskFailure
from wan2gp.handlers.comfy_fields import bad
from wan2gp.handlers.poster import add_posters
from wan2gp.handlers.wan_collect import Kept, Made, collect, whole_of
from wan2gp.handlers.wan_engine import WarmEngine
from wan2gp.handlers.wan_errors import failure_of, unreadable
from wan2gp.handlers.wan_files import WanFiles
from wan2gp.handlers.wan_kept import KeptLoras, KeptWeights
from wan2gp.handlers.wan_models import ModelFacts, facts_of, known_model
from wan2gp.handlers.wan_options import WanSettings
from wan2gp.handlers.wan_progress import WanProgress
from wan2gp.handlers.wan_request import WanRequest
from wan2gp.handlers.wan_settings import EngineTask, engine_task, loras_of
from wan2gp.handlers.wan_twins import SUFFIX as PLAIN
from wan2gp.handlers.wan_upsample import Upsampler
from wan2gp.protocol import Artifact, Outcome, Succeeded
from wan2gp.wan_sidecar.verdict import Outcome as End
from wan2gp.wan_sidecar.verdict import Verdict
from wan2gp.wan_sidecar.work import EngineAbout, EngineJob, Step

ENGINE = "engine"
"""Below the task's directory: one directory for each job of the engine, in which it finds nothing of another."""
PREVIEW = "preview.jpg"
START_REPORT_S = 2.0
LARGEST_SEED = 1_000_000_000
CONTINUOUS = "_svi2pro"
"""Ends the names of models that continue a video without end."""
AGAIN = "Wan2GP ran out of memory: its model was unloaded, and the result made once more"
RENEWED = (
    "a file of the model or of a LoRA was damaged on this machine's disk: it was fetched again, and the result made"
)
MISSING = "missing"
MORE_FRAMES = "temporal_upsampling"


class WanRun:
    """Of one task, while it has the engine. :meth:`close` ends it."""

    def __init__(
        self, engine: WarmEngine, settings: WanSettings, job: Job, request: WanRequest, weights: KeptWeights
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._job = job
        self._request = request
        self._files = WanFiles(job, settings, request)
        self._loras = KeptLoras(job, settings.lora_folders())
        self._weights = weights
        self._upsampler = Upsampler(job, settings)
        self._model = request.model
        self.supply = weights.supply(job, lambda: self._model)
        self._warnings: list[str] = []
        self._jobs = 0
        self._reported_s = -START_REPORT_S

    def run(self) -> Outcome:
        """Raises :class:`TaskFailure`, or :class:`Interrupted`."""
        self._files.take_local()
        self._ensure()
        facts = self._facts()
        self._refuse(facts)
        self._model = facts.name
        lora_files = self._loras.all_of(loras_of(self._request, facts)[0])
        if self._engine.loaded != facts.name:
            self._weights.prepare(self._job, facts.name)
        self._files.take_remote()
        size = self._files.input_size
        task = self._task(facts, lora_files, size)
        self._warnings += [*task.warnings, *self._files.fit(task.settings, facts)]
        about = self._ensure()  # the downloads may have taken longer than the engine lived
        self._progress = WanProgress(self._job, task.results)
        results = [self._result(task, number) for number in range(task.results)]
        if task.afterwards:
            results = [self._finished(made, task.afterwards) for made in results]
        return self._succeeded(about, task, collect(self._job, results))

    def close(self) -> None:
        self._upsampler.close()
        self._loras.close()
        self._weights.keep_only(self._engine.loaded)

    # --- before -------------------------------------------------------------------------------------------------------

    def _ensure(self) -> EngineAbout:
        return self._engine.ensure(self._starting, self._job.cancelled)

    def _starting(self, line: str) -> None:
        """The import compiles in silence for a while, and is alive all the same."""
        if monotonic() >= self._reported_s + START_REPORT_S:
            self._reported_s = monotonic()
            self._job.progress(0.0, "start", detail=f"Wan2GP: {line}"[:200])

    def _facts(self) -> ModelFacts:
        known = self._engine.models()
        request = self._request
        name, unknown = known_model(request.model, known)
        if unknown is not None:
            raise TaskFailure("wan.unknown_model", f"`model`: {unknown}")
        name = self._planned(name, known)
        return facts_of(name, self._engine.definition(name))

    def _planned(self, name: str, known: tuple[str, ...]) -> str:
        """The model for a row that brings a plan of its own (`phase_config`)."""
        if self._request.phases is None:
            return name
        if self._request.phases.continuous and not name.endswith(CONTINUOUS):
            if name + CONTINUOUS not in known:
                raise bad(f"`phase_config.svi2pro`: the engine lists no model {name + CONTINUOUS}")
            name += CONTINUOUS
        return name + PLAIN if name + PLAIN in known else name

    def _refuse(self, facts: ModelFacts) -> None:
        """All that needs no file."""
        sources = {lora.source: lora.source for lora in loras_of(self._request, facts)[0]}
        self._task(facts, sources, None)
        if self._engine.availability(facts.name) == MISSING and not self._settings.download:
            raise TaskFailure(
                "wan.missing_weights",
                f"the weights of the model {facts.name} are not on this machine: put them into the engine's directory "
                "for checkpoints, or let the worker fetch them (wan.download)",
            )

    def _task(self, facts: ModelFacts, lora_files: Mapping[str, str], size: Any) -> EngineTask:
        # The same task makes the same pictures at each attempt.
        seed = int.from_bytes(hashlib.sha256(self._job.task_id.encode()).digest()[:8], "big") % LARGEST_SEED
        return engine_task(self._request, facts, self._files.planned, lora_files, input_size=size, seed=seed)

    # --- the results --------------------------------------------------------------------------------------------------

    def _result(self, task: EngineTask, number: int) -> Made:
        settings = task.settings_of(number)
        warm = self._engine.loaded is not None
        verdict = self._do(settings)
        if verdict.outcome is End.OUT_OF_MEMORY and warm:
            # What earlier tasks left in memory may be what was missing. After this only a process of its own is left,
            # which the worker gives to whom it is reported to.
            self._job.event("wan.verdict", verdict="out of memory", detail=verdict.sentence)
            self._warnings.append(AGAIN)
            self._engine.free()
            self._ensure()
            self._progress.again()
            verdict = self._do(settings)
        if verdict.outcome is End.FAILED and unreadable(verdict) and self._renewed():
            self._job.event("wan.verdict", verdict="a spoilt file", detail=verdict.sentence)
            self._warnings.append(RENEWED)
            self._progress.again()
            verdict = self._do(settings)
        if verdict.outcome is not End.OK:
            raise failure_of(verdict)
        self._progress.one_done()
        return Made(verdict.files, settings["seed"], not settings.get("image_mode"))

    def _renewed(self) -> bool:
        """Whether a file of those that are kept was not what was fetched, and now is."""
        loras, weights = self._loras.renewed(), self._weights.renewed(self._job, self._model)
        return loras or weights

    def _do(self, settings: Mapping[str, Any]) -> Verdict:
        if self._job.cancelled():
            raise Interrupted
        self._ensure()
        job = EngineJob(settings, self._directory(), self._job.work_dir / PREVIEW)
        return self._engine.run(job, self._progress.hear, self._job.cancelled)

    def _directory(self) -> Path:
        self._jobs += 1
        return self._job.work_dir / ENGINE / str(self._jobs)

    def _finished(self, made: Made, settings: Mapping[str, Any]) -> Made:
        """Enlarged, or with more frames: each file by a job of its own, whose failure does not cost the file."""
        return Made(tuple(self._finished_file(path, settings) for path in whole_of(made)), made.seed, made.is_film)

    def _finished_file(self, path: Path, settings: Mapping[str, Any]) -> Path:
        if settings.get(MORE_FRAMES) and (more := self._with_more_frames(path, settings[MORE_FRAMES])) is not None:
            path, settings = more, {name: value for name, value in settings.items() if name != MORE_FRAMES}
            if not any(settings.values()):
                return path
        self._ensure()
        if self._job.cancelled():
            raise Interrupted
        hear, cancelled = self._progress.hear_finishing, self._job.cancelled
        verdict = self._engine.postprocess(path, settings, self._directory(), hear, cancelled)
        if verdict.outcome is End.CANCELLED:
            raise Interrupted
        if verdict.outcome is End.OK:
            return verdict.files[-1]
        what = " and ".join(f"`{name}`" for name, value in settings.items() if value)
        self._warnings.append(f"{what} failed, and the result is as it was made: {verdict.sentence}")
        return path

    def _with_more_frames(self, path: Path, how: str) -> Path | None:
        """None where it is left to the engine."""

        def told(count: int | None, frames: int | None, what: str) -> None:
            self._progress.hear_finishing(
                Step(count, frames, "upsampling", f"{what} {count}/{frames}" if count else what)
            )

        target = self._directory() / path.with_suffix(".mp4").name
        try:
            self._warnings += self._upsampler.more(path, target, how, told)
        except TaskFailure as failure:
            if failure.code != "media.no_rife":
                self._warnings.append(f"`{MORE_FRAMES}` was left to the engine: {failure.message}")
            return None
        return target

    # --- after --------------------------------------------------------------------------------------------------------

    def _succeeded(self, about: EngineAbout, task: EngineTask, kept: Kept) -> Succeeded:
        engine = {
            "name": "WanGP",
            "version": about.version,
            "commit": about.commit,
            "gpu": about.gpu,
            "model": task.made["model"],
            "seed": task.made["seed"],
        }
        artifacts, warnings = kept.artifacts, (*self._warnings, *kept.warnings)
        if self._settings.posters:
            artifacts, of_posters = add_posters(self._job.work_dir, artifacts, self._job.cancelled)
            warnings += of_posters
        data = _made(task.made, kept.primary)
        if len(kept.seeds) > 1:
            data["seeds"] = list(kept.seeds)
        self._job.event("wan.completed", model=task.made["model"], files=len(kept.artifacts))
        return Succeeded(artifacts, tuple(dict.fromkeys(warnings)), engine, data)


def _made(planned: Mapping[str, Any], primary: Artifact) -> dict[str, Any]:
    """What was asked for, and what there is: the file counts, not the plan."""
    found = {name: dict(planned[name]) for name in ("frames", "resolution") if name in planned}
    if primary.width and primary.height:
        found.setdefault("resolution", {})["made"] = f"{primary.width}x{primary.height}"
    if primary.kind == "video" and primary.frames:
        found.setdefault("frames", {})["made"] = primary.frames
    return found
