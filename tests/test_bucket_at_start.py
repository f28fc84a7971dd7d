"""One look at the bucket when a worker starts: what would go wrong with every result is said before the first."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.storage_server import StorageServer
from tests.storage_stand_in import BucketSpec, Refusal
from wan2gp.config import Config, Secret, load_config
from wan2gp.supervisor import stores
from wan2gp.supervisor.backends import Backend
from wan2gp.supervisor.stores import bucket_warning
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.supabase_queue import SupabaseQueue


@pytest.fixture
def backend(storage_server: StorageServer) -> Iterator[Backend]:
    project = SupabaseProject(storage_server.url, Secret(storage_server.key))
    backend = Backend(SupabaseQueue(project), "supabase", project=project)
    yield backend
    backend.close()


def configured(server: StorageServer, **environ: str) -> Config:
    return load_config(
        environ={"SUPABASE_URL": server.url, "SUPABASE_SERVICE_ROLE_KEY": server.key, "WORKER_ID": "w", **environ}
    )


def test_a_public_bucket_is_looked_at_once_and_nothing_is_said(storage_server: StorageServer, backend: Backend) -> None:
    assert bucket_warning(configured(storage_server), backend) is None
    assert storage_server.seen == [("GET", "/storage/v1/bucket/image_uploads", 200)]


def test_a_private_bucket_whose_urls_open_for_nobody(storage_server: StorageServer, backend: Backend) -> None:
    storage_server.storage.buckets["image_uploads"] = BucketSpec(public=False)
    said = bucket_warning(configured(storage_server), backend)
    assert said is not None and "'image_uploads' is private" in said and "WAN2GP_STORAGE_URL=signed" in said
    assert bucket_warning(configured(storage_server, WAN2GP_STORAGE_URL="signed"), backend) is None


def test_a_bucket_that_there_is_not(storage_server: StorageServer, backend: Backend) -> None:
    said = bucket_warning(configured(storage_server, SUPABASE_VIDEO_BUCKET="nowhere"), backend)
    assert said is not None and "no bucket 'nowhere'" in said and "SUPABASE_VIDEO_BUCKET" in said


def test_a_key_that_storage_refuses(storage_server: StorageServer, backend: Backend) -> None:
    config = configured(storage_server)
    storage_server.key = "another"
    said = bucket_warning(config, backend)
    assert said is not None and "does not accept the key" in said and "sb_secret" not in said


@pytest.mark.parametrize(
    "refusal", [Refusal(503, "", times=9), Refusal(404, "<html>", times=9), Refusal(200, "<html>", times=9)]
)
def test_what_cannot_be_told_is_not_told(storage_server: StorageServer, backend: Backend, refusal: Refusal) -> None:
    storage_server.storage.mischief.refusals = [refusal]
    assert bucket_warning(configured(storage_server), backend) is None
    assert len(storage_server.seen) == 1


def test_a_storage_that_is_away_or_silent_holds_up_no_start(
    storage_server: StorageServer, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage_server.down()
    assert bucket_warning(configured(storage_server), backend) is None
    storage_server.up()
    storage_server.hangs.set()
    monkeypatch.setattr(stores, "LOOK_S", 0.2)
    began = time.monotonic()
    assert bucket_warning(configured(storage_server), backend) is None
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("environ", [{"WAN2GP_PUBLISH_TO": "local"}, {"WAN2GP_QUEUE": "embedded"}])
def test_results_that_go_elsewhere_need_no_bucket(
    storage_server: StorageServer, backend: Backend, environ: dict[str, str]
) -> None:
    assert bucket_warning(configured(storage_server, **environ), backend) is None
    backend.kind = "edge"
    assert bucket_warning(configured(storage_server), backend) is None
    assert storage_server.headers == []
