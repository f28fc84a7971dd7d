"""Before a graph costs a download or the GPU: everything that is wrong with it, in one failure.

The catalogue is enough for a graph that is right; only when something seems wrong is the server asked more.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from wan2gp.comfy_sidecar.errors import ApiError, PromptRefused, Unreachable
from wan2gp.comfy_sidecar.preflight import Place, check_graph
from wan2gp.comfy_sidecar.preflight_answer import read_answer
from wan2gp.comfy_sidecar.preflight_probe import Probe, make_probe
from wan2gp.comfy_sidecar.preflight_problems import Kind, Problem
from wan2gp.comfy_sidecar.server import BUILTIN
from wan2gp.comfy_sidecar.workflow import Graph
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.comfy_live import Live

SENTENCE_CHARS = 1500
"""Of all problems together; a row's message is cut at 2,000 characters. ``detail`` has the rest."""
PROBLEMS_KEPT = 100
OF_A_CLASS = frozenset({Kind.REFUSED_BY_NODE, Kind.MISSING_FILE})
"""What a class's own code says."""


def preflight(graph: Graph, live: Live, replaced: Collection[Place], learn: Callable[[], None]) -> None:
    """Raises :class:`TaskFailure` with ``comfy.validation`` that names all that is wrong.

    ``replaced``: inputs whose value is put in later. ``learn`` asks for all classes of the graph that the catalogue
    does not know; it is called again when something seems wrong, since lists of files change.
    """
    learn()
    if not check_graph(graph, live.catalogue, replaced):
        return
    live.catalogue.forget({node["class_type"] for node in graph.values()})
    learn()
    problems = _check(graph, live, replaced)
    if not all(problem.certain for problem in problems):
        problems = _judged(graph, live, problems, replaced)
    if problems:
        raise invalid(problems)


def refused(graph: Graph, error: Mapping[str, Any], node_errors: Mapping[str, Any], live: Live) -> TaskFailure:
    """``comfy.validation`` from the server's own answer to POST /prompt."""
    builtin, failed = live.name == BUILTIN, live.server.failed_imports() if live.server else []
    answer = read_answer(graph, error, node_errors, live.catalogue, builtin=builtin, failed_imports=failed)
    return invalid(answer, "ComfyUI refused the graph")


def _check(graph: Graph, live: Live, replaced: Collection[Place]) -> list[Problem]:
    builtin = live.name == BUILTIN
    failed = live.server.failed_imports() if live.server else []
    return check_graph(graph, live.catalogue, replaced, builtin=builtin, failed_imports=failed)


def _judged(graph: Graph, live: Live, problems: list[Problem], replaced: Collection[Place]) -> list[Problem]:
    """Those that are certain, and those the server sees as well. Without an answer the doubt is the graph's."""
    certain = [problem for problem in problems if problem.certain]
    probe = make_probe(graph, live.catalogue, problems, replaced)
    answered = _ask(probe, live) if probe.complete else None
    if answered is None:
        return certain
    ours = {(problem.node_id, problem.field): problem for problem in problems}
    filled = {(problem.node_id, problem.field) for problem in answered if _will_be_filled(problem, graph, live)}
    taken = {(problem.node_id, problem.field) for problem in certain}
    seen: list[Problem] = []
    for problem in answered:
        place = (problem.node_id, problem.field)
        if place not in taken | filled and _counts(problem, probe):
            taken.add(place)
            seen.append(ours.get(place, problem))
    order = {node_id: number for number, node_id in enumerate(graph)}
    found = list(ours)  # within a node: in the order they were found

    def rank(problem: Problem) -> tuple[int, int]:
        place = (problem.node_id, problem.field)
        return order.get(str(problem.node_id), -1), found.index(place) if place in ours else len(found)

    return sorted(certain + seen, key=rank)


def _ask(probe: Probe, live: Live) -> list[Problem] | None:
    """The server's judgement; None when there is none."""
    prompt_id = str(uuid.uuid4())
    try:
        live.client.post_prompt(probe.graph, prompt_id, "")
    except PromptRefused as refused:
        return read_answer(probe.graph, refused.error, refused.node_errors, live.catalogue)
    except (Unreachable, ApiError):
        pass
    with contextlib.suppress(Unreachable, ApiError):  # a server that takes what it must refuse: it shall not run
        live.client.delete_pending(prompt_id)
        live.client.interrupt(prompt_id)
    return None


def _counts(problem: Problem, probe: Probe) -> bool:
    """Not what was spoiled on purpose, nor what a class says about it."""
    if problem.node_id is None or (problem.node_id, problem.field) in probe.spoiled:
        return False
    return problem.kind not in OF_A_CLASS or probe.tells(problem.node_id)


def _will_be_filled(problem: Problem, graph: Graph, live: Live) -> bool:
    if problem.kind is not Kind.MISSING_INPUT or problem.node_id is None:
        return False
    known = live.catalogue.get(graph[problem.node_id]["class_type"])
    spec = known.inputs.get(problem.field) if known else None
    return spec is not None and (spec.has_default or spec.name == "filename_prefix")


def invalid(problems: Sequence[Problem], opening: str = "the graph cannot run") -> TaskFailure:
    """One failure for all of them: sentences for people, ``detail["problems"]`` for programs."""
    count = f"{len(problems)} problems: " if len(problems) > 1 else ""
    said: list[str] = []
    length = 0
    for problem in problems:
        length += len(problem.sentence) + 2
        if said and length > SENTENCE_CHARS:
            said.append(f"and {len(problems) - len(said)} more, listed in the detail")
            break
        said.append(problem.sentence)
    detail = {
        "nodes": sorted({problem.node_id for problem in problems[:PROBLEMS_KEPT] if problem.node_id is not None}),
        "problems": [problem.as_json() for problem in problems[:PROBLEMS_KEPT]],
        "problem_count": len(problems),
    }
    return TaskFailure("comfy.validation", f"{opening}: {count}{'; '.join(said)}", detail=detail)
