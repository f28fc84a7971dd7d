"""What holds for any file: it is told by its bytes, it gets a harmless name, and looking at it ends in words."""

from __future__ import annotations

import io
import string
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from wan2gp.handlers.input_names import MAX_STEM, input_name
from wan2gp.handlers.sniff import EMPTY, HEAD_BYTES, sniff

SAFE = set(string.ascii_letters + string.digits + "._-")
HEADS = st.sampled_from(
    [
        *(
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"GIF89a",
            b"RIFF",
            b"WEBPVP8X",
            b"ftyp",
            b"moov",
            b"\x1a\x45\xdf\xa3",
        ),
        *(b"OggS", b"ID3", b"BM", b"\x47", b"\xff\xfb", b"#EXTM3U", b"ffconcat version 1.0", b"<MPD", b"urn:mpeg:dash"),
        *(b"<html", b"{", b"PK\x03\x04", b"\xef\xbb\xbf", b"\xff\xfe", bytes(4), b"the free lunch", b"%!PS-Adobe"),
    ]
)
FILES = st.binary(max_size=64) | st.lists(HEADS | st.binary(max_size=8), max_size=6).map(b"".join)
LONG_FILES = FILES.flatmap(lambda head: st.integers(0, 6000).map(lambda more: head + bytes(more)))


def is_told_and_named(content: bytes) -> None:
    found = sniff(content[:HEAD_BYTES])
    assert found == sniff((content + b"anything behind it")[:HEAD_BYTES]) or len(content) < HEAD_BYTES
    assert (found is EMPTY) == (not content)
    assert found.name.isprintable() and found.extension.startswith(".") and "/" in found.mime
    if found.leads_on:
        assert not any(found.serves(kind) for kind in ("any", "video", "image", "audio"))
    elif found is not EMPTY:
        assert found.serves("any") and all(found.serves(kind) for kind in found.kinds)
    stem, extension = input_name(content.decode("latin-1"), found)
    assert stem and set(stem + extension) <= SAFE and stem[0] not in ".-" and len(stem) <= MAX_STEM


# --- files that were whole once --------------------------------------------------------------------------------------


def originals() -> list[tuple[str, bytes]]:
    """Small whole files of the usual kinds, with the kind of each."""
    import av
    import numpy as np
    from PIL import Image

    found: list[tuple[str, bytes]] = []
    picture = Image.effect_noise((24, 16), 60).convert("RGB")
    frames = [picture.rotate(angle) for angle in (0, 90, 180)]
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        buffer = io.BytesIO()
        more: dict[str, Any] = {} if kind in ("JPEG", "BMP") else {"save_all": True, "append_images": frames[1:]}
        frames[0].save(buffer, kind, **more)
        found.append(("image", buffer.getvalue()))
    for container, codec in (("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as sink:
            video = sink.add_stream(codec, rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for frame in frames:
                sink.mux(video.encode(av.VideoFrame.from_image(frame.resize((32, 32)))))
            sink.mux(video.encode(None))
        found.append(("video", buffer.getvalue()))
    for container, codec in (("wav", "pcm_s16le"), ("ogg", "libopus"), ("flac", "flac"), ("mp3", "libmp3lame")):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as sink:
            sound = sink.add_stream(codec, rate=48_000, layout="mono")
            samples = np.zeros((1, 4800), np.float32 if "lib" in codec else np.int16)
            piece = av.AudioFrame.from_ndarray(samples, format="flt" if "lib" in codec else "s16", layout="mono")
            piece.sample_rate = 48_000
            sink.mux(sound.encode(piece))
            sink.mux(sound.encode(None))
        found.append(("audio", buffer.getvalue()))
    return found


EDIT = st.tuples(
    st.sampled_from(["set", "cut", "insert", "repeat", "ones"]), st.integers(0, 1 << 16), st.binary(max_size=8)
)
EDITS = st.tuples(st.integers(0, 99), st.lists(EDIT, min_size=1, max_size=6))


def edited(whole: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """``whole`` with bytes overwritten, cut off, put between, repeated, or set to all ones."""
    body = bytearray(whole)
    for verb, number, piece in edits:
        at = number % (len(body) + 1)
        if verb == "set":
            body[at : at + len(piece)] = piece
        elif verb == "cut":
            del body[at:]
        elif verb == "insert":
            body[at:at] = piece
        elif verb == "repeat":
            body[at:at] = body[at : at + 64] * 4
        else:
            body[at : at + 4] = b"\xff" * 4
    return bytes(body)


def is_judged_in_words(kind: str, content: bytes, place: Path) -> None:
    """Only these two ends, whatever the decoder meets; a result is probed by another rule, to the same end."""
    from wan2gp.handlers.comfy_input_probe import PROBES
    from wan2gp.handlers.media_limits import MediaLimits, OverLimit
    from wan2gp.handlers.media_probe import Unreadable, probe

    place.write_bytes(content)
    limits = MediaLimits(max_pixels=1_000_000, max_frames=1000, max_duration_s=3600.0)
    for judge in (*(lambda path, each=each: PROBES[each](path, limits) for each in sorted(PROBES)), probe):
        try:
            judge(place)
        except (Unreadable, OverLimit) as error:
            assert "\n" not in str(error) and len(str(error)) < 500
