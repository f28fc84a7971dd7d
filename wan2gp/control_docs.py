"""The text of ``docs/ctl-json.md``, made from the types themselves; :mod:`wan2gp.docs` writes it."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import msgspec

from wan2gp import control

COMMANDS: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("status", control.StatusReply),
    ("ready", control.ReadyReply),
    ("doctor", control.DoctorReply),
    ("models fetch MODEL", control.ModelsReply),
    ("task ID", control.TaskReply),
    ("tasks", control.TasksReply),
    ("submit TYPE --params FILE", control.SubmitReply),
    ("submit TYPE --params FILE --wait", control.TaskReply),
    ("cancel ID", control.ChangeReply),
    ("retry ID", control.ChangeReply),
)
"""What each command prints with ``--json``."""

_HEAD = """# What `wan2gp-ctl --json` prints

One JSON document on standard output; errors are sentences on standard error, and the exit status is 0, 1, 2 or 3 as
without `--json`. Fields may be added in later versions; those below stay. `*_s` are seconds, `*_at` are ISO 8601.
The field `reply` names the document's type.

| command | document |
|---|---|
"""

_TAIL = """
## Without a type of their own

`logs --json` prints one object per line, `{"file": "/…/worker.log", "line": "…"}`. `db url --json` prints
`{"url": "postgresql://…"}`.
"""

_NAMES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "Any": "any", "None": "null"}


def page() -> str:
    """The whole page."""
    rows = "".join(f"| `wan2gp-ctl {command} --json` | {_link(kind.__name__)} |\n" for command, kind in COMMANDS)
    return _HEAD + rows + "".join(_section(kind) for kind in _reachable()) + _TAIL


def _reachable() -> list[type[msgspec.Struct]]:
    """The replies, then what they are made of, each once."""
    found: list[type[msgspec.Struct]] = list(dict.fromkeys(kind for _, kind in COMMANDS))
    for kind in found:  # grows while it is walked
        for field in msgspec.structs.fields(kind):
            for name in _words(_type_text(kind, field.name)):
                part = getattr(control, name, None)
                if isinstance(part, type) and issubclass(part, msgspec.Struct) and part not in found:
                    found.append(part)
    return found


def _section(kind: type[msgspec.Struct]) -> str:
    about = " ".join((kind.__doc__ or "").split()).replace("``", "`")
    sentences = _field_sentences(kind)
    rows = [f"| `{name}` | {shown} | {sentences.get(name, '')} |\n" for name, shown in _fields(kind)]
    return f"\n## {kind.__name__}\n\n{about}\n\n| field | type | meaning |\n|---|---|---|\n" + "".join(rows)


def _fields(kind: type[msgspec.Struct]) -> list[tuple[str, str]]:
    tag = kind.__struct_config__.tag
    first = [("reply", f"`{tag!r}`".replace("'", '"'))] if tag else []
    return first + [(field.name, _shown(_type_text(kind, field.name))) for field in msgspec.structs.fields(kind)]


def _type_text(kind: type[msgspec.Struct], name: str) -> str:
    """The annotation as it stands in the source: annotations are strings in that file."""
    return str(inspect.get_annotations(kind)[name])


def _shown(text: str) -> str:
    """A Python annotation in JSON's words, with links to the structs."""
    return _convert(ast.parse(text, mode="eval").body)


def _convert(node: Any) -> str:
    match node:
        case ast.BinOp(left=left, right=right):
            return f"{_convert(left)} or {_convert(right)}"
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[item, *_])):
            return f"list of {_convert(item)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, value])):
            return f"object of {_convert(value)}"
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name):
            return _NAMES.get(name) or _link(name)
    raise TypeError(f"no words for the annotation {ast.dump(node)}")


def _words(text: str) -> list[str]:
    return [node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)]


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _field_sentences(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The string under each field of the class, as editors show it."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    sentences: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(sentence))),
            ):
                sentences[name] = " ".join(sentence.split()).replace("``", "`")
    return sentences
