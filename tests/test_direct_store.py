"""A file by PUT to the task's own URL, in a store: a repeat of what has arrived is no failure, and nothing else is."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.put_server import PutServer
from wan2gp.protocol import Artifact
from wan2gp.supervisor.direct_store import DirectStore
from wan2gp.supervisor.patience import Patience
from wan2gp.supervisor.publish import LocalStore, PublishFailed, Staged
from wan2gp.supervisor.queue import Verb
from wan2gp.supervisor.signed_put import put
from wan2gp.supervisor.spool import Ending

QUICK = Patience(tries=2, first_s=0.005, max_s=0.02, answer_s=10.0)
EXISTS = (409, {}, "exists")


class Away(LocalStore):
    """Another store that sends what it gets, but fails as long as ``fails``; it tells of files from several threads."""

    def __init__(self, outputs: Path) -> None:
        super().__init__(outputs)
        self.fails = False
        self.took: list[str] = []

    def upload(
        self,
        ending: Ending,
        staged: Sequence[Staged],
        stop: threading.Event,
        sent: Callable[[Staged], None] = lambda item: None,
    ) -> list[Staged]:
        if self.fails:
            raise PublishFailed("publish.unavailable", "away", permanent=False)
        self.took += [item.path.name for item in staged]
        return list(staged)


@pytest.fixture
def inner(tmp_path: Path) -> Away:
    return Away(tmp_path / "outputs")


def direct(inner: LocalStore) -> DirectStore:
    def send(url: str, file: Path, mime: str, stop: threading.Event, begun_before: bool) -> None:
        put(url, file, mime, stop=stop, allow_private_urls=True, begun_before=begun_before, patience=QUICK)

    return DirectStore(inner, send)


@pytest.fixture
def store(inner: Away) -> DirectStore:
    return direct(inner)


@pytest.fixture
def staged(tmp_path: Path) -> list[Staged]:
    made = []
    for name, main in (("other.txt", False), ("main.txt", True)):
        path = tmp_path / name
        path.write_bytes(name.encode() * 10_000)
        artifact = Artifact(name, name, "file", "text/plain", path.stat().st_size, "", primary=main)
        made.append(Staged(artifact, path, target=tmp_path / "outputs" / name))
    return made


def ending(server: PutServer, **given: Any) -> Ending:
    made = Ending("task", "maker", 1, "0123456789abcdef", "token", Verb.COMPLETE, "/work", put_url=server.url())
    return msgspec.structs.replace(made, **given)


def failure(call: Callable[[], Any]) -> str:
    with pytest.raises(PublishFailed) as caught:
        call()
    return caught.value.code


def test_the_primary_file_goes_to_the_tasks_url_and_the_rest_elsewhere(
    put_server: PutServer, store: DirectStore, inner: Away, staged: list[Staged]
) -> None:
    told: list[Staged] = []
    main, other = store.upload(ending(put_server), staged, threading.Event(), told.append)
    assert (main.path, main.url) == (staged[1].path, put_server.url().partition("?")[0]) and told == [main]
    assert other == staged[0] and inner.took == ["other.txt"]
    assert [body for _, _, body in put_server.seen] == [staged[1].path.read_bytes()]


def test_what_was_put_is_not_put_again_after_another_file_failed(
    put_server: PutServer, store: DirectStore, inner: Away, staged: list[Staged]
) -> None:
    told: list[Staged] = []
    inner.fails = True
    upload = functools.partial(store.upload, ending(put_server))
    assert failure(lambda: upload(staged, threading.Event(), told.append)) == "publish.unavailable"
    (main,) = told
    inner.fails, put_server.answers = False, [EXISTS]
    assert upload([staged[0], main], threading.Event(), told.append) == [main, staged[0]]
    assert told == [main] and len(put_server.seen) == 1


def test_whoever_forgets_what_was_put_may_put_it_again(
    put_server: PutServer, store: DirectStore, inner: Away, staged: list[Staged]
) -> None:
    inner.fails = True
    assert failure(lambda: store.upload(ending(put_server), staged, threading.Event())) == "publish.unavailable"
    inner.fails, put_server.answers = False, [EXISTS]
    assert store.upload(ending(put_server), staged, threading.Event())[0].url
    put_server.answers = [EXISTS]
    another = ending(put_server, lease_id="fedcba9876543210")
    assert failure(lambda: store.upload(another, staged, threading.Event())) == "publish.put_refused"


@pytest.mark.parametrize("answer", [None, 500, 502, 504])
def test_a_round_whose_answers_were_all_lost_is_made_good_by_the_next(
    put_server: PutServer, store: DirectStore, staged: list[Staged], answer: int | None
) -> None:
    """The file is there, and its server takes nothing twice."""
    if answer is None:
        put_server.drops = QUICK.tries
    else:
        put_server.answers = [(answer, {}, "bad gateway")] * QUICK.tries
    upload = functools.partial(store.upload, ending(put_server), staged, threading.Event())
    assert failure(upload) == "publish.put_unavailable"
    put_server.answers = [EXISTS]
    assert upload()[0].url is not None


@pytest.mark.parametrize("status", [409, 412])
def test_a_server_that_has_somebody_elses_file_there_refuses_for_good(
    put_server: PutServer, store: DirectStore, staged: list[Staged], status: int
) -> None:
    """Also when a person asks for another try, in this life or the next."""
    put_server.answers = [(status, {}, "exists")] * 3
    for again in (ending(put_server), ending(put_server, withheld="publish.put_refused: exists")):
        assert failure(lambda again=again: store.upload(again, staged, threading.Event())) == "publish.put_refused"
    left = ending(put_server, withheld="publish.put_refused: exists", resumed=True)
    assert failure(lambda: store.upload(left, staged, threading.Event())) == "publish.put_refused"


def test_a_server_that_was_too_busy_to_read_has_nothing_of_ours(
    put_server: PutServer, store: DirectStore, staged: list[Staged]
) -> None:
    put_server.answers = [(429, {}, "later")] * QUICK.tries + [EXISTS]
    upload = functools.partial(store.upload, ending(put_server), staged, threading.Event())
    assert failure(upload) == "publish.put_unavailable"
    assert failure(upload) == "publish.put_refused"


@pytest.mark.parametrize("withheld", [None, "publish.put_unavailable: away", "publish.quota: of the other file"])
def test_what_an_earlier_life_may_have_put_is_no_refusal(
    put_server: PutServer, inner: Away, staged: list[Staged], withheld: str | None
) -> None:
    put_server.answers = [EXISTS]
    left = ending(put_server, resumed=True, withheld=withheld)
    assert direct(inner).upload(left, staged, threading.Event())[0].url is not None


def test_files_are_told_one_by_one_whatever_thread_the_other_store_sends_them_from(
    put_server: PutServer, tmp_path: Path, staged: list[Staged]
) -> None:
    """Whoever hears of them changes a list."""
    inside, most, both = [0], [0], threading.Barrier(2)

    def heard(item: Staged) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.02)
        inside[0] -= 1

    class Threaded(LocalStore):
        def upload(
            self,
            ending: Ending,
            staged: Sequence[Staged],
            stop: threading.Event,
            sent: Callable[[Staged], None] = lambda item: None,
        ) -> list[Staged]:
            def tell(item: Staged) -> None:
                both.wait(20)
                sent(item)

            threads = [threading.Thread(target=tell, args=(item,)) for item in staged]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return list(staged)

    direct(Threaded(tmp_path)).upload(ending(put_server, put_url=None), staged, threading.Event(), heard)
    assert most == [1]
