"""A generation's files: taken from where they are, checked to be what they should, and fitted to what is made."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wan2gp.handlers.api import Interrupted, Job, TaskFailure
from wan2gp.handlers.comfy_fields import bad
from wan2gp.handlers.comfy_input_probe import check_input
from wan2gp.handlers.local_file import local_file
from wan2gp.handlers.media_probe import Unreadable
from wan2gp.handlers.wan_fit import CROP, Fit, fit_picture, paint_picture, size_of
from wan2gp.handlers.wan_fit_film import Film, fit_film, fit_sound
from wan2gp.handlers.wan_models import ModelFacts
from wan2gp.handlers.wan_options import WanSettings
from wan2gp.handlers.wan_request import WanFile, WanRequest
from wan2gp.handlers.wan_shape import pixels
from wan2gp.handlers.wan_values import Pixels
from wan2gp.storage_address import NO_STORAGE, is_storage, parse_address
from wan2gp.wan_sources import sources_of

FOLDER = "inputs"
"""Below the task's directory."""
SUFFIXES = {"image": ".png", "video": ".mp4", "audio": ".wav"}
"""Of what is written anew. What the engine gets has names of ours: it takes parts of a file's name for commands."""
MASKS = ("image_mask", "video_mask", "mask")
FITTED = ("image_start", "image_end", "image_guide", "image_mask", "video_source")
GUIDES = ("video_guide", "video_guide2", "video_mask")
"""Fitted as well, unless the picture is to grow beyond them."""
GROWING = "video_guide_outpainting"
REFERENCES, POSITIONS = "image_refs", "frames_positions"
SAME_RATE = 0.01
"""Pictures per second that differ by less, of 1, are the same."""
MOST_FRAMES = 1 << 31
"""All of them."""
FIT_FRACTION = 0.01


class WanFiles:
    """Call :meth:`take_local`, :meth:`take_remote`, then :meth:`fit`; :attr:`planned` is known from the start."""

    def __init__(self, job: Job, settings: WanSettings, request: WanRequest) -> None:
        self._job = job
        self._settings = settings
        self._request = request
        self._taken: dict[str, Path] = {}
        folder = job.place / FOLDER
        self.planned: Mapping[str, Path] = {
            file.name: folder / f"{file.parameter}-{number}{SUFFIXES.get(file.kind, '')}"
            for number, file in enumerate(request.files)
        }
        """Where each file will be, by its name: nothing is there yet."""

    def take_local(self) -> None:
        """Files of this machine; quick, so that a mistake costs neither a start nor a download."""
        for file in self._request.files:
            if file.url and is_storage(file.url) and not self._settings.storage:
                shown = parse_address(file.url).shown
                raise TaskFailure("input.no_storage", f"`{file.name}`: {shown} {NO_STORAGE}")
            if file.path:
                limit = self._settings.input_max_bytes
                path = local_file(file.path, f"`{file.name}`", self._settings.allow_paths, limit)
                self._taken[file.name] = self._checked(file, path)

    def take_remote(self) -> None:
        """All URLs at once, by the courier. Raises :class:`TaskFailure`, or ``Interrupted``."""
        if not any(file.url for file in self._request.files):
            return
        files = self._job.fetch(sources_of(self._job.params))
        for file in self._request.files:
            if file.url:
                self._taken[file.name] = self._checked(file, files[file.name])

    @property
    def input_size(self) -> Pixels | None:
        """Of the picture that the type starts from."""
        found = next((file for file in self._request.files if file.parameter == "image"), None)
        if found is None:
            return None
        try:
            return size_of(self._taken[found.name])
        except Unreadable as error:
            raise _corrupt(found, error) from error

    def _checked(self, file: WanFile, path: Path) -> Path:
        check_input(path, file.name, file.kind, self._settings.media_limits(), f"of `{file.name}`")
        return path

    # --- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, settings: Mapping[str, Any], facts: ModelFacts) -> tuple[str, ...]:
        """Write all of them to where they are planned, for the engine's ``settings``. Returns what the row's author
        should know. Raises :class:`TaskFailure`, or ``Interrupted``."""
        shutil.rmtree(self._job.place / FOLDER, ignore_errors=True)
        (self._job.work_dir / FOLDER).mkdir()
        plan = _Plan(self._request, settings, facts)
        films: dict[str, Film] = {}
        warnings: list[str] = []
        for file in self._request.files:
            self._tick()
            try:
                warnings += self._fit_one(file, plan, films)
            except Unreadable as error:
                raise _corrupt(file, error) from error
        plan.check_mask(films)
        return (*warnings, *plan.too_short(films))

    def _fit_one(self, file: WanFile, plan: _Plan, films: dict[str, Film]) -> list[str]:
        source, target = self._taken[file.name], self.planned[file.name]
        if file.kind == "image":
            return self._picture(file, plan)
        if file.kind == "video":
            most = plan.frames_of if file.parameter in GUIDES and not plan.continues else None
            is_mask = file.parameter in MASKS
            films[file.parameter] = fit_film(source, target, plan.fit(file), self._tick, mask=is_mask, most=most)
        elif file.kind == "audio":
            fit_sound(source, target, self._tick)
        else:
            _place(source, target)
        return []

    def _tick(self) -> None:
        if self._job.cancelled():
            raise Interrupted
        self._job.progress(FIT_FRACTION, "start", detail="inputs")

    def _picture(self, file: WanFile, plan: _Plan) -> list[str]:
        source, target = self._taken[file.name], self.planned[file.name]
        if file.parameter == "mask" and self._request.row.painted:
            return []
        mask = self._mask_over(file)
        if mask is None:
            fit_picture(source, target, plan.fit(file), mask=file.parameter in MASKS)
        elif not paint_picture(source, self._taken[mask.name], target, plan.fit(file)):
            return [f"`{mask.name}` marks nothing: nowhere is it brighter than half"]
        return []

    def _mask_over(self, file: WanFile) -> WanFile | None:
        if not self._request.row.painted or file.parameter != "image":
            return None
        return next((each for each in self._request.files if each.parameter == "mask"), None)


