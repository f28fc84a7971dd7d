"""What `wan2gp-ctl` and a running supervisor say to each other: one typed vocabulary, one codec, one client.

A request is three frames to the supervisor's ROUTER (call id, token, JSON), a reply is two (call id, JSON). The JSON
is one of the frozen structs below, tagged by ``op`` and ``reply``; `wan2gp-ctl --json` prints the same structs, and
``docs/ctl-json.md`` is made from them. Times named ``*_s`` are seconds, ``*_at`` are ISO 8601 with a zone.
"""

from __future__ import annotations

from typing import Any, Union

import msgspec

MAX_REQUEST_BYTES = 16 * 1024 * 1024
"""Largest request, bytes: a task's ``params`` with a large graph fit many times over."""

FRAMES = 3
"""Frames of a request, without the sender's name that the ROUTER adds."""


class ControlRefused(Exception):
    """The supervisor said no. ``code`` is one of :data:`REFUSALS`, ``message`` a sentence for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


REFUSALS = {
    "bad_token": "The token is not the one in the data directory's control.token.",
    "bad_request": "The request is not one of the vocabulary, or a value in it cannot be used.",
    "too_large": "The request is larger than a request may be.",
    "unknown_task": "No row has that id.",
    "unknown_handler": "This worker has no handler of that name.",
    "wrong_status": "The task's status does not allow that.",
    "database_down": "The database does not answer.",
    "database_refused": "The database refused the call.",
    "busy": "Too many requests at once.",
    "internal": "The supervisor failed at the request; its log says how.",
}
"""Every code a refusal may carry, with its meaning."""


# --- requests ---------------------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
    """Base of all requests."""


class StatusRequest(Request, frozen=True, tag="status"):
    """Everything about the worker and its queue."""


class ReadyRequest(Request, frozen=True, tag="ready"):
    """Whether the worker would take a task now; asks neither database nor GPU."""


class StatsRequest(Request, frozen=True, tag="stats"):
    """The queue alone."""


class SubmitRequest(Request, frozen=True, tag="submit"):
    """Insert a task. ``priority``: larger goes first; None is the table's default."""

    task_type: str
    params: dict[str, Any]
    priority: int | None = None
    max_attempts: int | None = None


class TaskRequest(Request, frozen=True, tag="task"):
    """One row with its lease and history."""

    task_id: str


class ProgressRequest(Request, frozen=True, tag="progress"):
    """How far one task is; cheap while it runs on this worker."""

    task_id: str


class TasksRequest(Request, frozen=True, tag="tasks"):
    """Rows, newest first, without ``params``. ``status`` in any case."""

    status: str | None = None
    task_type: str | None = None
    limit: int = 50


class CancelRequest(Request, frozen=True, tag="cancel"):
    """Cancel a task, also a running one."""

    task_id: str


class RetryRequest(Request, frozen=True, tag="retry"):
    """Queue a finished task again."""

    task_id: str


class RestartRequest(Request, frozen=True, tag="restart"):
    """Replace a handler's process; clears BROKEN."""

    handler: str


class FreeRequest(Request, frozen=True, tag="free"):
    """Let a handler's engine give the GPU's memory back; its process stays."""

    handler: str


class DrainRequest(Request, frozen=True, tag="drain"):
    """Claim nothing more; what runs goes on."""


class ResumeRequest(Request, frozen=True, tag="resume"):
    """Claim again."""


class LogsRequest(Request, frozen=True, tag="logs"):
    """Where the log files are."""


class PublishRequest(Request, frozen=True, tag="publish"):
    """Send results that could not be published, now: of one task, or (null) all."""

    task_id: str | None = None


class ModelsRequest(Request, frozen=True, tag="models"):
    """The weights that the definitions of models name. ``fetch``: those that are not here are to be fetched."""

    models: tuple[str, ...]
    fetch: bool = False


AnyRequest = Union[
    StatusRequest,
    ReadyRequest,
    StatsRequest,
    SubmitRequest,
    TaskRequest,
    ProgressRequest,
    TasksRequest,
    CancelRequest,
    RetryRequest,
    RestartRequest,
    FreeRequest,
    DrainRequest,
    ResumeRequest,
    LogsRequest,
    PublishRequest,
    ModelsRequest,
]


# --- parts of replies -------------------------------------------------------------------------------------------


