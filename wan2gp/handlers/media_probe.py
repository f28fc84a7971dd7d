"""What a media file is, found by decoding it: libraries are imported at the first file, not with this module.

A name or a "success" proves nothing: a full disk leaves a file without an index, an interruption one that is short.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan2gp.handlers.media_open import PICTURE_ERRORS, media_errors, open_media, open_picture

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

CHUNK_BYTES = 1 << 20
LARGEST_DECODED_PIXELS = 400_000_000
"""A larger picture is taken as its header says, not decoded: that would take more memory than a worker can spare."""
SHORT_S, SHORT_SHARE = 1.0, 0.1
"""A stream may end this much before the length that its file announces."""

MIMES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".png": "image/png",
    ".apng": "image/apng",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
    ".txt": "text/plain",
    ".json": "application/json",
    ".srt": "text/plain",
    ".vtt": "text/vtt",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".svg": "image/svg+xml",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".stl": "model/stl",
    ".ply": "model/ply",
}
OCTETS = "application/octet-stream"
TEXTS = (".txt", ".json", ".srt", ".vtt", ".csv", ".md")
DRAWN = (".svg",)
"""Pictures that are text: without pixels to decode."""
EXACT_AUDIO = ("audio/flac", "audio/mp4")
"""Their headers give the exact length; that of the others is an estimate or of the part that is there."""


class Unreadable(Exception):
    """The file is not what its name says, or not whole; the message says why."""


@dataclass(frozen=True)
class MediaInfo:
    """``kind`` is ``video``, ``image``, ``audio``, ``text`` or ``file``; sizes in pixels, ``duration_s`` in seconds."""

    kind: str
    mime: str
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    duration_s: float | None = None


def probe(path: Path) -> MediaInfo:
    """Decode as much as it takes to know that the file is whole. Raises :class:`Unreadable`."""
    suffix = path.suffix.lower()
    mime = MIMES.get(suffix, OCTETS)
    if path.stat().st_size == 0:
        raise Unreadable("the file is empty")
    if suffix in TEXTS:
        return MediaInfo("text", mime)
    if suffix in DRAWN:
        return MediaInfo("image", mime)
    if mime.startswith("image/"):
        return _image(path, mime)
    if mime.startswith(("video/", "audio/")):
        return _stream(path, mime)
    return MediaInfo("file", mime)


def sha256_of(path: Path) -> str:
    """The digest, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


# --- pictures ------------------------------------------------------------------------------------------------------


def _image(path: Path, mime: str) -> MediaInfo:
    from PIL import Image

    try:
        with open_picture(path) as image:
            width, height = image.size
            count = int(getattr(image, "n_frames", 1))
            shown_ms = _decode_all(image, count) if width * height <= LARGEST_DECODED_PIXELS else 0.0
    except Image.DecompressionBombError:
        return MediaInfo("image", mime)
    except PICTURE_ERRORS as error:
        raise Unreadable(_reason(error)) from error
    return MediaInfo("image", mime, width, height, count, shown_ms / 1000 if count > 1 else None)


def _decode_all(image: object, count: int) -> float:
    """Milliseconds that an animation takes; raises for one that breaks off."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    shown_ms = 0.0
    for index in range(count):
        image.seek(index)
        image.load()
        shown_ms += float(image.info.get("duration", 0) or 0)
    return shown_ms


# --- streams -------------------------------------------------------------------------------------------------------


@dataclass
class _Packets:
    """What a pass over a stream's packets found; times in seconds."""

    count: int = 0
    end_s: float = 0.0
    last_key: int | None = None
    corrupt: bool = False


def _stream(path: Path, mime: str) -> MediaInfo:
    try:
        with open_media(path) as container:
            if container.streams.video:
                return _video(container, container.streams.video[0], mime)
            if container.streams.audio:
                return _audio(container, mime)
            raise Unreadable("it has neither pictures nor sound")
    except media_errors() as error:
        raise Unreadable(_reason(error)) from error


def _video(container: InputContainer, stream: VideoStream, mime: str) -> MediaInfo:
    """Every packet is read, the first and the last pictures are decoded: cheap, and a hole or a cut shows."""
    found = _read_packets(container, stream)
    declared_s = _declared_s(container, stream)
    if found.count == 0:
        raise Unreadable("it has no frames")
    if found.corrupt or found.count < stream.frames:
        raise Unreadable(f"it is cut off: {found.count} of {stream.frames} frames")
    if declared_s and found.end_s < declared_s - max(SHORT_S, SHORT_SHARE * declared_s):
        raise Unreadable(f"it is cut off: {found.end_s:.1f} of {declared_s:.1f} s")
    _decode_ends(container, stream, found)
    rate = stream.average_rate or stream.guessed_rate
    duration_s = declared_s or (float(found.count / rate) if rate else found.end_s)
    return MediaInfo("video", mime, stream.width, stream.height, found.count, round(duration_s, 6))


def _read_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    found = _Packets()
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        found.count += 1
        found.corrupt |= packet.is_corrupt
        if packet.pts is not None and packet.time_base is not None:
            found.end_s = max(found.end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.is_keyframe:
                found.last_key = packet.pts
    return found


def _declared_s(container: InputContainer, stream: VideoStream | AudioStream) -> float:
    import av

    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _decode_ends(container: InputContainer, stream: VideoStream, found: _Packets) -> None:
    container.seek(0)
    if next(container.decode(stream), None) is None:
        raise Unreadable("its first frame cannot be decoded")
    if found.last_key is not None and stream.frames != 1:
        container.seek(found.last_key, stream=stream)
        if not any(True for _ in container.decode(stream)):
            raise Unreadable("its last frames cannot be decoded")


def _audio(container: InputContainer, mime: str) -> MediaInfo:
    stream = container.streams.audio[0]
    samples = sum(frame.samples for frame in container.decode(stream))
    if samples == 0:
        raise Unreadable("it has no sound")
    found_s = samples / stream.rate
    declared_s = _declared_s(container, stream) if mime in EXACT_AUDIO else 0.0
    if found_s < declared_s - max(SHORT_S, SHORT_SHARE * declared_s):
        raise Unreadable(f"it is cut off: {found_s:.1f} of {declared_s:.1f} s")
    return MediaInfo("audio", mime, duration_s=round(found_s, 6))


def _reason(error: av.error.FFmpegError | Exception) -> str:
    """Without the path, which says nothing to the user."""
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