class _Plan:
    """Which file gets which size, and how much of a film is needed."""

    def __init__(self, request: WanRequest, settings: Mapping[str, Any], facts: ModelFacts) -> None:
        self._request = request
        self._settings = settings
        self._how = str(request.values.get("fit", CROP))
        size = settings.get("resolution")
        self._size = pixels(size) if isinstance(size, str) else None
        rate = str(settings.get("force_fps", ""))
        self._fps = float(rate) if rate.isdigit() else facts.fps
        self._frames: int | None = settings.get("video_length")
        self.continues = request.has_files("video_source")
        """The video begins with another one, and guides may go on from its end."""

    def fit(self, file: WanFile) -> Fit:
        return Fit(self._size if self._is_fitted(file) else None, self._how)

    def _is_fitted(self, file: WanFile) -> bool:
        """References are of any size; those that stand for frames of the video are not."""
        row, name = self._request.row, file.parameter
        if name == REFERENCES:
            positions = self._settings.get(POSITIONS) or ()
            count = len(positions.split() if isinstance(positions, str) else positions)
            return file.name in [f"{REFERENCES}[{index}]" for index in range(count)]
        if name == "image":
            return row.image != REFERENCES or bool(row.size.area)
        return name in FITTED or (name in GUIDES and not self._settings.get(GROWING))

    def frames_of(self, rate: float) -> int:
        """How many frames of a guide the engine can use, where it has ``rate`` of them a second."""
        if self._frames is None:
            return MOST_FRAMES
        return max(self._frames, math.ceil(self._frames / self._fps * rate)) + 1

    def check_mask(self, films: Mapping[str, Film]) -> None:
        """The engine takes the mask's frames for the guide's as they come, and stops where one of them ends."""
        guide, mask = films.get("video_guide"), films.get("video_mask")
        if guide is None or mask is None:
            return
        if abs(guide.fps - mask.fps) > SAME_RATE * guide.fps:
            raise bad(
                f"`video_mask` has {mask.fps:g} frames a second, and `video_guide` {guide.fps:g}: they must be the same"
            )
        needed = MOST_FRAMES if self.continues else self.frames_of(guide.fps) - 1
        if min(guide.frames, needed) != min(mask.frames, needed):
            raise bad(f"`video_mask` has {mask.frames} frames, and `video_guide` {guide.frames}: they must be the same")

    def too_short(self, films: Mapping[str, Film]) -> Iterator[str]:
        if self._frames is None or self.continues:
            return
        for name in ("video_guide", "video_guide2"):
            film = films.get(name)
            if film is not None and film.frames / film.fps < (self._frames - 1) / self._fps - 1 / film.fps:
                yield (
                    f"`{name}` is {film.frames / film.fps:.2f} s long, and the video {self._frames / self._fps:.2f} s: "
                    "nothing leads its end"
                )


def _corrupt(file: WanFile, error: Unreadable) -> TaskFailure:
    return TaskFailure("input.corrupt", f"the file of `{file.name}` cannot be decoded: {error}")


def _place(source: Path, target: Path) -> None:
    """A copy, which the engine may do with what it likes."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or somebody else's file
        shutil.copyfile(source, target)
