"""One Wan2GP: its process, started when it is needed, and questions and jobs for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from wan2gp.engine_process.process import monotonic
from wan2gp.wan_sidecar import checkout as checkouts
from wan2gp.wan_sidecar import protocol
from wan2gp.wan_sidecar.checkout import Checkout
from wan2gp.wan_sidecar.conversation import Conversation
from wan2gp.wan_sidecar.errors import (
    Abandoned,
    AnswerTooLong,
    BadWord,
    Gone,
    RequestTooLong,
    Unavailable,
    UnknownModel,
    WanError,
    Why,
    describe_exit,
)
from wan2gp.wan_sidecar.link import HostLink, own_environ
from wan2gp.wan_sidecar.root import Stores, lay_root
from wan2gp.wan_sidecar.verdict import Outcome, Verdict, broken, death, verdict
from wan2gp.wan_sidecar.work import EngineAbout, EngineJob, OnEvent, Supply, WanLimits, refuse

ARGUMENTS = ("--attention", "sdpa", "--profile", "4")
TELL_S = 1.0
ASK_S = 0.2
Said = TypeVar("Said", bound=protocol.Message)


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
        arguments: tuple[str, ...] = ARGUMENTS,
        finetunes: Mapping[str, Mapping[str, Any]] | None = None,
        environ: Mapping[str, str] | None = None,
        limits: WanLimits | None = None,
        supply: Supply = refuse,
        log_fd: int = 1,
    ) -> None:
        """Starts nothing. ``python``: "" for the checkout's own environment, else ours. ``home``: our directory, in
        which the engine's private root is made. ``models`` and ``loras``: directories of files, looked at before the
        checkout's own. ``options``: more keys of ``wgp_config.json``. ``finetunes``: more models, by name, as the
        engine's finetune files have them. ``environ``: instead of this process's."""
        self._path = checkout
        self._python = python
        self._home = home.absolute()
        self._stores = Stores(models, loras)
        self._options = dict(options or {})
        self._arguments = arguments
        self._finetunes = dict(finetunes or {})
        self._environ = dict(own_environ() if environ is None else environ)
        self._limits = limits or WanLimits()
        self._supply = supply
        self._log_fd = log_fd
        self._link: HostLink | None = None
        self._about: EngineAbout | None = None
        self._loaded: str | None = None
        self._names: tuple[str, ...] = ()
        self._definitions: dict[str, Mapping[str, Any]] = {}
        self._jobs = 0
        self._out_of_memory = 0
        """Jobs in a row that ran out of memory."""

    @property
    def about(self) -> EngineAbout | None:
        """None while no process is ready."""
        return self._about if self._lives() else None

    @property
    def pid(self) -> int | None:
        """Of the process that runs the engine; None when there is none."""
        return self._link.pid if self._link is not None and self._lives() else None

    @property
    def loaded(self) -> str | None:
        """The model that is in memory."""
        return self._loaded if self._lives() else None

    def _lives(self) -> bool:
        return self._link is not None and self._link.process.exit_code() is None

    def ensure(self, progress: Callable[[str], None], cancelled: Callable[[], bool]) -> EngineAbout:
        """Start the process unless it is ready. ``progress`` is called about every second with what it printed last.
        Raises NotInstalled, Unavailable, Abandoned."""
        if self._about is not None and self._lives():
            return self._about
        self.stop()
        found = checkouts.look(self._path)
        try:
            root = lay_root(found, self._home, self._stores, self._options, self._finetunes)
        except OSError as error:
            raise Unavailable(Why.REFUSED, f"cannot make a directory for the engine: {error}") from error
        python = checkouts.interpreter(found.path, self._python)
        self._link = HostLink(python, root, self._arguments, self._environ, self._log_fd)
        try:
            self._about = self._started(self._link, found, progress, cancelled)
        except BaseException:
            self._end(0)  # while it imports, it reads nothing
            raise
        return self._about

    def _started(
        self, link: HostLink, found: Checkout, progress: Callable[[str], None], cancelled: Callable[[], bool]
    ) -> EngineAbout:
        end, told = monotonic() + self._limits.start_s, monotonic()
        while True:
            heard = self._heard_at_start(link)
            if isinstance(heard, protocol.Ready):
                self._loaded = heard.model
                return EngineAbout(heard.version, found.commit, heard.gpu, heard.gpu_total_mib, link.pid)
            if isinstance(heard, protocol.NotAvailable):
                raise Unavailable(_why(heard.kind), heard.cause, heard.tail)
            if cancelled():
                raise Abandoned("the engine's start was given up")
            if monotonic() > end:
                raise Unavailable(Why.SLOW, f"it was not ready after {self._limits.start_s:g} s", link.tail())
            if monotonic() - told >= TELL_S:
                told = monotonic()
                progress("".join(link.process.lines(1)))

    @staticmethod
    def _heard_at_start(link: HostLink) -> protocol.Heard | None:
        try:
            return link.hear(ASK_S)
        except Gone as gone:
            cause = f"its process ended before it was ready: {describe_exit(gone.code)}"
            raise Unavailable(Why.EXIT, cause, gone.tail) from gone
        except BadWord as error:
            raise Unavailable(Why.EXIT, str(error), link.tail()) from error

    def models(self) -> tuple[str, ...]:
        """All names. Like the next three, after :meth:`ensure`; each raises Gone and BadWord, and ends the process
        then."""
        if not self._names:
            self._names = tuple(self._ask(protocol.Models, "models").names)
        return self._names

    def model_def(self, name: str) -> Mapping[str, Any]:
        """The engine's ``get_model_def``, without what is not JSON. Raises UnknownModel, AnswerTooLong."""
        if name not in self._definitions:
            answer = self._ask(protocol.Model, "describe", model=name)
            if not answer.found:
                raise UnknownModel(f"the engine lists no model {name!r}")
            self._definitions[name] = answer.definition
        return self._definitions[name]

    def availability(self, name: str) -> str:
        """``available``, ``partial`` or ``missing``: of its own weights, not of what all models share. Raises
        UnknownModel."""
        answer = self._ask(protocol.Availability, "availability", model=name)
        if not answer.found:
            raise UnknownModel(f"the engine lists no model {name!r}")
        return answer.status

    def _ask(self, kind: type[Said], do: str, **fields: Any) -> Said:
        return self._answer(kind, self._limits.answer_s, do, **fields)

    def _answer(self, kind: type[Said], limit_s: float, do: str, **fields: Any) -> Said:
        link = self._ready()
        try:
            link.send(do, **fields)
            heard = link.hear(limit_s)
            while isinstance(heard, protocol.Wanted):  # of a thread that has outlived its job, which was told already
                heard = link.hear(limit_s)
            if isinstance(heard, kind):
                return heard
            said = f"has not answered for {limit_s:g} s" if heard is None else f"answered with {heard}"
            if isinstance(heard, protocol.TooLong):
                raise AnswerTooLong(f"the engine's answer, asked for {do}, has {heard.bytes} bytes")
            raise BadWord(f"the engine's process, asked for {do}, {said}"[:500])
        except (Gone, BadWord):
            self._end(0)
            raise

    def _ready(self) -> HostLink:
        """Raises Gone where :meth:`ensure` was not called, or the process has ended since."""
        link = self._link
        if link is None or self._about is None:
            raise Gone(0, ("no process of the engine is ready",))
        return link

    def run(self, job: EngineJob, on_event: OnEvent, cancelled: Callable[[], bool]) -> Verdict:
        """Do one job. Whatever becomes of it and of the process is in the verdict; what ``on_event``, ``cancelled`` or
        the supply raise comes through when the job has been cancelled, which may cost the process."""
        fields = {"settings": dict(job.settings), "preview": str(job.preview) if job.preview else None}
        return self._do("run", job.output_dir, job.preview, fields, on_event, cancelled)

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
        fields = {"settings": dict(settings), "file": str(file), "preview": None}
        return self._do("finish", output_dir, None, fields, on_event, cancelled)

    def _do(
        self,
        do: str,
        output_dir: Path,
        preview: Path | None,
        fields: Mapping[str, Any],
        on_event: OnEvent,
        cancelled: Callable[[], bool],
    ) -> Verdict:
        if self._link is None or self._about is None:
            return Verdict(Outcome.EXITED, "no process of the engine is ready", fresh=True)
        output_dir.mkdir(parents=True, exist_ok=True)
        self._jobs += 1
        talk = Conversation(self._jobs, preview, self._limits, self._supply, on_event, cancelled)
        try:
            link = self._ready()
            link.send(do, id=self._jobs, output=str(output_dir), join_s=self._limits.join_s, **fields)
            ended = talk.until_ended(link)
        except Gone as gone:
            found = death(gone.code, gone.tail, cancel_asked=talk.cancel_asked)
        except RequestTooLong as error:
            found = Verdict(Outcome.VALIDATION, str(error))
        except BadWord as error:
            found = broken(str(error), self._tail(), cancel_asked=talk.cancel_asked)
        except BaseException:
            self._end(0)
            raise
        else:
            self._loaded = ended.model
            found = verdict(ended, made_files(ended.files, output_dir), cancel_asked=talk.cancel_asked)
        found = self._counted(found)
        if found.fresh:
            self._end(0)
        if talk.raised is not None:
            raise talk.raised
        return found

    def _counted(self, found: Verdict) -> Verdict:
        """Memory that a second job in a row did not find comes back with the process alone."""
        self._out_of_memory = self._out_of_memory + 1 if found.outcome is Outcome.OUT_OF_MEMORY else 0
        if self._out_of_memory < 2 or found.fresh:
            return found
        return Verdict(found.outcome, found.sentence, found.files, found.errors, found.tail, fresh=True)

    def _tail(self) -> list[str]:
        return self._link.tail() if self._link is not None else []

    def unload(self) -> bool:
        """Release the model. False: it could not in time, and the process was ended instead. Does nothing where none
        runs."""
        if not self._lives() or self._about is None:
            return True
        try:
            self._loaded = self._answer(protocol.Unloaded, self._limits.unload_s, "unload").model
        except WanError:
            return False
        if self._loaded is not None:  # it said so, and kept it
            self._end(0)
            return False
        return True

    def stop(self) -> None:
        """End the process and all below it. Safe to call again."""
        self._end(self._limits.stop_grace_s)

    def _end(self, grace_s: float) -> None:
        link, self._link = self._link, None
        self._about = self._loaded = None
        self._names = ()
        self._definitions = {}
        self._out_of_memory = 0
        if link is not None:
            link.stop(grace_s)


def _why(kind: str) -> Why:
    return Why(kind) if kind in {why.value for why in Why} else Why.IMPORT


def made_files(names: list[str], output_dir: Path) -> list[Path]:
    """Those that may be taken for the job's results: regular, not empty, no link, and in its own directory."""
    place = Path(os.path.realpath(output_dir))
    found = []
    for name in dict.fromkeys(names):
        path = Path(name)
        try:
            status = path.lstat()
        except (OSError, ValueError):  # gone, or no path at all
            continue
        inside = place in Path(os.path.realpath(path)).parents
        if inside and stat.S_ISREG(status.st_mode) and status.st_size > 0:
            found.append(path)
    return found
