"""Documentation that could go stale: pages made from the program, commands to type, codes to look up."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wan2gp.docs import PAGES
from wan2gp.errors import REGISTRY

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "wan2gp").rglob("*.py"))
CODE = re.compile(r"[a-z]+\.[a-z_]+")


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_program_says(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "run: python -m wan2gp.docs"


def test_the_pages_are_written_where_one_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "wan2gp.docs", str(tmp_path)], check=True, cwd=ROOT, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PAGES)


# --- error codes ---------------------------------------------------------------------------------------------------


def codes_raised() -> Iterator[tuple[str, str]]:
    """(code, place) wherever a failure is made with a literal code, in Python or in SQL."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            code = getattr(node.args[0], "value", None)
            if called in ("TaskFailure", "Failed", "error_message") and isinstance(code, str):
                yield code, f"{path.name}:{node.lineno}"
    for path in sorted((ROOT / "wan2gp").rglob("*.sql")):
        for code in re.findall(r"'([a-z]+\.[a-z_]+): ", path.read_text()):
            yield code, path.name


def test_every_code_that_a_row_may_get_is_in_the_registry() -> None:
    raised = list(codes_raised())
    assert len(raised) > 40
    assert [place for code, place in raised if code not in REGISTRY] == []


def test_every_code_in_the_registry_is_one_that_a_row_may_get() -> None:
    """A code that nothing gives is a promise of a check that is not made."""
    files = [*SOURCES, *(ROOT / "wan2gp").rglob("*.sql")]
    text = "".join(path.read_text() for path in files if path.name != "errors.py")
    named = set(CODE.findall(text))
    assert [code for code in REGISTRY if code not in named] == []


# --- the README and the other pages --------------------------------------------------------------------------------

PROSE = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_every_source_file_that_a_page_names_is_there(page: Path) -> None:
    for name in re.findall(r"`((?:wan2gp|tests|docs)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_page_on_supabase_says_all_that_the_edge_backend_lacks() -> None:
    from wan2gp.supervisor.edge_queue import WEAKER

    page = " ".join((ROOT / "docs" / "supabase.md").read_text().split())
    assert [each for each in WEAKER if each not in page] == []
