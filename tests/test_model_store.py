"""Files of models: fetched once, whole or not at all, gone on with where they broke off, within their budget."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from tests.model_server import safetensors
from wan2gp.brake import Brake
from wan2gp.handlers import model_store
from wan2gp.handlers.api import Interrupted, TaskFailure
from wan2gp.handlers.download import Downloaded
from wan2gp.handlers.model_checks import damage
from wan2gp.handlers.model_download import ModelDownload
from wan2gp.handlers.model_store import Draft, Shelf
from wan2gp.handlers.webstream import Limits
from wan2gp.model_places import place_of
from wan2gp.protocol import Source
from wan2gp.supervisor.places import Places
from wan2gp.supervisor.users import User

if TYPE_CHECKING:
    from tests.model_server import ModelServer

MIB = 1024**2
LIMITS = Limits(total_s=60.0, idle_s=30.0, allow_private_hosts=frozenset({"127.0.0.1"}))


@pytest.fixture(autouse=True)
def little_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the machine that tests is not what these tests are about."""
    monkeypatch.setattr(model_store, "SPARE_DISK", 0)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return shelf_at(tmp_path)


def shelf_at(path: Path, budget: int = 64 * MIB, largest: int = 32 * MIB) -> Shelf:
    return Shelf(path / "loras", budget=budget, max_bytes=largest, option="wan.loras_bytes")


def get(shelf: Shelf, url: str, *, kind: str = "lora", doubt: bool = False) -> Downloaded:
    return ModelDownload(Source(url, kind, doubt), shelf, LIMITS).run()


def failure(shelf: Shelf, url: str, *, kind: str = "lora", doubt: bool = False) -> TaskFailure:
    with pytest.raises(TaskFailure) as caught:
        get(shelf, url, kind=kind, doubt=doubt)
    return caught.value


