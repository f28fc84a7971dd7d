"""The handler of generation tasks: a prompt and media become videos or images, by Wan2GP."""

from __future__ import annotations

from wan2gp.handlers.api import Handler, HandlerContext, Interrupted, Job, TaskFailure
from wan2gp.handlers.comfy_killed import KilledTasks
from wan2gp.handlers.wan_engine import WarmEngine
from wan2gp.handlers.wan_errors import killed_again
from wan2gp.handlers.wan_kept import KeptWeights
from wan2gp.handlers.wan_options import WanSettings
from wan2gp.handlers.wan_request import read_request
from wan2gp.handlers.wan_run import WanRun
from wan2gp.protocol import Cancelled, Outcome

WEIGHTS_NOTED = "weights.json"
"""In the handler's own directory: which files each model has asked for."""


class WanHandler(Handler):
    """Starts Wan2GP at the first task, and keeps its model for the next. One that cannot start costs no task."""

    def __init__(self, context: HandlerContext) -> None:
        super().__init__(context)
        self._settings = WanSettings.of(context.settings)
        self._engine = WarmEngine(context, self._settings)
        self._killed = KilledTasks(killed_again)
        self._weights = KeptWeights(context.home / WEIGHTS_NOTED)

    def warm(self) -> None:
        with self._engine.turn():
            self._engine.ensure(lambda line: None, lambda: False)

    def run(self, job: Job) -> Outcome:
        request = read_request(job.task_type, job.params)
        run = WanRun(self._engine, self._settings, job, request, self._weights)
        try:
            with self._engine.turn(run.supply):
                return run.run()
        except Interrupted:
            return Cancelled()
        except TaskFailure as failure:
            raise self._killed.judge(job.task_id, failure) from failure.__cause__
        finally:
            run.close()

    def unload(self) -> None:
        with self._engine.turn():
            self._engine.free()
        self._weights.keep_only(self._engine.loaded)

    def close(self) -> None:
        self._engine.close()
