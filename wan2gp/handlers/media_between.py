"""All frames of a clip from those that are given: what lies between is made by RIFE or by ffmpeg's ``minterpolate``.

Whoever takes the frames gets each given one untouched, at its place, and as many as the last place says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.media_scenes import Keyed
from wan2gp.wan_sidecar.rife import Rife

if TYPE_CHECKING:
    from wan2gp.handlers.media_scenes import Picture

FILTER = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1:scd=none:search_param=128"
"""Without its own detection of scenes, which would repeat the first of two pictures that differ much."""
LEAD = 2
"""Copies before the first picture and behind the last, which the filter, looking ahead and back, needs."""
PIXELS_AT_ONCE, FEWEST_AT_ONCE, MOST_AT_ONCE = 8_000_000, 3, 64
"""Between two pictures: a few seconds' work."""
SMALL = 32
DIFFERS, RESEMBLES = 24.0, 0.3
"""A cut: greys differ by so much on average, of 255, and go less together than this correlation."""
FLAT = 4.0
"""A picture is plain when no grey is further than this from their mean."""


class Cuts:
    """Scenes that end between two frames of a film: nothing moves from the one to the other."""

    def __init__(self, film: bool) -> None:
        self._film = film
        self.count = 0

    def between(self, first: Picture, last: Picture) -> bool:
        """Between pictures that were given one by one there is none: the way from one to the other is asked for."""
        found = self._film and is_cut(first, last)
        self.count += found
        return found


def is_cut(first: Picture, last: Picture) -> bool:
    """Whether one is of another scene."""
    import numpy as np

    a, b = _small(first), _small(last)
    if float(np.abs(a - b).mean()) < DIFFERS:
        return False
    a, b = a - a.mean(), b - b.mean()
    if float(np.abs(a).max()) < FLAT and float(np.abs(b).max()) < FLAT:
        return False  # two plain grounds: a fade, which has no scenes
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return scale == 0 or float((a * b).sum()) / scale < RESEMBLES


def _small(picture: Picture) -> Any:
    import numpy as np
    from PIL import Image

    grey = Image.fromarray(picture).convert("L").resize((SMALL, SMALL), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float32)


def by_rife(rife: Rife, keyed: Keyed, cuts: Cuts, abandoned: Callable[[], bool]) -> Iterator[Picture]:
    """Raises ``RifeFailed`` or ``Abandoned``."""
    import numpy as np

    before: tuple[int, Picture] | None = None
    for place, picture in _held_at_cuts(keyed, cuts):
        if before is not None and (count := place - before[0] - 1):
            height, width = picture.shape[:2]
            times = [(index + 1) / (count + 1) for index in range(count)]
            ends = before[1].tobytes(), picture.tobytes()
            for made in rife.between(*ends, (width, height), times, abandoned):
                yield np.frombuffer(made, np.uint8).reshape(picture.shape)
        yield picture
        before = place, picture


def by_ffmpeg(keyed: Keyed, cuts: Cuts) -> Iterator[Picture]:
    """One pass, with the pictures' places as their times: the filter makes one frame for each place."""
    return _filtered(_close(_held_at_cuts(keyed, cuts)), 1)


def _held_at_cuts(keyed: Keyed, cuts: Cuts) -> Keyed:
    """Where a scene ends each place gets the frame of the scene that is nearer."""
    before: tuple[int, Picture] | None = None
    for place, picture in keyed:
        if before is not None and place - before[0] > 1 and cuts.between(before[1], picture):
            middle = (before[0] + place) / 2
            for held in range(before[0] + 1, place):
                yield held, before[1] if held <= middle else picture
        yield place, picture
        before = place, picture


# --- ffmpeg ----------------------------------------------------------------------------------------------------------


def _close(keyed: Keyed) -> Keyed:
    """No two pictures too far apart. The filter makes all frames between two at once, and keeps them: a long way is
    made in steps, and what is between these from what they show."""
    before: tuple[int, Picture] | None = None
    for place, picture in keyed:
        if before is not None:
            yield from _steps(before, (place, picture), _most_at_once(picture))
        yield place, picture
        before = place, picture


def _steps(first: tuple[int, Picture], last: tuple[int, Picture], most: int) -> Keyed:
    """Between the two, no more than ``most`` apart."""
    distance = last[0] - first[0]
    if distance <= most:
        return
    every = -(-distance // most)
    # The last picture lies on the filter's own grid only by chance.
    steps = _filtered(iter([(0, first[1]), (distance, last[1])]), every)
    before = first
    for index, picture in enumerate(steps):
        here = first[0] + index * every, picture
        if 0 < index and here[0] < last[0]:
            yield from _steps(before, here, most)
            yield here
            before = here
    yield from _steps(before, last, most)


def _most_at_once(picture: Picture) -> int:
    """By the time that a frame takes: nobody can call it off meanwhile."""
    height, width = picture.shape[:2]
    most: int = max(FEWEST_AT_ONCE, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (height * width)))
    return most


def _filtered(keyed: Keyed, every: int) -> Iterator[Picture]:
    """The frames at each ``every``-th place, from the first picture's, 0, to the last's or the one before it."""
    flow = _Flow(every)
    last: tuple[int, Picture] | None = None
    for place, picture in keyed:
        if last is None:
            for lead in range(LEAD):
                flow.push(lead * every, picture)
        yield from flow.give(place, picture)
        last = place, picture
    assert last is not None
    for more in range(1, LEAD + 1):
        flow.push((LEAD + more) * every + last[0], last[1])
    yield from flow.end(last[0])


class _Flow:
    """The filter, and the pictures that it has not come to yet. Its time is a place, and ``LEAD`` steps more."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._graph: Any = None
        self._given: dict[int, Picture] = {}
        self._next = 0

    def give(self, place: int, picture: Picture) -> Iterator[Picture]:
        """One more source; yields what is ready."""
        self._given[place] = picture
        self.push(LEAD * self._every + place, picture)
        yield from self._ready(place)

    def end(self, last: int) -> Iterator[Picture]:
        """All that is left, up to the place of the last source."""
        self._graph.push(None)
        yield from self._ready(last)
        if self._next <= last:
            raise TaskFailure("media.bad_output", f"ffmpeg's minterpolate ended at frame {self._next} of {last + 1}")

    def push(self, time: int, picture: Picture) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p")
        frame.pts, frame.time_base = time, Fraction(1)
        if self._graph is None:
            self._graph = _graph(frame, self._every)
        self._graph.push(frame)

    def _ready(self, last: int) -> Iterator[Picture]:
        import av

        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            place = (frame.pts - LEAD) * self._every
            if self._next <= place <= last:  # else it is of the copies
                yield self._at(place, frame)

    def _at(self, place: int, frame: Any) -> Picture:
        if place != self._next:
            raise TaskFailure("media.bad_output", f"ffmpeg's minterpolate left out frame {self._next}")
        self._next += self._every
        given = self._given.pop(place, None)
        made: Picture = frame.to_ndarray(format="rgb24") if given is None else given
        return made


def _graph(frame: Any, every: int) -> Any:
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    flow = graph.add("minterpolate", f"fps=1/{every}:{FILTER}")
    graph.link_nodes(source, flow, graph.add("buffersink")).configure()
    return graph