def left(shelf: Shelf) -> list[str]:
    """All files of the shelf but locks."""
    return sorted(path.suffix for path in shelf.root.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_the_second_task_fetches_nothing(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/a.safetensors", safetensors())
    first, second = get(shelf, url), get(shelf, url)
    assert (first.cached, second.cached) == (False, True)
    assert first.path == second.path and first.path.read_bytes() == safetensors()
    assert len(hub.requests) == 1


def test_two_at_once_cost_one_download(tmp_path: Path, hub: ModelServer) -> None:
    """Two shelves of one directory are what two processes have."""
    hold = threading.Event()
    url = hub.show("/a.safetensors", safetensors(4096), hold=hold)
    got: list[Downloaded] = []
    first = threading.Thread(target=lambda: got.append(get(shelf_at(tmp_path), url)))
    first.start()
    assert hub.half_sent.wait(30)
    seen: list[int] = []
    both = threading.Event()

    def waiting(done: int, total: int | None) -> None:
        seen.append(done)
        both.set()

    later = ModelDownload(Source(url, "lora"), shelf_at(tmp_path), LIMITS, progress=waiting)
    second = threading.Thread(target=lambda: got.append(later.run()))
    second.start()
    assert both.wait(30), "whoever waits is not told how far the other is"
    hold.set()
    first.join(30)
    second.join(30)
    assert sorted(one.cached for one in got) == [False, True]
    assert len(hub.requests) == 1
    assert got[0].path == got[1].path


def test_files_of_one_name_from_two_places_are_two(shelf: Shelf, hub: ModelServer) -> None:
    one = hub.show("/x/high_noise_model.safetensors", safetensors(fill=b"\x01"))
    two = hub.show("/y/high_noise_model.safetensors", safetensors(fill=b"\x02"))
    first, second = get(shelf, one).path, get(shelf, two).path
    assert first.name == second.name and first.read_bytes() != second.read_bytes()


def test_a_download_that_breaks_off_goes_on(shelf: Shelf, hub: ModelServer) -> None:
    body = safetensors(100_000)
    url = hub.show("/a.safetensors", body, breaks=[150_000, 100_000])
    assert get(shelf, url).path.read_bytes() == body
    assert hub.ranges() == [None, "bytes=150000-", "bytes=250000-"]


def test_a_download_goes_on_in_the_next_process(tmp_path: Path, hub: ModelServer) -> None:
    body = safetensors(100_000)
    hold = threading.Event()
    url = hub.show("/a.safetensors", body, hold=hold)
    caught: list[BaseException] = []
    download = ModelDownload(Source(url, "lora"), shelf_at(tmp_path), LIMITS)

    def run() -> None:
        try:
            download.run()
        except Interrupted as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert hub.half_sent.wait(30)
    part = shelf_at(tmp_path).part(place_of("lora", url))
    while not (part.exists() and part.stat().st_size > 100_000):
        assert thread.is_alive()
        time.sleep(0.005)
    download.cancel()
    thread.join(30)
    assert caught and part.exists()
    hold.set()
    assert get(shelf_at(tmp_path), url).path.read_bytes() == body
    asked = hub.ranges()[1]
    assert asked is not None and int(asked[6:-1]) > 100_000
    assert not part.exists()


def test_another_file_at_the_same_url_is_not_glued_to_the_first_half(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/a.safetensors", safetensors(100_000, b"\x01"), breaks=[150_000, 0])
    assert failure(shelf, url).code == "input.http_error"  # the second try got nothing
    shown = hub.files["/a.safetensors"]
    shown.body, shown.etag = safetensors(100_000, b"\x02"), '"v2"'
    assert get(shelf, url).path.read_bytes() == shown.body
    assert hub.requests[-1][1]["If-Range"] == '"v1"'


def test_a_server_that_ignores_the_condition_is_found_out(shelf: Shelf, hub: ModelServer) -> None:
    """It sends the end of another file; what it says of that shows it."""
    url = hub.show("/a.safetensors", safetensors(100_000, b"\x01"), breaks=[150_000, 0])
    assert failure(shelf, url).code == "input.http_error"
    shelf_draft = shelf.draft(place_of("lora", url))
    assert shelf_draft is not None
    shown = hub.files["/a.safetensors"]
    shown.body, shown.etag = safetensors(110_000, b"\x02"), shelf_draft.validators.etag
    assert get(shelf, url).path.read_bytes() == shown.body


def test_a_server_without_ranges_begins_anew(shelf: Shelf, hub: ModelServer) -> None:
    body = safetensors(100_000)
    url = hub.show("/a.safetensors", body, breaks=[150_000], ranges=False)
    assert get(shelf, url).path.read_bytes() == body


def test_a_whole_part_that_nobody_put_into_place_is_used(shelf: Shelf, hub: ModelServer) -> None:
    """The process was killed between the last byte and the rename: one byte is fetched."""
    body = safetensors(100_000)
    url = hub.show("/a.safetensors", body, breaks=[150_000, 0])
    failure(shelf, url)
    shelf.part(place_of("lora", url)).write_bytes(body)
    assert get(shelf, url).path.read_bytes() == body
    assert hub.ranges()[-1] == f"bytes={len(body) - 1}-"


def test_a_process_that_is_killed_after_the_last_rename_leaves_nothing_that_counts_twice(
    tmp_path: Path, hub: ModelServer
) -> None:
    size = len(safetensors(1000))
    shelf = shelf_at(tmp_path, budget=2 * size)
    url = hub.show("/a.safetensors", safetensors(1000))
    get(shelf, url)
    shelf._write(shelf._named(place_of("lora", url), "draft"), Draft(str(place_of("lora", url)), size))
    get(shelf, url)
    get(shelf, hub.show("/b.safetensors", safetensors(1000)))
    assert left(shelf).count(".safetensors") == 2


def test_a_part_from_before_a_crash_of_the_machine_is_not_trusted(
    shelf: Shelf, hub: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsynced bytes may be holes, and nothing would tell."""
    url = hub.show("/a.safetensors", safetensors(100_000), breaks=[150_000, 0])
    failure(shelf, url)
    monkeypatch.setattr("wan2gp.handlers.model_store.boot_id", lambda: "another life")
    get(shelf, url)
    assert hub.ranges()[-1] is None


def test_a_truncated_file_is_fetched_once_more(shelf: Shelf, hub: ModelServer) -> None:
    body = safetensors(100_000)
    url = hub.show("/a.safetensors", body, truncated=[200_000])
    assert get(shelf, url).path.read_bytes() == body
    assert len(hub.requests) == 2


def test_a_file_that_stays_truncated_is_an_error_that_says_so(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/a.safetensors", safetensors(100_000)[:200_000])
    found = failure(shelf, url)
    assert found.code == "input.corrupt" and "has lost its end" in found.message and "twice" in found.message
    assert len(hub.requests) == 2
    assert left(shelf) == []


def test_a_checksum_that_the_hub_tells_is_compared(shelf: Shelf, hub: ModelServer) -> None:
    body = safetensors(1000)
    good = hub.show("/o/r/resolve/main/a.safetensors", body, linked=True)
    bad = hub.show("/o/r/resolve/main/b.safetensors", body, linked=True, checksum="0" * 64)
    assert get(shelf, good).bytes == len(body)
    found = failure(shelf, bad)
    assert found.code == "input.corrupt" and hashlib.sha256(body).hexdigest() in found.message


def test_a_half_of_what_the_hub_names_goes_on_without_any_validator(shelf: Shelf, hub: ModelServer) -> None:
    body = safetensors(100_000)
    url = hub.show("/o/r/resolve/main/a.safetensors", body, linked=True, etag=None, breaks=[150_000])
    assert get(shelf, url).path.read_bytes() == body
    assert hub.ranges() == [None, "bytes=150000-"]


def test_a_login_page_is_no_lora_and_is_not_asked_for_twice(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/api/download/models/12", b"<!DOCTYPE html><html>Please log in</html>")
    found = failure(shelf, url)
    assert found.code == "input.not_media" and "page" in found.message
    assert len(hub.requests) == 1 and left(shelf) == []


def test_a_file_without_a_length_is_whole_by_its_own_header(shelf: Shelf, hub: ModelServer) -> None:
    body = safetensors(1000)
    assert get(shelf, hub.show("/a.safetensors", body, plain_end=True)).bytes == len(body)
    cut = hub.show("/b.safetensors", body[:-10], plain_end=True)
    assert failure(shelf, cut).code == "input.corrupt"


def test_weights_without_a_length_cannot_be_told_from_a_part(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/o/r/resolve/main/x.pth", b"whatever", plain_end=True)
    assert "cannot be told from the whole" in failure(shelf, url, kind="weights").message


def test_a_file_above_the_cap_is_not_fetched(tmp_path: Path, hub: ModelServer) -> None:
    shelf = shelf_at(tmp_path, largest=1000)
    announced = failure(shelf, hub.show("/a.safetensors", safetensors(1000)))
    unannounced = failure(shelf, hub.show("/b.safetensors", safetensors(1000), plain_end=True))
    assert announced.code == unannounced.code == "input.too_large"
    assert left(shelf) == []


def test_a_file_that_was_spoilt_on_the_disk_is_fetched_again(shelf: Shelf, hub: ModelServer) -> None:
    body = safetensors(1000)
    url = hub.show("/a.safetensors", body)
    path = get(shelf, url).path
    os.truncate(path, 2000)
    assert get(shelf, url).path.read_bytes() == body
    with path.open("r+b") as file:  # the same size, another byte
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(path, ns=(0, 0))
    assert get(shelf, url).path.read_bytes() == body
    assert len(hub.requests) == 3


def test_a_doubt_of_the_engine_compares_every_byte(shelf: Shelf, hub: ModelServer) -> None:
    body = safetensors(1000)
    url = hub.show("/a.safetensors", body)
    path = get(shelf, url).path
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # rotten, not written
    assert get(shelf, url).cached
    assert not get(shelf, url, doubt=True).cached
    assert path.read_bytes() == body
    assert get(shelf, url, doubt=True).cached


def test_what_the_operator_put_there_is_used_and_never_touched(tmp_path: Path, hub: ModelServer) -> None:
    body = safetensors(1000, b"\x07")
    shelf = shelf_at(tmp_path, budget=20_000)
    url = f"{hub.host}/owner/repo/resolve/main/deep/a.safetensors"
    staged = shelf.root / "owner/repo/deep/a.safetensors"
    staged.parent.mkdir(parents=True)
    staged.write_bytes(body)
    assert get(shelf, url, kind="weights").path == staged
    for index in range(8):  # more than the budget
        get(shelf, hub.show(f"/{index}.safetensors", safetensors(1000)))
    assert staged.read_bytes() == body
    staged.write_bytes(body[:-1])
    found = failure(shelf, url, kind="weights")
    assert found.code == "input.corrupt" and "by hand" in found.message and str(staged) in found.message
    assert staged.exists()


def test_what_the_operator_put_over_ours_becomes_theirs(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/a.safetensors", safetensors(1000))
    path = get(shelf, url).path
    other = path.with_name("new")
    other.write_bytes(safetensors(1000, b"\x09"))
    other.rename(path)
    assert get(shelf, url).cached and path.read_bytes() == safetensors(1000, b"\x09")
    found = shelf.find(place_of("lora", url))
    assert found is not None and not found.ours


def test_a_store_that_was_copied_to_another_disk_is_still_ours(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/a.safetensors", safetensors(1000))
    path = get(shelf, url).path
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
    found = shelf.find(place_of("lora", url))
    assert found is not None and found.ours


def test_the_budget_is_kept_and_the_longest_unused_goes_first(tmp_path: Path, hub: ModelServer) -> None:
    size = len(safetensors(1000))
    shelf = shelf_at(tmp_path, budget=3 * size)
    urls = [hub.show(f"/{index}.safetensors", safetensors(1000)) for index in range(4)]
    paths = [get(shelf, url).path for url in urls[:3]]
    age(shelf, urls[0], 3)
    age(shelf, urls[1], 2)
    age(shelf, urls[2], 1)
    get(shelf, urls[0])  # used now
    get(shelf, urls[3])
    assert [path.exists() for path in paths] == [True, False, True]


def age(shelf: Shelf, url: str, hours: int) -> None:
    """As if it had last been used so long ago."""
    record = shelf._named(place_of("lora", url), "json")
    when = record.stat().st_mtime - hours * 3600
    os.utime(record, (when, when))


def test_a_file_in_use_is_not_evicted(tmp_path: Path, hub: ModelServer) -> None:
    size = len(safetensors(1000))
    shelf = shelf_at(tmp_path, budget=2 * size)
    urls = [hub.show(f"/{index}.safetensors", safetensors(1000)) for index in range(4)]
    paths = [get(shelf, url).path for url in urls[:2]]
    age(shelf, urls[0], 5)
    with paths[0].open("rb") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        third = get(shelf, urls[2]).path
        assert [path.exists() for path in (*paths, third)] == [True, False, True]
        with third.open("rb") as also:
            fcntl.flock(also, fcntl.LOCK_SH)
            found = failure(shelf, urls[3])
            assert found.code == "worker.disk_full" and "wan.loras_bytes" in found.message
    get(shelf, urls[3])


def test_a_file_larger_than_the_budget_costs_no_other_its_place(tmp_path: Path, hub: ModelServer) -> None:
    shelf = shelf_at(tmp_path, budget=10_000)
    kept = get(shelf, hub.show("/a.safetensors", safetensors(1000))).path
    assert failure(shelf, hub.show("/b.safetensors", safetensors(10_000))).code == "input.too_large"
    assert kept.exists()


def test_forgotten_halves_make_room(tmp_path: Path, hub: ModelServer) -> None:
    shelf = shelf_at(tmp_path, budget=500_000)
    failure(shelf, hub.show("/a.safetensors", safetensors(100_000), breaks=[150_000, 0]))
    get(shelf, hub.show("/b.safetensors", safetensors(100_000)))
    assert ".part" not in left(shelf)


def test_a_signature_that_has_expired_opens_nothing_that_is_kept(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/a.safetensors", safetensors(1000)) + "?X-Amz-Signature=1"
    get(shelf, url)
    assert get(shelf, url.replace("=1", "=2")).cached
    hub.files["/a.safetensors"].status = 403
    assert failure(shelf, url).code == "input.not_found"


def test_a_signed_file_that_has_changed_is_fetched_again(shelf: Shelf, hub: ModelServer) -> None:
    url = hub.show("/a.safetensors", safetensors(1000)) + "?X-Amz-Signature=1"
    get(shelf, url)
    hub.files["/a.safetensors"].body = safetensors(2000)
    assert get(shelf, url).path.read_bytes() == safetensors(2000)


def as_user(uid: int, act: Callable[[], None]) -> int:
    """Do it in a process of that user, whose umask is a careful one; returns the exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.umask(0o077)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give user ids away")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_the_couriers_user_keeps_the_engines_user_can_lock_and_nobody_else_can_change() -> None:
    """Also when the courier had another id in its life before, and what an operator put there stays as it is."""
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o711)
        shelf, place = shelf_at(Path(base) / "models"), PurePosixPath("owner/repo/a.safetensors")
        own = shelf.root / "mine.safetensors"
        places = Places(Path(base), 65000)

        def keep() -> None:
            shelf.open()
            shelf.begin(Draft(str(place)), Brake())
            shelf.part(place).write_bytes(safetensors())
            shelf.keep(place, "0" * 64)

        def use() -> None:
            with (shelf.root / place).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
            with pytest.raises(PermissionError):
                (shelf.root / place).open("r+b")
            with pytest.raises(PermissionError):
                (shelf.root / place).unlink()

        places.prepare_shelves([str(shelf.root)], User(65001, 65001))
        own.write_bytes(safetensors())
        assert as_user(65001, keep) == 0
        assert as_user(65003, use) == 0
        places.prepare_shelves([str(shelf.root)], User(65101, 65101))
        assert as_user(65101, lambda: shelf.remove(place)) == 0
        assert as_user(65101, keep) == 0
        assert own.stat().st_uid == 0


def test_a_malformed_url_is_a_failure_and_no_crash(shelf: Shelf) -> None:
    assert failure(shelf, "http://[::1").code == "input.bad_url"


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, hub: ModelServer) -> None:
    (tmp_path / "loras").write_text("a file where the directory should be")
    found = failure(shelf_at(tmp_path), hub.show("/a.safetensors", safetensors()))
    assert found.code == "input.unplaced" and str(tmp_path / "loras") in found.message


def test_weights_lie_where_an_operator_would_put_them() -> None:
    def at(url: str) -> str:
        return str(place_of("weights", url))

    hub_url = "https://huggingface.co/DeepBeepMeep/Wan2.1/blob/main/pose/dw-ll_ucoco_384.onnx"
    assert at(hub_url) == "DeepBeepMeep/Wan2.1/pose/dw-ll_ucoco_384.onnx"
    assert at(hub_url.replace("/main/", "/0f1e/")) == "DeepBeepMeep/Wan2.1/@0f1e/pose/dw-ll_ucoco_384.onnx"
    assert at("https://h.example/a/../.ssh/%2e%2e/x.pth") == "h.example/a/_/ssh/_/x.pth"


HEADERS = [
    b"",
    b"\x00" * 9,
    (2).to_bytes(8, "little") + b"{}" + b"x",
    (2**60).to_bytes(8, "little") + b"{}",
    (30).to_bytes(8, "little") + b"[" * 30,
    safetensors()[:-1],
    safetensors() + b"x",
    safetensors().replace(b"F32", b"F64"),
    safetensors().replace(b"[128]", b"[-12]"),
    safetensors().replace(b"[512, 1024]", b"[500, 1012]"),
]


@pytest.mark.parametrize("body", HEADERS, ids=range(len(HEADERS)))
def test_damage_is_seen_in_the_file_itself(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(body)
    assert damage(path, "x.safetensors") is not None
    path.write_bytes(safetensors())
    assert damage(path, "x.safetensors") is None
