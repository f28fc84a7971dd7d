"""Writes those pages of ``docs/`` that are tables of what the program knows itself: ``python -m wan2gp.docs [DIR]``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wan2gp import control_docs, docs_tasks
from wan2gp.comfy_sidecar.graph_shape import DEEPEST, MOST_NODES
from wan2gp.config_options import OPTIONS, Option, Secret
from wan2gp.errors import REGISTRY, ErrorCode
from wan2gp.handlers.comfy_fields import FieldDoc
from wan2gp.handlers.comfy_params import input_documentation, task_documentation
from wan2gp.options import supervisor_parser

MADE_BY = "<!-- Made by `python -m wan2gp.docs`; a test keeps it true. -->\n"

_ERRORS = """# Error codes

A task that ends without its result has a row whose `error_message` is `code: sentence`: the code is one of those below
and stays the same over versions, the sentence names what was wrong this time. `result_data.attempts` has the cause of
every attempt. *Again* says whether the worker tries the task again by itself, up to the row's `max_attempts`; where the
cause of the day shows that it would end the same, it does not. A plug-in's handler may bring codes of its own.
"""

_CONFIGURATION = """# Configuration

Every setting is read once at start, from the defaults, then a TOML file (`--config FILE` or `WAN2GP_CONFIG`), then the
environment, then the command line; the later one wins. A dotted key is a table in the file: `stop.grace_s` is `grace_s`
under `[stop]`. `wan2gp-supervisor check` reads everything, prints what it found (secrets as `***`) and names every
problem at once, each with its remedy; it starts nothing. A value `$NAME` is read from the variable `NAME`, since the
exec form of a container's `CMD` does not expand variables.

`--data-dir DIR` or `WAN2GP_DATA_DIR` (default: the working directory) says where logs, outputs and state are; it cannot
stand in the file.

A handler of a plug-in that needs a token (of a hosted API, say) finds it under a name of its own: the variable
`WAN2GP_SECRET_NAME`, or `name` under `[secrets]` in the file. Only the handler whose spec asks for `name` gets it.

| key in the file | environment | command line | default | meaning |
|---|---|---|---|---|
"""


_TASKS = """# Tasks of type `comfy`

The parameters are one JSON object in the row's `params`, or that object as JSON in a string. Keys that are none of
these are left alone, except those that are nearly one of them: a misspelling is refused.

## Parameters

"""

_ENTRY = """
## An entry of `inputs`

Every file is downloaded, looked at and put where the node expects it, before anything runs. The node is named by one of
`node_id`, `title` and `class_type`.

"""

_NAMES = f"""
An input may be no larger than `inputs.max_bytes`, `inputs.max_pixels`, `inputs.max_frames` and `inputs.max_duration_s`
allow. A playlist (HLS, DASH, ffconcat) is no input: it makes whoever opens it open other files.

## Files that a graph names itself

A loader's own input (`image` of `LoadImage`, `video` of `VHS_LoadVideo` and of `VHS_LoadVideoPath`, whatever a class
declares as a file to upload or a path) may name a file of ComfyUI's input folder, or one inside `inputs.allow_paths` by
its absolute path. Refused are paths elsewhere, `..`, names marked `[output]` or `[temp]`, web addresses, other tasks'
files below `wan2gp/`, and a link from another node, since nobody can tell what it will say: give those by `inputs`.

A graph has at most {MOST_NODES:,} nodes and {DEEPEST} levels of lists and objects. Every `filename_prefix` is put below
the run's own folder.
"""
_FIELDS = "| parameter | type | required | meaning |\n|---|---|---|---|\n"


def tasks_page() -> str:
    """``docs/comfy-tasks.md``."""
    tables = _field_table(task_documentation()), _field_table(input_documentation())
    return MADE_BY + _TASKS + tables[0] + _ENTRY + tables[1] + _NAMES


def _field_table(fields: list[FieldDoc]) -> str:
    rows = (_row(f"`{doc.name}`", doc.type, "yes" if doc.required else "no", doc.description) for doc in fields)
    return _FIELDS + "".join(rows)


def errors_page() -> str:
    """``docs/errors.md``."""
    groups: dict[str, list[ErrorCode]] = {}
    for known in REGISTRY.values():
        groups.setdefault(known.code.partition(".")[0], []).append(known)
    return MADE_BY + _ERRORS + "".join(_error_table(name, codes) for name, codes in groups.items())


def _error_table(name: str, codes: list[ErrorCode]) -> str:
    head = f"\n## {name}\n\n| code | again | what it means | what to do |\n|---|---|---|---|\n"
    rows = (_row(f"`{known.code}`", "yes" if known.retryable else "no", known.meaning, known.remedy) for known in codes)
    return head + "".join(rows)


def configuration_page() -> str:
    """``docs/configuration.md``."""
    flags = {flag for action in supervisor_parser()._actions for flag in action.option_strings}
    return MADE_BY + _CONFIGURATION + "".join(_option_row(option, flags) for option in OPTIONS.values())


def _option_row(option: Option, flags: set[str]) -> str:
    flag = "--" + option.key.removesuffix("_s").replace("_", "-")
    names = [f"`{option.key}`", _code(option.env), _code(flag if flag in flags else None)]
    return _row(*names, _default(option.default), option.about)


def _default(value: Any) -> str:
    match value:
        case Secret() | "" | ():
            return ""
        case bool():
            return f"`{value:d}`"
        case int() | float():
            return f"`{value:.12g}`"
    return f"`{value}`"


def _code(name: str | None) -> str:
    return f"`{name}`" if name else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "comfy-tasks.md": tasks_page,
    "configuration.md": configuration_page,
    "ctl-json.md": lambda: MADE_BY + control_docs.page(),
    "errors.md": errors_page,
    "tasks.md": lambda: MADE_BY + docs_tasks.page(),
}
"""File name and how its text is made."""


def main(directory: Path) -> None:
    """Write all pages into ``directory``."""
    for name, page in PAGES.items():
        (directory / name).write_text(page())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
