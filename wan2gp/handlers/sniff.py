"""What a file is, by its first bytes: neither its name nor the server's Content-Type is to be believed."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 4096
"""How many bytes from the file's start :func:`sniff` wants, when there are so many."""


@dataclass(frozen=True)
class Sniffed:
    """``kinds``: what it can serve as (``video``, ``image``, ``audio``); empty for a text, a page, an archive …"""

    name: str
    """For people, with its article: ``an MP4 file``."""
    kinds: frozenset[str]
    mime: str
    extension: str
    """With its dot; the first of what such files are called."""
    leads_on: bool = False
    """It names other files and addresses, which whoever opens it opens too: of no use to any field."""

    def serves(self, kind: str) -> bool:
        """Whether a field that needs ``kind`` (``video``, ``image``, ``audio`` or ``any``) can take it."""
        return not self.leads_on and (kind == "any" or kind in self.kinds)


def _media(name: str, kinds: str, mime: str, extension: str) -> Sniffed:
    return Sniffed(name, frozenset(kinds.split()), mime, extension)


# A video has a sound track more often than not, so it serves as audio too; an animated picture serves as a video.
_MP4 = _media("an MP4 file", "video audio", "video/mp4", ".mp4")
_MOV = _media("a QuickTime file", "video audio", "video/quicktime", ".mov")
_M4A = _media("an M4A file", "audio", "audio/mp4", ".m4a")
_AVIF = _media("an AVIF picture", "image", "image/avif", ".avif")
_HEIC = _media("a HEIC picture", "image", "image/heic", ".heic")
_WEBM = _media("a WebM file", "video audio", "video/webm", ".webm")
_MKV = _media("a Matroska file", "video audio", "video/x-matroska", ".mkv")
_AVI = _media("an AVI file", "video audio", "video/x-msvideo", ".avi")
_WAV = _media("a WAV file", "audio", "audio/wav", ".wav")
_WEBP = _media("a WebP picture", "image", "image/webp", ".webp")
_WEBP_ANIMATED = _media("an animated WebP picture", "image video", "image/webp", ".webp")
_OGV = _media("an Ogg video", "video audio", "video/ogg", ".ogv")
_OGG = _media("an Ogg sound", "audio", "audio/ogg", ".ogg")
_TS = _media("an MPEG transport stream", "video audio", "video/mp2t", ".ts")
_MP3 = _media("an MP3 file", "audio", "audio/mpeg", ".mp3")
_AAC = _media("an AAC file", "audio", "audio/aac", ".aac")
_BMP = _media("a BMP picture", "image", "image/bmp", ".bmp")
_HTML = _media("a web page (HTML)", "", "text/html", ".html")
_XML = _media("an XML document", "", "application/xml", ".xml")
_JSON = _media("a JSON document", "", "application/json", ".json")
_TEXT = _media("a text", "", "text/plain", ".txt")
EMPTY = _media("an empty file", "", "application/octet-stream", ".bin")
UNKNOWN = _media("data of an unknown format", "", "application/octet-stream", ".bin")

_HLS = Sniffed("a playlist (HLS)", frozenset(), "application/vnd.apple.mpegurl", ".m3u8", leads_on=True)
_DASH = Sniffed("a playlist (DASH)", frozenset(), "application/dash+xml", ".mpd", leads_on=True)
_CONCAT = Sniffed("a list of other files (ffconcat)", frozenset(), "text/plain", ".txt", leads_on=True)

