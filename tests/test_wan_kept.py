"""What the engine's handler does with kept files: it locks what it uses, and remembers what a model's load asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.model_server import safetensors
from wan2gp.errors import retryable
from wan2gp.handlers import model_store
from wan2gp.handlers.api import Job, TaskFailure
from wan2gp.handlers.model_download import ModelDownload
from wan2gp.handlers.model_store import Shelf
from wan2gp.handlers.wan_kept import FOLDER_WANTED, KeptLoras, KeptWeights
from wan2gp.handlers.wan_loras import Lora
from wan2gp.handlers.webstream import Limits
from wan2gp.protocol import Source
from wan2gp.wan_sidecar.work import Want

if TYPE_CHECKING:
    from tests.model_server import ModelServer

SIZE = len(safetensors())
LIMITS = Limits(total_s=60.0, allow_private_hosts=frozenset({"127.0.0.1"}))


class Task:
    """A task whose courier is in this process, on a shelf for two files."""

    task_type = "t2v"

    def __init__(self, path: Path) -> None:
        self.shelf = Shelf(path / "kept", budget=2 * SIZE, max_bytes=SIZE, option="wan.weights_bytes")
        self.asked: list[str] = []
        self.stolen: list[str] = []
        """Files that are removed right after they were handed over, once each."""

    def fetch(self, sources: Mapping[str, Source]) -> dict[str, Path]:
        found = {}
        for name, source in sources.items():
            self.asked.append(source.url)
            try:
                found[name] = ModelDownload(source, self.shelf, LIMITS).run().path
            except TaskFailure as failure:
                may = retryable(failure.code) if failure.retryable is None else failure.retryable  # as the courier says
                raise TaskFailure(failure.code, f"{name}: {failure.message}", retryable=may) from failure
            if source.url in self.stolen:
                self.stolen.remove(source.url)
                found[name].unlink()
        return found


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(model_store, "SPARE_DISK", 0)
    return Task(tmp_path)


def wanted(url: str, file: str = "x.safetensors") -> Want:
    return Want(url, "o/r", file, Path("/nowhere"))


def shown(hub: ModelServer, name: str) -> str:
    return hub.show(f"/o/r/resolve/main/{name}.safetensors", safetensors())


def job(task: Task) -> Job:
    return cast(Job, task)


def test_weights_of_the_model_in_memory_make_room_for_nothing(task: Task, hub: ModelServer, tmp_path: Path) -> None:
    weights = KeptWeights(tmp_path / "notes")
    give = weights.supply(job(task), lambda: "first")
    used = [give(wanted(shown(hub, name))) for name in ("a", "b")]
    with pytest.raises(TaskFailure, match=r"wan\.weights_bytes"):
        give(wanted(shown(hub, "c")))
    weights.keep_only("first")
    with pytest.raises(TaskFailure, match="no room"):
        task.fetch({"c": Source(shown(hub, "c"), "weights")})
    weights.keep_only("second")
    task.fetch({"c": Source(shown(hub, "c"), "weights")})
    assert [Path(path).exists() for path in used].count(True) == 1


def test_a_file_that_is_removed_before_it_is_locked_is_asked_for_again(task: Task, hub: ModelServer) -> None:
    url = shown(hub, "a")
    task.stolen.append(url)
    loras = KeptLoras(job(task), [])
    (path,) = loras.all_of([Lora(url, "1", "loras[0]")]).values()
    assert Path(path).exists() and task.asked == [url, url]
    task.stolen += [url] * 3
    with pytest.raises(TaskFailure) as caught:
        KeptLoras(job(task), []).all_of([Lora(url, "1", "loras[0]")])
    assert caught.value.code == "wan.lora_unavailable" and caught.value.retryable


def test_what_a_load_has_asked_for_is_looked_at_before_the_next_one(
    task: Task, hub: ModelServer, tmp_path: Path
) -> None:
    notes, url = tmp_path / "notes", shown(hub, "a")
    first = KeptWeights(notes)
    path = first.supply(job(task), lambda: "m")(wanted(url))
    first.keep_only(None)
    assert isinstance(path, Path)
    path.unlink()
    KeptWeights(notes).prepare(job(task), "other")
    assert not path.exists()
    KeptWeights(notes).prepare(job(task), "m")
    assert path.exists()
    path.unlink()
    hub.files["/o/r/resolve/main/a.safetensors"].status = 503
    with pytest.raises(TaskFailure) as caught:
        KeptWeights(notes).prepare(job(task), "m")
    assert caught.value.code == "wan.missing_weights" and caught.value.retryable
    assert "the model m needs o/r/a.safetensors: " in caught.value.message
    hub.files["/o/r/resolve/main/a.safetensors"].status = 404
    KeptWeights(notes).prepare(job(task), "m")  # the engine asks once more, and is told


def test_the_engine_is_told_why_there_is_no_file(task: Task, hub: ModelServer, tmp_path: Path) -> None:
    give = KeptWeights(tmp_path / "notes").supply(job(task), lambda: "m")
    assert "404" in str(give(wanted(f"{hub.host}/o/r/resolve/main/none.pth")))
    assert give(wanted("", "folder/")) == FOLDER_WANTED
    assert "does not say where" in str(give(wanted("")))


def test_spoilt_notes_cost_nothing(task: Task, hub: ModelServer, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    for text in ("", "[]", "{" * 100, '{"m": 1}'):
        notes.write_text(text)
        KeptWeights(notes).prepare(job(task), "m")
    give = KeptWeights(notes).supply(job(task), lambda: "m")
    assert isinstance(give(wanted(shown(hub, "a"))), Path)


def test_a_lora_by_name_is_found_wherever_it_lies_once(task: Task, tmp_path: Path) -> None:
    folders = [tmp_path / "loras", tmp_path / "more"]
    for folder in (folders[0] / "wan", folders[0] / "flux", folders[1]):
        folder.mkdir(parents=True)
    loras = KeptLoras(job(task), folders)

    def find(name: str) -> str:
        return loras.all_of([Lora(name, "1", "loras[0]")])[name]

    def refused(name: str) -> TaskFailure:
        with pytest.raises(TaskFailure) as caught:
            find(name)
        return caught.value

    mine = folders[0] / "wan" / "mine.safetensors"
    mine.write_bytes(safetensors())
    assert find("mine.safetensors") == find("wan/mine.safetensors") == str(mine)
    (folders[0] / "flux" / "mine.safetensors").symlink_to(mine)
    assert find("mine.safetensors") == str(mine)  # one file, twice
    (folders[1] / "mine.safetensors").write_bytes(safetensors())
    assert find("mine.safetensors") == str(folders[1] / "mine.safetensors")  # directly there
    for folder in ("wan", "flux"):
        (folders[0] / folder / "two.safetensors").write_bytes(safetensors())
    assert "several" in refused("two.safetensors").message
    mine.write_bytes(safetensors()[:-1])
    assert refused("wan/mine.safetensors").code == "wan.lora_corrupt"
    nowhere = refused("none.safetensors")
    assert nowhere.code == "wan.lora_unavailable" and str(folders[0]) in nowhere.message
