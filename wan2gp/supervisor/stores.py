"""What a Supabase project adds to a worker: a place for results, signatures for inputs, the app's own completion."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wan2gp.config import Config, ConfigError
from wan2gp.logs import Facts
from wan2gp.supervisor.backends import Backend
from wan2gp.supervisor.direct_store import DirectStore
from wan2gp.supervisor.publish import LocalStore, PublishFailed, Store
from wan2gp.supervisor.queue import TaskQueue
from wan2gp.supervisor.signer import Signer
from wan2gp.supervisor.storage_store import StorageStore

if TYPE_CHECKING:
    from wan2gp.supervisor.supabase_project import SupabaseProject  # it loads an HTTP client

SIGNATURE_S = 15.0
"""How long one signature may take: others wait behind it, seconds."""
LOOK_S = 5.0
"""How long the look at the bucket may hold up a start, seconds."""
_PLAIN = ("publish.bucket_missing", "publish.forbidden")
"""Failures that no other look would take back."""


def store_for(config: Config, backend: Backend) -> Store:
    """Where this worker's results go."""
    return DirectStore(_inner_store(config, backend), functools.partial(_put, config))


def _inner_store(config: Config, backend: Backend) -> Store:
    if backend.kind == "edge":
        from wan2gp.supervisor.edge_store import EdgeStore

        assert backend.project is not None
        return EdgeStore(backend.project, uploads=config.uploads)
    if backend.project is not None and config.publishes_to_storage:
        from wan2gp.supervisor.storage import Bucket

        return StorageStore(
            Bucket(backend.project, config.storage_bucket),
            config.worker_id,
            template=config.storage_path,
            signed_s=config.storage_signed_url_s if config.storage_url == "signed" else None,
            uploads=config.uploads,
        )
    return LocalStore(config.data_dir / "outputs")


def _put(config: Config, url: str, file: Path, mime: str, stop: threading.Event, begun_before: bool) -> None:
    from wan2gp.supervisor.signed_put import put

    put(url, file, mime, stop=stop, allow_private_urls=config.allow_private_put_urls, begun_before=begun_before)


def bucket_warning(config: Config, backend: Backend) -> str | None:
    """What is wrong with the bucket for results, of which the first of them would tell otherwise. None when all is
    well, when results go elsewhere, and when it cannot be told within :data:`LOOK_S`: a Storage that is away stops no
    worker."""
    if backend.project is None or backend.kind == "edge" or not config.publishes_to_storage:
        return None
    from wan2gp.supervisor.patience import Patience, apart
    from wan2gp.supervisor.storage import Bucket

    bucket = Bucket(backend.project, config.storage_bucket, patience=Patience(connect_s=LOOK_S, answer_s=LOOK_S))
    public: list[bool] = []
    late = threading.Event()
    timer = threading.Timer(LOOK_S, late.set)
    timer.daemon = True
    timer.start()
    try:
        apart(lambda: public.append(bucket.is_public()), late)
    except PublishFailed as failure:
        return f"No result can be published: {failure.message}" if failure.code in _PLAIN else None
    finally:
        timer.cancel()
    if config.storage_url == "signed" or all(public):
        return None
    return (
        f"The bucket {config.storage_bucket!r} is private, so the URLs of results will open for nobody: set "
        "WAN2GP_STORAGE_URL=signed, or make the bucket public"
    )


def signer_for(config: Config, backend: Backend, post: Callable[[Callable[[], None]], None]) -> Signer:
    """Who signs the inputs that are named as ``storage://bucket/path``."""
    project = backend.project
    if project is None:
        return Signer("", None, post)
    return Signer(project.url, functools.partial(_sign, project), post, buckets=config.input_buckets)


def _sign(project: SupabaseProject, bucket: str, path: str, ttl_s: float) -> str:
    from wan2gp.supervisor.patience import Patience
    from wan2gp.supervisor.storage import Bucket

    return Bucket(project, bucket, patience=Patience(answer_s=SIGNATURE_S)).sign(path, ttl_s)


def completed_by(config: Config, backend: Backend, facts: Facts) -> TaskQueue:
    """The queue, as results are told to it: by our SQL, or by way of the predecessor's Edge Function.

    Raises :class:`~wan2gp.config.ConfigError` when that function was asked for by name and cannot be had.
    """
    if backend.kind == "edge":
        from wan2gp.supervisor.edge_queue import EdgeQueue

        assert isinstance(backend.queue, EdgeQueue)
        backend.queue.speak(facts)
        return backend.queue
    named = config.finish_via == "complete_task"
    possible = backend.project is not None and config.publishes_to_storage and backend.kind != "edge"
    if config.finish_via == "sql" or not (possible or named):
        return backend.queue
    if not possible:
        raise ConfigError(["finish_via = complete_task needs results in Supabase Storage (publish.to)"])
    assert backend.project is not None
    from wan2gp.supervisor.complete_task import CompletingQueue, available

    there = available(backend.project)
    if there is False and named:
        raise ConfigError(["finish_via = complete_task, but the project has no such Edge Function: deploy it, or sql"])
    # Unknown, because the functions do not answer now: on the predecessor's database results must go through it.
    if there or (there is None and (named or backend.queue.facts().get("predecessor"))):
        return CompletingQueue(backend.queue, backend.project, facts)
    return backend.queue
