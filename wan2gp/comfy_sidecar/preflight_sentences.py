"""Every problem in its words: where, what, and what to do. Checks before a run and ComfyUI's own answers share them.

Values are shown only where they are a choice, a file's name or a number: texts are the user's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from wan2gp.comfy_sidecar.catalogue import InputSpec, NodeClass
from wan2gp.comfy_sidecar.file_names import FILE_FIELDS, PATH_LOADERS
from wan2gp.comfy_sidecar.preflight_problems import (
    FEW,
    LISTED,
    REASON_CHARS,
    Json,
    Kind,
    Problem,
    at,
    close_to,
    listing,
    quoted,
    show_node,
    shown,
)
from wan2gp.comfy_sidecar.workflow import Graph

FOLDER_MARK = re.compile(r"\[(input|output|temp)\]$")
MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".sft", ".pkl")
MODEL_FOLDERS = {
    "ckpt_name": "checkpoints",
    "lora_name": "loras",
    "vae_name": "vae",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "clip_name4": "text_encoders",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "photomaker_model_name": "photomaker",
    "audio_encoder_name": "audio_encoders",
}
"""Core inputs that name a model, and the folder below ``models`` it is looked for in."""
MODELS_OF_CLASS = {"CLIPVisionLoader": "clip_vision", "UpscaleModelLoader": "upscale_models"}
WORDS = {"INT": "a whole number", "FLOAT": "a number", "STRING": "a text", "BOOLEAN": "true or false"}


# --- nodes ---------------------------------------------------------------------------------------------------------

EDITOR_ONLY = frozenset({"Note", "MarkdownNote", "Reroute", "PrimitiveNode", "GetNode", "SetNode"})
GROUP_PREFIXES = ("workflow>", "workflow/")
BUILTIN_HINT = "the built-in engine has few classes: run this graph on a worker with a real ComfyUI (COMFY_PATH)"


def unknown_class(
    graph: Graph, node_id: str, names: Sequence[str], *, builtin: bool = False, failed: Sequence[str] = ()
) -> Problem:
    """``names``: what there is. ``failed``: the server's lines about custom nodes that it runs without."""
    class_type = str(graph.get(node_id, {}).get("class_type", ""))
    close = close_to(class_type, names)
    remedy = "install it, or correct the name"
    if class_type in EDITOR_ONLY or class_type.startswith(GROUP_PREFIXES):
        remedy = "it exists in the editor only: export the graph anew with Workflow > Export (API)"
    elif builtin:
        remedy = BUILTIN_HINT
    said = f"there is no class {shown(class_type)} on this ComfyUI: its custom node is not installed; {remedy}"
    said += f"; closest: {listing(close)}" if close else ""
    said += f"; ComfyUI started without {', '.join(shown(line, 100) for line in failed[:3])}" if failed else ""
    return at(Kind.UNKNOWN_CLASS, graph, node_id, "", said, close=close)


def no_output_node() -> Problem:
    said = "the graph has no output node, so nothing would run: add one, such as SaveImage or VHS_VideoCombine"
    return Problem(Kind.NO_OUTPUT_NODE, said)


def missing_input(graph: Graph, node_id: str, name: str, spec: InputSpec | None, known: Iterable[str] = ()) -> Problem:
    """``known``: the inputs that the class has, to find one that is written otherwise."""
    given = graph.get(node_id, {}).get("inputs", {})
    close = close_to(name, [other for other in given if other not in set(known)], most=1)
    wanted = "a value" if spec is None else WORDS.get(spec.kind, spec.kind) if spec.choices is None else "a choice"
    said = f"it is required and not given: give {wanted}"
    if spec is not None and spec.choices:
        said += f", one of {listing(spec.choices)}"
    elif spec is not None and spec.kind in OBJECT_TYPES:
        said = f"it is required and not given: link an output of type {spec.kind} to it"
    said += f"; {quoted(close[0])} is given and not known: is it meant?" if close and known else ""
    return at(Kind.MISSING_INPUT, graph, node_id, name, said, type=None if spec is None else spec.kind)


# --- links ---------------------------------------------------------------------------------------------------------

