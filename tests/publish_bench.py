"""A settler on its own: a real database and real folders, a spool, a handler's work directory made by the test."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan2gp.protocol import Artifact
from wan2gp.supervisor.postgres import PostgresQueue
from wan2gp.supervisor.publish import LocalStore, Store
from wan2gp.supervisor.queue import ClaimedTask, FinishReply, Verb
from wan2gp.supervisor.settler import Settler
from wan2gp.supervisor.spool import Ending, Spool

PATIENCE_S = 20.0
LEASE_S = 90.0


class Facts:
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, /, **fields: Any) -> None:
        self.said.append((name, fields))

    def bind(self, **who: str) -> Facts:
        return self

    def names(self) -> list[str]:
        return [name for name, _ in self.said]


def artifact(path: str, text: str, name: str | None = None, **more: Any) -> Artifact:
    data = text.encode()
    return Artifact(path, name or path, "text", "text/plain", len(data), hashlib.sha256(data).hexdigest(), **more)


@dataclass
class Bench:
    """`life()` is a settler as one life of the worker has it; several may follow each other on the same folders."""

    path: Path
    queue: PostgresQueue
    facts: Facts = field(default_factory=Facts)
    settled: list[Ending] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    @property
    def outputs(self) -> Path:
        return self.path / "outputs"

    @property
    def spool_dir(self) -> Path:
        return self.path / "spool"

    def shown(self) -> dict[str, str]:
        """The files that a user sees: contents by name, without the task's id."""
        files = [path for path in self.outputs.rglob("*") if path.is_file()]
        return {path.name.partition("_")[2]: path.read_text() for path in files}

    def rest(self) -> list[str]:
        """What is in the spool besides its journal."""
        return [path.name for path in self.spool_dir.iterdir() if not path.name.startswith("journal")]

    def claim(self, task_type: str = "maker") -> ClaimedTask:
        self.queue.enqueue(task_type, {})
        (task,) = self.queue.claim(str(uuid.uuid4()), "w", [task_type], 1, LEASE_S).tasks
        return task

    def ending(self, task: ClaimedTask, files: dict[str, str] | None = None, **fields: Any) -> Ending:
        """A handler's success with text files, which lie in the work directory."""
        work_dir = self.path / "work" / task.id / task.lease_id[:16]
        work_dir.mkdir(parents=True)
        made = []
        for number, (name, text) in enumerate((files or {}).items()):
            (work_dir / f"f{number}").write_text(text)
            made.append(artifact(f"f{number}", text, name, node_id=str(number)))
        given = {"verb": Verb.COMPLETE, "artifacts": tuple(made), **fields}
        return Ending(task.id, task.task_type, task.attempt, task.lease_id, task.token, work_dir=str(work_dir), **given)

    def life(self, queue: Any = None, store: Store | None = None) -> Life:
        return Life(self, queue or self.queue, store or LocalStore(self.outputs))

    def row(self, task: ClaimedTask) -> dict[str, Any]:
        found = self.queue.task(task.id)
        assert found is not None
        return dict(found)

    def completions(self, task: ClaimedTask) -> int:
        return [event["name"] for event in self.row(task)["events"]].count("completed")


class Life:
    """A context: the settler runs inside, and ends without its last words when left (`crash` says how brutally)."""

    def __init__(self, bench: Bench, queue: Any, store: Store) -> None:
        self.spool = Spool(bench.spool_dir)
        self.settler = Settler(queue, self.spool, store, bench.facts, bench.settled.append, bench.failures.append)

    def __enter__(self) -> Settler:
        self.settler.start()
        return self.settler

    def __exit__(self, *_: object) -> None:
        self.settler.stop()
        self.spool.close()


class Power(BaseException):
    """The machine goes off here: nothing of ours may catch it and go on."""


class CutQueue:
    """The real queue, but the power goes off before or after the answer of `finish_many`."""

    def __init__(self, queue: PostgresQueue, *, after: bool) -> None:
        self._queue = queue
        self._after = after

    def finish_many(self, settlements: Any) -> tuple[FinishReply, ...]:
        if self._after:
            self._queue.finish_many(settlements)
        raise Power


class CutStore(LocalStore):
    """Publishes for real until the power goes off, after `moves` files."""

    def __init__(self, outputs: Path, *, moves: int) -> None:
        super().__init__(outputs)
        self._moves = moves

    def commit(self, ending: Ending, staged: Any) -> None:
        super().commit(ending, staged[: self._moves])
        raise Power


class CutStaging(LocalStore):
    """The power goes off when the files were taken and the database knows nothing."""

    def stage(self, ending: Ending, folder: Path) -> Any:
        super().stage(ending, folder)
        raise Power
