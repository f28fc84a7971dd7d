"""POST /prompt's checks, in ComfyUI's order, with its error types and texts. Values are converted in place.

An error upstream of an output node is reported under its own node id, with the output in `dependent_outputs`.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any

from wan2gp.comfy_sidecar.builtin.registry import Json, NodeType, Registry

CONVERSIONS: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
LONGEST_LIST = 20
"""A list of more choices is not spelled out in the answer."""


@dataclass(frozen=True)
class Verdict:
    """`error` is None when at least one output node can run; `node_errors` may be non-empty even then."""

    error: Json | None
    outputs: list[str]
    node_errors: dict[str, Json]


@dataclass
class NodeResult:
    """Of one node and all above it: `errors` are its own, `valid` counts theirs too."""

    valid: bool
    errors: list[Json] = field(default_factory=list)


def problem(kind: str, message: str, details: str, extra: Json | None = None) -> Json:
    return {"type": kind, "message": message, "details": details, "extra_info": extra or {}}


def validate_prompt(prompt: Any, registry: Registry, targets: list[str] | None) -> Verdict:
    """Raises for a prompt that is no object of objects: the API answers 500 for those."""
    outputs: list[str] = []
    for node_id in prompt:
        node = prompt[node_id]
        if "class_type" not in node:
            return _refused("Cannot execute because a node is missing the class_type property.", node_id)
        node_type = registry.get(node["class_type"])
        if node_type is None:
            return _refused(f"Cannot execute because node {node['class_type']} does not exist.", node_id)
        if node_type.is_output and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Verdict(problem("prompt_no_outputs", "Prompt has no outputs", ""), [], {})
    return _PromptCheck(prompt, registry).outputs(outputs)


def _refused(message: str, node_id: str) -> Verdict:
    return Verdict(problem("invalid_prompt", message, f"Node ID '#{node_id}'"), [], {})


class _PromptCheck:
    def __init__(self, prompt: Json, registry: Registry) -> None:
        self._prompt = prompt
        self._registry = registry
        self._done: dict[str, NodeResult] = {}

    def outputs(self, outputs: list[str]) -> Verdict:
        good: list[str] = []
        own_errors: list[Json] = []
        node_errors: dict[str, Json] = {}
        for output in outputs:
            result = self._output(output)
            if result.valid:
                good.append(output)
                continue
            own_errors += result.errors
            self._report(output, node_errors)
        if good:
            return Verdict(None, good, node_errors)
        details = "\n".join(f"{error['message']}: {error['details']}" for error in own_errors)
        failed = problem("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
        return Verdict(failed, [], node_errors)

    def _output(self, output: str) -> NodeResult:
        try:
            return self.node(output)
        except Exception as error:  # a link to nowhere, or a node's own code: the API reports whatever it was
            message = "Exception when validating node"
            self._done[output] = _failed("exception_during_validation", message, str(error), error, {})
            return self._done[output]

    def _report(self, output: str, node_errors: dict[str, Json]) -> None:
        for node_id, result in self._done.items():
            if result.valid or not result.errors:
                continue
            class_type = self._prompt[node_id]["class_type"]
            fresh = {"errors": result.errors, "dependent_outputs": [], "class_type": class_type}
            node_errors.setdefault(node_id, fresh)["dependent_outputs"].append(output)

    def node(self, node_id: str) -> NodeResult:
        """Marks the node first: a cycle meets its own mark, which is invalid without a reason."""
        if node_id in self._done:
            return self._done[node_id]
        node = self._prompt[node_id]
        values = node["inputs"]
        result = self._done[node_id] = NodeResult(False)
        node_type = self._registry[node["class_type"]]
        declared = node_type.inputs()
        named = node_type.parameters_of("VALIDATE_INPUTS")
        upstream_valid = True
        for group in ("required", "optional"):
            for name, spec in declared.get(group, {}).items():
                if name not in values:
                    if group == "required":
                        result.errors.append(_missing(name))
                elif isinstance(values[name], list):
                    upstream_valid &= self._link(name, spec, values[name], result.errors)
                else:
                    error = _value_error(name, spec, values, custom=name in named)
                    result.errors += [error] if error else []
        result.errors += _custom_errors(node_type, values)
        result.valid = upstream_valid and not result.errors
        return result

    def _link(self, name: str, spec: Any, link: list[Any], errors: list[Json]) -> bool:
        """False when the node above is invalid, which is reported there."""
        config = _config(spec)
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            extra = {"input_name": name, "input_config": config, "received_value": link}
            errors.append(problem("bad_linked_input", message, name, extra))
            return True
        source, slot = link
        received = self._registry[self._prompt[source]["class_type"]].return_types[slot]
        if not _fits(received, config[0]):
            details = f"{name}, received_type({received}) mismatch input_type({config[0]})"
            extra = {
                "input_name": name,
                "input_config": config,
                "received_type": received,
                "linked_node": link,
            }
            message = "Return type mismatch between linked nodes"
            errors.append(problem("return_type_mismatch", message, details, extra))
            return True
        try:
            return self.node(source).valid
        except Exception as error:  # as in `_output`, one level down
            extra = {"input_name": name, "input_config": config, "exception_message": str(error), "linked_node": link}
            kind = "exception_during_inner_validation"
            message = "Exception when validating inner node"
            self._done[source] = _failed(kind, message, str(error), error, extra)
            return False


def _failed(kind: str, message: str, details: str, error: Exception, extra: Json) -> NodeResult:
    extra |= {"exception_type": type(error).__name__, "traceback": traceback.format_tb(error.__traceback__)}
    return NodeResult(False, [problem(kind, message, details, extra)])


def _config(spec: Any) -> tuple[Any, Json]:
    return (spec[0], spec[1] if len(spec) > 1 else {})


def _fits(received: Any, wanted: Any) -> bool:
    if received == wanted or "*" in (received, wanted):
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    return set(received.split(",")) <= set(wanted.split(","))


def _missing(name: str) -> Json:
    return problem("required_input_missing", "Required input is missing", name, {"input_name": name})


def _value_error(name: str, spec: Any, values: Json, *, custom: bool) -> Json | None:
    kind, details = config = _config(spec)
    value = values[name]
    if isinstance(kind, str) and kind in CONVERSIONS:
        try:
            value = values[name] = CONVERSIONS[kind](value)
        except (ValueError, TypeError, OverflowError) as error:
            extra = {"input_name": name, "input_config": config, "received_value": value}
            message = f"Failed to convert an input value to a {kind} value"
            extra["exception_message"] = str(error)
            return problem("invalid_input_type", message, f"{name}, {value}, {error}", extra)
    if custom:
        return None
    extra = {"input_name": name, "input_config": config, "received_value": value}
    if "min" in details and value < details["min"]:
        message = f"Value {value} smaller than min of {details['min']}"
        return problem("value_smaller_than_min", message, name, extra)
    if "max" in details and value > details["max"]:
        message = f"Value {value} bigger than max of {details['max']}"
        return problem("value_bigger_than_max", message, name, extra)
    choices = kind if isinstance(kind, list) else details.get("options") if kind == "COMBO" else None
    if choices is None or value in choices:
        return None
    listed = str(choices)
    if len(choices) > LONGEST_LIST:
        extra["input_config"], listed = None, f"(list of length {len(choices)})"
    return problem("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {listed}", extra)


def _custom_errors(node_type: NodeType, values: Json) -> list[Json]:
    """The node's own VALIDATE_INPUTS, given the values it names; a link has no value yet."""
    names = [name for name in node_type.parameters_of("VALIDATE_INPUTS") if name in values]
    if not names:
        return []
    given = {name: None if isinstance(values[name], list) else values[name] for name in names}
    answer = node_type.node.VALIDATE_INPUTS(**given)
    if answer is True:
        return []
    reason = "" if answer is False else f" - {answer}"
    message = "Custom validation failed for node"
    return [problem("custom_validation_failed", message, f"{name}{reason}", {"input_name": name}) for name in names]
