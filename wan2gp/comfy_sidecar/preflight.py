"""What is wrong with a graph, found without the server: pure, in one walk, over what the catalogue knows by now.

The rules are those of ComfyUI's own validation, which looks at what an output node needs and at nothing else. A
problem that is *certain* is refused by every server. One that is not may be waived by the class: ``VALIDATE_INPUTS``
replaces the checks of the inputs that it names, and the catalogue does not say which. Where too little is known, there
is no problem: the server judges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from wan2gp.comfy_sidecar.catalogue import ANY, COMBO, DYNAMIC, Catalogue, InputSpec, NodeClass, Standing
from wan2gp.comfy_sidecar.preflight_problems import Problem
from wan2gp.comfy_sidecar.preflight_sentences import (
    OBJECT_TYPES,
    bad_link,
    cycle,
    missing_input,
    missing_node,
    needs_link,
    no_output_node,
    no_such_output,
    out_of_range,
    type_mismatch,
    unknown_class,
    wrong_choice,
    wrong_type,
)
from wan2gp.comfy_sidecar.workflow import PREFIX_FIELD, WRAPPED, Graph

Place = tuple[str, str]
"""A node's id and the name of an input."""
CONVERSIONS: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str}
SUGGESTIONS = 20
"""So many problems are told with what is close to the name: looking for it takes time with every name there is."""


def check_graph(
    graph: Graph,
    catalogue: Catalogue,
    replaced: Collection[Place] = (),
    *,
    builtin: bool = False,
    failed_imports: Collection[str] = (),
) -> list[Problem]:
    """All problems, in the graph's order of nodes. ``replaced``: inputs whose value is still to come.

    Required inputs with a default are no problem: they are filled in before the run.
    """
    problems: list[Problem] = []
    for node_id, node in graph.items():
        if catalogue.standing(node["class_type"]) is Standing.ABSENT:
            names = catalogue.names() if len(problems) < SUGGESTIONS else ()
            problems.append(unknown_class(graph, node_id, names, builtin=builtin, failed=list(failed_imports)))
    outputs = output_nodes(graph, catalogue)
    if not outputs and not problems and all(_described(graph, catalogue)):
        return [no_output_node()]
    walk = Walk(graph, catalogue, frozenset(replaced))
    walk.from_outputs(outputs)
    walk.from_absent()
    walk.from_unchecked()
    order = {node_id: number for number, node_id in enumerate(graph)}
    return sorted(problems + walk.problems, key=lambda problem: order.get(str(problem.node_id), -1))


def output_nodes(graph: Graph, catalogue: Catalogue) -> list[str]:
    """The ids of the nodes that ComfyUI runs a graph for."""
    return [
        node_id
        for node_id, node in graph.items()
        if (known := catalogue.get(node["class_type"])) is not None and known.is_output
    ]


def _described(graph: Graph, catalogue: Catalogue) -> Iterator[bool]:
    return (catalogue.get(node["class_type"]) is not None for node in graph.values())


def links(node: dict[str, Any], known: NodeClass | None) -> Iterator[tuple[InputSpec, list[Any]]]:
    """The declared inputs of a node that are given a list, which stands for a link."""
    for name, spec in (known.inputs if known else {}).items():
        value = node["inputs"].get(name)
        if isinstance(value, list) and not spec.dynamic:
            yield spec, value


