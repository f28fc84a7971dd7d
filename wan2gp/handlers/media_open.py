"""Opening files of strangers with FFmpeg and Pillow: only formats that are media, and nothing but the file itself.

Both libraries know formats that are programs in disguise. FFmpeg's playlists (HLS, DASH, concat, SDP) make it open any
other file or address that the file names, whatever the file is called; Pillow starts Ghostscript for PostScript. A
format is told by content, so the list of formats is what stops it. Sources: ``ffmpeg-formats(1)``
(``format_whitelist``), ``ffmpeg-protocols(1)`` (``protocol_whitelist``), Pillow's ``Image.open(formats=…)``.
"""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer
    from PIL import Image

CONTAINERS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "asf", "mpeg", "mpegts", "mpegvideo"),
    *("mxf", "ogg", "nut", "rm", "dv", "ivf", "obu", "h264", "hevc", "m4v", "mjpeg", "yuv4mpegpipe", "gif", "apng"),
    *("wav", "w64", "mp3", "aac", "flac", "aiff", "amr", "amrnb", "amrwb", "ac3", "eac3", "dts", "caf", "au", "wv"),
    *("ape", "tta", "dsf", "tak", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "jpegxl_pipe"),
    *("webp", "webp_anim", "jpegxl_anim", "gif_pipe", "ppm_pipe", "exr_pipe", "hdr_pipe", "j2k_pipe"),
)
"""Names of FFmpeg's demuxers. None of them opens a second file."""
PICTURES = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "PPM", "ICO", "JPEG2000")
"""Names of Pillow's formats, as far as the release that is installed has them."""

PICTURE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, MemoryError, struct.error),
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError),
)
"""What Pillow raises for a spoilt picture: its readers check little, and fail wherever the nonsense leads them."""


def media_errors() -> tuple[type[Exception], ...]:
    """What PyAV raises for a spoilt film or sound: FFmpeg's errors, and its own where a stream has no decoder."""
    import av

    return (av.error.FFmpegError, *PICTURE_ERRORS)


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """A film or a sound. Raises, as all that is done with it may, :func:`media_errors`."""
    import av

    options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    # A path of its own never looks like a protocol: it begins with a slash.
    with av.open(str(path.absolute()), container_options=options) as container:
        yield container


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture; only its head is read. Raises what ``PIL.Image.open`` does, ``DecompressionBombError`` included."""
    from PIL import Image

    Image.init()
    known = [name for name in PICTURES if name in Image.OPEN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # whoever asks has limits of their own
        with Image.open(path, formats=known) as image:
            yield image
