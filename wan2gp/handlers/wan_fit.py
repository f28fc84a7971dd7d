"""A task's pictures as the engine gets them: written anew, upright, in eight bits, in the size that is made.

The engine resizes by rules of its own, which change the size of the result, turns no picture by its EXIF entry, and
opens whatever it is given. So it gets none of the user's bytes, only what was decoded from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan2gp.handlers.media_open import PICTURE_ERRORS, media_errors, open_media, open_picture
from wan2gp.handlers.media_probe import Unreadable
from wan2gp.handlers.wan_values import Pixels

if TYPE_CHECKING:
    from PIL import Image

CROP, PAD, STRETCH = "crop", "pad", "stretch"
GREEN = (0, 255, 0)
"""What is painted where an image is to be changed: the LoRAs of the painted types were taught this colour."""
MARKED = 128
"""A mask marks what is at least as bright."""
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
ORIENTATION = 0x0112
SIXTEEN_BITS, EIGHT_BITS = 65535, 255


@dataclass(frozen=True)
class Fit:
    """How a picture comes to its size. ``size`` None: it keeps its own."""

    size: Pixels | None = None
    how: str = CROP


def fit_picture(source: Path, target: Path, fit: Fit, *, mask: bool = False) -> None:
    """Write ``source`` to ``target`` as PNG. A mask becomes grey; what is transparent in it marks nothing.

    Raises :class:`~wan2gp.handlers.media_probe.Unreadable`.
    """
    _write(shaped(_read(source, mask), fit), target)


def read_picture(source: Path, fit: Fit) -> Image.Image:
    """The same in memory, as RGB. Raises :class:`~wan2gp.handlers.media_probe.Unreadable`."""
    return shaped(_read(source, False), fit)


def paint_picture(source: Path, mask: Path, target: Path, fit: Fit) -> bool:
    """Write ``source`` with pure green where ``mask`` marks it; the mask is stretched over it. False when it marks
    nothing. Raises :class:`~wan2gp.handlers.media_probe.Unreadable`."""
    from PIL import Image

    picture = _read(source, False)
    marks = _read(mask, True)
    if marks.size != picture.size:
        marks = marks.resize(picture.size, Image.Resampling.BILINEAR)
    marks = marks.point(lambda value: EIGHT_BITS if value >= MARKED else 0)
    picture.paste(GREEN, mask=marks)
    # The size comes last: an edge of the paint that is blended is still the picture's, as with any other edge.
    _write(shaped(picture, fit), target)
    return marks.getbbox() is not None


def size_of(source: Path) -> Pixels:
    """As it is looked at: upright. Raises :class:`~wan2gp.handlers.media_probe.Unreadable`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_picture(source) as image:
            turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            return Pixels(image.height, image.width) if turned else Pixels(image.width, image.height)
    except UnidentifiedImageError:
        picture = _by_ffmpeg(source)
        return Pixels(picture.width, picture.height)
    except (*PICTURE_ERRORS, Image.DecompressionBombError) as error:
        raise Unreadable(reason_of(error)) from error


def _write(picture: Image.Image, target: Path) -> None:
    """Never JPEG, which would smear the paint. Quickly: it is read once."""
    picture.save(target, "PNG", compress_level=1)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(source: Path, mask: bool) -> Image.Image:
    """The first picture in it, upright: RGB, or of a mask grey."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with open_picture(source) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _plain(upright, mask)
    except UnidentifiedImageError:
        return _plain(_by_ffmpeg(source), mask)
    except (*PICTURE_ERRORS, Image.DecompressionBombError) as error:
        raise Unreadable(reason_of(error)) from error


def _by_ffmpeg(source: Path) -> Image.Image:
    """Of a format that Pillow lacks here, such as AVIF or HEIC."""
    from PIL import Image

    try:
        with open_media(source) as container:
            frame = next(container.decode(video=0), None)
            if frame is None:
                raise Unreadable("it is no picture that can be read")
            plane = frame.reformat(format="rgb24").planes[0]
            size = frame.width, frame.height
            picture = Image.frombytes("RGB", size, bytes(plane), "raw", "RGB", plane.line_size, 1)
            turn = round(frame.rotation / 90) * 90 % 360
            return picture.rotate(turn, expand=True) if turn else picture
    except media_errors() as error:
        raise Unreadable(reason_of(error)) from error


def _plain(image: Image.Image, mask: bool) -> Image.Image:
    """Eight bits, and nothing transparent: a picture is seen on white, a mask on black."""
    from PIL import Image

    image = _eight_bits(image)
    if "A" in image.getbands() or "transparency" in image.info:
        seen = Image.new("RGBA", image.size, (*(BLACK if mask else WHITE), EIGHT_BITS))
        seen.alpha_composite(image.convert("RGBA"))
        image = seen
    return image.convert("L" if mask else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more bits scaled down; Pillow's own conversion would cut it off at 255 and leave it white."""
    if not image.mode.startswith(("I", "F")):
        return image
    wide = image.convert("F")
    lowest, highest = wide.getextrema()
    most = float(highest) if isinstance(highest, (int, float)) else 0.0
    if image.mode.startswith("I"):
        full = SIXTEEN_BITS if most > EIGHT_BITS or image.mode != "I" else EIGHT_BITS
    else:
        full = 1 if most <= 1 else EIGHT_BITS if most <= EIGHT_BITS else SIXTEEN_BITS
    return wide.point(lambda value: value * (EIGHT_BITS / full) + 0.0).convert("L")


# --- the size --------------------------------------------------------------------------------------------------------


def shaped(picture: Image.Image, fit: Fit) -> Image.Image:
    """In the size of ``fit``."""
    from PIL import Image, ImageOps

    if fit.size is None or picture.size == (fit.size.width, fit.size.height):
        return picture
    size = fit.size.width, fit.size.height
    if fit.how == STRETCH:
        return picture.resize(size, Image.Resampling.LANCZOS)
    if fit.how == PAD:
        return ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=0 if picture.mode == "L" else BLACK)
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def reason_of(error: Exception) -> str:
    """Without the path, which says nothing to the user."""
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
