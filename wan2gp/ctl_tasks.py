"""`wan2gp-ctl task | tasks | cancel | retry`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console

from wan2gp.control import (
    CancelRequest,
    ChangeReply,
    RetryRequest,
    RunningTask,
    TaskReply,
    TaskRequest,
    TaskRow,
    TasksReply,
    TasksRequest,
)
from wan2gp.ctl_exit import Exit
from wan2gp.ctl_link import connect
from wan2gp.ctl_output import bar, grid, plain, screen, size, span, styled, table, write_json, write_line


def task(args: argparse.Namespace) -> int:
    """The whole story of one task."""
    with connect(args) as link:
        reply = link.ask(TaskRequest(args.task_id), TaskReply)
    if args.json:
        write_json(reply)
    else:
        show_task(screen(), reply)
    return Exit.OK


def tasks(args: argparse.Namespace) -> int:
    """A list of rows."""
    with connect(args) as link:
        reply = link.ask(TasksRequest(args.status, args.task_type, args.limit), TasksReply)
    if args.json:
        write_json(reply)
        return Exit.OK
    console = screen()
    shape = table(console, ("id", "type", "status", "starts>", "created", "output or error"))
    for row in reply.tasks:
        outcome = row.error_message or row.output_location
        shape.add_row(
            row.id,
            plain(row.task_type),
            styled(row.status),
            plain(row.attempts),
            moment(row.created_at),
            plain(outcome),
        )
    if shape.row_count:
        console.print(shape)
    return Exit.OK


def cancel(args: argparse.Namespace) -> int:
    """Cancel one task."""
    with connect(args) as link:
        reply = link.ask(CancelRequest(args.task_id), ChangeReply)
    told = "; its handler was told to stop" if reply.running_here else ""
    return _changed(args, reply, f"cancelled {reply.task_id} (it was {reply.before}){told}")


def retry(args: argparse.Namespace) -> int:
    """Queue one finished task again."""
    with connect(args) as link:
        reply = link.ask(RetryRequest(args.task_id), ChangeReply)
    return _changed(args, reply, f"queued {reply.task_id} again (it was {reply.before})")


def _changed(args: argparse.Namespace, reply: ChangeReply, words: str) -> int:
    if args.json:
        write_json(reply)
    else:
        write_line(words)
    return Exit.OK


def show_task(console: Console, reply: TaskReply) -> None:
    """The row, its artifacts, its attempts and its history."""
    show_row(console, reply.task, reply.running)
    result = reply.task.result_data if isinstance(reply.task.result_data, dict) else {}
    _show_artifacts(console, _dicts(result.get("artifacts")))
    _show_records(console, "attempts that did not complete", list(reply.task.history) or _dicts(result.get("attempts")))
    _show_records(console, "children", list(reply.task.children))
    _show_records(console, "waits for", list(reply.task.depends_on))
    _show_events(console, reply.task)


def show_row(console: Console, row: TaskRow, running: RunningTask | None = None) -> None:
    """The row's own columns; those without a value are left out."""
    shape = grid(console)
    shape.add_row("task", plain(row.id))
    shape.add_row("type", plain(row.task_type))
    shape.add_row("status", styled(row.status))
    fraction = running.fraction if running else row.progress
    if row.status == "In Progress" and fraction is not None:
        shape.add_row("progress", bar(console, fraction))
        shape.add_row("phase", plain(" ".join(filter(None, _phase(row, running)))))
    if running is not None and running.eta_s is not None:
        shape.add_row("left", span(running.eta_s))
    if running is not None and running.preview is not None:
        shape.add_row("picture", plain(running.preview))
    if row.output_location:
        shape.add_row("output", plain(row.output_location))
    if row.error_message:
        shape.add_row("error", plain(row.error_message))
    for name, value in _plain_columns(row):
        shape.add_row(name, plain(value))
    console.print(shape)


def _phase(row: TaskRow, running: RunningTask | None) -> tuple[str | None, str | None]:
    if running is None:
        return row.phase, row.detail
    steps = f"{running.step} of {running.steps}" if running.step is not None and running.steps else None
    return running.phase, ", ".join(filter(None, (running.detail, steps)))


def _plain_columns(row: TaskRow) -> list[tuple[str, Any]]:
    result = row.result_data if isinstance(row.result_data, dict) else {}
    columns = [
        ("starts", _starts(row)),
        ("priority", row.priority),
        ("worker", row.worker_id),
        ("created", moment(row.created_at)),
        ("not before", moment(row.run_after)),
        ("started", moment(row.generation_started_at)),
        ("finished", moment(row.generation_processed_at)),
        ("timings", _flat(result.get("timings"))),
        ("engine", _flat(result.get("engine"))),
        *(("warning", warning) for warning in result.get("warnings") or ()),
        *((name, _flat(value)) for name, value in row.more.items() if value),
        ("parent", row.parent),
        ("lease", _flat(row.lease)),
        ("params", None if row.params is None else json.dumps(row.params, ensure_ascii=False)),
    ]
    return [(name, value) for name, value in columns if value not in (None, "", "-")]


def _starts(row: TaskRow) -> str | None:
    """How often it was started, and what those starts that did not complete count as."""
    if not row.attempts:
        return None
    counted = ((row.failures, "failed"), (row.losses, "lost"), (row.interruptions, "interrupted"))
    return ", ".join([str(row.attempts), *(f"{count} {word}" for count, word in counted if count)])


def _flat(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(part)}" for key, part in value.items() if part not in (None, "", [], {}))
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_flat(part)) for part in value)
    return value


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _show_artifacts(console: Console, artifacts: list[dict[str, Any]]) -> None:
    if not artifacts:
        return
    shape = table(console, ("file", "kind", "size>", "picture", "frames>", "length", "place"), "artifacts")
    for part in artifacts:
        picture = f"{part['width']}x{part['height']}" if part.get("width") and part.get("height") else None
        shape.add_row(
            plain(part.get("name")),
            plain(part.get("kind")),
            size(part.get("bytes")),
            plain(picture),
            plain(part.get("frames")),
            span(part.get("duration_s")),
            plain(part.get("path") or part.get("url")),
        )
    console.print()
    console.print(shape)


def _show_records(console: Console, title: str, records: list[dict[str, Any]]) -> None:
    if not records:
        return
    names = list(dict.fromkeys(name for record in records for name in record))
    shape = table(console, names, title)
    for record in records:
        shape.add_row(*(plain(_flat(record.get(name))) for name in names))
    console.print()
    console.print(shape)


def _show_events(console: Console, row: TaskRow) -> None:
    if not row.events:
        return
    shape = table(console, ("when", "event", "detail"), "history")
    for event in row.events:
        shape.add_row(moment(event.at), plain(event.name), plain(_flat(event.detail)))
    console.print()
    console.print(shape)


def moment(text: str | None) -> str:
    """A time as the local clock says it, to the second; what is no time stays as it is."""
    from datetime import datetime

    if not text:
        return "-"
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text
