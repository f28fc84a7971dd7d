"""Where the demo puts its row and finds its result: the embedded Postgres, or a Supabase project."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Protocol

import msgspec
import psycopg

from wan2gp.demo_stage import DemoFailed
from wan2gp.supervisor.embedded import url_of

SPEC_URL = "https://example.com/input.mp4"
"""The URL in the row of the specification: the only thing of it that the demo replaces."""
SUPABASE_VARIABLES = ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY")
CHUNK_BYTES = 1 << 20
LIMIT_S = 30.0
"""Longest wait for the project, seconds."""


class DemoQueue(Protocol):
    """One place for the row."""

    kind: str
    how: str
    """How the row gets there, in words."""

    def settings(self) -> Mapping[str, str]:
        """What the supervisor gets in its environment."""

    def insert(self, video_url: str) -> str:
        """Insert the specification's row with this URL; its id. Raises :class:`DemoFailed` or ``psycopg.Error``."""

    def fetch(self, location: str) -> Path:
        """The result as a file on this machine. Raises :class:`DemoFailed`."""


def statement(video_url: str) -> bytes:
    """The specification's statement, byte for byte but for the URL."""
    row = resources.files("wan2gp").joinpath("demo_row.sql").read_bytes()
    return row.replace(SPEC_URL.encode(), video_url.encode())


class EmbeddedDemo:
    """The worker's own database, and files in its data directory."""

    kind = "embedded"
    how = "by the SQL of the specification"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def settings(self) -> Mapping[str, str]:
        """Nothing: all is in the data directory."""
        return {}

    def insert(self, video_url: str) -> str:
        """By plain SQL."""
        with psycopg.connect(url_of(self._directory).reveal(), connect_timeout=10) as connection:
            connection.execute(statement(video_url))
            # The statement returns nothing, and stays as it is; the URL is unique to this run.
            found = connection.execute(
                "SELECT id::text FROM tasks WHERE params->>'video_url' = %s ORDER BY created_at DESC LIMIT 1",
                (video_url,),
            ).fetchone()
        if found is None:
            raise DemoFailed("the row was inserted and cannot be found again")
        return str(found[0])

    def fetch(self, location: str) -> Path:
        """It is a path already."""
        return Path(location)


class SupabaseDemo:
    """The project that SUPABASE_URL names, as its app would use it: a row by REST, a result by its URL."""

    kind = "supabase"
    how = "by REST, as the specification's SQL has it"

    def __init__(self, directory: Path) -> None:
        """Raises :class:`DemoFailed` when the environment names no project."""
        if missing := [name for name in SUPABASE_VARIABLES if not os.environ.get(name)]:
            raise DemoFailed(f"--queue supabase needs {' and '.join(missing)} in the environment")
        self._directory = directory
        self._url = os.environ["SUPABASE_URL"].rstrip("/")

    def settings(self) -> Mapping[str, str]:
        """The project and its key."""
        return {name: os.environ[name] for name in SUPABASE_VARIABLES}

    def insert(self, video_url: str) -> str:
        """The columns of the statement, as JSON."""
        import httpx

        key = os.environ["SUPABASE_SERVICE_ROLE_KEY"]
        headers = {"apikey": key, "Authorization": f"Bearer {key}", "Prefer": "return=representation"}
        row = {"task_type": "comfy", "params": _params(video_url), "status": "queued"}
        try:
            answer = httpx.post(f"{self._url}/rest/v1/tasks?select=id", json=row, headers=headers, timeout=LIMIT_S)
        except httpx.HTTPError as error:
            raise DemoFailed(f"the project cannot be reached: {error}") from None
        if answer.status_code != 201:
            raise DemoFailed(f"the row was refused with HTTP {answer.status_code}: {answer.text[:300]}")
        return str(answer.json()[0]["id"])

    def fetch(self, location: str) -> Path:
        """Download it, as its user would."""
        import httpx

        path = self._directory / "demo" / "result.mp4"
        try:
            with httpx.stream("GET", location, timeout=LIMIT_S) as answer, path.open("wb") as file:
                answer.raise_for_status()
                for part in answer.iter_bytes(CHUNK_BYTES):
                    file.write(part)
        except httpx.HTTPError as error:
            raise DemoFailed(f"the result cannot be downloaded: {error}") from None
        return path


def _params(video_url: str) -> object:
    """The JSON in the statement: its second literal."""
    found = re.search(rb"'(\{.*\})'", statement(video_url), re.DOTALL)
    if found is None:
        raise DemoFailed("the specification's row has no params")
    return msgspec.json.decode(found[1].replace(b"''", b"'"))


def demo_queue(kind: str, directory: Path) -> DemoQueue:
    """The one that was asked for. Raises :class:`DemoFailed`."""
    return SupabaseDemo(directory) if kind == "supabase" else EmbeddedDemo(directory)
