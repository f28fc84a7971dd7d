"""The registry of error codes: what ``error_message`` of a row may begin with, what it means, what to do.

``error_message`` is ``code: sentence``. The table below is the documentation (``docs/errors.md`` is made from it) and
the truth about which failures may be tried again. Exceptions live where they are raised; codes live here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorCode:
    """One stable code. ``retryable``: whether another attempt can help."""

    code: str
    retryable: bool
    meaning: str
    remedy: str


_TABLE = (
    (
        "comfy.not_installed",
        False,
        "The worker has no ComfyUI.",
        "Set COMFY_PATH, or use an image with ComfyUI.",
    ),
    (
        "comfy.start_failed",
        True,
        "The ComfyUI process ended while starting.",
        "Read the last lines in the message.",
    ),
    (
        "comfy.not_ready",
        True,
        "ComfyUI did not answer in time.",
        "Raise COMFY_START_TIMEOUT_S; start it by hand.",
    ),
    ("comfy.exited", True, "ComfyUI died during the run.", "Nothing at first: the task is retried."),
    ("comfy.unresponsive", True, "ComfyUI stopped answering.", "Nothing at first: it is restarted."),
    (
        "comfy.stuck",
        True,
        "ComfyUI made no progress within the limit.",
        "Look for a node that waits for ever.",
    ),
    (
        "comfy.bad_workflow",
        False,
        "`workflow` is missing or not a ComfyUI graph in the API format.",
        "Export with Workflow > Export (API).",
    ),
    (
        "comfy.validation",
        False,
        "The graph cannot run.",
        "Mend the nodes and inputs that are named: all that is wrong is.",
    ),
    ("comfy.node_failed", False, "A node raised an error.", "Read the node and the error that are named."),
    (
        "comfy.no_outputs",
        False,
        "The run ended without a file.",
        "Add an output node with save_output: true.",
    ),
    (
        "comfy.out_of_memory",
        True,
        "The GPU's memory did not suffice.",
        "Smaller frames, fewer frames, or a larger GPU.",
    ),
    (
        "comfy.interrupted",
        True,
        "The prompt was interrupted by somebody else.",
        "Nothing: the task is retried.",
    ),
    (
        "comfy.bad_output",
        True,
        "ComfyUI reported success for a file that cannot be decoded.",
        "Look at the disk's space.",
    ),
    ("comfy.api_error", True, "ComfyUI answered something unexpected.", "See the message; versions differ."),
    (
        "engine.out_of_memory",
        True,
        "The engine ran out of memory, and once more in a fresh process.",
        "Smaller inputs, or a larger GPU.",
    ),
    (
        "engine.cuda_broken",
        True,
        "The CUDA context is beyond repair; the process is replaced.",
        "Nothing at first: the task is retried. If it stays: look at the task, at the driver, and at the GPU.",
    ),
    (
        "engine.memory_limit",
        True,
        "The engine held more memory than the worker's limit allows, and was ended.",
        "Smaller inputs, or a higher memory.hard_mib on a machine that has it.",
    ),
    (
        "handler.crashed",
        False,
        "The handler raised an error that it does not know.",
        "Report it with the traceback.",
    ),
    (
        "handler.start_failed",
        True,
        "The handler's process cannot start; the task went back to the queue uncounted.",
        "See the cause and `wan2gp-ctl logs HANDLER`; then `wan2gp-ctl restart HANDLER`.",
    ),
    (
        "handler.restarted",
        True,
        "The handler's process was replaced before the task's end or turn; it went back to the queue uncounted.",
        "Nothing.",
    ),
    ("handler.died", True, "The handler's process died under the task.", "See the cause; it is retried."),
    (
        "handler.hung",
        True,
        "The handler showed no sign of life, or no progress within its phase's limit.",
        "It was killed; the task is retried.",
    ),
    (
        "handler.process_limit",
        True,
        "The handler started as many processes and threads as its limit allows, and was ended.",
        "Look for what starts them; or a higher sandbox.processes for an engine that needs so many.",
    ),
    (
        "handler.disk_limit",
        True,
        "The handler wrote more than its limit allows, and was ended; what it had written is removed.",
        "Smaller inputs, or a higher sandbox.disk_mib on a machine that has the space.",
    ),
    ("handler.protocol", True, "The handler broke the protocol and was replaced.", "Report it."),
    (
        "input.bad_params",
        False,
        "`params` are not what this task type takes.",
        "Mend the field that is named.",
    ),
    (
        "input.bad_url",
        False,
        "An input's URL is neither http(s) nor `storage://bucket/path`, or is malformed.",
        "Give an http or https URL.",
    ),
    (
        "input.no_storage",
        False,
        "An input is in Storage, and the worker has no Supabase project.",
        "Set SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY, or give an https URL.",
    ),
    (
        "input.storage_denied",
        False,
        "The project's Storage refuses the worker an input.",
        "Check the worker's key, SUPABASE_URL, and the address.",
    ),
    (
        "input.forbidden_address",
        False,
        "An input's host is a private address.",
        "Use a public host, or inputs.allow_private_hosts.",
    ),
    (
        "input.not_found",
        False,
        "An input's URL answered that there is nothing, or Storage has no such file.",
        "Check the URL, and that it is signed; of `storage://`, bucket and path.",
    ),
    (
        "input.http_error",
        True,
        "An input's server answered with an error.",
        "Nothing at first: it is retried.",
    ),
    ("input.timeout", True, "An input's download took too long.", "A faster host, or a higher limit."),
    ("input.unplaced", True, "There is no place on the worker's disk for an input.", "Look at the data directory."),
    ("input.courier_died", True, "The download process died again and again.", "See `wan2gp-ctl logs courier`."),
    ("input.unreachable", True, "An input's host cannot be reached.", "Check the host's name."),
    ("input.too_large", False, "An input is larger than the limit.", "A smaller file, or inputs.max_bytes."),
    ("input.redirects", False, "An input's URL redirects too often or in a circle.", "Give the final URL."),
    (
        "input.not_media",
        False,
        "An input is not the kind of file that the field needs.",
        "Check what the URL serves.",
    ),
    ("input.corrupt", False, "An input cannot be decoded.", "Encode it again."),
    (
        "media.bad_output",
        True,
        "The clip that was made is not what was asked for, or cannot be decoded.",
        "Look at the disk's space, and at the video behind the task; report it.",
    ),
    (
        "media.no_rife",
        False,
        "The task is for RIFE, and the worker has none.",
        'Mend what the message names; or give `"method": "ffmpeg"`, or set wan.interpolation=auto.',
    ),
    (
        "media.rife_failed",
        True,
        "RIFE's process did not start, or failed under the task.",
        "See the message: an environment without PyTorch, spoilt weights; else nothing, it is retried.",
    ),
    (
        "output.refused",
        False,
        "A result's file is not a regular file inside the task's directory.",
        "Report it.",
    ),
    (
        "publish.bad_put_url",
        False,
        "`put_url` is not a URL that a result can be sent to.",
        "Give an https URL that is signed for PUT.",
    ),
    (
        "publish.bucket_missing",
        False,
        "The project's Storage has no such bucket.",
        "Create it or set SUPABASE_VIDEO_BUCKET, then `wan2gp-ctl publish retry`.",
    ),
    (
        "publish.complete_task",
        False,
        "The project's function `complete_task`, by which its app learns of results, refuses this one.",
        "Mend what the message names, then `wan2gp-ctl publish retry`; or set WAN2GP_FINISH_VIA=sql.",
    ),
    (
        "publish.file_changed",
        False,
        "Somebody changed a result's file while it waited to be sent.",
        "Let nobody write under the data directory; retry the task.",
    ),
    (
        "publish.forbidden",
        False,
        "The project's Storage does not accept the worker's key.",
        "Give the project's service role key, then `wan2gp-ctl publish retry`.",
    ),
    (
        "publish.object_missing",
        False,
        "The project's Storage has no such object.",
        "Check the bucket and the path that are named.",
    ),
    (
        "publish.put_refused",
        False,
        "The server behind `put_url` did not take the result.",
        "Give a URL that is signed for PUT and has not expired; retry the task.",
    ),
    (
        "publish.put_unavailable",
        True,
        "The server behind `put_url` cannot be reached, or fails for now.",
        "Nothing for 15 minutes, while the file is sent again; then mend its server and `wan2gp-ctl publish retry`.",
    ),
    (
        "publish.quota",
        False,
        "The project is over one of its quotas.",
        "Free space, upgrade the plan or lift the spend cap, then `wan2gp-ctl publish retry`.",
    ),
    (
        "publish.refused",
        False,
        "The project's Storage refused the result.",
        "Mend what the message names, then `wan2gp-ctl publish retry`.",
    ),
    (
        "publish.too_large",
        False,
        "The result is larger than the bucket or the project allows.",
        "Raise the limits of the bucket and the project, then `wan2gp-ctl publish retry`.",
    ),
    (
        "publish.unavailable",
        True,
        "Where the result goes cannot be reached, or fails for now.",
        "Nothing at first: the file waits in the spool and is sent again.",
    ),
    ("task.cancelled", False, "Its user cancelled the task.", "`wan2gp-ctl retry ID` queues it again."),
    (
        "task.poisoned",
        False,
        "Its process died twice under this task.",
        "See the causes in result_data.attempts.",
    ),
    (
        "task.dependency_failed",
        False,
        "A task that this one waits for ended without a result.",
        "Retry that one first.",
    ),
    (
        "queue.refused",
        False,
        "The database refused to store the outcome: a trigger or a constraint of its own.",
        "Mend what the message names, then retry the task.",
    ),
    (
        "wan.exited",
        True,
        "The Wan2GP process ended, or had to be ended, during the run.",
        "Nothing at first: it is started again, and the task retried.",
    ),
    (
        "wan.failed",
        False,
        "Wan2GP failed at the task.",
        "Read the message, and `result_data.detail.tail` for what it printed.",
    ),
    (
        "wan.lora_corrupt",
        False,
        "A LoRA is damaged, also after it was fetched once more.",
        "Give another URL; replace a file that lies on the worker.",
    ),
    (
        "wan.lora_unavailable",
        False,
        "A LoRA cannot be had. The task has used no GPU.",
        "Check its URL or name.",
    ),
    (
        "wan.missing_weights",
        False,
        "Weights of the model are not on this machine, and could not be had.",
        "Put the file that is named into the engine's directory for checkpoints, or set wan.download.",
    ),
    (
        "wan.no_cuda",
        True,
        "Wan2GP finds no CUDA; the task went back to the queue uncounted.",
        "Look at the driver, the GPU, and the PyTorch in Wan2GP's environment.",
    ),
    ("wan.no_outputs", False, "Wan2GP reported success and made no usable file.", "Read its last line in the message."),
    (
        "wan.not_installed",
        True,
        "There is no Wan2GP where WAN2GP_PATH points; the task went back to the queue uncounted.",
        "Set WAN2GP_PATH to a checkout of Wan2GP.",
    ),
    (
        "wan.start_failed",
        True,
        "Wan2GP does not start; the task went back to the queue uncounted.",
        "Read the cause: a module of its environment mostly, or a raised wan.start_timeout_s is needed.",
    ),
    ("wan.unknown_model", False, "The engine lists no such model.", "Give one that is named, or update Wan2GP."),
    ("wan.validation", False, "Wan2GP refused the settings.", "Mend the parameter that its sentence is about."),
    ("worker.disk_full", True, "The worker's disk is full.", "Free space under the data directory."),
    (
        "worker.gpu_unhealthy",
        True,
        "The GPU failed again and again in fresh processes: the worker takes no tasks.",
        "Look at the driver and the GPU, then `wan2gp-ctl restart HANDLER`; the worker also tries again by itself.",
    ),
    ("worker.stopping", True, "The worker stopped; the task went back to the queue uncounted.", "Nothing."),
    ("worker.lease_lost", True, "The worker lost its claim on the task.", "Nothing: somebody else has it."),
)

REGISTRY: dict[str, ErrorCode] = {row[0]: ErrorCode(*row) for row in _TABLE}
"""Every code by its name."""


def error_message(code: str, sentence: str) -> str:
    """The text of a row's ``error_message``: ``code: sentence``, at most 2,000 characters."""
    return f"{code}: {sentence}"[:2000]


def retryable(code: str, default: bool = False) -> bool:
    """Whether another attempt can help; ``default`` for codes of foreign handlers."""
    known = REGISTRY.get(code)
    return default if known is None else known.retryable
