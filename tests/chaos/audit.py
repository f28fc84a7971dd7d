"""Everything that a run left behind, gathered into one history: rows, events, files, processes, ports."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos.client import Client
from tests.chaos.deeds import Doer
from tests.chaos.loglines import with_starts
from tests.chaos.plan import LEASE_S, POLL_S, TaskPlan
from tests.chaos.records import Artifact, Event, History, Row, Violation
from tests.chaos.stage import BUCKET, Actor, Stage
from tests.chaos.work import KINDS, expected_sha256

ID_LENGTH = 36
ROWS = """SELECT t.*, t.id::text AS id, coalesce(l.failures, 0) AS failures, coalesce(l.losses, 0) AS losses,
                 coalesce(l.interruptions, 0) AS interruptions
            FROM tasks t LEFT JOIN task_leases l ON l.task_id = t.id ORDER BY t.created_at, t.id"""
EVENTS = """SELECT e.*, e.task_id::text AS task_id, extract(epoch FROM e.at)::float8 AS at
              FROM task_events e ORDER BY e.id"""
LEASES = "SELECT task_id::text AS id, worker_id FROM task_leases WHERE token IS NOT NULL"
EXPLAINED = frozenset(
    "task.poisoned task.dependency_failed handler.died handler.hung handler.protocol engine.memory_limit "
    "comfy.exited comfy.unresponsive comfy.stuck comfy.out_of_memory comfy.run_timeout comfy.api_error "
    "comfy.external_lost input.download_failed".split()
)
"""With these codes a task may fail that would have succeeded in peace: its process or its engine was taken from it."""


def read(url: str, statement: str) -> list[dict[str, Any]]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        return connection.execute(statement.encode()).fetchall()


def gather(stage: Stage, client: Client, doer: Doer, ended_at: float) -> History:
    """Called when all workers have stopped and the database still runs."""
    plans = {task.id: task for task in stage.plan.tasks}
    return History(
        rows=tuple(_row(one, plans.get(one["id"])) for one in read(stage.url, ROWS)),
        events=tuple(_event(one) for one in read(stage.url, EVENTS)),
        inserted=tuple(client.inserted),
        cancels=tuple(client.cancelled),
        artifacts=tuple(_artifacts(stage, plans)),
        lives=tuple(with_starts(stage.all_lives(), logs_of(stage))),
        deeds=tuple(doer.done),
        outages=tuple(doer.outages),
        leases_left=tuple(f"{one['id']} at {one['worker_id']}" for one in read(stage.url, LEASES)),
        spools=tuple(name for actor in stage.actors.values() for name in spooled(actor)),
        orphans=(*stage.lingered.values(), *stage.left_behind()),
        open_ports=tuple(f"{actor.name}: {actor.port}" for actor in stage.actors.values() if _open(actor.port)),
        leftover_files=tuple(str(path) for path in leftovers(stage)),
        lease_s=LEASE_S,
        poll_s=POLL_S,
        ended_at=ended_at,
    )


def _row(found: dict[str, Any], plan: TaskPlan | None) -> Row:
    known = {name: found[name] for name in Row.__dataclass_fields__ if name in found}
    more = {} if plan is None else {"makes": plan.makes, "after": plan.after}
    return Row(**{**known, "result_data": found["result_data"] or {}, **more})


def _event(found: dict[str, Any]) -> Event:
    return Event(**{name: found[name] for name in Event.__dataclass_fields__ if name in found})


# -- files -----------------------------------------------------------------------------------------------------------


def _artifacts(stage: Stage, plans: dict[str, TaskPlan]) -> list[Artifact]:
    found = []
    for actor in stage.actors.values():
        for path in sorted((actor.data_dir / "outputs").rglob("*")):
            if path.is_file():
                task_id = path.name[:ID_LENGTH]
                name = path.name[ID_LENGTH + 1 :]
                found.append(_artifact(task_id, actor.name, str(path), name, path.read_bytes(), plans))
    if stage.storage is not None:
        for place in stage.storage.storage.paths(BUCKET):
            data = stage.storage.storage.content(BUCKET, place) or b""
            url = f"{stage.storage.url}/storage/v1/object/public/{BUCKET}/{place}"
            task_id, _, name = place.split("/")
            found.append(_artifact(task_id, "storage", url, name, data, plans))
    return found


def _artifact(task_id: str, worker: str, place: str, name: str, data: bytes, plans: dict[str, TaskPlan]) -> Artifact:
    plan = plans.get(task_id)
    expected = expected_sha256(plan.kind, plan.params).get(name) if plan is not None else None
    return Artifact(task_id, worker, place, hashlib.sha256(data).hexdigest(), _decodes(name, data), expected)


def _decodes(name: str, data: bytes) -> bool:
    """Whether it is what its name says, to the last frame."""
    import av
    from PIL import Image, UnidentifiedImageError

    try:
        if name.endswith((".png", ".jpg", ".webp")):
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
            return True
        if name.endswith((".mp4", ".webm")):
            with av.open(io.BytesIO(data)) as film:
                return sum(1 for _ in film.decode(video=0)) > 0
        return bool(data.decode())
    except (av.FFmpegError, UnidentifiedImageError, OSError, UnicodeDecodeError, ValueError):
        return False


def spooled(actor: Actor) -> list[str]:
    """What waits to be settled; the journal's own file always lies there."""
    folder = actor.data_dir / "spool"
    return [str(path) for path in folder.iterdir() if path.name != "journal"] if folder.exists() else []