class HandlerStatus(msgspec.Struct, frozen=True):
    """One child of the worker: a handler, or the courier that downloads inputs."""

    name: str
    types: tuple[str, ...] = ()
    """Task types it takes."""
    state: str = "stopped"
    """stopped, starting, idle, busy, draining, stopping, recycling, backoff or broken."""
    incarnation: int = 0
    """How often it was started."""
    pid: int | None = None
    restarts: int = 0
    """Starts after a death."""
    deaths: int = 0
    """Deaths in a row, without a task that succeeded or a stable time between them."""
    last_cause: str | None = None
    """Why it last died."""
    engine: dict[str, Any] = {}
    """What the handler says of its engine: state, and as far as known pid, port, url, version, python, torch, device,
    custom_nodes_failed."""
    task: str | None = None
    """Id of the task it runs."""
    since_s: float | None = None
    """How long it has been in this state."""
    unheard: int = 0
    """Messages of this process that were dropped: too long, too many, or of work that is not its own."""
    rss_mib: int | None = None
    """Memory that its processes hold together, MiB, without mapped files, which the kernel takes back by itself."""
    user_id: int | None = None
    """The user that its process runs under; null: the worker's."""
    unprotected: dict[str, str] = {}
    """Layers of the sandbox that its process lacks, and why."""
    gpu_mib: int | None = None
    """GPU memory that they hold, MiB; null where the driver does not tell: in a container it often names no process."""


class RunningTask(msgspec.Struct, frozen=True):
    """One task that this worker runs now."""

    task_id: str
    task_type: str
    handler: str
    attempt: int | None = None
    """1 at the first start."""
    fraction: float | None = None
    """0 to 1 over the whole run; null while unknown."""
    phase: str | None = None
    """waiting, start, download, load, step, decode or publish."""
    step: int | None = None
    steps: int | None = None
    detail: str | None = None
    """What it is at: a node's title, a file's name."""
    eta_s: float | None = None
    """Seconds to its end; null while that is not known."""
    preview: str | None = None
    """Absolute path of a picture of what is made so far, replaced about once a second; gone with the run's end."""
    seconds: float = 0.0
    """How long it has run."""


class Unclaimable(msgspec.Struct, frozen=True):
    """A task type that waits in the queue and is not claimed by this worker, and why."""

    task_type: str
    reason: str
    count: int | None = None
    """How many such tasks are queued."""


class GpuTurn(msgspec.Struct, frozen=True):
    """Whose turn it is on the GPU that several engines share."""

    phase: str
    """free, held, clearing (the holder was asked to unload), forced (its process is being ended instead) or fading (it
    has ended, and the driver has yet to forget its memory)."""
    holder: str | None = None
    """The handler whose engine has the GPU."""
    model: str | None = None
    """What it has loaded, or is about to, where it tells."""
    waiting: tuple[str, ...] = ()
    """Handlers with a task, the longest waiting first."""
    since_s: float = 0.0
    """How long it has been so."""


class Gpu(msgspec.Struct, frozen=True):
    """One GPU of the machine; memory in MiB, load in percent."""

    index: int
    name: str
    memory_used_mib: int
    memory_total_mib: int
    load_percent: int | None = None


class Publishing(msgspec.Struct, frozen=True):
    """One result that is on this machine's disk and not with its user yet."""

    task_id: str
    state: str
    """queued, uploading, waiting (it is tried again by itself) or withheld (a person must mend what is wrong)."""
    bytes: int = 0
    """Its files, together."""
    tries: int = 0
    """How often it failed."""
    error: str | None = None
    """``code: sentence``."""


class TypeCount(msgspec.Struct, frozen=True):
    """How many rows of one type have one status."""

    task_type: str
    status: str
    count: int


class QueueStats(msgspec.Struct, frozen=True):
    """The queue as the database sees it; empty with ``error`` when the database does not answer."""

    counts: tuple[TypeCount, ...] = ()
    oldest_queued_s: dict[str, float] = {}
    """Age of the oldest queued task by type."""
    waiting: tuple[dict[str, Any], ...] = ()
    """By type, how many of the queued wait for other tasks and for a time."""
    workers: tuple[dict[str, Any], ...] = ()
    """Rows of the ``workers`` table."""
    error: str | None = None


