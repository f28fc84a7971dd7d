"""RIFE in its own process: any moment between two pictures, and everything that can happen to it meanwhile."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.rife_stand_in import FILES, make_root, runs, write_weights
from wan2gp.media_sources import RIFE_URL
from wan2gp.wan_sidecar import rife_weights
from wan2gp.wan_sidecar.errors import Abandoned, NotInstalled
from wan2gp.wan_sidecar.rife import Rife, RifeFailed
from wan2gp.wan_sidecar.rife_weights import WeightsMissing, find_rife

SIZE = (70, 50)
"""Multiples of nothing."""


@pytest.fixture
def rife(tmp_path: Path) -> Iterator[Callable[..., Rife]]:
    """Makes stand-ins; ends their processes, and sees that they are gone."""
    made: list[Rife] = []
    home = tmp_path / "home"
    home.mkdir()

    def make(version: str = "v4", fault: str = "", root: Path | None = None, **more: Any) -> Rife:
        root = root or make_root(tmp_path / f"root{len(made)}", version, fault=fault)
        made.append(Rife(find_rife(str(root)), sys.executable, home, **more))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    left = [each.cmdline() for each in psutil.Process().children(recursive=True)]
    assert [command for command in left if any("rife_host.py" in part for part in command)] == []


def flat(value: int, size: tuple[int, int] = SIZE) -> bytes:
    return bytes([value]) * (size[0] * size[1] * 3)


def greys(one: Rife, count: int, size: tuple[int, int] = SIZE) -> list[int]:
    """Of the pictures between black and white; each must be of one grey all over."""
    times = [(index + 1) / (count + 1) for index in range(count)]
    found = []
    for made in one.between(flat(0, size), flat(255, size), size, times):
        assert len(made) == size[0] * size[1] * 3 and made == made[:1] * len(made)
        found.append(made[0])
    return found


def fails(one: Rife, count: int = 3) -> RifeFailed:
    with pytest.raises(RifeFailed) as caught:
        one.ensure()
        greys(one, count)
    assert one.about is None
    return caught.value


def test_any_number_of_pictures_lies_evenly_between_two(rife: Callable[..., Rife]) -> None:
    """The engine's own function makes 1, 3, 7 … pictures, and no others."""
    one = rife()
    about = one.ensure()
    assert (about.name, about.device, about.torch) == ("RIFE v4.26", "cpu", "0.stand-in")
    for count in (1, 2, 7, 8, 31, 128):
        assert greys(one, count) == [round(255 * (index + 1) / (count + 1)) for index in range(count)]
    assert one.ensure() is about, "it was started twice"


def test_the_older_model_finds_moments_by_halving(rife: Callable[..., Rife]) -> None:
    one = rife("v3")
    assert one.ensure().name == "RIFE HDv3"
    assert greys(one, 7) == [round(255 * index / 8) for index in range(1, 8)]
    for count in (1, 2, 8, 31, 99):
        found = greys(one, count)
        assert len(found) == count and found == sorted(found)
        wanted = [255 * (index + 1) / (count + 1) for index in range(count)]
        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 0.5 + 255 / 8 / (count + 1) + 1


@pytest.mark.long
def test_another_size_leaves_nothing_of_the_one_before(rife: Callable[..., Rife]) -> None:
    one = rife()
    one.ensure()
    for size in ((64, 64), (33, 200), (64, 64)):
        assert greys(one, 1, size) == [128]


def test_a_clip_that_is_left_half_made_does_not_show_in_the_next(rife: Callable[..., Rife]) -> None:
    one = rife()
    one.ensure()
    begun = one.between(flat(0), flat(255), SIZE, [0.25, 0.5, 0.75])
    next(begun)
    begun.close()
    assert [made[0] for made in one.between(flat(10), flat(20), SIZE, [0.5])] == [15]


