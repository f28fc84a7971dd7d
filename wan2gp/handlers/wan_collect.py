"""The files of a generation: each decoded, described and put where the supervisor takes it from, in order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan2gp.handlers.api import Interrupted, Job, TaskFailure
from wan2gp.handlers.media_probe import MediaInfo, Unreadable, probe, sha256_of
from wan2gp.protocol import Artifact

OUT = "out"
FRACTION, SHARE = 0.95, 0.04
"""Where the files begin in the fraction of the whole run, and how much of it they are."""
PICTURES = ("video", "image")
STEM = "output"
MOST_SUFFIX = 8


@dataclass(frozen=True)
class Made:
    """The files of one job of the engine, and the seed that they were made with."""

    files: tuple[Path, ...]
    seed: int
    is_film: bool


@dataclass(frozen=True)
class Kept:
    artifacts: tuple[Artifact, ...]
    warnings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = field(default=())
    """Of the results, in order."""

    @property
    def primary(self) -> Artifact:
        return next(artifact for artifact in self.artifacts if artifact.primary)


@dataclass(frozen=True)
class _Looked:
    path: Path
    info: MediaInfo


def whole_of(made: Made) -> tuple[Path, ...]:
    """All pictures of a job, or its one film: of a long one the engine may keep what it had after each window, and the
    last of them is the whole."""
    films = [path for path in made.files if path.suffix.lower() in (".mp4", ".mkv", ".webm", ".mov", ".avi")]
    if not made.is_film or len(films) < 2:
        return made.files
    return tuple(path for path in made.files if path not in films[:-1])


def collect(job: Job, results: Sequence[Made]) -> Kept:
    """Move all of them to where they are published from. Raises :class:`TaskFailure` when none can be decoded, and
    ``Interrupted``."""
    folder = job.work_dir / OUT
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = [path for made in results for path in whole_of(made)]
    looked: list[_Looked] = []
    spoilt: list[str] = []
    for number, path in enumerate(files):
        if job.cancelled():
            raise Interrupted
        job.progress(FRACTION + SHARE * number / len(files), "publish", step=number + 1, steps=len(files))
        moved = _moved(path, folder, number)
        try:
            looked.append(_Looked(moved, probe(moved)))
        except Unreadable as error:
            spoilt.append(f"{moved.name} cannot be decoded: {error}")
    if not any(item.info.kind in PICTURES for item in looked):
        why = spoilt[0] if spoilt else "there is neither a picture nor a film among its files"
        # What cannot be decoded was cut off, by a full disk mostly: the next attempt may be luckier.
        raise TaskFailure("wan.no_outputs", f"Wan2GP reported success, but {why}", retryable=bool(spoilt))
    return Kept(tuple(_artifacts(job.work_dir, looked)), tuple(spoilt), tuple(made.seed for made in results))


def _moved(path: Path, folder: Path, number: int) -> Path:
    """Under a name of ours: the engine's holds the beginning of the prompt."""
    suffix = path.suffix.lower()
    suffix = suffix if suffix[1:].isalnum() and len(suffix) <= MOST_SUFFIX else ""
    target = folder / f"{STEM}{f'-{number + 1}' if number else ''}{suffix}"
    os.rename(path, target)
    return target


def _artifacts(work_dir: Path, looked: Sequence[_Looked]) -> Iterator[Artifact]:
    first = next(item for kind in PICTURES for item in looked if item.info.kind == kind)
    for item in looked:
        info = item.info
        yield Artifact(
            path=str(item.path.relative_to(work_dir)),
            name=item.path.name,
            kind=info.kind,
            mime=info.mime,
            bytes=item.path.stat().st_size,
            sha256=sha256_of(item.path),
            width=info.width,
            height=info.height,
            frames=info.frames,
            duration_s=info.duration_s,
            primary=item is first,
        )
