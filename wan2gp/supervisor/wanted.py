"""Whether a handler may have the inputs that it asks for: only what its task's own row names, and not without end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan2gp.protocol import Failed, Source

SOURCES_MAX = 256
"""How many inputs one task may have."""
WISHES_MAX = 32
"""How often one run may ask for other inputs than before: each time they are downloaded."""
NAME_MAX = 200
KINDS = frozenset({"video", "image", "audio", "any"})


def refusal(params: Any, sources: Mapping[str, Source], wishes: int = 1) -> Failed | None:
    """Why they are not fetched, if so. ``wishes``: how often the run has asked for others."""
    if wishes > WISHES_MAX:
        return Failed("input.bad_params", f"it has asked for other inputs {WISHES_MAX} times")
    if len(sources) > SOURCES_MAX:
        return Failed("input.bad_params", f"more than {SOURCES_MAX} inputs: {len(sources)}")
    odd = next((name for name, each in sources.items() if len(name) > NAME_MAX or each.kind not in KINDS), None)
    if odd is not None:
        return Failed("input.bad_params", f"input {odd[:NAME_MAX]!r} has no such name or kind")
    foreign = _foreign(params, sources)
    if foreign is not None:
        return Failed("input.bad_url", f"{foreign[:200]} does not stand in the task's params")
    return None


def _foreign(params: Any, sources: Mapping[str, Source]) -> str | None:
    """The first URL that does not stand in the task's own parameters: a handler may fetch nothing else."""
    strings, documents = set(), []
    level = [params]
    while level:
        value = level.pop()
        if isinstance(value, str):
            strings.add(value)
            if value.lstrip()[:1] in ("{", "["):
                documents.append(value)  # JSON in a string: a graph, say
        elif isinstance(value, dict):
            level += value.values()
        elif isinstance(value, list):
            level += value
    for source in sources.values():
        if source.url not in strings and not any(source.url in document for document in documents):
            return source.url
    return None