def test_weights_that_are_a_program_are_not_run(rife: Callable[..., Rife], tmp_path: Path) -> None:
    """The files are pickles, and whoever unpickles one does what it says."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    root = make_root(tmp_path / "root", "v4")
    (root / "ckpts" / FILES["v4"]).write_bytes(pickle.dumps({"block0.weight": Bomb()}))
    failure = fails(rife(root=root))
    assert failure.why == "weights" and "Weights only" in str(failure)
    assert not (tmp_path / "pwned").exists()


def test_weights_of_which_a_part_is_missing_are_refused(rife: Callable[..., Rife], tmp_path: Path) -> None:
    """The engine would fill the part with noise, and say nothing."""
    root = make_root(tmp_path / "root", "v4")
    (root / "ckpts" / FILES["v4"]).write_bytes(pickle.dumps({"block0.weight": 0, "encode.cnn0.weight": 0}))
    failure = fails(rife(root=root))
    assert failure.why == "weights" and "block1.weight" in str(failure)


@pytest.mark.parametrize(
    "content", [b"<!doctype html>", *(pytest.param(each, marks=pytest.mark.long) for each in (b"", pickle.dumps([1])))]
)
def test_weights_that_are_none_are_refused(rife: Callable[..., Rife], tmp_path: Path, content: bytes) -> None:
    root = make_root(tmp_path / "root")
    (root / "ckpts").mkdir()
    (root / "ckpts" / FILES["v4"]).write_bytes(content)
    assert fails(rife(root=root)).why == "weights"


@pytest.mark.parametrize(
    ("fault", "why", "said"),
    [
        ("die", "exit", "killed by signal 9"),
        pytest.param("memory", "memory", "out of memory", marks=pytest.mark.long),
        pytest.param("host memory", "memory", "allocate memory", marks=pytest.mark.long),
        pytest.param("error", "device", "size of tensor", marks=pytest.mark.long),
        pytest.param("nan", "weights", "spoilt", marks=pytest.mark.long),
    ],
)
def test_a_fault_has_its_name_and_the_next_clip_a_new_process(
    rife: Callable[..., Rife], fault: str, why: str, said: str
) -> None:
    one = rife(fault=fault)
    failure = fails(one)
    assert failure.why == why and said in str(failure)
    assert one.ensure().pid and greys(one, 1) == [128]


def test_a_rife_that_hangs_is_ended_by_its_limit(rife: Callable[..., Rife]) -> None:
    failure = fails(rife(fault="hang", picture_s=0.6))
    assert failure.why == "silence"


def test_a_cancel_does_not_wait_for_the_picture(rife: Callable[..., Rife]) -> None:
    one = rife(fault="hang")
    pid = one.ensure().pid
    gone = threading.Event()
    threading.Timer(0.3, gone.set).start()
    began = time.monotonic()
    with pytest.raises(Abandoned):
        list(one.between(flat(0), flat(9), SIZE, [0.25, 0.75], gone.is_set))
    assert time.monotonic() - began < 30 and not runs(pid)


def test_an_interpreter_without_pytorch_is_said_as_one(rife: Callable[..., Rife], tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", "v4")
    (root / "torch" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    failure = fails(rife(root=root))
    assert failure.why == "import" and "No module named 'torch'" in str(failure)


@pytest.mark.long
def test_an_interpreter_that_is_none_is_said_as_one(tmp_path: Path) -> None:
    one = Rife(find_rife(str(make_root(tmp_path / "root", "v4"))), str(tmp_path / "python"), tmp_path)
    failure = fails(one)
    assert "cannot" in str(failure) or "cannot execute" in " ".join(failure.tail)


@pytest.mark.long
def test_a_card_that_is_not_there_is_said_to_be_missing(rife: Callable[..., Rife]) -> None:
    failure = fails(rife(device="cuda"))
    assert failure.why == "device" and "NVIDIA driver" in str(failure)


# --- where it lies ---------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match="WAN2GP_PATH is not set"):
        find_rife("")
    with pytest.raises(NotInstalled, match=f"no Wan2GP with RIFE at {tmp_path}"):
        find_rife(str(tmp_path))
    root = make_root(tmp_path / "root")
    with pytest.raises(WeightsMissing, match=f"put rife4.26.pkl of .* into {root}/ckpts"):
        find_rife(str(root))


def test_weights_are_found_where_the_engine_looks(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", "v3", place="ckpts")
    assert find_rife(str(root)).version == "v3"
    write_weights(tmp_path / "disk" / FILES["v4"])
    (root / "wgp_config.json").write_text(f'{{"checkpoints_paths": ["ckpts", "{tmp_path}/disk", 7]}}')
    assert find_rife(str(root)).weights == tmp_path / "disk" / FILES["v4"]
    write_weights(tmp_path / "store" / FILES["v4"])
    assert find_rife(str(root), [str(tmp_path / "store")]).weights.parent == tmp_path / "store"
    (root / "wgp_config.json").write_text("[")
    assert find_rife(str(root)).version == "v3"


def test_the_address_of_the_weights_is_of_the_file_that_is_looked_for() -> None:
    assert RIFE_URL.startswith(f"{rife_weights.HUB}/") and RIFE_URL.endswith(f"/{rife_weights.FILES[0][1]}")


# --- the real one ----------------------------------------------------------------------------------------------------

REAL, PYTHON = os.environ.get("WAN2GP_PATH", ""), os.environ.get("WAN2GP_PYTHON", "")
DRAW = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.manual_seed(7)
from postprocessing.rife.RIFE_HDv3 import Model as Old
from postprocessing.rife.RIFE_V4 import Model as New
new = New()
parts = {**new.flownet.state_dict(), **{"encode." + name: part for name, part in new.encode.state_dict().items()}}
torch.save(parts, sys.argv[2] + "/rife4.26.pkl")
torch.save({"module." + name: part for name, part in Old().flownet.state_dict().items()}, sys.argv[3] + "/flownet.pkl")
"""


@pytest.mark.skipif(not (REAL and PYTHON), reason="needs a Wan2GP (WAN2GP_PATH, WAN2GP_PYTHON with PyTorch)")
@pytest.mark.parametrize("version", ["v4", "v3"])
def test_the_real_models_answer_as_the_stand_in_does(version: str, tmp_path: Path) -> None:
    """With weights drawn at random: pictures of the right size and number, on a processor."""
    import subprocess

    places = {name: tmp_path / name for name in ("v4", "v3")}
    for place in places.values():
        place.mkdir()
    subprocess.run([PYTHON, "-c", DRAW, REAL, *map(str, places.values())], check=True, timeout=100)
    one = Rife(find_rife(REAL, [str(places[version])]), PYTHON, tmp_path)
    try:
        one.ensure()
        assert one.model.version == version
        rng = np.random.default_rng(3)
        first, last = (rng.integers(0, 255, (50, 70, 3), np.uint8).tobytes() for _ in range(2))
        made = list(one.between(first, last, SIZE, [0.2, 0.4, 0.6, 0.8]))
        assert [len(each) for each in made] == [70 * 50 * 3] * 4 and len({*made}) == 4
        assert made == list(one.between(first, last, SIZE, [0.2, 0.4, 0.6, 0.8])), "the same twice is not the same"
    finally:
        one.stop()
