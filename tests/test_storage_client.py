"""Uploads into Storage that are cut, refused, expired, hung or hit by a stop: nothing lost, nothing sent twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.storage_server import StorageServer
from tests.storage_stand_in import BucketSpec, Refusal
from tests.storage_tus import CHUNK
from wan2gp.config import Secret
from wan2gp.protocol import Artifact
from wan2gp.supervisor.patience import Patience
from wan2gp.supervisor.publish import Staged
from wan2gp.supervisor.queue import Verb
from wan2gp.supervisor.spool import Ending
from wan2gp.supervisor.storage import Bucket, PublishFailed, StorageMissing
from wan2gp.supervisor.storage_store import StorageStore
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.upload_file import UploadFile

NAME = "image_uploads"
MIB = 1024**2
QUICK = Patience(first_s=0.005, max_s=0.02)
STOP = threading.Event()
"""Never set."""
RESUMABLE = "/storage/v1/upload/resumable"


@pytest.fixture
def project(storage_server: StorageServer) -> Iterator[SupabaseProject]:
    project = SupabaseProject(storage_server.url, Secret(storage_server.key))
    yield project
    project.close()


@pytest.fixture
def bucket(project: SupabaseProject) -> Bucket:
    return Bucket(project, NAME, patience=QUICK)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def make(size: int, name: str = "clip.mp4") -> Path:
        path = tmp_path / name
        block = os.urandom(1024)
        path.write_bytes((block * (size // 1024 + 1))[:size])
        return path

    return make


def put(bucket: Bucket, file: Path, path: str = "task/1-lease/clip.mp4") -> str:
    bucket.put(path, file, "video/mp4", stop=threading.Event())
    return path


def failure(call: Callable[[], Any]) -> PublishFailed:
    with pytest.raises(PublishFailed) as caught:
        call()
    return caught.value


def methods(server: StorageServer, method: str) -> int:
    return sum(1 for seen, path, _ in server.seen if seen == method and path.startswith(RESUMABLE))


# -- what goes well ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100_000, CHUNK])
def test_small_files_are_one_request(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], size: int
) -> None:
    file = make(size)
    path = put(bucket, file)
    assert [(method, status) for method, _, status in storage_server.seen] == [("POST", 200)]
    assert storage_server.storage.content(NAME, path) == file.read_bytes()
    assert storage_server.storage.mime(NAME, path) == "video/mp4"


@pytest.mark.parametrize("size", [CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 12345])
def test_large_files_go_in_chunks(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], size: int
) -> None:
    file = make(size)
    path = put(bucket, file)
    assert (methods(storage_server, "POST"), methods(storage_server, "PATCH")) == (1, -(-size // CHUNK))
    assert methods(storage_server, "HEAD") == 0
    assert storage_server.storage.content(NAME, path) == file.read_bytes()
    assert storage_server.storage.mime(NAME, path) == "video/mp4"


@pytest.mark.parametrize("size", [1000, CHUNK + 1000])
@pytest.mark.parametrize("mime", ["video/mp4\r\nX-Evil: 1", "", "vidéo/mp4", "nonsense", "a/b; c=d"])
def test_a_type_that_no_header_takes_is_nothing_special(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], size: int, mime: str
) -> None:
    file = make(size)
    bucket.put("x.mp4", file, mime, stop=threading.Event())
    assert storage_server.storage.mime(NAME, "x.mp4") == "application/octet-stream"
    assert storage_server.storage.content(NAME, "x.mp4") == file.read_bytes()


@pytest.mark.parametrize("size", [1000, CHUNK + 1000])
def test_a_repeat_is_harmless(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], size: int
) -> None:
    put(bucket, make(size, "first.mp4"))
    again = make(size, "second.mp4")
    path = put(bucket, again)
    assert storage_server.storage.paths(NAME) == [path]
    assert storage_server.storage.content(NAME, path) == again.read_bytes()


def test_several_at_once_keep_apart(storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]) -> None:
    files = {f"task/{n}.mp4": make(CHUNK + n * 1000, f"{n}.mp4") for n in range(4)}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: put(bucket, files[path], path), files))
    for path, file in files.items():
        assert storage_server.storage.content(NAME, path) == file.read_bytes()


@pytest.mark.parametrize("path", ["plain.mp4", "a b/(1) & =@;:+,?'!$*.mp4", "task/1-ab/clip.mp4"])
def test_every_path_that_storage_takes_has_urls_that_open(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], path: str
) -> None:
    put(bucket, make(500), path)
    assert storage_server.storage.paths(NAME) == [path]
    for url in (bucket.url(path, None), bucket.url(path, 60.0)):
        answer = httpx.get(url)
        assert (answer.status_code, len(answer.content)) == (200, 500), url
        assert url.startswith(storage_server.url + "/storage/v1/object/") and storage_server.key not in url
    assert httpx.get(bucket.url(path, 60.0) + "x").status_code == 400


# -- cuts and losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cuts", [[3 * MIB], [1], [100_000, 2 * MIB, 1], [CHUNK - 1], [5 * MIB, 5 * MIB, 5 * MIB, 5 * MIB, 5 * MIB]]
)
def test_a_cut_upload_goes_on_and_sends_nothing_twice(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], cuts: list[int]
) -> None:
    file = make(4 * CHUNK + 777)
    storage_server.storage.mischief.cuts = list(cuts)
    path = put(bucket, file)
    assert storage_server.storage.mischief.cuts == []
    assert storage_server.storage.content(NAME, path) == file.read_bytes()
    assert storage_server.storage.arrived == file.stat().st_size
    assert methods(storage_server, "POST") == 1


def test_a_cut_small_upload_is_sent_again(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    file = make(500_000)
    storage_server.storage.mischief.cuts = [1000, 200_000]
    path = put(bucket, file)
    assert storage_server.storage.content(NAME, path) == file.read_bytes()


def test_cuts_without_progress_end_in_waiting(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    storage_server.storage.mischief.cuts = [0] * 100
    failed = failure(lambda: put(bucket, make(2 * CHUNK)))
    assert (failed.code, failed.permanent) == ("publish.unavailable", False)
    assert methods(storage_server, "PATCH") == QUICK.tries


def test_an_outage_between_two_calls_costs_nothing_that_arrived(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    file = make(3 * CHUNK)
    storage_server.storage.mischief.cuts = [CHUNK // 2] + [0] * QUICK.tries
    assert not failure(lambda: put(bucket, file)).permanent
    storage_server.storage.mischief.cuts = []
    storage_server.down()
    assert failure(lambda: put(bucket, file)).code == "publish.unavailable"
    storage_server.up()
    path = put(bucket, file)
    assert storage_server.storage.content(NAME, path) == file.read_bytes()
    assert storage_server.storage.arrived == file.stat().st_size
    assert methods(storage_server, "POST") == 1


def test_another_file_for_the_same_path_begins_anew(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    storage_server.storage.mischief.cuts = [CHUNK // 2] + [0] * QUICK.tries
    failure(lambda: put(bucket, make(3 * CHUNK, "first.mp4")))
    storage_server.storage.mischief.cuts = []
    other = make(3 * CHUNK, "second.mp4")
    path = put(bucket, other)
    assert storage_server.storage.content(NAME, path) == other.read_bytes()


@pytest.mark.parametrize("size", [1000, 2 * CHUNK])
def test_lost_answers_store_it_once(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], size: int
) -> None:
    file = make(size)
    storage_server.storage.mischief.lost = 3
    path = put(bucket, file)
    assert storage_server.storage.content(NAME, path) == file.read_bytes()
    assert storage_server.storage.paths(NAME) == [path]


def test_the_answer_to_the_last_chunk_is_lost(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    file = make(2 * CHUNK)
    storage = storage_server.storage
    storage.mischief.lost_at = 2 * CHUNK
    path = put(bucket, file)
    assert storage.content(NAME, path) == file.read_bytes() and storage.arrived == 2 * CHUNK
    assert ("GET", f"/storage/v1/object/info/{NAME}/{path}", 200) in storage_server.seen


def test_bytes_that_all_arrived_are_no_object_yet(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    """The server took every byte and failed when it made the object of them: it must not count as published."""
    file = make(2 * CHUNK)
    storage = storage_server.storage
    storage.mischief.lost_at = 2 * CHUNK
    gone = {"statusCode": "404", "error": "not_found", "message": "Object not found", "code": "NoSuchKey"}
    storage.mischief.refusals = [Refusal(400, gone, method="GET", part="object/info")]
    put(bucket, file)
    assert methods(storage_server, "POST") == 2 and storage.arrived == 4 * CHUNK


def test_an_expired_upload_begins_anew(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    file = make(3 * CHUNK)
    storage = storage_server.storage
    storage.mischief.cuts = [CHUNK // 2] + [0] * QUICK.tries
    failure(lambda: put(bucket, file))
    storage.mischief.cuts = []
    storage.expire_uploads()
    path = put(bucket, file)
    assert storage.content(NAME, path) == file.read_bytes() and methods(storage_server, "POST") == 2


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_is_lost_again_and_again_waits(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], status: int
) -> None:
    refusal = Refusal(status, "The file for this url was not found\n", method="PATCH", times=1000)
    storage_server.storage.mischief.refusals = [refusal]
    failed = failure(lambda: put(bucket, make(2 * CHUNK)))
    assert (failed.code, failed.permanent) == ("publish.unavailable", False)
    assert methods(storage_server, "POST") == 4


def test_an_offset_conflict_is_solved_by_asking(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    file = make(2 * CHUNK)
    storage_server.storage.mischief.refusals = [Refusal(409, "Upload-Offset conflict\n", method="PATCH", times=2)]
    path = put(bucket, file)
    assert storage_server.storage.content(NAME, path) == file.read_bytes()
    assert methods(storage_server, "HEAD") == 2 and methods(storage_server, "POST") == 1


# -- refusals ---------------------------------------------------------------------------------------------------------

QUOTA = (
    "Service for this project is restricted due to the following violations: exceed_storage_size_quota. "
    "The project owner must upgrade their plan or remove spend caps to restore service."
)


def missing(server: StorageServer) -> None:
    del server.storage.buckets[NAME]


def small_limit(server: StorageServer) -> None:
    server.storage.buckets[NAME] = BucketSpec(size_limit=10_000)


def pictures_only(server: StorageServer) -> None:
    server.storage.buckets[NAME] = BucketSpec(mime_types=["image/*"])


def over_quota(server: StorageServer) -> None:
    server.storage.mischief.refusals = [Refusal(402, {"message": QUOTA}, times=1000)]


def another_key(server: StorageServer) -> None:
    server.key += "x"


def unknown_key(server: StorageServer) -> None:
    """As the gateway of a hosted project says it."""
    said = {"message": "Invalid API key", "hint": "Double check your Supabase `anon` or `service_role` API key."}
    server.storage.mischief.refusals = [Refusal(401, said, times=1000)]


def elsewhere(server: StorageServer) -> None:
    server.storage.mischief.refusals = [Refusal(404, "<html>no such page</html>", times=1000)]


def moved(server: StorageServer) -> None:
    headers = {"Location": "http://127.0.0.1:9/storage/v1/"}
    server.storage.mischief.refusals = [Refusal(308, "", headers, times=1000)]


@pytest.mark.parametrize("size", [20_000, CHUNK + 1])
@pytest.mark.parametrize(
    ("mischief", "code", "words"),
    [
        (missing, "publish.bucket_missing", ["no bucket 'image_uploads'", "SUPABASE_VIDEO_BUCKET"]),
        (small_limit, "publish.too_large", ["bytes", "file size limit of the bucket 'image_uploads'", "upload limit"]),
        (pictures_only, "publish.refused", ["video/mp4", "settings of the bucket"]),
        (over_quota, "publish.quota", ["exceed_storage_size_quota", "spend cap"]),
        (another_key, "publish.forbidden", ["JWS Protected Header is invalid", "SUPABASE_SERVICE_ROLE_KEY"]),
        (unknown_key, "publish.forbidden", ["Invalid API key", "SUPABASE_SERVICE_ROLE_KEY"]),
        (elsewhere, "publish.refused", ["404", "SUPABASE_URL"]),
        (moved, "publish.refused", ["308", "SUPABASE_URL"]),
    ],
)
def test_what_only_a_person_can_mend_says_what_that_is(
    storage_server: StorageServer,
    bucket: Bucket,
    make: Callable[..., Path],
    size: int,
    mischief: Callable[[StorageServer], None],
    code: str,
    words: list[str],
) -> None:
    mischief(storage_server)
    failed = failure(lambda: put(bucket, make(size)))
    assert (failed.code, failed.permanent) == (code, True), failed.message
    assert "image_uploads/task/1-lease/clip.mp4" in failed.message and "publish retry" in failed.message
    assert all(word in failed.message for word in words), failed.message
    if code == "publish.too_large":
        assert str(size) in failed.message
    assert len(storage_server.seen) == 1, "a permanent refusal is not tried again"


@pytest.mark.parametrize("size", [1000, CHUNK + 1])
def test_a_path_with_letters_that_storage_refuses(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], size: int
) -> None:
    failed = failure(lambda: put(bucket, make(size), "task/naïve café.mp4"))
    assert failed.code == "publish.refused" and failed.permanent and "Invalid key" in failed.message


@pytest.mark.parametrize("path", ["../x", "a/../b", "a//b", "./x", "", "/x", "a\nb", "\udc80", "x" * 2000])
def test_a_path_that_leads_elsewhere_is_not_asked_for(bucket: Bucket, make: Callable[..., Path], path: str) -> None:
    for call in (lambda: put(bucket, make(1), path), lambda: bucket.sign(path, 60), lambda: bucket.url(path, None)):
        assert failure(call).code == "publish.refused"


HTML = "<html><body>Bad gateway</body></html>"


@pytest.mark.parametrize("size", [1000, CHUNK + 1])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"statusCode": "500", "error": "Internal", "message": "Internal Server Error", "code": "InternalError"}),
        (400, {"statusCode": "503", "error": "DatabaseReadOnly", "message": "read-only", "code": "DatabaseReadOnly"}),
        (400, {"statusCode": "423", "error": "ResourceLocked", "message": "locked", "code": "ResourceLocked"}),
        (544, {"statusCode": "544", "error": "DatabaseTimeout", "message": "timed out", "code": "DatabaseTimeout"}),
        (502, HTML),
        (504, ""),
        (429, {"statusCode": "429", "error": "too_many_connections", "message": "Too many", "code": "SlowDown"}),
        (408, ""),
    ],
)
def test_what_passes_is_tried_again(
    storage_server: StorageServer,
    bucket: Bucket,
    make: Callable[..., Path],
    size: int,
    status: int,
    body: str | dict[str, str],
) -> None:
    file = make(size)
    storage_server.storage.mischief.refusals = [Refusal(status, body, times=2)]
    path = put(bucket, file)
    assert storage_server.storage.content(NAME, path) == file.read_bytes()

    storage_server.storage.mischief.refusals = [Refusal(status, body, times=1000)]
    failed = failure(lambda: put(bucket, file))
    assert (failed.code, failed.permanent) == ("publish.unavailable", False), failed.message


def test_a_long_retry_after_is_the_callers_to_wait_for(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    storage_server.storage.mischief.refusals = [Refusal(503, "", {"Retry-After": "120"}, times=1000)]
    failed = failure(lambda: put(bucket, make(1000)))
    assert (failed.permanent, failed.retry_after_s, len(storage_server.seen)) == (False, 120.0, 1)


def test_a_page_that_is_not_storage_is_no_success(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    storage_server.storage.mischief.refusals = [Refusal(200, "<html>Please log in</html>", times=1000)]
    for size in (1000, CHUNK + 1):
        failed = failure(lambda size=size: put(bucket, make(size)))  # type: ignore[misc]
        assert (failed.code, failed.permanent) == ("publish.unavailable", False)


def test_an_answer_that_cannot_be_decoded_is_no_success(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    storage_server.storage.mischief.refusals = [Refusal(200, "no gzip", {"Content-Encoding": "gzip"}, times=1000)]
    failed = failure(lambda: put(bucket, make(1000)))
    assert (failed.code, failed.permanent) == ("publish.unavailable", False)


def test_an_endless_answer_is_not_read_to_its_end(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    storage_server.storage.mischief.refusals = [Refusal(400, "no " * 2_000_000, times=1000)]
    failed = failure(lambda: put(bucket, make(1000)))
    assert failed.permanent and len(failed.message) < 600


# -- where the key goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "http://203.0.113.9:1/upload/resumable/{}",
        "https://evil.example/{}",
        "//evil.example/storage/v1/upload/resumable/{}?x=1",
        "/upload/resumable/{}/",
        "http://[::1/{}",
        "{}",
    ],
)
def test_the_key_goes_to_no_host_but_the_configured_one(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], location: str
) -> None:
    file = make(2 * CHUNK)
    storage_server.storage.resumable.location = lambda request, name: location.format(name)
    path = put(bucket, file)
    assert storage_server.storage.content(NAME, path) == file.read_bytes()


@pytest.mark.parametrize("location", ["", "/", "http://[::/..", "/upload/a b", "x" * 5000])
def test_an_upload_without_a_usable_place_waits(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], location: str
) -> None:
    storage_server.storage.resumable.location = lambda request, name: location
    failed = failure(lambda: put(bucket, make(2 * CHUNK)))
    assert (failed.code, failed.permanent) == ("publish.unavailable", False)
    assert methods(storage_server, "PATCH") == 0


def test_the_key_stands_in_no_error_even_when_the_server_repeats_it(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    key = storage_server.key
    echo = {"statusCode": "400", "error": "Bad", "message": f"what is Bearer {key}\r\nand {key}?", "code": "Bad"}
    for status, body in ((400, echo), (500, echo), (403, f"key {key}"), (402, {"message": key}), (413, key)):
        for size in (1000, CHUNK + 1):
            storage_server.storage.mischief.refusals = [Refusal(status, body, times=1000)]
            failed = failure(lambda size=size: put(bucket, make(size)))  # type: ignore[misc]
            trace = "".join(traceback.format_exception(failed))
            assert key not in trace + repr(failed) + repr(vars(failed)) + repr(failed.args), status
            assert failed.__context__ is None or key not in repr(failed.__context__)
            assert failed.message.isprintable()


# -- stops, time-outs, changes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, CHUNK + 1])
def test_a_stop_ends_an_upload_that_hangs(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], size: int
) -> None:
    storage_server.hangs.set()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bucket.put, "task/x.mp4", make(size), "video/mp4", stop=stop)
        assert storage_server.hung.wait(20)
        stop.set()
        error = running.exception(timeout=10)
    assert isinstance(error, PublishFailed) and (error.code, error.permanent) == ("worker.stopping", False)
    storage_server.hangs.clear()


def test_a_stop_ends_a_pause(
    storage_server: StorageServer, project: SupabaseProject, make: Callable[..., Path]
) -> None:
    patient = Bucket(project, NAME, patience=Patience(first_s=1000.0, max_s=1000.0))
    storage_server.storage.mischief.refusals = [Refusal(503, "", times=1000)]
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(patient.put, "task/x.mp4", make(1000), "video/mp4", stop=stop)
        while not storage_server.seen:
            time.sleep(0.01)
        stop.set()
        error = running.exception(timeout=10)
    assert isinstance(error, PublishFailed) and error.code == "worker.stopping"


def test_a_stop_before_the_start_sends_nothing(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    stop = threading.Event()
    stop.set()
    assert failure(lambda: bucket.put("x", make(10), "video/mp4", stop=stop)).code == "worker.stopping"
    assert storage_server.headers == []


def test_a_silent_server_is_given_up(
    storage_server: StorageServer, project: SupabaseProject, make: Callable[..., Path]
) -> None:
    hasty = Bucket(project, NAME, patience=Patience(tries=2, first_s=0.01, answer_s=0.2))
    storage_server.hangs.set()
    failed = failure(lambda: put(hasty, make(1000)))
    storage_server.hangs.clear()
    assert (failed.code, failed.permanent) == ("publish.unavailable", False) and "in time" in failed.message


def test_nobody_listens(project: SupabaseProject, storage_server: StorageServer, make: Callable[..., Path]) -> None:
    storage_server.down()
    failed = failure(lambda: put(Bucket(project, NAME, patience=QUICK), make(1000)))
    assert (failed.code, failed.permanent) == ("publish.unavailable", False)
    storage_server.up()


def test_a_file_that_shrinks_under_way_is_not_published(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    file = make(4 * CHUNK)
    storage_server.storage.mischief.pause_s = 0.001
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(put, bucket, file)
        while not storage_server.storage.arrived:
            time.sleep(0.001)
        os.truncate(file, CHUNK)
        error = running.exception(timeout=60)
    assert isinstance(error, PublishFailed) and (error.code, error.permanent) == ("publish.file_changed", True)
    assert storage_server.storage.paths(NAME) == []


@pytest.mark.parametrize("change", ["shrink", "rewrite", "grow"])
def test_the_last_piece_of_a_changed_file_is_held_back(make: Callable[..., Path], change: str) -> None:
    path = make(500_000)
    with UploadFile(path, threading.Event()) as file:
        pieces = file.pieces(0, file.size)
        got = len(next(pieces))
        if change == "shrink":
            os.truncate(path, 300_000)
        else:
            with path.open("r+b") as other:
                other.seek(600_000 if change == "grow" else 0)
                other.write(b"other")
        with pytest.raises(PublishFailed, match="clip.mp4"):
            for piece in pieces:
                got += len(piece)
        assert got < 500_000


def test_a_file_that_is_gone(bucket: Bucket, tmp_path: Path) -> None:
    failed = failure(lambda: put(bucket, tmp_path / "none.mp4"))
    assert (failed.code, failed.permanent) == ("publish.file_changed", True) and "gone" in failed.message


def test_files_side_by_side_fail_for_the_reason_of_the_one_that_failed(
    storage_server: StorageServer, project: SupabaseProject, make: Callable[..., Path]
) -> None:
    """One is refused for good while another waits for a server that is busy: the first is what must be told."""
    busy = Refusal(503, "", times=1000, part=f"object/{NAME}/0.mp4")
    quota = Refusal(402, {"message": QUOTA}, times=1000, part=f"object/{NAME}/1.mp4")
    storage_server.storage.mischief.refusals = [busy, quota]
    store = StorageStore(Bucket(project, NAME, patience=Patience(first_s=1000.0, max_s=1000.0)), "w")
    artifact = Artifact("x", "x.mp4", "video", "video/mp4", 1000, "")
    staged = [Staged(artifact, make(1000, f"{n}"), storage_path=f"{n}.mp4") for n in range(2)]
    assert failure(lambda: store.upload(ending(), staged, STOP)).code == "publish.quota"


def ending(**given: Any) -> Ending:
    made = Ending("task", "maker", 1, "0123456789abcdef", "token", Verb.COMPLETE, "/work")
    return msgspec.structs.replace(made, **given)


def test_each_file_that_is_up_is_told_of_though_another_fails_and_is_not_sent_again(
    storage_server: StorageServer, project: SupabaseProject, make: Callable[..., Path]
) -> None:
    storage_server.storage.mischief.refusals = [Refusal(402, {"message": QUOTA}, part=f"object/{NAME}/0.mp4")]
    store = StorageStore(Bucket(project, NAME, patience=QUICK), "w", uploads=1)
    artifact = Artifact("x", "x.mp4", "video", "video/mp4", 1000, "")
    staged = [Staged(artifact, make(1000, f"{n}"), storage_path=f"{n}.mp4") for n in range(3)]
    up = dataclasses.replace(staged[1], url="https://host/of-an-earlier-try")
    told: list[Staged] = []
    failed = failure(lambda: store.upload(ending(), [staged[2], up, staged[0]], STOP, told.append))
    assert failed.code == "publish.quota"
    assert [item.storage_path for item in told] == ["2.mp4"] and told[0].url is not None
    again = store.upload(ending(), [told[0], up, staged[0]], STOP, told.append)
    assert again[:2] == [told[0], up] and told[1:] == [again[2]]
    assert [path.rpartition("/")[2] for _, path, _ in storage_server.seen] == ["2.mp4", "0.mp4", "0.mp4"]


@pytest.mark.parametrize(
    "names", [["2_x", "x", "x"], ["x", "x", "x"], ["ü", "ö", "_", "2__", "3__"], ["1_x", "x", "x"]]
)
def test_no_two_files_of_one_ending_share_a_path(project: SupabaseProject, tmp_path: Path, names: list[str]) -> None:
    work, store = tmp_path / "work", StorageStore(Bucket(project, NAME), "w")
    work.mkdir()
    made = []
    for number, name in enumerate(names):
        (work / str(number)).write_bytes(b"x")
        made.append(Artifact(str(number), name, "file", "text/plain", 1, hashlib.sha256(b"x").hexdigest()))
    for folder in ("spool", "again"):
        (tmp_path / folder).mkdir()
    one = ending(work_dir=str(work), artifacts=tuple(made))
    paths = [item.storage_path for item in store.stage(one, tmp_path / "spool")]
    assert len(set(paths)) == len(names)
    assert [item.storage_path for item in store.stage(one, tmp_path / "spool")] == paths


# -- deleting and signing ---------------------------------------------------------------------------------------------


def test_deleting_what_is_there_and_what_is_not(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    for name in ("a", "b"):
        put(bucket, make(10), f"task/{name}")
    bucket.remove(["task/a", "task/none"])
    assert storage_server.storage.paths(NAME) == ["task/b"]
    bucket.remove([f"task/{number}" for number in range(1200)])
    bucket.remove([])
    del storage_server.storage.buckets[NAME]
    bucket.remove(["task/b"])


def test_deleting_ends_what_was_begun_there(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    storage_server.storage.mischief.cuts = [100] + [0] * QUICK.tries
    failure(lambda: put(bucket, make(2 * CHUNK)))
    assert len(storage_server.storage.resumable.uploads) == 1
    bucket.remove(["task/1-lease/clip.mp4"])
    assert storage_server.storage.resumable.uploads == {}
    bucket.remove(["task/1-lease/clip.mp4"])


def given_up(server: StorageServer, bucket: Bucket, file: Path, path: str = "task/x.mp4") -> str:
    """An upload that was told to stop while it waits for the answer to its last bytes."""
    rest = file.stat().st_size % CHUNK
    server.hangs_for = lambda request: (
        len(server.headers) == 1 if file.stat().st_size < CHUNK else request.content_length == rest
    )
    server.hangs.set()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bucket.put, path, file, "video/mp4", stop=stop)
        assert server.hung.wait(20)
        stop.set()
        error = running.exception(timeout=10)
    assert isinstance(error, PublishFailed) and error.code == "worker.stopping"
    return path


@pytest.mark.parametrize("size", [1000, CHUNK + 1000])
def test_an_upload_that_was_given_up_and_lands_late_is_deleted_nevertheless(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs in a call that nothing ends, while its result is refused and deleted."""
    path = given_up(storage_server, bucket, make(size))
    with monkeypatch.context() as hasty:
        hasty.setattr("wan2gp.supervisor.storage.GIVEN_UP_S", 0.01)
        failed = failure(lambda: bucket.remove([path, "task/other"]))
    assert (failed.code, failed.permanent) == ("publish.unavailable", False)
    assert path in failed.message and "given up" in failed.message
    storage_server.hangs.clear()
    monkeypatch.setattr("wan2gp.supervisor.storage.GIVEN_UP_S", 30.0)
    bucket.remove([path])
    assert storage_server.storage.paths(NAME) == []
    if size < CHUNK:
        assert [method for method, _, _ in storage_server.seen] == ["DELETE", "POST", "DELETE"], "it did land late"


