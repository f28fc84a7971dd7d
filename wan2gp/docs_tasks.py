"""The text of ``docs/tasks.md``, made from the tables that rows are read by; :mod:`wan2gp.docs` writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wan2gp.docs_examples import statement
from wan2gp.handlers import media_parameters
from wan2gp.handlers.wan_foreign_keys import CARRIED, GONE
from wan2gp.handlers.wan_parameters import FPS, LETTERS, MODE, NUMBERS, PARAMETERS, TEXT, Parameter
from wan2gp.handlers.wan_rules import COMPANIONS
from wan2gp.media_sources import FILES, INTERPOLATE
from wan2gp.wan_sources import MEDIA, Media
from wan2gp.wan_types import MODEL_NAMES, TYPES, TaskType

NOTES: Mapping[str, str] = {
    "z_image_turbo_i2i": "WanGP 12.60 lists no such model: there the row fails with `wan.unknown_model`. It needs a "
    "checkout that has one, from a definition in its `finetunes`, say",
    "qwen_image_hires": "the engine enlarges in one pass, while it decodes",
}
PROJECT = "https://github.com/deepbeepmeep/Wan2GP"

_HEAD = f"""# Generation tasks

A row of one of the types below becomes videos or images without ComfyUI. They are made by **WanGP** (Wan2GP,
<{PROJECT}>), which a worker with `WAN2GP_PATH` runs in a process of its own.

## Made with WanGP

WanGP is somebody else's work. It is no part of this package and of its images: you bring your own checkout, and the
WanGP Community License in its `LICENSE.txt` applies to what you do with it here. What that asks of products which
integrate WanGP, read in version 2.0 (the text counts, not this summary):

- **Say that you use it**, in your interface and in your documentation. `wan2gp-ctl status` does, so does
  `result_data.engine` of every row (`"name": "WanGP"`), and so does this page. If you build something on this worker,
  say it there too.
- **It is free for your own use**, also inside a company and for client work. **Paid access needs a license of its
  author**: an API, a hosted service, a queue that others pay to put rows into, a paid product with it inside (sections
  1.9 and 5; the contact stands there).
- **Credit it when you sell or license an output itself**: "Made with WanGP", where credits are usually shown, with a
  link (section 6). No credit is asked for private, internal or free use.
- **Pass on what it must not be used for** to whoever may insert rows here, and act on plain abuse: what breaks the law,
  sexual abuse of minors, intimate pictures without consent, fraud and impersonation, harassment, violent extremism,
  violating other people's rights (section 10 has the list).
- Keep its notices, and imply no endorsement (sections 4 and 8). Models, LoRAs and weights have licenses of their own.

## A row

`params` is one JSON object, or that object as JSON in a string. A key that is no parameter is an error that names the
nearest one, and so is a value out of range: nothing is dropped in silence. `null` counts as not given. Whatever the row
does not say is as the type has it, else as the model has it.

- **Files** are given by URL (http, https, `storage://bucket/path`) or by the absolute path of a file inside
  `inputs.allow_paths`. Those of another shape are cropped to the size of the result, or as `fit` says.
- **Length and size** go up or down to what the model can make: `result_data.frames` and `result_data.resolution` have
  what was `asked` and what was `made`.
- **The seed** is drawn from the task's id when the row gives none, so another attempt makes the same; it stands in
  `result_data.engine.seed`, and in `result_data.seeds` for several results.
- **All files** of a task are in `result_data.artifacts`; `output_location` is the first.
- **LoRAs** are fetched before the GPU is used, and a task whose LoRA cannot be had fails: none is left out. Pickles are
  refused: a LoRA is a `.safetensors` file.

A worker serves the types whose engine it has, and leaves the others in the queue: `wan2gp-ctl status` says why. A type
whose own model has no weights on the machine while `wan.download` is off waits as well, with the name of the file; rows
of that type which name another `model` wait with it, so give those another type.

The type `comfy` has [a page of its own](comfy-tasks.md).

## Types

"""

_COLUMNS = ("parameter", "also", "what it may be", "unit", "for", "meaning")

_PARAMETERS = """
## Parameters of generation

