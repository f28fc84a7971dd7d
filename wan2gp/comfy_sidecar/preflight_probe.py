"""Asking the server what it thinks of a graph without running it.

ComfyUI validates only what is posted, and runs what is valid. So the graph is posted spoiled: in each output node, or
above it, one input is given what every version refuses (an empty list, which is no link). All outputs are invalid then,
the answer is 400 and nothing is queued; what it says about all the other inputs is the server's own judgement, with
that of the classes' ``VALIDATE_INPUTS``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from wan2gp.comfy_sidecar.catalogue import Catalogue, InputSpec, Standing
from wan2gp.comfy_sidecar.preflight import Place, Walk, fits, links, output_nodes
from wan2gp.comfy_sidecar.preflight_problems import Kind, Problem
from wan2gp.comfy_sidecar.workflow import PREFIX_FIELD, Graph

NODE_FAULTS = frozenset({Kind.MISSING_INPUT, Kind.WRONG_TYPE})
"""What the server sees itself: such a node is refused without being spoiled."""
LINK_FAULTS = frozenset({Kind.BAD_LINK, Kind.MISSING_NODE, Kind.NO_SUCH_OUTPUT})
"""What would make the server stop looking at the node, and at what is above it."""


@dataclass
class Probe:
    """A spoiled copy. ``spoiled`` are the inputs that say nothing; ``complete``: no output of it can run."""

    graph: Graph
    spoiled: set[Place] = field(default_factory=set)
    complete: bool = True

    def spoil(self, place: Place) -> None:
        node_id, name = place
        self.graph[node_id]["inputs"][name] = []
        self.spoiled.add(place)

    def tells(self, node_id: str) -> bool:
        """Whether what the class's own code says of this node is about the graph, and not about what was spoiled."""
        return all(spoiled != node_id for spoiled, _ in self.spoiled)


def make_probe(graph: Graph, catalogue: Catalogue, problems: Iterable[Problem], replaced: Collection[Place]) -> Probe:
    """``problems`` are what is known: those that are certain are taken out of the server's way."""
    kept = {
        node_id: {"class_type": node["class_type"], "inputs": dict(node["inputs"])}
        for node_id, node in graph.items()
        if catalogue.standing(node["class_type"]) is not Standing.ABSENT
    }
    # Of a class that nothing is known of, it is not known either whether it is an output, which would run.
    described = all(catalogue.get(node["class_type"]) is not None for node in kept.values())
    probe = Probe(kept, complete=described)
    for place in replaced:
        if place[0] in kept:
            probe.spoil(place)
    for problem in problems:
        if problem.kind in LINK_FAULTS and problem.node_id in kept and not _relink(probe, catalogue, problem):
            probe.spoil((str(problem.node_id), problem.field))
    walk = Walk(kept, catalogue, frozenset(probe.spoiled))
    outputs = output_nodes(kept, catalogue)
    walk.from_outputs(outputs)
    for node_id, name in walk.back_links:
        probe.spoil((node_id, name))
    _cut_off_the_absent(probe, graph, catalogue)
    doubted = {(str(problem.node_id), problem.field) for problem in problems}
    invalid = {str(problem.node_id) for problem in problems if problem.certain and problem.kind in NODE_FAULTS}
    for output in outputs:
        probe.complete = _spoil_above(probe, catalogue, output, doubted, invalid) and probe.complete
    return probe


def _relink(probe: Probe, catalogue: Catalogue, problem: Problem) -> bool:
    """Of a link to an output that is not there: to one that fits, so that the node behind it is looked at too."""
    if problem.kind is not Kind.NO_SUCH_OUTPUT:
        return False
    node = probe.graph[str(problem.node_id)]
    source_id = node["inputs"][problem.field][0]
    known = catalogue.get(node["class_type"])
    source = catalogue.get(probe.graph[source_id]["class_type"]) if source_id in probe.graph else None
    if known is None or source is None:
        return False
    wanted = known.inputs[problem.field]
    fitting = [slot for slot, kind in enumerate(source.outputs) if kind is not None and fits(kind, wanted)]
    node["inputs"][problem.field] = [source_id, fitting[0]] if fitting else []
    return bool(fitting)


def _cut_off_the_absent(probe: Probe, graph: Graph, catalogue: Catalogue) -> None:
    for node_id, node in probe.graph.items():
        for spec, link in links(node, catalogue.get(node["class_type"])):
            if len(link) == 2 and isinstance(link[0], str) and link[0] in graph and link[0] not in probe.graph:
                probe.spoil((node_id, spec.name))


def _spoil_above(probe: Probe, catalogue: Catalogue, output: str, doubted: set[Place], invalid: set[str]) -> bool:
    """Spoil the nearest input that is a plain value and in no doubt. False when there is none."""
    waiting, seen = [output], {output}
    while waiting:
        node_id = waiting.pop(0)
        node = probe.graph[node_id]
        known = catalogue.get(node["class_type"])
        declared = list(known.inputs.values()) if known else []
        if node_id in invalid or any((node_id, spec.name) in probe.spoiled for spec in declared):
            return True
        fit = [spec for spec in declared if (node_id, spec.name) not in doubted and _spoilable(node["inputs"], spec)]
        if fit:
            probe.spoil((node_id, min(fit, key=_reluctance).name))
            return True
        for _, link in links(node, known):
            if len(link) == 2 and link[0] in probe.graph and link[0] not in seen:
                seen.add(link[0])
                waiting.append(link[0])
    return False


def _spoilable(inputs: dict[str, object], spec: InputSpec) -> bool:
    """Not a link, which would hide what is above."""
    return not spec.dynamic and not isinstance(inputs.get(spec.name), (list, dict))


def _reluctance(spec: InputSpec) -> tuple[bool, bool]:
    """Choices last: mostly they are what a class looks at with its own code. No class does so with a prefix."""
    return spec.choices is not None, spec.name != PREFIX_FIELD