def test_an_upload_waits_for_one_to_the_same_path_that_was_given_up(
    storage_server: StorageServer, bucket: Bucket, make: Callable[..., Path]
) -> None:
    path = given_up(storage_server, bucket, make(1000, "first"))
    second = make(2000, "second")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(put, bucket, second, path)
        put(bucket, make(10, "third"), "task/elsewhere")
        assert len(storage_server.headers) == 2 and not running.done()
        storage_server.hangs.clear()
        running.result(60)
    assert storage_server.storage.content(NAME, path) == second.read_bytes()


def test_whoever_waits_for_an_upload_that_was_given_up_ends_with_a_stop_or_in_time(
    storage_server: StorageServer, project: SupabaseProject, make: Callable[..., Path]
) -> None:
    bucket, stop = Bucket(project, NAME, patience=QUICK), threading.Event()
    path = given_up(storage_server, bucket, make(1000))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bucket.put, path, make(10, "other"), "video/mp4", stop=stop)
        stop.set()
        error = running.exception(timeout=10)
    assert isinstance(error, PublishFailed) and error.code == "worker.stopping"
    bucket._patience = Patience(connect_s=0.01, write_s=0.01, answer_s=0.01)
    assert failure(lambda: put(bucket, make(10, "other"), path)).code == "publish.unavailable"
    assert len(storage_server.headers) == 1
    storage_server.hangs.clear()