For all types but `rife_interpolate_images`. Defaults are in each type's section; beyond those, `fit` is crop,
`repeat_generation` and `batch_size` are 1, and everything else is as the model has it. Of a text the range is its
length; of a size, that of each side.

"""

_MEDIA = """
### Files

"""

_PHASES = """
### Phases

`phase_config` plans a sampling of two or three phases: `steps_per_phase` (a list of counts, at most 100 in all; 2, 2, 2
if left out), `flow_shift` (5), `sample_solver` (`euler`; or `unipc`, `dpm++`), `model_switch_phase` (2), and `phases`,
a list of objects with `guidance_scale` (3, then 1) and `loras` (each `{"url": …, "multiplier": …}`, a multiplier for
each step with `,`). The noise levels at which phases change are worked out from that. It overrules the single
parameters that it covers, which the row is told; LoRAs that belong to the model are left out, since the plan brings its
own. An example is at [i2v_22](#i2v_22).

"""

_KEYS = """
### Parameters that go with others

| parameter | has no effect, and is refused, without |
|---|---|
"""

_CARRIED = """
### Keys that are not used

Rows of web pages and orchestrators carry keys that mean nothing here; they are let be, or told in
`result_data.warnings`. The parameters in `orchestrator_details` count where the row itself does not give them, but for
files and `model`.

| key | why it has no effect |
|---|---|
"""

_GONE = """
### Keys that are refused

Without them the result would be another one than was asked for.

| key | what there is |
|---|---|
"""


def page() -> str:
    """The whole page."""
    types = "".join(_type_section(row) for row in TYPES.values())
    return _HEAD + _overview() + _parameters() + types + _between()


def _overview() -> str:
    rows = [(_link(row.name), row.makes, f"`{row.model}`", _needs(row), row.summary) for row in TYPES.values()]
    rows.append((_link(INTERPOLATE), "video", "RIFE, or ffmpeg", "`images` or `video`", "the frames between frames"))
    return _table(("type", "makes", "model", "needs", "what it is"), rows)


def _link(name: str) -> str:
    return f"[`{name}`](#{name})"


def _needs(row: TaskType) -> str:
    groups = [] if row.prompt_optional else ["`prompt`"]
    return ", ".join([*groups, *(" or ".join(f"`{name}`" for name in group) for group in row.needs)])


# --- parameters ------------------------------------------------------------------------------------------------------


def _parameters() -> str:
    general = [_parameter(row) for row in PARAMETERS.values() if not row.types]
    special = [_parameter(row) for row in PARAMETERS.values() if row.types]
    aliases = ", ".join(f"`{old}` for `{new}`" for old, new in MODEL_NAMES.items())
    return (
        _PARAMETERS
        + _table(_COLUMNS, general)
        + f"\nOld names of models are understood where the engine lists none of that name: {aliases}.\n"
        + "\n### For some types\n\n"
        + _table(_COLUMNS, special)
        + _MEDIA
        + _table(("parameter", "also", "kind", "how many", "meaning"), map(_media, MEDIA.values()))
        + _PHASES
        + _KEYS.lstrip("\n")
        + "".join(_row(f"`{name}`", " or ".join(f"`{one}`" for one in others)) for name, others in COMPANIONS.items())
        + _CARRIED
        + "".join(_row(f"`{key}`", why or "it is its producer's") for key, why in CARRIED.items())
        + _GONE
        + "".join(_row(f"`{key}`", what) for key, what in GONE.items())
    )


def _parameter(row: Parameter) -> tuple[str, ...]:
    where = ", ".join(f"`{name}`" for name in row.types) or {"video": "videos", "image": "images"}.get(row.makes, "")
    return f"`{row.name}`", _names(row.aliases), _kind(row), row.unit, where, row.text


def _media(row: Media) -> tuple[str, ...]:
    return f"`{row.name}`", _names(row.aliases), row.kind, "1" if row.most == 1 else f"1 to {row.most}", row.text


def _kind(row: Parameter) -> str:
    """The type, with the values or the range that it may have."""
    if row.kind in (TEXT, LETTERS) and row.choices:
        shown = _letters(row.choices) if row.kind == LETTERS else _names(one for one in row.choices if one)
        return f"{row.kind}: {shown}" + (", or empty" if "" in row.choices else "")
    if row.lowest is None or row.highest is None:
        return row.kind
    limits = f"{row.lowest:g} to {row.highest:g}" if row.highest < 1e6 else f"{row.lowest:g} to {int(row.highest)}"
    name = {NUMBERS: "list of whole numbers", FPS: "whole number", MODE: "whole number, or text"}.get(
        row.kind, row.kind
    )
    return f"{name}, {limits}" + (f", or {_names(row.choices)}" if row.choices else "")


def _letters(choices: Iterable[str]) -> str:
    return f"`{''.join(choices)}`"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# --- types -----------------------------------------------------------------------------------------------------------


def _type_section(row: TaskType) -> str:
    facts = [
        ("model", f"`{row.model}`, or any that the engine lists (`model`)"),
        ("must have", _needs(row)),
        ("size", _size(row)),
        ("always, unless the row says otherwise", _values(row.settings)),
        ("with its own model, unless the row says otherwise", _values(row.defaults)),
        (
            "guide",
            f"`video_prompt_type` {row.guide}, where the row gives a `video_guide` and no letters" if row.guide else "",
        ),
        ("image", f"`image`, as the engine's `{row.image}`" + (_PAINTED if row.painted else "") if row.image else ""),
        ("note", NOTES.get(row.name, "")),
        *(("own LoRA", f"<{lora.url}>, {_strength(lora)}") for lora in row.loras),
        ("own parameters", _names(name for name, one in PARAMETERS.items() if row.name in one.types)),
    ]
    told = "".join(_row(what, text) for what, text in facts if text)
    head = f"\n## {row.name}\n\n{_sentence(row.summary)}\n\n| | |\n|---|---|\n"
    return f"{head}{told}\n{_example(row.name)}"


_PAINTED = "; where the `mask` is white it is painted over in green"


def _strength(lora: Any) -> str:
    with_it = f"strength {lora.strength:g}, or as `{lora.key}` says"
    return with_it if lora.always else f"only where `{lora.key}` is above 0, which is its strength"


def _size(row: TaskType) -> str:
    size = row.size
    parts = [f"{size.default} pixels without `resolution`"] if size.default else []
    if size.area:
        parts.append(f"without `resolution` as the input's shape, with about {size.area:,} pixels")
    if size.longest:
        parts.append(f"the longer side at most {size.longest:,} pixels: larger ones are scaled down")
    if size.shapes:
        parts.append(
            "`resolution` may be a shape: " + ", ".join(f"{name} ({one})" for name, one in size.shapes.items())
        )
    return "; ".join(parts)


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` {value if value != '' else 'empty'}" for name, value in values.items())


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _example(name: str) -> str:
    return f"```sql\n{statement(name)}```\n"


_BETWEEN = f"""
## {INTERPOLATE}

A clip of exactly as many frames as asked for, that goes through two pictures or more, or through the frames of a video.
The first and the last frame are the first and the last input, fitted to the size of the clip. It needs no GPU. The
frames between are made by WanGP's RIFE, which needs a checkout (`WAN2GP_PATH`) and RIFE's weights. Nothing else stands
in for it unasked: ffmpeg's motion interpolation is used where the row says `"method": "ffmpeg"`, or the worker
`wan.interpolation` auto (where RIFE is not at hand) or ffmpeg. `result_data.engine` tells which it was.

"""


def _between() -> str:
    rows = [_parameter(row)[:4] + (row.text,) for row in media_parameters.PARAMETERS.values()]
    return (
        _BETWEEN
        + _table(("parameter", "also", "kind", "how many", "meaning"), map(_media, FILES.values()))
        + "\n"
        + _table(("parameter", "also", "what it may be", "unit", "meaning"), rows)
        + f"\n{_example(INTERPOLATE)}"
    )


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(columns)
    return _row(*heads) + "|" + "---|" * len(heads) + "\n" + "".join(_row(*row) for row in rows)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