@dataclass
class Walk:
    """Depth first from the output nodes, without recursion: graphs come with chains of thousands of nodes."""

    graph: Graph
    catalogue: Catalogue
    replaced: frozenset[Place]
    problems: list[Problem] = field(default_factory=list)
    back_links: list[Place] = field(default_factory=list)
    """Inputs that close a circle."""
    reached: set[str] = field(default_factory=set)
    unchecked: list[str] = field(default_factory=list)
    """Nodes that are linked to inputs that their class does not have."""

    def from_outputs(self, outputs: list[str]) -> None:
        """Fills :attr:`problems`."""
        for output in outputs:
            if output not in self.reached:
                self._descend(output)

    def from_absent(self) -> None:
        """Also before nodes of unknown classes, which may be the outputs."""
        for node_id, node in self.graph.items():
            if node_id not in self.reached and self.catalogue.standing(node["class_type"]) is Standing.ABSENT:
                self._descend(node_id)

    def _descend(self, start: str) -> None:
        path: dict[str, Iterator[tuple[str, str]]] = {start: self._enter(start)}
        into: dict[str, str] = {}
        while path:
            node_id = next(reversed(path))
            step = next(path[node_id], None)
            if step is None:
                del path[node_id]
                continue
            source, into[node_id] = step
            if source in path:
                self._close_circle(list(path), source, into)
            elif source not in self.reached:
                path[source] = self._enter(source)

    def _close_circle(self, path: list[str], source: str, into: dict[str, str]) -> None:
        """``path`` runs against the data. ``into``: by which input each of its nodes is entered."""
        around = path[path.index(source) :][::-1]
        self.back_links.append((around[0], into[around[0]]))
        if len(self.back_links) > SUGGESTIONS:
            return
        order = {node_id: number for number, node_id in enumerate(self.graph)}
        first = around.index(min(around, key=lambda node_id: order[node_id]))
        around = around[first:] + around[:first]
        self.problems.append(cycle(self.graph, around, into[around[0]]))

    def _enter(self, node_id: str) -> Iterator[tuple[str, str]]:
        """Check one node; then its sources, with the input that each is linked to."""
        self.reached.add(node_id)
        node = self.graph[node_id]
        known = self.catalogue.get(node["class_type"])
        if known is None:
            return self._sources_of_unknown(node)
        for name in node["inputs"].keys() - known.inputs.keys():
            self._unchecked_link(node_id, name, node["inputs"][name])
        sources = []
        for name, spec in known.inputs.items():
            if (node_id, name) in self.replaced or spec.dynamic:
                continue
            if name not in node["inputs"]:
                self._absent(node_id, spec, known)
            elif isinstance(node["inputs"][name], list):
                if self._link(node_id, spec, node["inputs"][name]) and not spec.options.get("rawLink"):
                    sources.append((node["inputs"][name][0], name))
            else:
                self._note(check_value(self.graph, node_id, spec, node["inputs"][name], suggest=self._suggest))
        return iter(sources)

    def from_unchecked(self) -> None:
        """What runs although ComfyUI's validation never looks at it, since it is linked to inputs nobody declared.

        There a link to nowhere is the end of the thread that runs prompts.
        """
        while self.unchecked:
            node_id = self.unchecked.pop()
            if node_id in self.reached:
                continue
            self.reached.add(node_id)
            for name, value in self.graph[node_id]["inputs"].items():
                self._unchecked_link(node_id, name, value)

    def _near(self) -> Collection[str]:
        return self.graph if self._suggest else ()

    @property
    def _suggest(self) -> bool:
        return len(self.problems) < SUGGESTIONS

    def _unchecked_link(self, node_id: str, name: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
            return
        if value[0] in self.graph:
            self.unchecked.append(value[0])
        elif isinstance(value[1], (int, float)):
            self._note(missing_node(self.graph, node_id, name, value[0], self._near(), unseen=True))

    def _sources_of_unknown(self, node: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Once its custom node is installed, what is before it will be looked at. Of a class that is there and says
        nothing, the server knows better."""
        if self.catalogue.standing(node["class_type"]) is Standing.ABSENT:
            for name, value in node["inputs"].items():
                if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in self.graph:
                    yield value[0], name

    def _absent(self, node_id: str, spec: InputSpec, known: NodeClass) -> None:
        if spec.required and not spec.has_default and spec.name != PREFIX_FIELD:
            self._note(missing_input(self.graph, node_id, spec.name, spec, known.inputs))

    def _link(self, node_id: str, spec: InputSpec, link: list[Any]) -> bool:
        """Whether it leads to a node that can be looked at."""
        if spec.options.get("multiselect"):  # here a newer server takes a list of choices
            return False
        problem, leads_on = check_link(self.graph, self.catalogue, node_id, spec, link, self._near())
        self._note(problem)
        return leads_on

    def _note(self, problem: Problem | None) -> None:
        if problem is not None:
            self.problems.append(problem)


def check_link(
    graph: Graph, catalogue: Catalogue, node_id: str, spec: InputSpec, link: list[Any], near: Collection[str] = ()
) -> tuple[Problem | None, bool]:
    """What is wrong with a link, and whether it leads to a node all the same. ``near``: ids to suggest from."""
    if len(link) != 2 or not isinstance(link[0], str) or not isinstance(link[1], int):
        return bad_link(graph, node_id, spec.name, link), False
    source_id, slot = link
    if source_id not in graph:
        return missing_node(graph, node_id, spec.name, source_id, near), False
    source = catalogue.get(graph[source_id]["class_type"])
    if source is None or ANY in source.outputs:
        return None, True  # outputs may be made up as they are asked for
    if not -len(source.outputs) <= slot < len(source.outputs):  # Python counts from the end as well
        return no_such_output(graph, node_id, spec.name, link, source), True
    received = source.outputs[slot]
    if received is not None and not fits(received, spec):
        return type_mismatch(graph, node_id, spec.name, link, spec.kind, received, source), True
    return None, True


def fits(received: str, spec: InputSpec) -> bool:
    """Whether an output of this type may be linked there; ``A,B`` is either. Choices and wildcards: who knows."""
    if spec.kind == received or ANY in (received, spec.kind) or received == COMBO:
        return True
    if received.startswith(DYNAMIC) or (spec.choices is not None and received not in OBJECT_TYPES):
        return True
    if spec.kind == COMBO:
        return received not in OBJECT_TYPES
    wanted = {part.strip() for part in spec.kind.split(",")}
    return not wanted.isdisjoint(part.strip() for part in received.split(","))


def check_value(graph: Graph, node_id: str, spec: InputSpec, value: Any, *, suggest: bool = True) -> Problem | None:
    """A value that is no link, as ComfyUI would convert and compare it."""
    if isinstance(value, dict) and WRAPPED in value:
        value = value[WRAPPED]
    if spec.kind in CONVERSIONS:
        try:
            value = CONVERSIONS[spec.kind](value)
        except (ValueError, TypeError, OverflowError):
            return wrong_type(graph, node_id, spec.name, spec.kind, value)
    if spec.kind in ("INT", "FLOAT"):
        return _range(graph, node_id, spec, value)
    if spec.choices is not None:
        multiple = spec.options.get("multiselect") and isinstance(value, list)
        if multiple or value in spec.choices:
            return None
        return wrong_choice(graph, node_id, spec.name, value, spec, suggest=suggest)
    if spec.required and spec.kind in OBJECT_TYPES and isinstance(value, (str, int, float)):
        # ComfyUI looks at no value of these types, and the node would fail in the middle of the run.
        return needs_link(graph, node_id, spec.name, spec.kind)
    return None


def _range(graph: Graph, node_id: str, spec: InputSpec, value: float) -> Problem | None:
    limits = {key: spec.options[key] for key in ("min", "max") if isinstance(spec.options.get(key), (int, float))}
    if value < limits.get("min", value) or value > limits.get("max", value):
        return out_of_range(graph, node_id, spec.name, value, limits)
    return None