OBJECT_TYPES = frozenset(
    "IMAGE LATENT MODEL CLIP VAE CONDITIONING CONTROL_NET CLIP_VISION CLIP_VISION_OUTPUT STYLE_MODEL "
    "UPSCALE_MODEL SAMPLER SIGMAS NOISE GUIDER GLIGEN".split()
)
"""Types of ComfyUI's own that no widget makes: only another node's output is one."""


def bad_link(graph: Graph, node_id: str, name: str, value: Any) -> Problem:
    said = 'a list stands for a link and must be ["node id", output number]'
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], int) and str(value[0]) in graph:
        said = f'{value} is no link: ids are strings, write ["{value[0]}", {value[1]}]'
    elif isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
        said = f"the output's number must be a whole number, not {quoted(value[1])}"
    return at(Kind.BAD_LINK, graph, node_id, name, said)


def missing_node(
    graph: Graph, node_id: str, name: str, source: str, near: Iterable[str], *, unseen: bool = False
) -> Problem:
    """``unseen``: ComfyUI does not look there before the run, in which it is the end of its worker thread."""
    close = close_to(source, near)
    said = f"it is linked to node {quoted(source)}, which is not in the graph: link it to a node that is"
    said += f", such as {', '.join(show_node(graph, other) for other in close)}" if close else ""
    said += "; ComfyUI would take the graph and stop working over it" if unseen else ""
    return at(Kind.MISSING_NODE, graph, node_id, name, said, linked=source, unseen=unseen)


def no_such_output(graph: Graph, node_id: str, name: str, link: list[Any], source: NodeClass | None) -> Problem:
    outputs = None if source is None else [kind or COMBO_WORD for kind in source.outputs]
    said = f"it is linked to output {link[1]} of {show_node(graph, str(link[0]))}, which "
    if outputs is None:
        said += "it does not have"
    elif not outputs:
        said += "has no outputs: link another node"
    else:
        said += f"has {len(outputs)}, counted from 0 ({_numbered(outputs)}): link one of those"
    return at(Kind.NO_SUCH_OUTPUT, graph, node_id, name, said, linked=str(link[0]), outputs=outputs)


COMBO_WORD = "a choice"


def _numbered(outputs: Sequence[str]) -> str:
    return ", ".join(f"{slot} is {shown(kind)}" for slot, kind in enumerate(outputs[:FEW]))


def type_mismatch(
    graph: Graph, node_id: str, name: str, link: list[Any], wanted: str, received: str, source: NodeClass | None
) -> Problem:
    said = (
        f"it takes {shown(wanted)}, and output {link[1]} of {show_node(graph, str(link[0]))} is {shown(received)}: "
        f"link an output of type {shown(wanted)}"
    )
    fitting = [slot for slot, kind in enumerate(source.outputs if source else ()) if kind == wanted]
    said += f"; output {fitting[0]} of that node is one" if fitting else ""
    facts = {"wanted": wanted, "received": received, "linked": str(link[0])}
    return at(Kind.TYPE_MISMATCH, graph, node_id, name, said, certain=False, **facts)


