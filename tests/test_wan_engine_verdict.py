"""What is made of the engine's last word on a job; and the protocol, which both sides spell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan2gp.wan_sidecar import protocol
from wan2gp.wan_sidecar.engine import made_files
from wan2gp.wan_sidecar.errors import RequestTooLong, Why
from wan2gp.wan_sidecar.host import _kind
from wan2gp.wan_sidecar.host_line import LINE_BYTES
from wan2gp.wan_sidecar.host_plain import plain
from wan2gp.wan_sidecar.protocol import Ended, EngineError, Missing
from wan2gp.wan_sidecar.verdict import Outcome, broken, death, readable, verdict

FILE = [Path("/out/a.mp4")]
SIDECAR = Path(protocol.__file__).parent
VRAM = "it is likely that you have unsufficient VRAM and you should therefore reduce the video resolution"


def ended(*errors: tuple[str, str], **fields: Any) -> Ended:
    basic = {"id": 1, "success": not errors, "cancelled": False, "files": [], "missing": [], "tail": [], "model": "t2v"}
    said = [EngineError(message, stage) for message, stage in errors]
    return Ended(**{**basic, "errors": said, "unfit": False, **fields})


CASES = [
    # The last word, whether there is a file, whether a cancel was asked for, the outcome, whether the process goes.
    (ended(), True, False, Outcome.OK, False),
    (ended(), True, True, Outcome.OK, False),  # it was ready before the cancel reached it
    (ended(tail=["CUDA error: out of memory, falling back"]), True, False, Outcome.OK, False),
    (ended(unfit=True), True, False, Outcome.OK, True),
    (ended(), False, False, Outcome.NO_OUTPUTS, False),
    (ended(success=False), False, False, Outcome.NO_OUTPUTS, False),
    (ended(), False, True, Outcome.CANCELLED, False),
    (ended(("boom", "generation")), True, False, Outcome.FAILED, False),  # half of a result is none
    (ended(("Generation was cancelled", "cancelled")), False, False, Outcome.CANCELLED, False),
    (ended(("boom", "generation"), ("", "cancelled")), False, False, Outcome.CANCELLED, False),
    (ended(("empty", "validation")), False, False, Outcome.VALIDATION, False),
    (ended(("ValueError: x", "submit")), False, False, Outcome.VALIDATION, False),
    (ended(("'NoneType' object has no attribute 'get'", "runtime")), False, False, Outcome.UNKNOWN_MODEL, False),
    (ended(("the engine lists no model 'x'", "model")), False, False, Outcome.UNKNOWN_MODEL, False),
    (ended((VRAM, "generation")), False, False, Outcome.OUT_OF_MEMORY, False),
    (ended(("CUDA out of memory. Tried to allocate 2", "generation")), False, False, Outcome.OUT_OF_MEMORY, False),
    (ended(("failed", "generation"), tail=["can't allocate memory"]), False, False, Outcome.OUT_OF_MEMORY, False),
    (ended(("CUDA error: out of memory", "generation")), False, False, Outcome.OUT_OF_MEMORY, False),
    (ended(("CUDA error: misaligned address", "generation")), False, False, Outcome.FAILED, True),
    (ended(("device-side assert triggered", "runtime"), unfit=True), False, False, Outcome.BROKEN, True),
    (ended(("no preview", "runtime"), unfit=True), False, False, Outcome.BROKEN, True),
    (ended(("find the requested files in the local cache", "generation")), 0, False, Outcome.MISSING_WEIGHTS, False),
    (ended(("x", "generation"), missing=[Missing("a/b", "c", "", "no")]), 0, False, Outcome.MISSING_WEIGHTS, False),
    (ended(("x", "generation"), missing=[Missing("a/b", "c", "", "no")]), 0, True, Outcome.CANCELLED, False),
]


@pytest.mark.parametrize(("last", "made", "asked", "outcome", "fresh"), CASES)
def test_an_end_is_judged_by_files_and_errors(
    last: Ended, made: bool, asked: bool, outcome: Outcome, fresh: bool
) -> None:
    found = verdict(last, FILE if made else [], cancel_asked=asked)
    assert (found.outcome, found.fresh) == (outcome, fresh)
    assert bool(found.sentence) == (outcome is not Outcome.OK)


def test_no_outcome_is_without_a_case() -> None:
    ends = {death(-9, [], cancel_asked=False).outcome, broken("it was silent", [], cancel_asked=False).outcome}
    assert {case[3] for case in CASES} | ends == set(Outcome)


def test_a_death_says_how_and_a_cancelled_one_is_a_cancel() -> None:
    killed = death(-9, ["Loading model"], cancel_asked=False)
    assert killed.outcome is Outcome.EXITED and killed.fresh
    assert "signal 9" in killed.sentence and "memory" in killed.sentence and "Loading model" in killed.sentence
    assert "exit code 1" in death(1, [], cancel_asked=False).sentence
    assert death(-9, [], cancel_asked=True).outcome is Outcome.CANCELLED
    assert broken("x", [], cancel_asked=True).outcome is Outcome.CANCELLED


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("plain", "plain"),
        ("'in quotes'", "in quotes"),
        ("\"the error 'boom'\"", "the error 'boom'"),
        (r"'it\'s'", "it's"),
        ("'", "'"),
        ("''", ""),
        ("'a' and 'b'", "'a' and 'b'"),
        ("  spaces  ", "spaces"),
    ],
)
def test_a_message_is_read_as_text_also_when_it_came_as_a_repr(said: str, text: str) -> None:
    assert readable(said) == text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_no_message_is_too_strange_to_be_read(said: str) -> None:
    assert isinstance(readable(said), str) and readable(repr(said)) == said.strip()


def test_a_program_that_the_engine_needs_is_told_with_what_to_do() -> None:
    last = ended(("[Errno 2] No such file or directory: 'ffprobe'", "generation"))
    found = verdict(last, [], cancel_asked=False)
    assert found.outcome is Outcome.FAILED and "the program ffprobe" in found.sentence
    assert "install FFmpeg" in found.sentence


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AssertionError("Torch not compiled with CUDA enabled"), "no_cuda"),
        (RuntimeError("Found no NVIDIA driver on your system."), "no_cuda"),
        (RuntimeError("No CUDA GPUs are available"), "no_cuda"),
        (ImportError("libcudart.so.12: cannot open shared object file"), "import"),
        (ModuleNotFoundError("No module named 'mmgp'"), "import"),
        (KeyError("attention_mode"), "import"),
        (SystemExit(None), "exit"),
        (SystemExit(2), "exit"),
    ],
)
def test_why_an_engine_does_not_start_is_told_by_what_it_raises(error: BaseException, kind: str) -> None:
    assert _kind(error) == kind and Why(kind)


def test_only_files_of_the_jobs_own_directory_are_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "below").mkdir(parents=True)
    for name in ("a.mp4", "below/b.png", "../other.mp4"):
        (out / name).write_text("x")
    (out / "empty.mp4").touch()
    (out / "link.mp4").symlink_to(out / "a.mp4")
    (out / "way").symlink_to(tmp_path)
    names = ["a.mp4", "a.mp4", "below/b.png", "below", "gone.mp4", "empty.mp4", "link.mp4", "../other.mp4"]
    names += ["way/other.mp4", ".", "x" * 5000, "nul\0"]
    found = made_files([str(out / name) for name in names], out)
    assert found == [out / "a.mp4", out / "below/b.png"]


def test_both_sides_of_the_line_know_the_same_words() -> None:
    text = "".join((SIDECAR / f"host{part}.py").read_text() for part in ("", "_job", "_downloads", "_line"))
    said = set(re.findall(r"""\bsay\(\s*"([a-z_]+)\"""", text)) | set(re.findall(r"""\{"is": "([a-z_]+)\"""", text))
    tags = {msgspec.inspect.type_info(kind).tag for kind in protocol.Heard.__args__}  # type: ignore[union-attr, attr-defined]
    assert said == tags
    answered = set(re.findall(r"""^            "([a-z]+)": """, (SIDECAR / "host.py").read_text(), re.MULTILINE))
    assert answered - {"root", "config_path", "output_dir"} == set(protocol.REQUESTS)
    assert LINE_BYTES == protocol.LINE_BYTES


def test_a_request_that_is_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(RequestTooLong, match="describe"):
        protocol.encode("describe", model="x" * protocol.LINE_BYTES)


def test_of_a_models_definition_all_that_is_json_arrives() -> None:
    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    given_def = {"choices": [("a", 1), len], "f": len, 3: float("nan"), "s": {1}, "x": object(), "n": None}
    found = plain({**given_def, "deep": deep})
    assert found["choices"] == [["a", 1]] and found["3"] is None and found["s"] == [1] and found["x"] is None
    assert "f" not in found and msgspec.json.encode(found)
