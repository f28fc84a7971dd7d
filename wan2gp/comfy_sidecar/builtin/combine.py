"""One run of VHS_VideoCombine: the files it writes, in the order and with the names of VideoHelperSuite."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from wan2gp.comfy_sidecar.builtin.folders import SavePlace
from wan2gp.comfy_sidecar.builtin.formats import recipe_of
from wan2gp.comfy_sidecar.builtin.media import Audio, Frames
from wan2gp.comfy_sidecar.builtin.palette_gif import write_palette_gif
from wan2gp.comfy_sidecar.builtin.registry import Json, Run
from wan2gp.comfy_sidecar.builtin.sound_write import Fit, SoundTrack, add_sound
from wan2gp.comfy_sidecar.builtin.video_read import has_sound
from wan2gp.comfy_sidecar.builtin.video_write import encode, write_animation

if TYPE_CHECKING:
    from wan2gp.comfy_sidecar.builtin.media import Pixels


@dataclass(frozen=True)
class Combine:
    """`texts` go into the files; `run` is told of each frame and asked for its interrupt flag."""

    frames: Frames
    rate: float
    loops: int
    place: SavePlace
    counter: int
    texts: Json
    keep_intermediate: bool
    run: Run

    def path(self, ending: str) -> Path:
        return self.place.folder / f"{self.place.name}_{self.counter:05}{ending}"

    def write(self, name: str, audio: Audio | None, widgets: Json) -> list[Path]:
        """Writes the format of that name; the last path is the result. With sound a silent file comes before it."""
        if name.startswith("image/"):
            return [self._animation(f".{name.removeprefix('image/')}", bool(widgets.get("lossless", True)))]
        if name == "video/ffmpeg-gif":
            silent = self._palette_gif(str(widgets.get("dither", "sierra2_4a")))
            return self._finished(silent, None if audio is None else self._copied(silent))
        return self._video(name, audio, widgets)

    def _animation(self, suffix: str, lossless: bool) -> Path:
        path = self.path(suffix)
        write_animation(path, self._reported(), round(1000 / self.rate), self.loops, lossless)
        return path

    def _palette_gif(self, dither: str) -> Path:
        path = self.path(".gif")
        write_palette_gif(path, self._checked(), self._all_passes(), self._exact_rate(), dither, self.run.check)
        return path

    def _video(self, name: str, audio: Audio | None, widgets: Json) -> list[Path]:
        recipe = recipe_of(name, widgets)
        silent = self.path(f".{recipe.suffix}")
        texts = self.texts if recipe.keeps_prompt else {}
        rate = self._exact_rate()
        count = encode(silent, self._all_passes(), rate, recipe, texts=texts, written=self.run.check)
        if audio is None:
            return [silent]
        if recipe.audio_codec is None:
            return self._finished(silent, self._copied(silent))
        with_sound = self.path(f"-audio.{recipe.suffix}")
        fit = Fit.CUT_FILM if str(widgets.get("trim_to_audio", False)) != "False" else Fit.SILENCE
        track = SoundTrack(audio, recipe.audio_codec, float(count / rate), fit)
        add_sound(silent, with_sound, track, texts, self.run.check)
        return self._finished(silent, with_sound)

    def _finished(self, silent: Path, final: Path | None) -> list[Path]:
        if final is None:
            return [silent]
        if not self.keep_intermediate:
            silent.unlink(missing_ok=True)
            return [final]
        return [silent, final]

    def _copied(self, silent: Path) -> Path:
        """A format that holds no sound is there twice all the same; `%03d` in the name stands for many files."""
        start = f"{self.place.name}_{self.counter:05}"
        final = self.path("-audio" + silent.name.removeprefix(start))
        numbers = re.compile(re.escape(silent.name).replace("%03d", r"(\d{3,})"))
        for name in os.listdir(silent.parent):
            if numbers.fullmatch(name):
                shutil.copyfile(silent.with_name(name), silent.with_name(f"{start}-audio{name.removeprefix(start)}"))
        return final

    def _all_passes(self) -> Iterator[Pixels]:
        """`loops` more passes follow the first."""
        return chain(self._reported(), chain.from_iterable(self.frames.read() for _ in range(self.loops)))

    def _reported(self) -> Iterator[Pixels]:
        for index, picture in enumerate(self.frames.read(), start=1):
            yield picture
            self.run.progress(index, self.frames.count)

    def _checked(self) -> Iterator[Pixels]:
        for picture in self.frames.read():
            self.run.check()
            yield picture

    def _exact_rate(self) -> Fraction:
        return Fraction(self.rate).limit_denominator(1000)


def audible(audio: object) -> Audio | None:
    """None for a file without sound, and for a literal in place of the link."""
    return audio if isinstance(audio, Audio) and has_sound(audio) else None