def cycle(graph: Graph, path: Sequence[str], name: str) -> Problem:
    """``path``: the nodes in the order of the data, the first also comes after the last, into its input ``name``."""
    around = [shown(node_id) for node_id in (*path, path[0])]
    if len(around) > FEW:
        around = [*around[: FEW // 2], "…", *around[-FEW // 2 :]]
    said = f"the nodes {' → '.join(around)} are linked in a circle and none can run first: cut one of the links"
    return at(Kind.CYCLE, graph, path[0], name, said, nodes=list(path)[:LISTED])


def needs_link(graph: Graph, node_id: str, name: str, kind: str) -> Problem:
    said = f'it takes {kind} from another node, not a value: link it, as ["node id", output number]'
    return at(Kind.NEEDS_LINK, graph, node_id, name, said, wanted=kind)


# --- values --------------------------------------------------------------------------------------------------------


def wrong_type(graph: Graph, node_id: str, name: str, kind: str, value: Any) -> Problem:
    given = "null" if value is None else "an object" if isinstance(value, dict) else quoted(value)
    said = f"it takes {kind}, and {given} is none: give {WORDS.get(kind, kind)}"
    return at(Kind.WRONG_TYPE, graph, node_id, name, said, wanted=kind)


def out_of_range(graph: Graph, node_id: str, name: str, value: Any, limits: Json) -> Problem:
    """``limits`` has ``min`` and ``max``, or one of them."""
    low, high = limits.get("min"), limits.get("max")
    small = low is not None and value < low
    kind = Kind.TOO_SMALL if small else Kind.TOO_LARGE
    said = f"{quoted(value)} is {'less than the least' if small else 'more than the most'} allowed: "
    span = (
        f"{low} to {high}"
        if low is not None and high is not None
        else f"at least {low}"
        if small
        else f"at most {high}"
    )
    return at(kind, graph, node_id, name, f"{said}give {span}", certain=False, min=low, max=high)


def wrong_choice(
    graph: Graph, node_id: str, name: str, value: Any, spec: InputSpec, *, suggest: bool = True
) -> Problem:
    """Also a file that is not there: the lists of some inputs are what lies in a folder."""
    choices = spec.choices or ()
    close = close_to(str(value), choices) if suggest else []
    facts: Json = {"choices": [_plain(choice) for choice in choices[:LISTED]], "choice_count": len(choices)}
    facts["close"] = close
    kind, said = _what_is_not_there(graph, node_id, name, value, spec)
    if close:
        said += f"; closest: {listing(close)}"
    if choices and (len(choices) <= FEW or not close):
        said += f"; there is {listing(choices)}"
    elif choices:
        said += f", of {len(choices)} that there are"
    elif kind is not Kind.MISSING_FILE:
        said += "; so far there is none"
    return at(kind, graph, node_id, name, said, certain=False, **facts)


def _what_is_not_there(graph: Graph, node_id: str, name: str, value: Any, spec: InputSpec) -> tuple[Kind, str]:
    class_type = str(graph.get(node_id, {}).get("class_type", ""))
    folder = MODELS_OF_CLASS.get(class_type) or MODEL_FOLDERS.get(name)
    if names_model(name, value, spec):
        where = f"ComfyUI's models/{folder}" if folder else "its folder below ComfyUI's models"
        return Kind.MISSING_MODEL, f"the model file {quoted(value)} is not on this worker: put it in {where}"
    if names_input_file(class_type, name, spec):
        return Kind.MISSING_FILE, missing_file(value)
    return Kind.WRONG_CHOICE, f"{quoted(value)} is not among its choices: give one of them"


def names_model(name: str, value: Any, spec: InputSpec) -> bool:
    """Whether the input's choices are model files. A list without any says nothing: then the name or value does."""
    if isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES) and not spec.uploads:
        return True
    return name in MODEL_FOLDERS and spec.kind == "COMBO"


def missing_file(value: Any) -> str:
    """A name may say which folder it is of: ``x.png [output]``."""
    named = FOLDER_MARK.search(str(value))
    folder = named[1] if named else "input"
    return f"{quoted(value)} is not in ComfyUI's {folder} folder: give the file by `inputs` or `video_url`"


def names_input_file(class_type: str, name: str, spec: InputSpec | None) -> bool:
    """Whether the input names a file of the input folder."""
    if class_type in PATH_LOADERS:
        return False
    return (spec is not None and spec.uploads) or ("Load" in class_type and name in FILE_FIELDS)


def _plain(choice: Any) -> Any:
    return choice if isinstance(choice, (int, float, bool)) or choice is None else shown(str(choice), REASON_CHARS)


# --- words of the server -------------------------------------------------------------------------------------------


def refused_by_node(graph: Graph, node_id: str, name: str, reason: str, spec: InputSpec | None) -> Problem:
    """The class's own check said no."""
    class_type = str(graph.get(node_id, {}).get("class_type", ""))
    value = graph.get(node_id, {}).get("inputs", {}).get(name)
    if names_input_file(class_type, name, spec) and isinstance(value, str):
        said = missing_file(value)
        close = close_to(value, spec.choices or ()) if spec else []
        said += f"; closest: {listing(close)}" if close else ""
        return at(Kind.MISSING_FILE, graph, node_id, name, said, certain=False, reason=shown(reason, REASON_CHARS))
    said = f"the node itself refuses it{': ' if reason else ''}{shown(reason, REASON_CHARS)}"
    return at(Kind.REFUSED_BY_NODE, graph, node_id, name, f"{said}; give another value", certain=False)
