"""The parameters of a ``comfy`` task as types: what is read from a row, and what its documentation is made from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_type_hints

import msgspec
from msgspec import Meta

from wan2gp.comfy_sidecar.suggest import closest, there_is
from wan2gp.comfy_sources import KINDS
from wan2gp.handlers.api import TaskFailure

BASE64_BYTES = 4 * 1024**2
"""The most that all `base64` inputs of a task may decode to, bytes: a row travels through the database."""
SO_CLOSE = 0.84
"""How alike an unknown key must be to a parameter's name to be a misspelling of it, 0..1."""


def _as(shown: str, description: str) -> Meta:
    return Meta(description=description, extra={"type": shown})


Name = Union[str, int, None]


class InputFields(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``inputs``: a file, and the node and field it is for."""

    url: Annotated[
        Union[str, None],
        _as(
            "String",
            "http or https URL to download, `storage://bucket/path` in the worker's own Supabase project, or a `data:` "
            "URL. Exactly one of `url`, `path`, `base64`.",
        ),
    ] = None
    path: Annotated[
        Union[str, None],
        _as("String", "Absolute path of a file on the worker, inside one of its `inputs.allow_paths`."),
    ] = None
    base64: Annotated[
        Union[str, None],
        _as("String", f"The file itself, base64, also as a `data:` URL. At most {BASE64_BYTES >> 20} MiB in a task."),
    ] = None
    node_id: Annotated[Name, _as("String", "Id of the node that loads the file.")] = None
    title: Annotated[
        Union[str, None],
        _as("String", "Title of that node, instead of its id. It must be the only one of that title."),
    ] = None
    class_type: Annotated[
        Union[str, None],
        _as("String", "Class of that node, instead of its id. It must be the only one of that class."),
    ] = None
    field: Annotated[
        Union[str, None],
        _as("String", "The node's input that names the file. Default: the one that its class is known to use."),
    ] = None
    kind: Annotated[
        Union[str, None],
        _as("String", f"What the file must be: {', '.join(KINDS)}. Default: what the node and field take."),
    ] = None


class TaskFields(msgspec.Struct, frozen=True, kw_only=True):
    """The ``params`` of a ``comfy`` task."""

    workflow: Annotated[Any, _as("Object", "ComfyUI workflow JSON, in the API format; also as a string.")]
    video_url: Annotated[
        Union[str, None], _as("String", "URL to download input video; also `storage://bucket/path`.")
    ] = None
    video_node_id: Annotated[
        Name, _as("String", "Node ID to inject video filename. Default: the only node that loads a video.")
    ] = None
    video_input_field: Annotated[
        Union[str, None], _as("String", 'Field name for video. Default: "video", or the one the class uses.')
    ] = None
    inputs: Annotated[
        Union[list[dict[str, Any]], None],
        _as("Array", "More files, each an object of the fields below: any number of videos, images, masks, sounds."),
    ] = None
    overrides: Annotated[
        Union[dict[str, dict[str, Any]], None],
        _as("Object", "Values to set before the run: `{node id or title: {field: value}}`."),
    ] = None


@dataclass(frozen=True)
class FieldDoc:
    """One row of the documentation's table."""

    name: str
    type: str
    required: bool
    default: str
    description: str


def document(fields: type[msgspec.Struct]) -> list[FieldDoc]:
    """The documentation of :class:`TaskFields` or :class:`InputFields`, in order."""
    hints = get_type_hints(fields, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(fields):
        meta: Meta = hints[field.name].__metadata__[0]
        default = "" if field.required or field.default is None else str(field.default)
        shown = str((meta.extra or {})["type"])
        rows.append(FieldDoc(field.name, shown, field.required, default, meta.description or ""))
    return rows


# --- reading -------------------------------------------------------------------------------------------------------


def value(fields: type[msgspec.Struct], given: Mapping[str, Any], name: str, where: str = "") -> Any:
    """The value of one parameter, of the type it has; an empty string counts as absent.

    ``where`` comes before the name in messages. Raises :class:`TaskFailure` with ``input.bad_params``.
    """
    found = given.get(name)
    if found is None or found == "":
        return None
    try:
        return msgspec.convert(found, type=get_type_hints(fields)[name])
    except UnicodeEncodeError as error:
        raise bad(f"`{where}{name}` holds half a character (a lone surrogate)") from error
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        wanted = said.replace("`", "").replace(" | null", "").replace("str", "string").replace("|", "or")
        raise bad(f"`{where}{name}{place.rstrip('`')}`: {wanted[:1].lower()}{wanted[1:]}") from error


def check_keys(given: Mapping[str, Any]) -> Iterator[str]:
    """Refuse what must be a misspelling; yields a warning for what is not used.

    Rows carry their producers' own keys (a project, a shot, the task that ordered this one): those pass. Only a key
    that is nearly a parameter's name is refused, since its author believes that it has an effect.
    """
    names = TaskFields.__struct_fields__
    unknown = sorted(key for key in given if key not in names and given[key] is not None)
    for key in unknown:
        near = closest(key.lower(), names, 1, SO_CLOSE)
        if near and not key.startswith(f"{near[0]}_"):
            raise bad(f"there is no parameter `{key[:100]}`: did you mean `{near[0]}`?")
    files = [key for key in unknown if key.endswith(_FILE_KEYS)]
    if files:
        yield f"not used: {', '.join(files)[:300]}; give files by `inputs`"


_FILE_KEYS = ("image_url", "mask_url", "audio_url", "image_urls", "video_urls")


def check_entry(entry: Mapping[str, Any], where: str) -> None:
    """Every field of an entry of ``inputs`` is ours: an unknown one is refused."""
    for key in entry:
        if key not in InputFields.__struct_fields__:
            raise bad(f"`{where}` has no field `{key[:100]}`{close(key, InputFields.__struct_fields__)}")


def close(wanted: str, present: Collection[str]) -> str:
    """``; there is 'a', 'b'``: the names most like ``wanted``, else the first ones; nothing when there are none."""
    return there_is(wanted, present)


def bad(sentence: str) -> TaskFailure:
    """What is wrong with ``params``."""
    return TaskFailure("input.bad_params", sentence)