def test_a_deletion_that_cannot_be_says_so(storage_server: StorageServer, bucket: Bucket) -> None:
    storage_server.down()
    failed = failure(lambda: bucket.remove(["task/a"]))
    assert (failed.code, failed.permanent) == ("publish.unavailable", False) and "delete" in failed.message
    storage_server.up()
    another_key(storage_server)
    assert failure(lambda: bucket.remove(["task/a"])).code == "publish.forbidden"


def test_signing_tells_what_is_missing_from_what_is_away(
    storage_server: StorageServer, project: SupabaseProject, bucket: Bucket, make: Callable[..., Path]
) -> None:
    file = make(10)
    path = put(bucket, file)
    assert httpx.get(bucket.sign(path, 60.0)).content == file.read_bytes()
    with pytest.raises(StorageMissing, match="no such object"):
        bucket.sign("task/none", 60.0)
    with pytest.raises(StorageMissing, match="no bucket 'nope'"):
        Bucket(project, "nope").sign(path, 60.0)
    storage_server.storage.mischief.refusals = [Refusal(503, "", {"Retry-After": "7"})]
    failed = failure(lambda: bucket.sign(path, 60.0))
    assert not isinstance(failed, StorageMissing) and (failed.permanent, failed.retry_after_s) == (False, 7.0)


