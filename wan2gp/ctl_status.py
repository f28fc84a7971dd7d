"""`wan2gp-ctl status | ready`: the worker, its handlers, what runs, what waits, and what nobody here takes."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wan2gp.control import (
    Gpu,
    GpuTurn,
    HandlerStatus,
    Publishing,
    QueueStats,
    ReadyReply,
    ReadyRequest,
    RunningTask,
    StatusReply,
    StatusRequest,
    WorkerStatus,
)
from wan2gp.ctl_exit import Exit, harmless
from wan2gp.ctl_link import connect
from wan2gp.ctl_output import bar, grid, plain, screen, span, styled, table, write_json, write_line


def status(args: argparse.Namespace) -> int:
    """The command."""
    with connect(args) as link:
        reply = link.ask(StatusRequest(), StatusReply)
    if args.json:
        write_json(reply)
    else:
        show(screen(), reply)
    return Exit.OK


def ready(args: argparse.Namespace) -> int:
    """Whether the worker would take a task now; the exit status alone tells it too."""
    with connect(args) as link:
        reply = link.ask(ReadyRequest(), ReadyReply)
    if args.json:
        write_json(reply)
    else:
        for line in [f"{code}: {sentence}" for code, sentence in reply.obstacles.items()] or ["ready"]:
            write_line(line)
    return Exit.OK if reply.ready else Exit.FAILED


def show(console: Console, reply: StatusReply) -> None:
    """All tables; those without a row are left out."""
    console.print(_head(console, reply))
    tables = [
        _handlers(console, reply.worker.handlers),
        _running(console, reply.worker.running),
        _publishing(console, reply.worker.publishing),
        _counts(console, reply.queue),
        _unable(console, "handler", "cannot work here", reply.worker.unable),
        _unable(console, "types", "not served here", reply.worker.unable_types),
        _unclaimable(console, reply.worker),
        _gpus(console, reply.worker.gpus),
    ]
    for part in tables:
        if part.row_count:
            console.print()
            console.print(part)


def _head(console: Console, reply: StatusReply) -> Table:
    worker = reply.worker
    shape = grid(console)
    shape.add_row("worker", plain(f"{worker.worker}  (wan2gp {worker.version}, process {worker.pid})"))
    shape.add_row("state", styled(worker.state).append(f", for {span(worker.uptime_s)}", style="default"))
    for code, sentence in worker.obstacles.items():
        shape.add_row("not ready", Text(harmless(f"{code}: {sentence}"), style="bold red"))
    shape.add_row("queue", plain(f"{worker.queue}, {'woken by the database' if worker.listening else 'polled'}"))
    if reply.queue.error or not worker.database_ok:
        shape.add_row("database", Text(f"DOWN: {reply.queue.error or 'it does not answer'}", style="bold red"))
    else:
        shape.add_row("database", plain("answers"))
    if worker.gpu_turns is not None:
        shape.add_row("gpu", plain(_turn(worker.gpu_turns)))
    shape.add_row("sandbox", _sandbox(worker))
    for name, notice in worker.notices.items():
        shape.add_row(name, plain(f"generation by {notice}"))
    if worker.spool_depth:
        shape.add_row("spool", plain(f"{worker.spool_depth} outcome(s) on disk that the database has not confirmed"))
    return shape


def _turn(turn: GpuTurn) -> str:
    if turn.holder is None:
        return "free"
    loaded = "" if turn.model is None else f" with {turn.model}"
    waiting = f"; waiting: {', '.join(turn.waiting)}" if turn.waiting else ""
    return f"{turn.phase} by {turn.holder}{loaded}, for {span(turn.since_s)}{waiting}"


def _sandbox(worker: WorkerStatus) -> Text:
    if worker.sandbox == "off":
        return Text("OFF: handlers may do what the worker may", style="bold red")
    if not worker.unprotected:
        return plain("all layers")
    names = ", ".join(worker.unprotected)
    return Text(harmless(f"without {names}: `wan2gp-ctl doctor` says why"), style="yellow")


def _handlers(console: Console, handlers: tuple[HandlerStatus, ...]) -> Table:
    columns = (
        "handler",
        "state",
        "for",
        "pid>",
        "restarts>",
        "memory",
        "takes",
        "task",
        "engine",
        "last cause of death",
    )
    shape = table(console, columns, "handlers")
    for handler in handlers:
        shape.add_row(
            plain(handler.name),
            styled(handler.state),
            span(handler.since_s),
            plain(handler.pid),
            plain(handler.restarts),
            plain(_memory(handler)),
            plain(", ".join(handler.types)),
            plain(handler.task),
            plain(engine_words(handler.engine)),
            plain(handler.last_cause),
        )
    return shape


def _memory(handler: HandlerStatus) -> str | None:
    if handler.rss_mib is None:
        return None
    return f"{handler.rss_mib:,} MiB" + ("" if handler.gpu_mib is None else f", GPU {handler.gpu_mib:,} MiB")


def engine_words(engine: dict[str, Any]) -> str:
    """What a handler says of its engine, on one line: the state first, then the plain values."""
    rest = {key: value for key, value in engine.items() if key not in ("state", "detail")}
    detail = engine.get("detail")
    rest.update(detail if isinstance(detail, dict) else {})
    words = [str(engine["state"])] if "state" in engine else []
    words += [f"{key} {_brief(value)}" for key, value in rest.items() if value not in (None, "", [], {})]
    return ", ".join(words)


def _brief(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(str(part) for part in value)
    return str(value)


def _running(console: Console, running: tuple[RunningTask, ...]) -> Table:
    shape = table(console, ("running", "type", "handler", "for", "progress", "left", "phase", "detail"), "running now")
    for task in running:
        shape.add_row(
            plain(task.task_id),
            plain(task.task_type),
            plain(task.handler),
            span(task.seconds),
            bar(console, task.fraction),
            span(task.eta_s),
            plain(task.phase if task.step is None else f"{task.phase} {task.step} of {task.steps or '?'}"),
            plain(task.detail),
        )
    return shape


def _publishing(console: Console, results: tuple[Publishing, ...]) -> Table:
    shape = table(console, ("task", "state", "bytes>", "tries>", "why"), "results that are not published yet")
    for result in results:
        size = f"{result.bytes:,}"
        shape.add_row(plain(result.task_id), styled(result.state), size, str(result.tries), plain(result.error))
    return shape


def _counts(console: Console, queue: QueueStats) -> Table:
    shape = table(console, ("type", "status", "tasks>", "oldest waits"), "queue")
    for row in sorted(queue.counts, key=lambda count: (count.task_type, count.status)):
        age = queue.oldest_queued_s.get(row.task_type) if row.status == "Queued" else None
        shape.add_row(plain(row.task_type), styled(row.status), str(row.count), span(age))
    return shape


def _unable(console: Console, what: str, title: str, unable: dict[str, str]) -> Table:
    shape = table(console, (what, "why"), title)
    for reason in dict.fromkeys(unable.values()):
        names = ", ".join(name for name, why in unable.items() if why == reason)
        shape.add_row(plain(names), plain(reason))
    return shape


def _unclaimable(console: Console, worker: WorkerStatus) -> Table:
    shape = table(console, ("type", "queued>", "why"), "unclaimable here")
    for item in worker.unclaimable:
        shape.add_row(plain(item.task_type), plain(item.count), plain(item.reason))
    return shape


def _gpus(console: Console, gpus: tuple[Gpu, ...]) -> Table:
    shape = table(console, ("gpu>", "name", "memory", "load>"), "GPUs")
    for gpu in gpus:
        load = None if gpu.load_percent is None else f"{gpu.load_percent} %"
        memory = f"{gpu.memory_used_mib:,} of {gpu.memory_total_mib:,} MiB"
        shape.add_row(str(gpu.index), plain(gpu.name), memory, plain(load))
    return shape
