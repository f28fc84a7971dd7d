"""A task's files: taken from where they are, checked to be what they should, and put where ComfyUI finds them."""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from wan2gp.comfy_sidecar.errors import ApiError, Unreachable
from wan2gp.comfy_sources import VIDEO_URL, fetched_kind, sources_of
from wan2gp.handlers.api import Job, TaskFailure
from wan2gp.handlers.comfy_input_probe import check_input
from wan2gp.handlers.comfy_inputs import Wanted
from wan2gp.handlers.comfy_live import Live
from wan2gp.handlers.comfy_params import ComfySettings
from wan2gp.handlers.local_file import local_file
from wan2gp.handlers.sniff import HEAD_BYTES, sniff
from wan2gp.storage_address import NO_STORAGE, is_storage, parse_address

GIVEN = "given"
"""Below the task's directory: files that stood in its row."""
NAME_CHARS = 80
TOO_LARGE = 413


@dataclass(frozen=True)
class Taken:
    """A file that was checked, and what it is called in the input folder."""

    wanted: Wanted
    path: Path
    name: str

    @property
    def shown_kind(self) -> str:
        """For people."""
        return "file" if self.wanted.kind == "any" else self.wanted.kind


class InputFiles:
    """All files of one task. Call :meth:`take_local`, then :meth:`take_remote`, then :meth:`place`."""

    def __init__(self, job: Job, settings: ComfySettings, wanted: Sequence[Wanted], folder: Sequence[str]) -> None:
        """``folder``: parts of the path below the input folder that is this run's alone."""
        self._job = job
        self._settings = settings
        self._wanted = wanted
        self._folder = tuple(folder)
        self._local: dict[str, Taken] = {}
        self._taken: list[Taken] = []

    def take_local(self) -> None:
        """Files of the row and of this machine; quick, so that a mistake costs neither a start nor a download."""
        for wanted in self._wanted:
            if wanted.url is not None and is_storage(wanted.url) and not self._settings.storage:
                shown = parse_address(wanted.url).shown
                raise TaskFailure("input.no_storage", f"`{wanted.label}`: {shown} {NO_STORAGE}")
            if wanted.base64 is not None:
                self._local[wanted.label] = self._checked(wanted, self._decode(wanted, wanted.base64), "")
            elif wanted.path is not None:
                path = allowed_file(wanted.path, f"{wanted.label}.path", self._settings)
                self._local[wanted.label] = self._checked(wanted, path, path.name)

    def take_remote(self) -> None:
        """All URLs at once, by the courier. Raises :class:`TaskFailure`, or ``Interrupted``."""
        sources = sources_of(self._job.params)
        files = self._job.fetch(sources) if sources else {}
        for wanted in self._wanted:
            if wanted.url is None:
                self._taken.append(self._local[wanted.label])
            else:
                self._taken.append(self._checked(wanted, files[wanted.label], called(wanted.url)))

    def place(self, live: Live) -> list[tuple[Taken, str]]:
        """Put them into the input folder; returns with each what its node is to be given."""
        if live.folders is not None:
            folder = live.folders.input.joinpath(*self._folder)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        names: set[str] = set()
        return [(taken, self._placed(live, taken, _unused(taken.name, names))) for taken in self._taken]

    # --- taking ------------------------------------------------------------------------------------------------------

    def _decode(self, wanted: Wanted, text: str) -> Path:
        content = decoded(text, wanted.label)
        folder = self._job.work_dir / GIVEN
        folder.mkdir(exist_ok=True)
        path = folder / f"{re.sub('[^0-9a-z]', '', wanted.label)}{sniff(content[:HEAD_BYTES]).extension}"
        path.write_bytes(content)
        return path

    def _checked(self, wanted: Wanted, path: Path, wished: str) -> Taken:
        """Whether the file is of the kind that its node takes, and can be decoded."""
        where = "behind video_url" if wanted.label == VIDEO_URL else f"of `{wanted.label}`"
        check_input(path, wanted.label, fetched_kind(wanted.kind), self._settings.media_limits(), where)
        return Taken(wanted, path, plain_name(wished, path))

    # --- placing -----------------------------------------------------------------------------------------------------

    def _placed(self, live: Live, taken: Taken, name: str) -> str:
        if live.folders is None:
            stored = self._upload(live, taken, name)
            # Where the other machine's input folder is cannot be asked: below its working directory, unless told else.
            return f"input/{stored}" if taken.wanted.target.wants_path else stored
        inside = "/".join((*self._folder, name))
        self._link(taken.path, live.folders.input.joinpath(*self._folder, name))
        return str(live.folders.input / inside) if taken.wanted.target.wants_path else inside

    def _link(self, source: Path, place: Path) -> None:
        """No copy and no upload when both are on one file system."""
        try:
            os.link(source, place)
        except OSError:  # another file system, one without hard links, or somebody else's file
            shutil.copyfile(source, place)

    def _upload(self, live: Live, taken: Taken, name: str) -> str:
        """To a server on another machine, which has no other way in."""
        what = "the video" if taken.wanted.label == VIDEO_URL else f"`{taken.wanted.label}`"
        try:
            return live.client.upload(taken.path, name, "/".join(self._folder))
        except (Unreachable, ApiError) as error:
            if isinstance(error, ApiError) and error.status == TOO_LARGE:
                sentence = f"{what} is larger than ComfyUI takes (its --max-upload-size)"
                raise TaskFailure("input.too_large", sentence) from error
            raise TaskFailure("comfy.api_error", f"cannot upload {what} to ComfyUI: {error}") from error


class PathRules(Protocol):
    """Which files of this machine a row may name."""

    @property
    def allow_paths(self) -> Sequence[str]: ...

    @property
    def input_max_bytes(self) -> int: ...


def allowed_file(text: str, label: str, settings: PathRules) -> Path:
    """The file at ``text``, without symbolic links. Raises :class:`TaskFailure` unless its directory is allowed."""
    return local_file(text, f"`{label}`", settings.allow_paths, settings.input_max_bytes)


def decoded(text: str, label: str) -> bytes:
    """The bytes of a base64 text, or of a ``data:`` URL. Raises :class:`TaskFailure`, never with the text in it."""
    head, comma, body = text.partition(",")
    if comma and not head.rstrip().lower().endswith(";base64"):
        raise TaskFailure("input.bad_params", f"`{label}` has a data: URL that is not base64: write data:TYPE;base64,…")
    plain = "".join((body if comma else text).split()).translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise TaskFailure("input.bad_params", f"`{label}.base64` is not base64: {error}") from error


def called(url: str) -> str:
    """What a URL's last part calls the file: not yet safe as a name."""
    if is_storage(url):
        return parse_address(url).file_name
    return unquote(urlsplit(url).path).rpartition("/")[2]


def plain_name(wished: str, path: Path) -> str:
    """``wished`` in plain ASCII, with the extension of ``path``: loaders choose their reader by it."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", wished)
    name = re.sub(r"\.{2,}", ".", name).strip("._-")[-NAME_CHARS:].lstrip("._-") or "input"
    known = Path(name).suffix and path.suffix.lower() in ("", Path(name).suffix.lower())
    return name if known else f"{name}{path.suffix or '.mp4'}"


def _unused(name: str, names: set[str]) -> str:
    """``name``, with a number when another file of the task is called that."""
    candidate, number = name, 1
    while candidate.casefold() in names:
        number += 1
        candidate = f"{Path(name).stem}-{number}{Path(name).suffix}"
    names.add(candidate.casefold())
    return candidate
