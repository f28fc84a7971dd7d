"""The files of a ``media`` task, taken from where they are and checked to be what they should."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wan2gp.handlers.api import Job, TaskFailure
from wan2gp.handlers.comfy_input_probe import check_input
from wan2gp.handlers.local_file import local_file
from wan2gp.handlers.media_request import MediaFile
from wan2gp.handlers.media_settings import MediaSettings
from wan2gp.media_sources import sources_of
from wan2gp.storage_address import NO_STORAGE, is_storage, parse_address


def take_files(job: Job, files: Sequence[MediaFile], settings: MediaSettings) -> list[Path]:
    """In the order of ``files``. A mistake costs no download. Raises :class:`TaskFailure`, or ``Interrupted``."""
    local = {file.source: _local(file, settings) for file in files if not file.url}
    for file in files:
        if file.url and is_storage(file.url) and not settings.storage:
            raise TaskFailure("input.no_storage", f"`{file.label}`: {parse_address(file.url).shown} {NO_STORAGE}")
    sources = sources_of(job.params)
    fetched = job.fetch(sources) if sources else {}
    return [local.get(file.source) or _checked(file, fetched[file.source], settings) for file in files]


def _local(file: MediaFile, settings: MediaSettings) -> Path:
    path = local_file(file.path, f"`{file.label}`", settings.allow_paths, settings.input_max_bytes)
    return _checked(file, path, settings)


def _checked(file: MediaFile, path: Path, settings: MediaSettings) -> Path:
    check_input(path, file.label, file.kind, settings.media_limits(), f"of `{file.label}`")
    return path
