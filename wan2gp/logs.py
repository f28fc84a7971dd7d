"""The one subscriber that words facts. Logic says what happened (a name and fields); the sentence and level are here.

``logs/worker.log`` and standard error get the same lines. Who speaks (task, handler, incarnation) is bound, not
passed. A field that a sentence does not use is left out of it; secrets known to the process are masked in every line.
"""

from __future__ import annotations

import string
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import loguru

LOG_MAX_BYTES = 20 * 1024 * 1024
"""Size at which ``worker.log`` is set aside, bytes; three old ones are kept."""
NAME_MAX = 100
FIELDS_MAX = 30
"""Longest name and most fields of a fact that nobody has worded."""
FIELD_MAX = 4000
"""Longest value of one field in a line, characters."""
KEPT_HERE = "logs."
"""Facts of this kind tell where lines go. No listener gets them: telling it of its own trouble would never end."""

Listener = Callable[[str, str, "str | None", float], None]
"""Gets level, words, task id and time (seconds since the epoch) of a line, from any thread; must not wait."""

FACTS: dict[str, tuple[str, str]] = {
    "worker.started": ("INFO", "Worker {worker} started. Polling every {poll_s:g}s."),
    "worker.warning": ("WARNING", "{text}"),
    "worker.stopping": ("INFO", "Stopping: no new tasks, {running} running, {grace_s:g}s of grace"),
    "worker.hurrying": ("INFO", "Second signal: stopping now"),
    "worker.stopped": ("INFO", "Worker {worker} stopped"),
    "worker.crashed": ("CRITICAL", "Worker stops, since a part of it failed: {error}"),
    "worker.superseded": (
        "CRITICAL",
        "Another worker has taken the id {worker} over (--takeover): this one stops, its tasks are no longer its own",
    ),
    "sandbox.whole": ("INFO", "Handlers run in a sandbox with all its layers: {layers}"),
    "sandbox.partial": ("WARNING", "Handlers run in a sandbox without all of its layers ({layers}): {reasons}"),
    "sandbox.off": ("WARNING", "Handlers run without a sandbox (sandbox.mode = off): they may do what the worker may"),
    "sandbox.refused": ("WARNING", "Handler {handler} runs without a layer of its sandbox, {layer}: {reason}"),
    "worker.draining": ("INFO", "Draining: no new tasks until `wan2gp-ctl resume`"),
    "worker.resumed": ("INFO", "Claiming again"),
    "worker.unhealthy": ("ERROR", "No new tasks: {code}: {reason}"),
    "worker.healthy": ("INFO", "Claiming again: {code} is over"),
    "worker.cache_swept": ("INFO", "The disk is short of space: gave up {count} kept input(s), {mib} MiB"),
    "worker.trying": ("INFO", "Trying one task, to see whether the GPU works again"),
    "worker.swept": ("WARNING", "Ended {count} process(es) that an earlier life left"),
    "logs.away": ("WARNING", "The database takes no log lines now ({error}): the last ones are kept and sent later"),
    "logs.back": ("INFO", "The database takes log lines again"),
    "logs.unstored": (
        "WARNING",
        "The database stored none of this worker's log lines: its log has the reason (cannot store the log lines of …)",
    ),
    "logs.refused": ("WARNING", "The database refuses log lines ({error}): none are sent to it any more"),
    "worker.took_back": ("INFO", "Took back {count} task(s) of this worker's last life"),
    "control.turned_away": ("WARNING", "Connections to the control socket were turned away so far: {counts}"),
    "queue.unavailable": ("WARNING", "Database unreachable: {error}. Trying again"),
    "queue.back": ("INFO", "Database reachable again after {seconds:.1f}s"),
    "queue.refused": ("ERROR", "The database refused a call: {error}"),
    "queue.deaf": ("WARNING", "No LISTEN through this connection (a transaction pooler?): polling"),
    "edge.foreign": (
        "WARNING",
        "The queue gives {task_type} tasks, which no handler here takes now: they are put back, and less is claimed "
        "while nothing else comes",
    ),
    "edge.adopted": ("WARNING", "Task {task_id} was claimed by a call whose answer was lost: going on with it"),
    "task.processing": ("INFO", "Processing {task_type} task {task_id}"),
    "task.saved": ("INFO", "Saved output: {path}"),
    "task.completed": ("INFO", "Task {task_id} completed"),
    "task.failed": ("ERROR", "Task {task_id} failed: {error}"),
    "task.retried": ("WARNING", "Task {task_id} goes back to the queue: {error}"),
    "claim.passed": ("INFO", "Task {task_id} goes before an older one: what it needs is loaded"),
    "task.again": ("WARNING", "Task {task_id} runs once more in a fresh process: {error}"),
    "task.released": ("INFO", "Task {task_id} handed back: {error}"),
    "task.cancelled": ("INFO", "Task {task_id} cancelled"),
    "task.lost": ("WARNING", "Task {task_id} is not ours any more: its work is dropped"),
    "task.refused": ("WARNING", "The end of task {task_id} was refused, its row is {status}: its files are deleted"),
    "publish.waiting": ("WARNING", "The result of task {task_id} cannot be published now: {error}. Trying again"),
    "publish.withheld": (
        "ERROR",
        "The result of task {task_id} cannot be published, its files stay in the spool: {error}",
    ),
    "publish.no_effect": (
        "WARNING",
        "complete_task said yes and changed nothing for task {task_id}: its row is completed without it, so the app "
        "may not show the result",
    ),
    "publish.unsure": (
        "WARNING",
        "complete_task gave no answer for task {task_id}, and nothing tells what it did: its row is completed without "
        "it, so the app may not show the result",
    ),
    "publish.left": ("WARNING", "Files of task {task_id} that nobody needs could not be deleted ({error}): {places}"),
    "task.kept": (
        "WARNING",
        "The end of task {task_id} was refused, its row is {status}: its files stay, since the app names them",
    ),
    "handler.starting": ("INFO", "Starting handler {handler}"),
    "handler.ready": ("INFO", "Handler {handler} is ready (pid {pid}, {seconds:.2f}s)"),
    "handler.died": ("WARNING", "Handler {handler} ended: {cause}"),
    "handler.waiting": ("WARNING", "Handler {handler} starts again in {delay_s:.1f}s"),
    "handler.broken": (
        "ERROR",
        "Handler {handler} is broken after {deaths} deaths in a row: its tasks are not claimed. "
        "It tries again in {delay_s:.0f}s, or at once with `wan2gp-ctl restart {handler}`. Last cause: {cause}",
    ),
    "handler.hung": ("WARNING", "Handler {handler} hangs: {reason}. Killing it"),
    "handler.bloated": ("WARNING", "Handler {handler} is killed: {reason}"),
    "handler.emptied": ("WARNING", "Removing all that handler {handler} has written below {path}"),
    "handler.not_emptied": ("ERROR", "Cannot remove what handler {handler} has written below {path}: {error}"),
    "handler.heavy": ("WARNING", "Handler {handler} is replaced before its next task: {reason}"),
    "gpu.clearing": ("INFO", "Handler {handler} is asked to give the GPU's memory back: {next} has work"),
    "gpu.cleared": ("INFO", "Handler {handler} gave the GPU's memory back within {seconds:.1f}s: it is {next}'s turn"),
    "gpu.forced": ("WARNING", "Handler {handler} is replaced, so that {next} can have the GPU: {reason}"),
    "gpu.lingering": (
        "WARNING",
        "{mib} MiB of GPU memory are still counted for a process of {handler} that ended {seconds:g}s ago: going on",
    ),
    "gpu.not_freed": ("WARNING", "Handler {handler} is replaced: it could not give the GPU's memory back ({reason})"),
    "handler.protocol": ("ERROR", "Handler {handler} {reason}. Killing it"),
    "handler.unheard": ("WARNING", "Handler {handler} says more than is listened to ({what}): that is dropped"),
    "handler.survivors": ("ERROR", "Processes of handler {handler} cannot be killed: {pids}"),
    "handler.strays": ("WARNING", "Ended {count} process(es) left behind"),
    "input.downloading": ("INFO", "Downloading {kind} from {url}"),
    "input.downloaded": ("INFO", "Downloaded {bytes} bytes in {seconds:.1f}s"),
    "input.kept": ("INFO", "{url} is here already: {bytes} bytes"),
    "input.from_cache": ("INFO", "{url} is unchanged: {bytes} bytes from the cache, in {seconds:.1f}s"),
    "comfy.first_task": ("INFO", "First ComfyUI task detected - starting ComfyUI server..."),
    "comfy.starting": ("INFO", "Starting ComfyUI at {path}"),
    "comfy.started": ("INFO", "ComfyUI started with PID: {pid}"),
    "comfy.ready": ("INFO", "ComfyUI is ready!"),
    "comfy.started_ok": ("INFO", "✅ ComfyUI started successfully and is ready for tasks"),
    "comfy.start_failed": ("ERROR", "{reason}"),
    "comfy.stopped": ("WARNING", "ComfyUI stopped: {cause}"),
    "comfy.idle_stopped": ("INFO", "ComfyUI stopped after {idle_s:g}s without work; the next task starts it again"),
    "comfy.warming_up": ("INFO", "Running the warm-up workflow {path}"),
    "comfy.warmed_up": ("INFO", "The warm-up workflow took {seconds:.1f}s"),
    "comfy.warm_up_failed": ("WARNING", "The warm-up workflow failed, which costs no task: {reason}"),
    "comfy.freed": ("INFO", "ComfyUI was asked to give its models and caches back"),
    "comfy.external_lost": ("WARNING", "{cause}"),
    "comfy.restarting": ("WARNING", "ComfyUI starts again in {delay_s:.1f}s: {cause}"),
    "comfy.verdict": ("WARNING", "ComfyUI is {verdict}: {detail}"),
    "comfy.uploaded": ("INFO", "Uploaded {kind}: {name}"),
    "comfy.queued": ("INFO", "Workflow queued: {prompt_id}"),
    "comfy.completed": ("INFO", "Workflow completed"),
    "comfy.filled_inputs": ("WARNING", "Node {node_id} lacked required inputs, defaults were taken: {inputs}"),
    "comfy.denied": (
        "WARNING",
        "ComfyUI was denied {path}, perhaps by its sandbox: `wan2gp-ctl doctor` names the setting that would allow it",
    ),
    "comfy.unconnected": (
        "WARNING",
        "A node in ComfyUI was denied a connection by the sandbox, also one to its own server: nodes that must connect "
        "need comfy.network = open (COMFY_NETWORK=open)",
    ),
    "comfy.log_warning": ("WARNING", "{text}"),
    "wan.starting": ("INFO", "Starting Wan2GP at {path}"),
    "wan.ready": ("INFO", "Wan2GP {version} is ready (pid {pid}, {seconds:.1f}s)"),
    "wan.start_failed": ("ERROR", "{reason}"),
    "wan.stopped": ("WARNING", "Wan2GP stopped: {cause}"),
    "wan.unloaded": ("INFO", "Wan2GP gave its model's memory back"),
    "wan.verdict": ("WARNING", "Wan2GP is {verdict}: {detail}"),
    "wan.completed": ("INFO", "Wan2GP made {files} file(s) with {model}"),
}
"""Every fact's level and wording, by name."""


