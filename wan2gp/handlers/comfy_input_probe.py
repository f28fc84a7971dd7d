"""Whether an input can be decoded at all. Lenient: what a user's file lacks at its end is theirs to judge."""

from __future__ import annotations

import warnings
from pathlib import Path

from wan2gp.handlers.media_probe import LARGEST_DECODED_PIXELS, Unreadable, probe_video_input


def probe_image_input(path: Path) -> None:
    """Whether its first picture can be decoded. Raises :class:`Unreadable`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height <= LARGEST_DECODED_PIXELS:
                    image.load()
    except UnidentifiedImageError:
        _first_frame(path)  # a format that Pillow lacks here, such as AVIF or HEIC
    except Image.DecompressionBombError:
        return
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Unreadable(str(getattr(error, "strerror", None) or error)) from error


def _first_frame(path: Path) -> None:
    try:
        probe_video_input(path)
    except Unreadable as error:
        raise Unreadable("it is no picture that can be read") from error


def probe_audio_input(path: Path) -> None:
    """Whether at least one stretch of sound can be decoded. Raises :class:`Unreadable`."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise Unreadable("it has no sound")
            if next(container.decode(audio=0), None) is None:
                raise Unreadable("its sound is empty")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise Unreadable(str(getattr(error, "strerror", None) or error)) from error


PROBES = {"video": probe_video_input, "image": probe_image_input, "audio": probe_audio_input}
"""By kind: raises :class:`Unreadable` for a file that is none."""