def test_a_signature_for_another_host_stays_on_ours(storage_server: StorageServer, bucket: Bucket) -> None:
    storage_server.storage.mischief.refusals = [Refusal(200, {"signedURL": "https://[evil/x?token=abc"})]
    assert bucket.sign("task/a", 60.0).endswith(f"/storage/v1/object/sign/{NAME}/task/a?token=abc")
    said = {"signedURL": "https://evil.example/object/sign/image_uploads/other?token=abc"}
    storage_server.storage.mischief.refusals = [Refusal(200, said)]
    assert bucket.sign("task/a", 60.0) == f"{storage_server.url}/storage/v1/object/sign/{NAME}/task/a?token=abc"
    storage_server.storage.mischief.refusals = [Refusal(200, {"signedURL": "/object/sign/x"})]
    assert failure(lambda: bucket.sign("task/a", 60.0)).code == "publish.unavailable"


# -- memory -----------------------------------------------------------------------------------------------------------

UPLOAD = """
import json, resource, sys, threading
from pathlib import Path
from wan2gp.config import Secret
from wan2gp.protocol import Artifact
from wan2gp.supervisor.publish import Staged
from wan2gp.supervisor.storage_store import StorageStore
from wan2gp.supervisor.storage import Bucket
from wan2gp.supervisor.supabase_project import SupabaseProject

url, first, second = sys.argv[1:]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
project = SupabaseProject(url, Secret(sys.stdin.read()))
bucket = Bucket(project, "image_uploads")
bucket.put("small", Path(first), "video/mp4", stop=threading.Event())
before = peak()
bucket.put("large", Path(second), "video/mp4", stop=threading.Event())
project.close()
print(json.dumps(peak() - before))
"""


