"""Whether an input can be decoded at all, and is no bomb: before an engine sees it, in the handler's own process.

Lenient: what a user's file lacks at its end is theirs to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.media_limits import (
    NO_LIMITS,
    MediaLimits,
    OverLimit,
    check_declared,
    check_film,
    check_picture,
    check_sound,
)
from wan2gp.handlers.media_open import PICTURE_ERRORS, media_errors, open_media, open_picture
from wan2gp.handlers.media_probe import Unreadable
from wan2gp.handlers.sniff import EMPTY, HEAD_BYTES, UNKNOWN, Sniffed, sniff


def probe_image_input(path: Path, limits: MediaLimits = NO_LIMITS) -> None:
    """Whether its first picture can be decoded. Raises :class:`Unreadable`, or ``OverLimit``."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_picture(path) as image:
            limits.size(*image.size)
            image.load()
            check_picture(image, limits)
    except UnidentifiedImageError:
        _first_frame(path, limits)  # a format that Pillow lacks here, such as AVIF or HEIC
    except Image.DecompressionBombError as error:
        raise OverLimit("more pixels than any loader of pictures takes (Pillow's own limit)") from error
    except PICTURE_ERRORS as error:
        raise Unreadable(_words(error)) from error


def _first_frame(path: Path, limits: MediaLimits) -> None:
    try:
        probe_video_input(path, limits)
    except Unreadable as error:
        raise Unreadable("it is no picture that can be read") from error


def probe_video_input(path: Path, limits: MediaLimits = NO_LIMITS) -> None:
    """Whether at least one of its frames can be decoded. Raises :class:`Unreadable`, or ``OverLimit``."""
    try:
        with open_media(path) as container:
            if not container.streams.video:
                raise Unreadable("it has no video stream")
            check_declared(container, limits)
            if next(container.decode(video=0), None) is None:
                raise Unreadable("it has no frames")
        with open_media(path) as container:
            check_film(container, limits)
    except media_errors() as error:
        raise Unreadable(_words(error)) from error


def probe_audio_input(path: Path, limits: MediaLimits = NO_LIMITS) -> None:
    """Whether at least one stretch of its sound can be decoded. Raises :class:`Unreadable`, or ``OverLimit``."""
    try:
        with open_media(path) as container:
            if not container.streams.audio:
                raise Unreadable("it has no sound")
            check_declared(container, limits)
            if next(container.decode(audio=0), None) is None:
                raise Unreadable("its sound is empty")
        with open_media(path) as container:
            check_sound(container, limits)
    except media_errors() as error:
        raise Unreadable(_words(error)) from error


def _words(error: Exception) -> str:
    """Without the path, which says nothing to the user."""
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


PROBES = {"video": probe_video_input, "image": probe_image_input, "audio": probe_audio_input}
"""By kind: raises :class:`Unreadable` for a file that is none, ``OverLimit`` for one that is too large."""
AS_MEDIA = ("image", "video", "audio")
"""In this order, what a file may be that goes where anything may: an engine will open it as what it is."""


def probe_input(path: Path, kinds: Sequence[str], limits: MediaLimits) -> None:
    """Whether it is one of ``kinds``, at least one of :data:`PROBES`. Raises what the first of them did."""
    first: Unreadable | None = None
    for kind in kinds:
        try:
            return PROBES[kind](path, limits)
        except Unreadable as error:
            first = first or error
    assert first is not None
    raise first


def check_input(path: Path, label: str, kind: str, limits: MediaLimits, where: str) -> Sniffed:
    """What the file of ``label`` is. Raises :class:`~wan2gp.handlers.api.TaskFailure` unless it is of ``kind`` (one of
    :data:`PROBES`, or ``any``) and can be decoded. ``where`` continues "the file" in a sentence."""
    with path.open("rb") as file:
        found = sniff(file.read(HEAD_BYTES))
    if found is EMPTY or (found is not UNKNOWN and not found.serves(kind)):
        raise TaskFailure("input.not_media", _not_media(label, found, kind))
    kinds = (kind,) if kind in PROBES else tuple(each for each in AS_MEDIA if each in found.kinds)
    if kinds:
        try:
            probe_input(path, kinds, limits)
        except Unreadable as error:
            raise TaskFailure("input.corrupt", f"the file {where} cannot be decoded: {error}") from error
        except OverLimit as error:
            raise TaskFailure("input.too_large", f"the file of `{label}` has {error}") from error
    return found


def _not_media(label: str, found: Sniffed, kind: str) -> str:
    needs = "a file" if kind == "any" else f"{'an' if kind[0] in 'ai' else 'a'} {kind}"
    return f"`{label}` is {found.name}, not {needs}"
