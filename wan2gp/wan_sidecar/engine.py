"""One Wan2GP: its process, started when it is needed, and questions and jobs for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wan2gp.wan_sidecar.verdict import Verdict
from wan2gp.wan_sidecar.work import EngineAbout, EngineJob, OnEvent, Supply, WanLimits, refuse


class WanEngine:
    """Used from one thread, the process's main one; only :meth:`stop` may be called from another."""

    def __init__(
        self,
        checkout: Path,
        python: str,
        home: Path,
        *,
        models: Path | None = None,
        loras: Path | None = None,
        options: Mapping[str, Any] | None = None,
        arguments: tuple[str, ...] = ("--attention", "sdpa", "--profile", "4"),
        finetunes: Mapping[str, Mapping[str, Any]] | None = None,
        limits: WanLimits | None = None,
        supply: Supply = refuse,
        log_fd: int = 1,
    ) -> None:
        """Starts nothing. ``home``: our directory, in which the engine's private root is made. ``models``: a
        directory of weights, looked at before the checkout's own. ``options``: more keys of ``wgp_config.json``.
        ``finetunes``: more models, by name, as the engine's finetune files have them."""

    @property
    def about(self) -> EngineAbout | None:
        """None while no process is ready."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        raise NotImplementedError

    @property
    def loaded(self) -> str | None:
        """The model that is in memory."""
        raise NotImplementedError

    def ensure(self, progress: Callable[[str], None], cancelled: Callable[[], bool]) -> EngineAbout:
        """Start the process unless it is ready. ``progress`` is called about every second with what it printed last.
        Raises NotInstalled, Unavailable, Abandoned."""
        raise NotImplementedError

    def models(self) -> tuple[str, ...]:
        """All names. Like the next three, after :meth:`ensure`; each raises Gone."""
        raise NotImplementedError

    def model_def(self, name: str) -> Mapping[str, Any]:
        """The engine's ``get_model_def``, without what is not JSON. Raises UnknownModel."""
        raise NotImplementedError

    def availability(self, name: str) -> str:
        """``available``, ``partial`` or ``missing``: of its own weights, not of what all models share. Raises
        UnknownModel."""
        raise NotImplementedError

    def run(self, job: EngineJob, on_event: OnEvent, cancelled: Callable[[], bool]) -> Verdict:
        """Do one job. Whatever becomes of it and of the process is in the verdict; what ``on_event``, ``cancelled`` or
        the supply raise comes through, and costs the process if the engine does not stop in time."""
        raise NotImplementedError

    def postprocess(
        self,
        file: Path,
        settings: Mapping[str, Any],
        output_dir: Path,
        on_event: OnEvent,
        cancelled: Callable[[], bool],
    ) -> Verdict:
        """Temporal or spatial upsampling or film grain, as a job of its own, so that its failure does not cost
        ``file``, which is left as it is."""
        raise NotImplementedError

    def unload(self) -> bool:
        """Release the model. False: it could not in time, and
        the process was ended instead. Does nothing where none runs."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the process and all below it. Safe to call again."""
        raise NotImplementedError