def grown_by(server: StorageServer, make: Callable[..., Path], tmp_path: Path, size: int) -> int:
    """Bytes of memory that a process of its own needs more for a file of ``size`` bytes than for one of 7 MB."""
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(size)
    command = [sys.executable, "-c", UPLOAD, server.url, str(make(7 * MIB)), str(large)]
    done = subprocess.run(command, input=server.key, capture_output=True, text=True, timeout=110, check=True)
    stored = server.storage.file(NAME, "large")
    assert stored is not None and stored.stat().st_size == size
    return int(json.loads(done.stdout))


def test_memory_stays_flat(storage_server: StorageServer, make: Callable[..., Path], tmp_path: Path) -> None:
    assert grown_by(storage_server, make, tmp_path, 200 * MIB) < 24 * MIB


@pytest.mark.long
def test_memory_stays_flat_for_600_mib(
    storage_server: StorageServer, make: Callable[..., Path], tmp_path: Path
) -> None:
    assert grown_by(storage_server, make, tmp_path, 600 * MIB) < 24 * MIB


def test_a_bucket_shows_no_key(storage_server: StorageServer, project: SupabaseProject) -> None:
    bucket = Bucket(project, NAME)
    assert storage_server.key not in repr(bucket) + repr(vars(bucket)) + repr(vars(project))
