"""What the node classes of one server declare: asked for class by class, and kept as long as the server lives.

Custom nodes declare what they like. What is not understood is left out, and a class whose own code fails to say
(``INPUT_TYPES`` raises, the server answers 500) counts as present: judging it is left to the server.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wan2gp.comfy_sidecar.errors import ApiError, Unreachable

Json = dict[str, Any]
COMBO = "COMBO"
ANY = "*"
DYNAMIC = "COMFY_"
"""Types of inputs that become other inputs, named by what is given: they cannot be looked up."""
CORE_MODULES = ("nodes", "comfy_extras.", "comfy_api_nodes.")
UPLOAD_MARK = "_upload"
"""How an input says that its choices are the files of the input folder: ``image_upload``, ``video_upload`` …"""


class Standing(enum.Enum):
    """How a class stands with the server."""

    DESCRIBED = "described"
    UNDESCRIBED = "undescribed"
    """It is there, or may be, and what it takes is not known."""
    ABSENT = "absent"


@dataclass(frozen=True)
class InputSpec:
    """One declared input. ``kind`` is the type's name, ``COMBO`` for a list of ``choices``."""

    name: str
    required: bool
    kind: str
    choices: tuple[Any, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_default(self) -> bool:
        return "default" in self.options

    @property
    def uploads(self) -> bool:
        """The choices are files of the input folder, which names in its subfolders may also stand for."""
        return any(UPLOAD_MARK in str(name) and on for name, on in self.options.items())

    @property
    def dynamic(self) -> bool:
        return self.kind.startswith(DYNAMIC)


@dataclass(frozen=True)
class NodeClass:
    """One class of the catalogue. ``outputs`` are type names; None for one that is a list of choices."""

    name: str
    inputs: Mapping[str, InputSpec]
    outputs: tuple[str | None, ...]
    is_output: bool
    core: bool
    """Of ComfyUI itself, and not of a custom node."""

    @classmethod
    def read(cls, name: str, info: Json) -> NodeClass | None:
        """From an entry of ``GET /object_info``; None when it is not like one."""
        declared, returned = info.get("input"), info.get("output")
        if not isinstance(declared, dict) or not isinstance(returned, list):
            return None
        inputs: dict[str, InputSpec] = {}
        for group in ("optional", "required"):
            for input_name, spec in _mapping(declared.get(group)).items():
                if (read := _read_spec(input_name, spec, required=group == "required")) is not None:
                    inputs[input_name] = read
        module = str(info.get("python_module") or "")
        core = module.startswith(CORE_MODULES[1:]) or module == CORE_MODULES[0]
        outputs = tuple(kind if isinstance(kind, str) else None for kind in returned)
        return cls(name, inputs, outputs, info.get("output_node") is True, core)


def _read_spec(name: str, spec: Any, *, required: bool) -> InputSpec | None:
    if not isinstance(spec, list) or not spec:
        return None
    options = _mapping(spec[1]) if len(spec) > 1 else {}
    if isinstance(spec[0], list):
        return InputSpec(name, required, COMBO, tuple(spec[0]), options)
    if not isinstance(spec[0], str):
        return None
    given = options.get("options") if spec[0] == COMBO else None
    return InputSpec(name, required, spec[0], tuple(given) if isinstance(given, list) else None, options)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


@dataclass
class Catalogue:
    """For one life of a server. Nothing is concluded for good from an absent class: it is asked for again."""

    ask: Callable[[str | None], Json]
    """:meth:`~wan2gp.comfy_sidecar.client.ComfyClient.object_info` of that server."""
    _infos: dict[str, Json | None] = field(default_factory=dict)
    _classes: dict[str, NodeClass | None] = field(default_factory=dict)
    _absent: set[str] = field(default_factory=set)
    _names: tuple[str, ...] | None = None

    def learn(self, class_types: Iterable[str]) -> None:
        """Ask for what is not known yet. Raises :class:`Unreachable`; what was learned until then is kept."""
        for class_type in sorted(set(class_types) - self._infos.keys()):
            self._ask(class_type)

    def forget(self, class_types: Iterable[str]) -> None:
        """Their lists of files may have changed since, or a server on another machine was started anew."""
        for class_type in class_types:
            self._infos.pop(class_type, None)
            self._classes.pop(class_type, None)
            self._absent.discard(class_type)

    def node_info(self, class_type: str) -> Json | None:
        """The entry of ``GET /object_info``; None for an unknown class, or one whose code fails to say."""
        if class_type not in self._infos:
            self._ask(class_type)
        return self._infos.get(class_type)

    def _ask(self, class_type: str) -> None:
        self._absent.discard(class_type)
        try:
            body = self.ask(class_type)
        except ApiError:  # the class's own code raised, or a proxy does not like its name
            self._infos[class_type] = None
            return
        info = body.get(class_type)
        if isinstance(info, dict):
            self._infos[class_type] = info
        elif class_type in body:
            self._infos[class_type] = None
        else:
            self._absent.add(class_type)

    def standing(self, class_type: str) -> Standing:
        """Of a class that was asked for; one that was not is :attr:`Standing.UNDESCRIBED`."""
        if class_type in self._absent:
            return Standing.ABSENT
        return Standing.UNDESCRIBED if self.get(class_type) is None else Standing.DESCRIBED

    def get(self, class_type: str) -> NodeClass | None:
        """What is known of a class, without asking for it."""
        if class_type not in self._classes:
            info = self._infos.get(class_type)
            if class_type not in self._infos:
                return None
            self._classes[class_type] = None if info is None else NodeClass.read(class_type, info)
        return self._classes[class_type]

    def names(self) -> tuple[str, ...]:
        """All classes of the server, for suggestions: the whole list is large and asked for once, when first needed.

        Empty when it cannot be had.
        """
        if self._names is None:
            try:
                self._names = tuple(self.ask(None))
            except (ApiError, Unreachable):
                return ()
        return self._names
