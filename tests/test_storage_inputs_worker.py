"""Inputs in Storage, through the real client and through whole workers on a project: fetched, or a clear error."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from tests.comfy_jobs import make_video, spec_row
from tests.comfy_worker import Start, start_lasting
from tests.conftest_comfy import free_port
from tests.conftest_worker import Worker, eventually
from tests.front_faults import Fault
from tests.storage_server import StorageServer, storage_server
from tests.storage_shelf import BucketSpec
from tests.storage_stand_in import Refusal
from tests.supabase_stack import Stack
from tests.test_comfy_inputs_worker import pixels, recoloured
from tests.test_courier import until
from wan2gp.config_options import Secret
from wan2gp.demo_stage import read_video
from wan2gp.protocol import Failed
from wan2gp.storage_address import StorageAddress
from wan2gp.supervisor.signer import Signatures, Signer
from wan2gp.supervisor.storage import Bucket
from wan2gp.supervisor.storage_wire import Patience
from wan2gp.supervisor.supabase_project import SupabaseProject

__all__ = ["start_lasting", "storage_server"]
NAMES = ["in.mp4", "u 1/100% größe.mp4", "a+b&c=d;e,f.mp4", "what?#.mp4", "%41%2e%2e/映像.mp4"]


def put(server: StorageServer, path: str, content: bytes, bucket: str = "image_uploads") -> None:
    """Straight onto the shelf: an object may be of a time, or a server, that took names which are refused today."""
    shelf = server.storage._shelf
    intake = shelf.intake()
    intake.write(content)
    shelf.objects[bucket, path] = intake.done("video/mp4", "no-cache")


# --- the real client -----------------------------------------------------------------------------------------------


@pytest.fixture
def signing(storage_server: StorageServer) -> Iterator[Callable[..., Signatures]]:
    """Signs one address with the real client, as a worker does; returns the answer."""
    with contextlib.ExitStack() as opened:

        def sign(address: StorageAddress, key: str = storage_server.key, **more: Any) -> Signatures:
            project = opened.enter_context(contextlib.closing(SupabaseProject(storage_server.url, Secret(key))))
            posted: list[Callable[[], None]] = []
            answers: list[Signatures] = []
            once = Patience(answer_s=0.3, connect_s=0.3)
            signer = Signer(
                project.url,
                lambda bucket, path, ttl: Bucket(project, bucket, patience=once).sign(path, ttl),
                posted.append,
                **{"first_pause_s": 0.01, **more},
            )
            opened.callback(signer.stop)
            signer.sign({"video_url": address}, answers.append)
            until(lambda: bool(posted), "an answer")
            posted[0]()
            return answers[0]

        yield sign


def failure(found: Signatures) -> Failed:
    assert isinstance(found, Failed), found
    return found


@pytest.mark.parametrize("name", NAMES)
def test_whatever_an_object_is_called_its_signed_url_gives_it(
    storage_server: StorageServer, signing: Callable[..., Signatures], name: str
) -> None:
    put(storage_server, name, name.encode())
    found = signing(StorageAddress("image_uploads", name))
    assert isinstance(found, dict)
    assert httpx.get(found["video_url"].url).content == name.encode()


def test_no_object_and_no_bucket_are_one_clear_error(signing: Callable[..., Signatures]) -> None:
    for address in (StorageAddress("image_uploads", "gone.mp4"), StorageAddress("elsewhere", "in.mp4")):
        found = failure(signing(address))
        assert found.code == "input.not_found" and not found.retryable and address.shown in found.message


def test_a_key_that_storage_refuses_is_said_and_not_shown(signing: Callable[..., Signatures]) -> None:
    found = failure(signing(StorageAddress("image_uploads", "in.mp4"), key="sb_secret_wrong_one"))
    assert found.code == "input.storage_denied" and not found.retryable
    assert "SUPABASE_SERVICE_ROLE_KEY" in found.message and "wrong_one" not in repr(found)
    assert "publish" not in found.message


def test_what_storage_refuses_for_another_reason_is_said_without_advice_for_publishing(
    storage_server: StorageServer, signing: Callable[..., Signatures]
) -> None:
    body = {"statusCode": "400", "error": "InvalidKey", "message": "Invalid key: größe.mp4", "code": "InvalidKey"}
    storage_server.storage.mischief.refusals.append(Refusal(400, body))
    found = failure(signing(StorageAddress("image_uploads", "größe.mp4")))
    assert found.code == "input.storage_denied" and not found.retryable
    assert "größe.mp4 cannot be signed: Storage answered 400: Invalid key: größe.mp4: check" in found.message
    assert "publish" not in found.message and "STORAGE_PATH" not in found.message


@pytest.mark.parametrize("away", ["down", "hangs"])
def test_storage_that_is_away_is_waited_for_and_then_the_task_goes_back(
    storage_server: StorageServer, signing: Callable[..., Signatures], away: str
) -> None:
    storage_server.down() if away == "down" else storage_server.hangs.set()
    found = failure(signing(StorageAddress("image_uploads", "in.mp4"), patience_s=0.2))
    assert found.code == "input.unreachable" and found.retryable
    assert storage_server.key not in found.message and str(storage_server.port) not in found.message


# --- whole workers -------------------------------------------------------------------------------------------------


class Project(StorageServer):
    """Notes each signature that it makes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.signatures: list[str] = []
        sign = self.storage.tokens.sign

        def noted(path: str, lifetime_s: float, **more: Any) -> str:
            self.signatures.append(sign(path, lifetime_s, **more))
            return self.signatures[-1]

        self.storage.tokens.sign = noted  # type: ignore[method-assign]
        self.storage.buckets["private"] = BucketSpec(public=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    server = Project(tmp_path_factory.mktemp("project"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def worker(start_lasting: Start, project: Project) -> Worker:
    """It has a project whose host is a private address, to which no input's URL may lead."""
    return start_lasting(
        name="storage",
        SUPABASE_URL=project.url,
        SUPABASE_SERVICE_ROLE_KEY=project.key,
        WAN2GP_QUEUE="postgres",
        WAN2GP_INPUT_BUCKETS="image_uploads, private",
        COMFY_PORT=str(free_port()),
    )


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_video(tmp_path_factory.mktemp("film") / "in.mp4").read_bytes()


def video_row(address: str) -> dict[str, Any]:
    return {**spec_row(), "video_url": address}


def failed(row: dict[str, Any], code: str) -> str:
    assert row["status"] == "Failed" and row["error_message"].startswith(f"{code}: "), row
    return str(row["error_message"])


def test_a_video_in_storage_becomes_a_result(worker: Worker, project: Project, film: bytes) -> None:
    put(project, "u 1/100% größe.mp4", film)
    row = worker.ended(worker.insert("comfy", video_row("storage://image_uploads/u 1/100% größe.mp4")))
    assert row["status"] == "Complete", row
    assert "Downloading video from storage://image_uploads/u 1/100% größe.mp4" in worker.log


def test_a_video_is_published_with_its_poster_beside_it(
    worker: Worker, project: Project, film: bytes, tmp_path: Path
) -> None:
    put(project, "for poster.mp4", film)
    row = worker.ended(worker.insert("comfy", video_row("storage://image_uploads/for poster.mp4")))
    assert row["status"] == "Complete", row
    video, still = row["result_data"]["artifacts"]
    assert (video["kind"], still["kind"], still["mime"]) == ("video", "poster", "image/jpeg")
    assert video["poster"] == still["name"] and row["output_location"] == video["url"]
    (tmp_path / "out.mp4").write_bytes(httpx.get(video["url"]).content)
    assert read_video(tmp_path / "out.mp4").frames == 12
    assert video["url"].rpartition("/")[0] == still["url"].rpartition("/")[0]
    answer = httpx.get(still["url"])
    assert answer.headers["Content-Type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (64, 48)


def test_a_picture_in_a_private_bucket_is_an_input_too(worker: Worker, project: Project) -> None:
    put(project, "a/b.png", pixels((10, 200, 30)), bucket="private")
    row = worker.ended(worker.insert("comfy", recoloured(url="storage://private/a/b.png")))
    assert row["status"] == "Complete", row


def test_a_bucket_that_the_operator_keeps_from_tasks_stays_shut(worker: Worker, project: Project, film: bytes) -> None:
    project.storage.buckets["vault"] = BucketSpec(public=False)
    put(project, "in.mp4", film, bucket="vault")
    row = worker.ended(worker.insert("comfy", video_row("storage://vault/in.mp4")))
    assert "inputs.buckets" in failed(row, "input.storage_denied")


def test_a_file_that_is_not_there_fails_the_task_at_once(worker: Worker) -> None:
    row = worker.ended(worker.insert("comfy", video_row("storage://image_uploads/gone.mp4")))
    assert "storage://image_uploads/gone.mp4" in failed(row, "input.not_found") and row["attempts"] == 1


@pytest.mark.parametrize("path", ["../secrets/in.mp4", "a//b.mp4", ""])
def test_an_address_that_leads_out_of_its_bucket_is_not_even_asked_for(
    worker: Worker, project: Project, path: str
) -> None:
    asked = len(project.seen)
    failed(worker.ended(worker.insert("comfy", video_row(f"storage://image_uploads/{path}"))), "input.bad_url")
    assert len(project.seen) == asked


def test_the_projects_host_is_private_for_every_other_url(worker: Worker, project: Project) -> None:
    url = f"{project.url}/storage/v1/object/public/image_uploads/in.mp4"
    failed(worker.ended(worker.insert("comfy", video_row(url))), "input.forbidden_address")


def test_a_signature_that_has_expired_by_the_download_is_made_anew_once(
    worker: Worker, project: Project, film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(project, "late.mp4", film)
    before = len(project.signatures)
    monkeypatch.setattr(project.storage.tokens, "clock", _late(2))  # the first signature is made the day before
    row = worker.ended(worker.insert("comfy", video_row("storage://image_uploads/late.mp4")))
    assert row["status"] == "Complete" and row["attempts"] == 1, row
    assert len(project.signatures) == before + 2


def _late(readings: int) -> Callable[[], float]:
    count = itertools.count()
    return lambda: time.time() - (86_400 if next(count) < readings else 0)


def test_a_task_that_is_cancelled_while_storage_hangs_is_over_at_once(
    worker: Worker, project: Project, film: bytes
) -> None:
    put(project, "slow.mp4", film)
    project.hung.clear()
    project.hangs.set()
    try:
        task_id = worker.insert("comfy", video_row("storage://image_uploads/slow.mp4"))
        eventually("Storage is asked", project.hung.is_set)
        assert worker.ctl("cancel", task_id).returncode == 0
        assert worker.ended(task_id)["status"] == "Cancelled"
    finally:
        project.hangs.clear()
    row = worker.ended(worker.insert("comfy", video_row("storage://image_uploads/slow.mp4")))
    assert row["status"] == "Complete", row


def test_neither_key_nor_signature_is_anywhere_but_on_the_wire(worker: Worker, project: Project, film: bytes) -> None:
    """After a task that succeeded and one whose file went away between its signature and its download."""
    put(project, "seen.mp4", film)
    assert worker.ended(worker.insert("comfy", video_row("storage://image_uploads/seen.mp4")))["status"] == "Complete"
    refused = {"statusCode": "404", "error": "not_found", "message": "Object not found"}
    path = "object/sign/image_uploads/seen.mp4"
    with _refusing(project, path, refused):
        failed(worker.ended(worker.insert("comfy", video_row("storage://image_uploads/seen.mp4"))), "input.not_found")
    secrets = [project.key, *project.signatures]
    rows = worker.sql("SELECT to_jsonb(t) AS row FROM tasks t") + worker.sql(
        "SELECT to_jsonb(e) AS row FROM task_events e"
    )
    said = [json.dumps(rows).encode(), worker.ctl("status", "--json").stdout.encode()]
    said += [path.read_bytes() for path in worker.data_dir.rglob("*") if path.is_file()]
    for process in worker.family():
        with contextlib.suppress(psutil.Error, OSError):
            said += [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    assert len(said) > 20 and len(project.signatures) >= 2
    assert not [secret for secret in secrets if any(secret.encode() in text for text in said)]
    assert not any(b"/object/sign/" in text for text in said)


@contextlib.contextmanager
def _refusing(project: Project, part: str, body: dict[str, Any]) -> Iterator[None]:
    refusal = Refusal(400, body, method="GET", part=part, times=100)
    project.storage.mischief.refusals.append(refusal)
    try:
        yield
    finally:
        project.storage.mischief.refusals.remove(refusal)


def test_without_a_project_it_is_said_before_the_engine_is_started(start_lasting: Start) -> None:
    alone = start_lasting(name="alone", COMFY_PORT=str(free_port()))
    row = alone.ended(alone.insert("comfy", video_row("storage://image_uploads/in.mp4")))
    message = failed(row, "input.no_storage")
    assert "SUPABASE_URL" in message and "SUPABASE_SERVICE_ROLE_KEY" in message and row["attempts"] == 1
    assert "starting ComfyUI" not in alone.log


@pytest.mark.long
def test_a_hosted_project_that_stumbles_costs_an_input_no_attempt(
    start_supabase_worker: Start, supabase_stack: Stack, film: bytes
) -> None:
    """Row, input and result are all in one project, whose gateway fails twice in a row on the signature."""
    intake = supabase_stack.storage._shelf.intake()
    intake.write(film)
    supabase_stack.storage._shelf.objects["image_uploads", "u1/in.mp4"] = intake.done("video/mp4", "no-cache")
    place = "storage/v1/object/sign/image_uploads/u1/in.mp4"
    supabase_stack.front.faults.add(Fault(place, "reset"))
    supabase_stack.front.faults.add(Fault(place, "status", status=429, headers={"Retry-After": "1"}))
    hosted = start_supabase_worker(environ={"COMFY_PORT": str(free_port())})
    row = hosted.ended(hosted.insert("comfy", video_row("storage://image_uploads/u1/in.mp4")))
    assert row["status"] == "Complete" and row["attempts"] == 1, (row, hosted.log)
    assert [one["kind"] for one in row["result_data"]["artifacts"]] == ["video", "poster"]
    asked = [(seen.method, seen.status) for seen in supabase_stack.front.requests if place in seen.path]
    assert [method for method, _ in asked] == ["POST"] * 3 + ["GET"], asked