class Facts(Protocol):
    """How logic says what happened."""

    def __call__(self, name: str, /, **fields: Any) -> None: ...

    def bind(self, **who: str) -> Facts:
        """The same, spoken for a task, a handler or an incarnation."""


class _Lenient(string.Formatter):
    """Says ``?`` for a field that is missing or of the wrong type: a fact from a child must not break the log."""

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        return kwargs.get(str(key), "?")

    def format_field(self, value: Any, format_spec: str) -> str:
        try:
            return str(super().format_field(value, format_spec))[:FIELD_MAX]
        except (ValueError, TypeError, OverflowError, RecursionError):
            return _text(value)


_formatter = _Lenient()
_ESCAPES = {"\n": "\\n", "\t": " ", "\r": ""}


def word(name: str, fields: dict[str, Any]) -> tuple[str, str]:
    """The level and the line of a fact, on one line. An unknown name is said as it is, with its fields."""
    known = FACTS.get(name)
    if known is None:
        said = " ".join(f"{key[:NAME_MAX]}={_text(value)}" for key, value in list(fields.items())[:FIELDS_MAX])
        return "INFO", one_line(f"{name[:NAME_MAX]} {said}".rstrip())
    level, template = known
    return level, one_line(_formatter.vformat(template, (), fields))


def one_line(text: str) -> str:
    """No line breaks, and no control characters that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _ESCAPES.get(char, "?") for char in text)


def _text(value: Any) -> str:
    try:
        return str(value)[:FIELD_MAX]
    except (ValueError, RecursionError):  # an integer of too many digits, a structure too deep
        return "?"


class Log:
    """The subscriber: words facts and writes them with loguru."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = [secret for secret in secrets if len(secret) >= 4]
        self._logger: loguru.Logger | None = None
        self._second = (0, "")
        self._listener: Listener | None = None

    def listen(self, listener: Listener | None) -> None:
        """Hand every written line to ``listener`` too: secrets masked, without time and level. None ends that."""
        self._listener = listener

    def open(self, directory: Path, *, screen: bool = True) -> None:
        """Begin to write ``directory/worker.log`` and, with ``screen``, standard error."""
        from loguru import logger

        directory.mkdir(parents=True, exist_ok=True)
        logger.remove()
        # The whole line is made by us, once, and not by each sink: thousands of short tasks are mostly log lines.
        options: dict[str, Any] = {"format": "{message}", "level": "INFO", "backtrace": False, "diagnose": False}
        logger.add(
            directory / "worker.log", rotation=LOG_MAX_BYTES, retention=3, encoding="utf-8", catch=True, **options
        )
        if screen:
            logger.add(sys.stderr, catch=True, **options)
        self._logger = logger

    def close(self) -> None:
        """Flush and close the file."""
        if self._logger is not None:
            self._logger.remove()
            self._logger = None

    def mask(self, text: str) -> str:
        """``text`` without any secret of this process."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, "***")
        return text

    def facts(self, **who: str) -> Facts:
        """A way to state facts for this process."""
        return _Bound(self, who)

    def write(self, name: str, fields: dict[str, Any], who: dict[str, str]) -> None:
        """Word a fact and write it."""
        if self._logger is None:
            return
        level, line = word(name, fields)
        speaker = one_line(" ".join(f"{key}={value[:NAME_MAX]}" for key, value in who.items()))
        said = self.mask(f"[{speaker}] {line}" if speaker else line)
        self._logger.log(level, f"{self._stamp()} {level:<8} {said}")
        listener = self._listener
        if listener is not None and not name.startswith(KEPT_HERE):
            listener(level, said, who.get("task"), time.time())

    def _stamp(self) -> str:
        """Local time to the millisecond; the second's part is made once a second."""
        now = time.time()
        second = int(now)
        if second != self._second[0]:
            self._second = (second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second)))
        return f"{self._second[1]}.{int((now - second) * 1000):03}"


class _Bound:
    def __init__(self, log: Log, who: dict[str, str]) -> None:
        self._log = log
        self._who = who

    def __call__(self, name: str, /, **fields: Any) -> None:
        self._log.write(name, fields, self._who)

    def bind(self, **who: str) -> _Bound:
        return _Bound(self._log, {**self._who, **who})