def leftovers(stage: Stage) -> list[Path]:
    """Files of runs that are over, sockets, and what names a supervisor that is gone."""
    found: list[Path] = []
    for actor in stage.actors.values():
        found += (actor.data_dir / "work").glob("*/**/*")  # what holds a handler's tasks stays
        found += engine_files(actor)
        found += [path for path in (actor.data_dir / "run.json", stage.short / actor.name) if path.exists()]
    return found


def engine_files(actor: Actor) -> list[Path]:
    """What its ComfyUI has of tasks that are over. A handler that was killed sweeps only when it next starts one."""
    engine = actor.data_dir / "handlers" / "comfy" / "engine"
    roots = (engine / "input" / "wan2gp", engine / "output" / "wan2gp")
    return [path for root in roots for path in root.rglob("*") if path.is_file()]


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- what only the stage can tell ------------------------------------------------------------------------------------


def remarks(stage: Stage, client: Client, history: History) -> list[Violation]:
    """Beyond the books' rules: workers that crashed, work that ended otherwise than its own code leads to."""
    found = [Violation(None, "client", trouble) for trouble in client.troubles]
    for actor in stage.actors.values():
        for at, code in actor.exits:
            found.append(Violation(None, "worker exit", f"{actor.name} ended with {code} at {at:.3f}"))
    plans = {task.id: task for task in stage.plan.tasks}
    for row in history.rows:
        plan = plans.get(row.id)
        if plan is not None and (wrong := _unnatural(row, plan)):
            found.append(Violation(row.id, "unexplained end", wrong))
    return found


def _unnatural(row: Row, plan: TaskPlan) -> str:
    code = (row.error_message or "").partition(":")[0]
    ends = KINDS[plan.kind].ends
    if row.status == "Complete" and ends == "Failed":
        return f"a {plan.kind} cannot succeed, and is Complete"
    if row.status == "Failed" and ends == "Complete" and code not in EXPLAINED:
        return f"a {plan.kind} failed with what no fault here causes: {row.error_message}"
    return ""


def logs_of(stage: Stage) -> dict[str, str]:
    """Each worker's log, also what of it was set aside, oldest first."""
    folders = {name: actor.data_dir / "logs" for name, actor in stage.actors.items()}
    return {name: "".join(path.read_text() for path in _oldest_first(folder)) for name, folder in folders.items()}


def _oldest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("worker*.log"), key=lambda path: path.stat().st_mtime)


def kept(history: History, violations: Sequence[Violation]) -> str:
    """The whole story as JSON, for a look."""
    return json.dumps(
        {"history": dataclasses.asdict(history), "violations": [dataclasses.asdict(one) for one in violations]},
        default=str,
        indent=1,
    )
