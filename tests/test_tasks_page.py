"""docs/tasks.md: each of its rows is run by a real worker on a real database."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.conftest_db import PgServer
from tests.conftest_worker import ROOT, Worker
from tests.model_server import ModelServer, safetensors
from tests.rife_stand_in import FILES as RIFE_WEIGHTS
from tests.rife_stand_in import write_weights
from tests.shared_worker import shared_worker
from wan2gp.docs_examples import EXAMPLES, FILES
from wan2gp.handlers.media_probe import probe
from wan2gp.handlers.wan_parameters import PARAMETERS
from wan2gp.media_sources import INTERPOLATE
from wan2gp.model_places import FOLDERS, LORA, place_of
from wan2gp.wan_sources import MEDIA
from wan2gp.wan_types import OWN_URLS, TYPES

PAGE = (ROOT / "docs" / "tasks.md").read_text()
EXAMPLE = re.compile(r"\n## (\w+)\n(?:(?!\n## ).)*?```sql\n(.*?)```", re.DOTALL)
STATEMENTS = dict(EXAMPLE.findall(PAGE))
LENGTH, SIZE = re.compile(r'("video_length": )(?:\d+|"\ds")'), re.compile(r'("resolution": ")\d+x\d+')
WAN_ROOT, RIFE_ROOT = ROOT / "tests" / "wan_root", ROOT / "tests" / "rife_root"
Row = dict[str, Any]


def test_every_type_has_one_example_and_every_parameter_a_line() -> None:
    assert set(STATEMENTS) == set(EXAMPLES) == {*TYPES, INTERPOLATE}
    assert PAGE.count("```sql") == len(STATEMENTS)
    for name in (*PARAMETERS, *MEDIA):
        assert f"\n| `{name}` |" in PAGE


def test_the_license_of_the_engine_is_told() -> None:
    """And what it covers is in no image of ours."""
    assert "deepbeepmeep" not in (ROOT / "Dockerfile").read_text()
    readme = (ROOT / "README.md").read_text()
    for text in (PAGE, readme):
        assert "https://github.com/deepbeepmeep/Wan2GP" in text and "LICENSE.txt" in text and "Made with WanGP" in text


# --- the examples ----------------------------------------------------------------------------------------------------


def picture(path: Path) -> bytes:
    Image.effect_noise((120, 80), 60).convert("RGB").save(path)
    return path.read_bytes()


def mask(path: Path) -> bytes:
    image = Image.new("L", (120, 80), 0)
    image.paste(255, (30, 20, 90, 60))
    image.save(path)
    return path.read_bytes()


def film(path: Path, level: int) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(17):
            pixels = np.full((64, 96, 3), level, np.uint8)
            pixels[:, index * 4 : index * 4 + 20] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """What the examples' URLs name."""
    place, started = tmp_path_factory.mktemp("files"), ModelServer()
    started.show("/picture.png", picture(place / "picture.png"))
    started.show("/last.png", picture(place / "last.png"))
    started.show("/mask.png", mask(place / "mask.png"))
    started.show("/film.mp4", film(place / "film.mp4", 60))
    started.show("/film-mask.mp4", film(place / "film-mask.mp4", 0))
    started.show("/style.safetensors", safetensors())
    yield started
    started.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, _pg_session: PgServer) -> Iterator[Worker]:
    """With the types' own LoRAs where an operator would put them."""
    path = tmp_path_factory.mktemp("tasks")
    root = Path(shutil.copytree(WAN_ROOT, path / "Wan2GP"))
    shutil.copytree(RIFE_ROOT, root, dirs_exist_ok=True)
    write_weights(root / "ckpts" / RIFE_WEIGHTS["v4"])
    for url in OWN_URLS:
        lora = path / "shared" / "models" / FOLDERS[LORA] / place_of(LORA, url)
        lora.parent.mkdir(parents=True, exist_ok=True)
        lora.write_bytes(safetensors())
    environ = {"WAN2GP_PATH": str(root), "WAN2GP_PYTHON": sys.executable, "WAN2GP_ALLOW_PRIVATE_URLS": "1"}
    with shared_worker(path, _pg_session, **environ) as running:
        yield running


def inserted(worker: Worker, statement: str, server: ModelServer) -> str:
    """Typed as it is written, but for where the files are; its task."""
    assert statement.endswith(";\n")
    returning = statement.replace(FILES, f"{server.host}/").removesuffix(";\n") + " RETURNING id"
    return str(worker.sql(returning)[0]["id"])


def check(row: Row, task_type: str) -> None:
    assert row["status"] == "Complete", (task_type, row["error_message"])
    made = row["result_data"]["artifacts"]
    makes = TYPES[task_type].makes if task_type in TYPES else "video"
    assert {file["kind"] for file in made} == {makes}, task_type
    given = EXAMPLES[task_type]
    assert len(made) == given.get("repeat_generation", given.get("batch_size", 1)), task_type
    warnings = row["result_data"].get("warnings", [])
    assert not [warning for warning in warnings if "is not used" in warning or "overrules" in warning], warnings


def run_all(worker: Worker, server: ModelServer, statements: dict[str, str]) -> None:
    tasks = {name: inserted(worker, text, server) for name, text in statements.items()}
    for name, task in tasks.items():
        check(worker.ended(task, patience_s=120), name)
    clip = worker.row(tasks[INTERPOLATE])["result_data"]
    assert probe(Path(clip["artifacts"][0]["path"])).frames == EXAMPLES[INTERPOLATE]["frames"]
    assert clip["engine"]["interpolation"] == "RIFE v4.26"


def test_every_example_makes_what_it_says_as_a_short_and_small_film(worker: Worker, server: ModelServer) -> None:
    small = {name: LENGTH.sub(r"\g<1>17", SIZE.sub(r"\g<1>64x64", text)) for name, text in STATEMENTS.items()}
    run_all(worker, server, small)


@pytest.mark.long
def test_every_example_makes_what_it_says_as_it_is_written(worker: Worker, server: ModelServer) -> None:
    run_all(worker, server, STATEMENTS)
