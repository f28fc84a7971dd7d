"""The ``params`` of ``rife_interpolate_images``, read before anything is fetched: typed, and nothing left over."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from wan2gp.handlers.comfy_fields import bad
from wan2gp.handlers.comfy_inputs import check_url
from wan2gp.handlers.media_parameters import AUTO, CARRIED, CROP, LARGEST_PIXELS, PARAMETERS
from wan2gp.handlers.wan_foreign_keys import CARRIED as CARRIED_BY_ALL
from wan2gp.handlers.wan_values import Pixels, read_value
from wan2gp.media_sources import FILE_NAMES, FILES, INTERPOLATE, source_name
from wan2gp.wan_sources import is_url

RATE_DENOMINATOR = 1001
"""Rates such as 23.976 mean 24000/1001."""
_NAMES: Mapping[str, str] = {**{alias: row.name for row in PARAMETERS.values() for alias in row.aliases}, **FILE_NAMES}
_KEYS = (*PARAMETERS, *_NAMES)


@dataclass(frozen=True)
class MediaFile:
    """One file that the row names. ``source`` is its name among the sources; exactly one of ``url`` and ``path`` is
    there."""

    source: str
    label: str
    """What the row calls it, for messages."""
    kind: str
    url: str = ""
    path: str = ""


@dataclass(frozen=True)
class MediaRequest:
    """What a row asks for. Either ``video`` or at least two ``pictures`` are there."""

    pictures: tuple[MediaFile, ...]
    video: MediaFile | None
    frames: int | None
    """None: ``multiplier`` says it."""
    multiplier: int | None
    fps: Fraction | None
    size: Pixels | None
    fit: str
    method: str
    lossless: bool
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[MediaFile, ...]:
        return self.pictures if self.video is None else (self.video,)


def read_request(params: Any) -> MediaRequest:
    """Raises :class:`~wan2gp.handlers.api.TaskFailure`: ``input.bad_params`` or ``input.bad_url``, naming the key."""
    if not isinstance(params, dict):
        raise bad("`params` must be an object")
    given, labels, warnings = _own_keys(params)
    values = {name: read_value(PARAMETERS[name], given[name], labels[name]) for name in given if name in PARAMETERS}
    files = {name: _files(name, given[name], labels[name]) for name in given if name in FILES}
    pictures = _pictures(files)
    _check_length(values, files)
    return MediaRequest(
        pictures,
        next(iter(files.get("video", ())), None),
        values.get("frames"),
        values.get("multiplier"),
        _rate(values["fps"]) if "fps" in values else None,
        _size(values["resolution"], labels["resolution"]) if "resolution" in values else None,
        values.get("fit") or CROP,
        values.get("method") or AUTO,
        values.get("lossless", False),
        tuple(warnings),
    )


# --- keys ------------------------------------------------------------------------------------------------------------


def _own_keys(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    given: dict[str, Any] = {}
    labels: dict[str, str] = {}
    unused: list[str] = []
    for key, value in params.items():
        if value is None or value == "":
            continue
        if key not in _KEYS:
            unused += _not_ours(key)
            continue
        name = _NAMES.get(key, key)
        if name in given and given[name] != value:
            raise bad(f"`{labels[name]}` and `{key}` are the same parameter, with different values: give one")
        given[name], labels[name] = value, labels.get(name, key)
    return given, labels, unused


def _not_ours(key: str) -> list[str]:
    """A warning, nothing, or an error with the nearest name."""
    why = CARRIED.get(key, CARRIED_BY_ALL.get(key))
    if why is not None:
        return [f"`{key}` is not used: {why}"] if why else []
    near = difflib.get_close_matches(str(key).lower(), _KEYS, n=1, cutoff=0.5)
    known = ", ".join(f"`{name}`" for name in (*FILES, *PARAMETERS))
    instead = f": did you mean `{near[0]}`?" if near else f": there are {known}"
    raise bad(f"there is no parameter `{str(key)[:100]}` for {INTERPOLATE}{instead}")


# --- files -----------------------------------------------------------------------------------------------------------


def _files(name: str, given: Any, label: str) -> list[MediaFile]:
    media = FILES[name]
    entries = given if isinstance(given, list) else [given]
    if not 1 <= len(entries) <= media.most:
        most = f"2 to {media.most}" if media.most > 1 else "1"
        raise bad(f"`{label}` names {len(entries)} files: it may name {most}")
    many = media.most > 1
    return [_file(name, index, entry, f"{label}[{index}]" if many else label) for index, entry in enumerate(entries)]


def _file(name: str, index: int, entry: Any, label: str) -> MediaFile:
    if not isinstance(entry, str) or not entry.strip():
        raise bad(f"`{label}` must be a URL or a path, as text")
    source, kind = source_name(name, index), FILES[name].kind
    if is_url(entry) or "://" in entry:
        return MediaFile(source, label, kind, url=check_url(entry, label))
    if not entry.startswith("/"):
        raise bad(f"`{label}` is {entry[:100]!r}: give a URL, or the absolute path of a file in `inputs.allow_paths`")
    return MediaFile(source, label, kind, path=entry)


def _pictures(files: Mapping[str, list[MediaFile]]) -> tuple[MediaFile, ...]:
    """The pictures in their order. What is to be shown must be said in one of three ways."""
    ends = [name for name in ("image_start", "image_end") if name in files]
    ways = [name for name in ("images", "video") if name in files] + ends[:1]
    if len(ways) != 1:
        has = f"it has {' and '.join(f'`{name}`' for name in ways)}" if ways else "it has none of them"
        raise bad(f"{INTERPOLATE} needs exactly one of `images`, `image_start` with `image_end`, and `video`: {has}")
    if len(ends) == 1:
        raise bad(f"`{ends[0]}` needs `{'image_end' if ends[0] == 'image_start' else 'image_start'}`: give both")
    found = [*files.get("images", ()), *(file for name in ends for file in files[name])]
    if "images" in files and len(found) < 2:
        raise bad("`images` names 1 file: there must be two at least, to go from one to the other")
    return tuple(found)


# --- values ----------------------------------------------------------------------------------------------------------


def _check_length(values: Mapping[str, Any], files: Mapping[str, list[MediaFile]]) -> None:
    if "video" not in files and "multiplier" in values:
        raise bad("`multiplier` is for a `video`: give `frames`")
    if "frames" in values and "multiplier" in values:
        raise bad("`frames` and `multiplier` both say how many frames there will be: give one")
    if "frames" not in values and "multiplier" not in values:
        raise bad("`frames` is missing" + (", or `multiplier`" if "video" in files else "") + ": how many are wanted")
    count = len(files.get("images", ()))
    if count > values.get("frames", count):
        raise bad(f"`frames` is {values['frames']}, and there are {count} `images`: give as many at least")


def _rate(fps: float) -> Fraction:
    nominal = round(fps)
    if nominal != fps and abs(nominal * 1000 / 1001 - fps) < 0.005:
        return Fraction(nominal * 1000, 1001)
    return Fraction(fps).limit_denominator(RATE_DENOMINATOR)


def _size(given: Any, label: str) -> Pixels:
    if not isinstance(given, Pixels):
        raise bad(f"`{label}` {given!r} is no size: give WIDTHxHEIGHT")
    if given.width % 2 or given.height % 2:
        even = Pixels(given.width + given.width % 2, given.height + given.height % 2)
        raise bad(f"`{label}` is {given}: videos have even sides, as {even} has")
    if given.width * given.height > LARGEST_PIXELS:
        raise bad(f"`{label}` is {given}: the largest frame has {LARGEST_PIXELS} pixels, as 8192x4320 has")
    return given