class WorkerStatus(msgspec.Struct, frozen=True):
    """What the supervisor knows by itself, without asking the database."""

    worker: str
    version: str
    pid: int
    uptime_s: float
    state: str
    """running, draining or stopping."""
    queue: str
    """embedded, postgres, supabase or edge."""
    listening: bool = False
    """True when the database wakes the worker; False when it polls."""
    database_ok: bool = True
    handlers: tuple[HandlerStatus, ...] = ()
    running: tuple[RunningTask, ...] = ()
    unable: dict[str, str] = {}
    """Handlers that cannot work here, by name, and why."""
    unable_types: dict[str, str] = {}
    """Types of its other handlers that this worker cannot serve, with the reason."""
    notices: dict[str, str] = {}
    """By handler that can work here: what people must be told of its engine."""
    unclaimable: tuple[Unclaimable, ...] = ()
    spool_depth: int = 0
    """Outcomes on disk that the database has not confirmed yet."""
    publishing: tuple[Publishing, ...] = ()
    """Results on disk that are not with their users yet."""
    gpus: tuple[Gpu, ...] = ()
    ready: bool = True
    """Whether it would take a task now."""
    obstacles: dict[str, str] = {}
    """Why not: sentences by code."""
    sandbox: str = "best"
    """How handlers are confined: best, require or off."""
    unprotected: dict[str, str] = {}
    """Layers of the sandbox that this machine does not give every handler, and why."""
    gpu_turns: GpuTurn | None = None
    """Which of the engines that share the GPU has it; null where none does."""
    turned_away: dict[str, int] = {}
    """Connections to the control socket that were closed for what they are or did, by reason; ``handler``: by a process
    that a handler, or anything else below the supervisor, has started."""


class TaskEvent(msgspec.Struct, frozen=True):
    """One line of a task's history."""

    name: str
    at: str | None = None
    worker_id: str | None = None
    attempt: int | None = None
    detail: dict[str, Any] = {}


class TaskRow(msgspec.Struct, frozen=True):
    """One row of ``tasks``; ``params`` and ``events`` only when a single task is asked for."""

    id: str
    task_type: str
    status: str
    priority: int | None = None
    attempts: int | None = None
    """How often it was started."""
    max_attempts: int | None = None
    """How many failures of its own end it."""
    failures: int | None = None
    """Failures of its own so far."""
    losses: int | None = None
    """How often its process or its worker died under it."""
    interruptions: int | None = None
    """How often it was handed back: free."""
    worker_id: str | None = None
    progress: float | None = None
    """0 to 1."""
    phase: str | None = None
    detail: str | None = None
    output_location: str | None = None
    """The primary artifact: a public URL, or a path in local mode."""
    error_message: str | None = None
    """``code: sentence``."""
    created_at: str | None = None
    run_after: str | None = None
    generation_started_at: str | None = None
    generation_processed_at: str | None = None
    updated_at: str | None = None
    params: Any = None
    result_data: Any = None
    """Artifacts, timings, attempts with their causes, warnings, engine."""
    lease: dict[str, Any] | None = None
    """Who has it and until when, while it is claimed."""
    history: tuple[dict[str, Any], ...] = ()
    """The causes of attempts that did not complete."""
    depends_on: tuple[dict[str, Any], ...] = ()
    """Tasks it waits for."""
    parent: str | None = None
    children: tuple[dict[str, Any], ...] = ()
    """Tasks it brought forth."""
    events: tuple[TaskEvent, ...] = ()
    more: dict[str, Any] = {}
    """The row's other columns."""


# --- replies ----------------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True, tag_field="reply"):
    """Base of all replies. Unknown fields are ignored, so that an older `wan2gp-ctl` reads a newer supervisor."""


class StatusReply(Reply, frozen=True, tag="status"):
    """The answer of ``status``."""

    worker: WorkerStatus
    queue: QueueStats


class ReadyReply(Reply, frozen=True, tag="ready"):
    """The answer of ``ready``."""

    ready: bool
    obstacles: dict[str, str] = {}
    """Why the worker would take no task now: sentences by code."""


class LayerReport(msgspec.Struct, frozen=True):
    """One layer of the sandbox on this machine."""

    name: str
    about: str
    """What it does."""
    state: str
    """``kept``, ``partly`` (some handlers lack it), ``watched`` (a watch ends what goes beyond), ``missing``,
    ``unneeded`` or ``off``."""
    reason: str | None = None
    """Why it is not kept as it should be."""
    remedy: str | None = None


class HandlerReport(msgspec.Struct, frozen=True):
    """What one handler may do, at its next start."""

    name: str
    user_id: int | None = None
    """The user that it runs under; null: the worker's."""
    missing: dict[str, str] = {}
    """Layers that it lacks, and why."""
    write: tuple[str, ...] = ()
    """Where it may write."""
    read: tuple[str, ...] = ()
    """What it may read besides what every handler may."""
    tcp: tuple[int, ...] | None = ()
    """TCP ports that it may use besides the spare ones of each start; null: all."""
    udp: bool = False
    """Whether it may look names up."""


class DeniedPath(msgspec.Struct, frozen=True):
    """Something that a handler was denied, by what is in its log."""

    handler: str
    path: str
    count: int
    setting: str | None = None
    """The setting that would allow it; null where none does."""


