"""What every test shares: the plug-in modules beside this file, where they exist."""

from __future__ import annotations

from pathlib import Path

pytest_plugins = [
    f"tests.{name}" for name in ("conftest_db", "conftest_worker") if (Path(__file__).parent / f"{name}.py").is_file()
]
