"""Whatever bytes a file is made of: it is told, named and judged in words, and no file ends the process that looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing import CORPUS, SHARE_S, corpus, keep, search, slice_of
from tests.promises_media import FILES, LONG_FILES, is_told_and_named
from wan2gp.handlers.sniff import sniff

ROOT = Path(__file__).parent.parent


def test_every_file_is_told_by_its_first_bytes_and_gets_a_harmless_name() -> None:
    for content in corpus("media"):
        is_told_and_named(content)
    slice_of(is_told_and_named, FILES | LONG_FILES, 500)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_files_for_minutes_without_a_finding() -> None:
    assert search("media", is_told_and_named, FILES | LONG_FILES)


def look(folder: Path, seconds: float) -> None:
    """In another process: a decoder that crashes must not take the tests along."""
    command = [sys.executable, "-m", "tests.media_search", str(folder), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 110, check=False)
    if done.returncode:
        last = max(folder.glob("example.*"), key=lambda path: path.stat().st_mtime_ns)
        kept = keep("media", last.read_bytes())
        pytest.fail(f"ended with {done.returncode}, the file is kept as {kept}: {done.stderr[-3000:]}")


def test_spoilt_media_are_judged_in_words(tmp_path: Path) -> None:
    look(tmp_path, 0)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_spoilt_media_for_minutes_without_a_finding(tmp_path: Path) -> None:
    look(tmp_path, SHARE_S)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"the free lunch", "a text"),
        (b"they skip it", "a text"),
        (b"\x00\x00\x00\x08free\x00\x00\x00\x10mdat", "a QuickTime file"),
        (b"\x00\x00\x00\x01mdat", "a QuickTime file"),
    ],
)
def test_a_word_of_a_text_is_no_box_of_a_film(content: bytes, name: str) -> None:
    assert sniff(content).name == name


def test_whoever_downloads_decodes_nothing() -> None:
    """The courier has the network; what parses a stranger's file has none."""
    program = (
        "import sys, wan2gp.handlers.courier, wan2gp.handlers.sniff\n"
        "print(sorted({'av', 'PIL', 'numpy', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_corpus_is_there() -> None:
    assert {path.name for path in CORPUS.iterdir()} >= {"graphs", "media", "urls"}
    assert all(any(True for _ in corpus(kind)) for kind in ("graphs", "media", "urls"))