class DoctorReply(Reply, frozen=True, tag="doctor"):
    """The answer of ``doctor``, which needs no supervisor."""

    mode: str
    """``sandbox.mode``: best, require or off."""
    sound: bool
    """Whether every layer is kept, or watched over."""
    running: bool
    """Whether a supervisor runs, and its processes were asked too."""
    layers: tuple[LayerReport, ...] = ()
    handlers: tuple[HandlerReport, ...] = ()
    common_read: tuple[str, ...] = ()
    """What every handler may read."""
    denied: tuple[DeniedPath, ...] = ()
    not_opened: tuple[str, ...] = ()
    """What settings name for writing and no handler gets, in a sentence each."""


class StatsReply(Reply, frozen=True, tag="stats"):
    """The answer to a question about the queue alone."""

    queue: QueueStats


class SubmitReply(Reply, frozen=True, tag="submit"):
    """The answer of ``submit``."""

    task_id: str


class TaskReply(Reply, frozen=True, tag="task"):
    """The answer of ``task``, and of ``submit --wait`` at its end."""

    task: TaskRow
    running: RunningTask | None = None
    """Set while the task runs on this worker."""


class ProgressReply(Reply, frozen=True, tag="progress"):
    """How far one task is."""

    task_id: str
    status: str
    fraction: float | None = None
    phase: str | None = None
    detail: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_s: float | None = None
    """Seconds to its end; null while that is not known."""
    preview: str | None = None
    """Absolute path of a picture of what is made so far."""


class TasksReply(Reply, frozen=True, tag="tasks"):
    """The answer of ``tasks``."""

    tasks: tuple[TaskRow, ...]


class ChangeReply(Reply, frozen=True, tag="change"):
    """The answer of ``cancel`` and ``retry``."""

    task_id: str
    before: str
    """The status the row had."""
    running_here: bool = False
    """True when the handler was told to stop its work on it."""


class DoneReply(Reply, frozen=True, tag="done"):
    """The answer of ``restart``, ``free``, ``drain``, ``resume`` and ``publish retry``."""

    message: str


class ModelFile(msgspec.Struct, frozen=True):
    """One file of weights that was asked for."""

    file: str
    """Where it lies below ``weights`` in the directory for models."""
    state: str
    """waiting, fetching, kept or failed."""
    detail: str | None = None
    """How much of it has come."""
    error: str | None = None
    """``code: sentence``."""


class ModelsReply(Reply, frozen=True, tag="models"):
    """The answer of ``models``."""

    files: tuple[ModelFile, ...] = ()


class LogsReply(Reply, frozen=True, tag="logs"):
    """Absolute paths of the log files, the handlers' by name."""

    worker_log: str
    handlers: dict[str, str]


class Refused(Reply, frozen=True, tag="refused"):
    """The supervisor said no."""

    code: str
    message: str


AnyReply = Union[
    StatusReply,
    ReadyReply,
    StatsReply,
    SubmitReply,
    TaskReply,
    ProgressReply,
    TasksReply,
    ChangeReply,
    DoneReply,
    LogsReply,
    DoctorReply,
    ModelsReply,
    Refused,
]

_encoder = msgspec.json.Encoder()
_requests = msgspec.json.Decoder(AnyRequest)
_replies = msgspec.json.Decoder(AnyReply)


def encode(message: AnyRequest | AnyReply) -> bytes:
    """One frame. Raises :class:`ControlRefused` when a request is larger than one may be, or when a value in it cannot
    be written as JSON (half a surrogate pair, a nesting without end)."""
    try:
        frame = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ControlRefused("bad_request", f"cannot be written as JSON: {error}") from error
    if isinstance(message, Request) and len(frame) > MAX_REQUEST_BYTES:
        raise ControlRefused("too_large", _too_large(len(frame)))
    return frame


def decode_request(frame: bytes) -> AnyRequest:
    """Raises :class:`ControlRefused` when it is too large or none of the vocabulary."""
    if len(frame) > MAX_REQUEST_BYTES:
        raise ControlRefused("too_large", _too_large(len(frame)))
    try:
        request: AnyRequest = _requests.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ControlRefused("bad_request", f"cannot read the request: {error}") from error
    return request


def decode_reply(frame: bytes) -> AnyReply:
    """Raises ``msgspec.DecodeError`` when it is no reply: another version's, or not our supervisor."""
    reply: AnyReply = _replies.decode(frame)
    return reply


def _too_large(size: int) -> str:
    return f"the request has {size:,} bytes, the limit is {MAX_REQUEST_BYTES:,}"
