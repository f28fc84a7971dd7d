"""The long searches together take the time that was given to them, however many there are."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.fuzzing import LONG_SEARCHES


def test_the_long_searches_share_the_time_that_they_have() -> None:
    """One more, and all of them would run past what the operator set."""
    found = [name for path in sorted(Path(__file__).parent.glob("test_*.py")) for name in long_searches(path)]
    assert len(found) == LONG_SEARCHES, found


def long_searches(path: Path) -> list[str]:
    """The tests marked long in a file that imports from the search, and take a share."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "tests.fuzzing")
    shares = {alias.name for node in imports for alias in node.names} & {"search", "SHARE_S"}
    tests = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return [f"{path.name}::{test.name}" for test in tests if _is_long(test) and shares & _names(test)]


def _is_long(test: ast.FunctionDef) -> bool:
    return "pytest.mark.long" in map(ast.unparse, test.decorator_list)


def _names(test: ast.FunctionDef) -> set[str]:
    return {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
