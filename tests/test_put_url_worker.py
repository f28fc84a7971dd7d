"""A whole worker and a task's own URL, which takes a file once: what arrived counts, whatever was heard of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.request import Request, urlopen

import pytest

from tests.conftest_worker import Worker, eventually
from tests.front_faults import Fault
from tests.storage_stand_in import Refusal
from tests.supabase_stack import Stack
from wan2gp.supervisor.patience import Patience

BUCKET = "image_uploads"
PLACE = "mine/x.txt"
FILES = {"a.txt": "one", "b.txt": "two"}


@pytest.fixture
def start(start_supabase_worker: Callable[..., Worker]) -> Callable[[], Worker]:
    return lambda: start_supabase_worker(environ={"WAN2GP_ALLOW_PRIVATE_PUT_URLS": "1"})


def signed(stack: Stack) -> str:
    """As an app makes it, for one file."""
    headers = {"Authorization": f"Bearer {stack.key}", "Content-Type": "application/json"}
    place = f"{stack.url}/storage/v1/object/upload/sign/{BUCKET}/{PLACE}"
    with urlopen(Request(place, method="POST", data=b"{}", headers=headers)) as answer:
        return str(stack.url + "/storage/v1" + json.load(answer)["url"])


def complete(stack: Stack, worker: Worker, task_id: str, url: str) -> None:
    row = worker.ended(task_id)
    assert (row["status"], row["attempts"]) == ("Complete", 1), (row, worker.log[-3000:])
    assert row["output_location"] == url.partition("?")[0]
    assert stack.storage.content(BUCKET, PLACE) == b"one"
    (other,) = [path for path in stack.storage.paths(BUCKET) if path != PLACE]
    assert task_id in other and stack.storage.content(BUCKET, other) == b"two"
    assert url.partition("token=")[2] not in worker.log + worker.screen


@pytest.mark.long
def test_a_file_that_arrived_without_an_answer_is_published(start: Callable[[], Worker], supabase_stack: Stack) -> None:
    """All answers of a whole round are lost: the first try has stored the file, every later one is refused."""
    worker, url = start(), signed(supabase_stack)
    lost = supabase_stack.front.faults.add(Fault("object/upload/sign", "cut_after", times=Patience.tries))
    task_id = worker.insert("maker", {"files": FILES, "put_url": url})
    complete(supabase_stack, worker, task_id, url)
    assert lost.hits == Patience.tries and "cannot be published now" in worker.log


@pytest.mark.long
def test_a_worker_that_died_behind_the_put_does_not_fail_its_result(
    start: Callable[[], Worker], supabase_stack: Stack
) -> None:
    """The other file cannot go up yet; the next life puts again, and is refused what it has."""
    worker, url = start(), signed(supabase_stack)
    away = Refusal(503, "", times=10**6, method="POST", part=f"object/{BUCKET}/")
    supabase_stack.storage.mischief.refusals.append(away)
    task_id = worker.insert("maker", {"files": FILES, "put_url": url})
    eventually("it waits", lambda: "cannot be published now" in worker.log)
    assert len(supabase_stack.front.seen("object/upload/sign", "PUT")) == 1
    worker.kill()
    away.times = 0
    worker = start()
    complete(supabase_stack, worker, task_id, url)
    puts = [one.status for one in supabase_stack.front.seen("object/upload/sign", "PUT")]
    assert puts == [200, 400], "Storage says 400 for everything"


@pytest.mark.long
def test_somebody_elses_file_is_not_called_the_tasks_result(start: Callable[[], Worker], supabase_stack: Stack) -> None:
    """Neither at first, nor when a person asks for another try, nor after a restart."""
    worker, url = start(), signed(supabase_stack)
    with urlopen(Request(url, method="PUT", data=b"theirs", headers={"Content-Type": "text/plain"})):
        pass
    task_id = worker.insert("maker", {"files": FILES, "put_url": url})
    assert worker.ended(task_id)["error_message"].startswith("publish.put_refused: ")
    assert worker.ctl("publish", "retry", task_id).returncode == 0
    eventually("it is withheld again", lambda: worker.log.count("its files stay in the spool") == 2)
    assert worker.stop() == 0
    worker = start()
    eventually("and again", lambda: worker.log.count("its files stay in the spool") == 3)
    assert worker.row(task_id)["status"] == "Failed"
    assert supabase_stack.storage.content(BUCKET, PLACE) == b"theirs"
