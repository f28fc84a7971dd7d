"""The edge backend against the predecessor's functions on its own tables: every fault of them, and answers that are
lost. ``service`` is the project's key, which opens the tables too; ``pat`` a user's token, which does not."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.edge_projects import BUCKET, KEYS, PROJECT, USER, WORKER, EdgeProject
from wan2gp.protocol import Artifact
from wan2gp.supervisor.edge_calls import EdgeCalls
from wan2gp.supervisor.edge_queue import EdgeQueue
from wan2gp.supervisor.edge_store import EdgeStore
from wan2gp.supervisor.patience import Patience
from wan2gp.supervisor.publish import PublishFailed, Staged, outcome_of
from wan2gp.supervisor.queue import (
    ClaimedTask,
    FinishReply,
    LeaseBeat,
    Settlement,
    Verb,
)
from wan2gp.supervisor.spool import Ending

TYPES = ("comfy", "t2v")
ALL = pytest.mark.parametrize("key", ["service", "pat"])
_claims = itertools.count()


class Heard(list[tuple[str, dict[str, Any]]]):
    """Facts, as they were stated."""

    def __call__(self, name: str, /, **fields: Any) -> None:
        self.append((name, fields))

    def bind(self, **who: str) -> Heard:
        return self

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


def claim(queue: EdgeQueue, types: Sequence[str] = TYPES) -> ClaimedTask | None:
    reply = queue.claim(f"claim-{next(_claims)}", WORKER, types, 1, 90.0)
    return reply.tasks[0] if reply.tasks else None


def claimed(queue: EdgeQueue, types: Sequence[str] = TYPES) -> ClaimedTask:
    task = claim(queue, types)
    assert task is not None
    return task


def end(task: ClaimedTask, verb: Verb, text: str | None = None, **more: Any) -> Settlement:
    return Settlement(task.id, task.token, verb, error_message=text, project_id=task.project_id, **more)


def beats(*tasks: ClaimedTask) -> list[LeaseBeat]:
    return [LeaseBeat(task.id, task.token, 0.5, "step", "half") for task in tasks]


class Made:
    """A result in the spool, and the store that publishes it."""

    def __init__(self, edge: EdgeProject, key: str, folder: Path, task: ClaimedTask, **files: bytes) -> None:
        self.work, self.spool = folder / f"work-{task.lease_id}", folder / f"spool-{task.lease_id}"
        self.work.mkdir()
        self.spool.mkdir()
        artifacts = tuple(self._artifact(name.replace("_", "."), content) for name, content in files.items())
        self.ending = Ending(
            task.id,
            task.task_type,
            task.attempt,
            task.lease_id,
            task.token,
            Verb.COMPLETE,
            str(self.work),
            artifacts=artifacts,
            project_id=task.project_id,
        )
        self.project = edge.project(KEYS[key](edge))
        self.store = self.new_store()
        self.staged: list[Staged] = []

    def _artifact(self, name: str, content: bytes) -> Artifact:
        (self.work / name).write_bytes(content)
        video = name.endswith("mp4")
        return Artifact(
            path=name,
            name=name,
            kind="video" if video else "poster",
            mime="video/mp4" if video else "image/jpeg",
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            primary=video,
            poster="film.jpg" if video else None,
        )

    def new_store(self) -> EdgeStore:
        patience = Patience(first_s=0.02, max_s=0.1, answer_s=10.0)
        return EdgeStore(self.project, calls=EdgeCalls(self.project, pause_s=0.02), patience=patience)

    def upload(self, stop: threading.Event | None = None) -> Settlement:
        """Send all; what the queue is told then."""
        self.staged = self.store.stage(self.ending, self.spool)
        self.staged = self.store.upload(self.ending, self.staged, stop or threading.Event())
        return self.ending.settlement(**outcome_of(self.ending, self.staged))


def insist(queue: EdgeQueue, settlement: Settlement, tries: int = 5) -> FinishReply:
    """As the publisher does: again, while it fails for now."""
    for _ in range(tries):
        try:
            return queue.finish(settlement)
        except PublishFailed as failure:
            assert not failure.permanent, failure.message
    raise AssertionError("it never ends")


class TestClaiming:
    @ALL
    def test_the_oldest_is_ours_and_running(self, edge: EdgeProject, key: str) -> None:
        first, second = edge.insert(params={"prompt": "ü"}), edge.insert("t2v")
        queue = edge.queue(KEYS[key](edge))
        assert queue.rest is (key == "service")
        task = claimed(queue)
        assert (task.id, task.task_type, task.params, task.attempt) == (first, "comfy", {"prompt": "ü"}, 1)
        assert task.project_id == PROJECT and len(task.lease_id) >= 8
        assert claimed(queue).id == second and claim(queue) is None
        assert edge.statuses(first, second) == ["In Progress"] * 2


class TestEnding:
    @ALL
    def test_a_result_is_uploaded_completed_and_its_generation_made_once(
        self, edge: EdgeProject, tmp_path: Path, key: str
    ) -> None:
        edge.insert()
        queue = edge.queue(KEYS[key](edge))
        task = claimed(queue)
        made = Made(edge, key, tmp_path, task, film_mp4=b"film", film_jpg=b"still")
        settlement = made.upload()
        reply = queue.finish(settlement)
        assert reply == FinishReply(True, "Complete")
        assert queue.finish(settlement).repeated
        name = f"{USER}/tasks/{task.id}/1-{task.lease_id[:8]}-film"
        assert edge.stack.storage.content(BUCKET, f"{name}.mp4") == b"film"
        assert edge.stack.storage.mime(BUCKET, f"{name}.jpg") == "image/jpeg"
        row = edge.row(task.id)
        assert (row["status"], row["output_location"]) == ("Complete", made.staged[0].url)
        (generation,) = edge.generations(task.id)
        assert generation["thumbnail_url"].endswith(f"{name}.jpg")
