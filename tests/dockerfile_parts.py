"""The Dockerfile as data, and its build context as `.dockerignore` leaves it: as much of both as ours use."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Instruction:
    """One instruction; continuation lines are joined, comments are gone."""

    stage: str
    word: str
    rest: str

    def exec_form(self) -> list[str]:
        """The words of a JSON array."""
        words = json.loads(self.rest[self.rest.index("[") :])
        assert all(isinstance(word, str) for word in words)
        return words  # type: ignore[no-any-return]


def read_dockerfile(path: Path = ROOT / "Dockerfile") -> list[Instruction]:
    """In order. The stage of what stands before the first FROM is empty."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    stage, found = "", []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(None, 1)
        if word == "FROM":
            stage = rest.rpartition(" AS ")[2]
        found.append(Instruction(stage, word, rest.strip()))
    return found


def only(stage: str, word: str, containing: str = "") -> Instruction:
    """The one instruction of that kind."""
    (found,) = [one for one in read_dockerfile() if (one.stage, one.word) == (stage, word) and containing in one.rest]
    return found


def ignored(path: str, patterns: list[str]) -> bool:
    """Docker's rule: the last pattern that matches the path, or a folder above it, decides."""
    verdict = False
    parts = path.split("/")
    names = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for pattern in patterns:
        negated, bare = pattern.startswith("!"), pattern.lstrip("!").rstrip("/")
        if any(re.match(_expression(bare), name) for name in names):
            verdict = not negated
    return verdict


def _expression(pattern: str) -> str:
    """`*` stays within one folder; a leading `**/` is any number of folders."""
    anywhere = pattern.startswith("**/")
    segments = pattern.removeprefix("**/").split("/")
    inner = "/".join(translate(segment)[4:-3].replace(".*", "[^/]*") for segment in segments)
    return ("(?:.*/)?" if anywhere else "") + inner + r"\Z"


def build_context(target: Path, source: Path = ROOT) -> Path:
    """What `docker build .` would send, copied to ``target``."""
    lines = (source / ".dockerignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if name.split("/")[0] in (".git", ".venv", "node_modules") or not path.is_file():
            continue  # large, and excluded by the first pattern: asserted by a test, not walked
        if not ignored(name, patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)
    return target