_PREFIXES = (
    (b"#EXTM3U", _HLS),
    (b"ffconcat version", _CONCAT),
    (b"\x89PNG\r\n\x1a\n", _media("a PNG picture", "image", "image/png", ".png")),
    (b"\xff\xd8\xff", _media("a JPEG picture", "image", "image/jpeg", ".jpg")),
    (b"GIF87a", _media("a GIF picture", "image video", "image/gif", ".gif")),
    (b"GIF89a", _media("a GIF picture", "image video", "image/gif", ".gif")),
    (b"II*\x00", _media("a TIFF picture", "image", "image/tiff", ".tif")),
    (b"MM\x00*", _media("a TIFF picture", "image", "image/tiff", ".tif")),
    (b"fLaC", _media("a FLAC file", "audio", "audio/flac", ".flac")),
    (b"ID3", _MP3),
    (b"FORM", _media("an AIFF file", "audio", "audio/aiff", ".aiff")),
    (b"#!AMR", _media("an AMR file", "audio", "audio/amr", ".amr")),
    (b"FLV\x01", _media("a Flash video", "video audio", "video/x-flv", ".flv")),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _media("a Windows Media file", "video audio", "video/x-ms-asf", ".wmv")),
    (b"\x00\x00\x01\xba", _media("an MPEG file", "video audio", "video/mpeg", ".mpg")),
    (b"\x00\x00\x01\xb3", _media("an MPEG file", "video", "video/mpeg", ".mpg")),
    (b"\x06\x0e\x2b\x34", _media("an MXF file", "video audio", "application/mxf", ".mxf")),
    (b"YUV4MPEG2", _media("a Y4M file", "video", "video/x-yuv4mpeg", ".y4m")),
    (b"%PDF-", _media("a PDF document", "", "application/pdf", ".pdf")),
    (b"PK\x03\x04", _media("a ZIP archive", "", "application/zip", ".zip")),
    (b"\x1f\x8b", _media("a gzip archive", "", "application/gzip", ".gz")),
    (b"7z\xbc\xaf\x27\x1c", _media("a 7-Zip archive", "", "application/x-7z-compressed", ".7z")),
    (b"Rar!", _media("a RAR archive", "", "application/vnd.rar", ".rar")),
    (b"\x7fELF", _media("a program", "", "application/x-executable", ".bin")),
    (b"MZ", _media("a program", "", "application/x-executable", ".exe")),
    (b"version https://git-lfs", _media("a Git LFS pointer instead of the file", "", "text/plain", ".txt")),
)
_IMAGE_BRANDS = {b"avif": _AVIF, b"avis": _AVIF, b"heic": _HEIC, b"heix": _HEIC, b"mif1": _HEIC, b"msf1": _HEIC}
_OLD_QUICKTIME = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # files from before the `ftyp` box
_AUDIO_BRANDS = (b"M4A ", b"M4B ", b"M4P ")


def sniff(head: bytes) -> Sniffed:
    """What begins with ``head``, the file's first :data:`HEAD_BYTES` bytes or all of a shorter one."""
    if not head:
        return EMPTY
    for prefix, found in _PREFIXES:
        if head.startswith(prefix):
            return found
    return _iso(head) or _riff(head) or _streams(head) or _words(head) or UNKNOWN


def _iso(head: bytes) -> Sniffed | None:
    box = head[4:8]
    if box == b"ftyp":
        brand = head[8:12]
        if brand in _AUDIO_BRANDS:
            return _M4A
        return _MOV if brand == b"qt  " else _IMAGE_BRANDS.get(brand, _MP4)
    # Before a word of a text ("the free lunch") there are letters, before the name of a box its length.
    is_text = all(0x20 <= byte < 0x7F for byte in head[:4])
    return _MOV if box in _OLD_QUICKTIME and not is_text else None


def _riff(head: bytes) -> Sniffed | None:
    if head[:4] not in (b"RIFF", b"RF64"):
        return None
    form = head[8:12]
    if form == b"WEBP":
        # Bit 1 of the extended header's flags: animation.
        return _WEBP_ANIMATED if head[12:16] == b"VP8X" and head[20:21] and head[20] & 2 else _WEBP
    return {b"AVI ": _AVI, b"WAVE": _WAV}.get(form)


def _streams(head: bytes) -> Sniffed | None:
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _WEBM if b"webm" in head[:64] else _MKV
    if head.startswith(b"OggS"):
        return _OGV if b"\x80theora" in head else _OGG
    for packet, start in ((188, 0), (192, 4)):  # the second is the Blu-ray form, with a time stamp before each packet
        marks = head[start::packet]
        if len(marks) >= 3 and set(marks) == {0x47}:
            return _TS
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return _BMP
    return _frames(head)


def _frames(head: bytes) -> Sniffed | None:
    """Sound that begins with a frame: 11 set bits, then fields of which some values are reserved."""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return _AAC
    plausible = head[1] & 0x06 and head[1] & 0x18 != 0x08 and head[2] & 0xF0 != 0xF0 and head[2] & 0x0C != 0x0C
    return _MP3 if plausible else None


def _words(head: bytes) -> Sniffed | None:
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < HEAD_BYTES else "ignore").lstrip().lower()
    except UnicodeDecodeError:
        return None
    if any(character < " " and character not in "\t\n\r\f\x1b" for character in text):
        return None
    if text.startswith(("<!doctype html", "<html", "<head", "<body", "<script")):
        return _HTML
    if "<mpd" in text and "urn:mpeg:dash" in text:
        return _DASH
    if text.startswith("<"):
        return _HTML if "<html" in text else _XML
    return _JSON if text.startswith(("{", "[")) else _TEXT
