"""The letters by which the engine is told what a task's files are for.

It takes them for settings like any other: a letter that the model does not know is dropped there in silence, and the
file with it. So what a model cannot do is refused here, by the name of the parameter.
"""

from __future__ import annotations

from wan2gp.handlers.comfy_fields import bad
from wan2gp.handlers.wan_models import ModelFacts
from wan2gp.handlers.wan_request import WanRequest

STARTS = (("V", ("video_source",)), ("S", ("image_start", "image")), ("E", ("image_end",)))
"""A letter of `image_prompt_type` and the files it is for."""


def choose_letters(request: WanRequest, facts: ModelFacts) -> dict[str, str]:
    """Those of the row; else those that its files and the model ask for. Raises ``input.bad_params``."""
    chosen = {
        "image_prompt_type": _starts(request, facts),
        "video_prompt_type": _guides(request, facts),
        "audio_prompt_type": _sounds(request, facts),
    }
    return {name: letters for name, letters in chosen.items() if letters is not None}


def _starts(request: WanRequest, facts: ModelFacts) -> str | None:
    given = _given(request, "image_prompt_type")
    letters = given if given is not None else _from_files(request)
    letters = letters.replace("T", "")
    for letter, names in STARTS:
        if letter in letters and letter not in facts.starts:
            raise bad(f"`{_named(request, names)}`: the model {facts.name} does not take it as a start or end")
    if not letters and facts.starts and "T" not in facts.starts:
        # The engine itself would begin with a black picture.
        raise bad(f"`image_start` is missing: the model {facts.name} needs a picture or a video to begin with")
    return letters if letters or given is not None else None


def _from_files(request: WanRequest) -> str:
    first = "V" if request.has_files("video_source") else "S" if _starts_from_image(request) else ""
    return first + ("E" if request.has_files("image_end") else "")


def _starts_from_image(request: WanRequest) -> bool:
    return request.has_files("image_start") or (request.row.image == "image_start" and request.has_files("image"))


def _guides(request: WanRequest, facts: ModelFacts) -> str | None:
    refs = request.has_files("image_refs") or (request.row.image == "image_refs" and request.has_files("image"))
    guide = request.has_files("video_guide") or request.has_files("image_guide")
    given = _given(request, "video_prompt_type", settle=refs or not request.row.image)
    letters = given if given is not None else _of_guide(request, facts) if guide else ""
    if given is None and refs:
        letters += next((one for one in facts.references if "I" in one), "I")
        letters += "F" if "frames_positions" in request.values else ""
    if refs and not any("I" in one for one in (*facts.references, *facts.guides)):
        raise bad(f"`{_named(request, ('image_refs', 'image'))}`: the model {facts.name} takes no references")
    if guide and not _takes_guide(request, facts):
        raise bad(f"`{_named(request, ('video_guide', 'image_guide'))}`: the model {facts.name} takes no guide")
    return letters if letters or given is not None or request.row.image else None


def _takes_guide(request: WanRequest, facts: ModelFacts) -> bool:
    inpaints = facts.inpaints and request.has_files("image_mask")
    return bool(inpaints) or facts.guided or any("V" in one for one in (*facts.guides, *facts.references))


def _of_guide(request: WanRequest, facts: ModelFacts) -> str:
    masked = request.has_files("video_mask") or request.has_files("image_mask")
    if facts.inpaints and request.has_files("image_mask"):
        return facts.inpaints
    if request.row.guide:
        return request.row.guide + ("A" if masked else "")
    if "GUV" in facts.guides:
        return "GVA" if masked else "GUV"
    return "VA" if masked else "V"


def _sounds(request: WanRequest, facts: ModelFacts) -> str | None:
    given = _given(request, "audio_prompt_type")
    if not facts.sounds and (request.has_files("audio_guide") or set("ABX") & set(given or "")):
        raise bad(f"`{_named(request, ('audio_guide', 'audio_prompt_type'))}`: the model {facts.name} takes no sound")
    if given is not None or not request.has_files("audio_guide"):
        return given
    wanted = "B" if request.has_files("audio_guide2") else "A"
    return next((one for one in facts.sounds if wanted in one), wanted)


def _given(request: WanRequest, name: str, *, settle: bool = True) -> str | None:
    """The row's letters, else those of its type, where there is what they are for."""
    found = request.values.get(name)
    return found if found is not None else request.row.settings.get(name) if settle else None


def _named(request: WanRequest, names: tuple[str, ...]) -> str:
    return next((name for name in names if request.has_files(name)), names[0])
