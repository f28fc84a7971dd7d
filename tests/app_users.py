"""Users of an app on a Supabase project: what each can ask of its REST interface, with their own token."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from tests.supabase_stack import Stack


class AppUser:
    """Somebody with the project's public key and, unless ``user_id`` is None, a token of their own."""

    def __init__(self, stack: Stack, user_id: str | None, token: str | None = None) -> None:
        self.id = user_id
        if token is None:
            token = stack.keys.sign("authenticated", user_id=user_id) if user_id else stack.anon_key
        self._client = httpx.Client(
            base_url=f"{stack.url}/rest/v1/",
            headers={"apikey": stack.anon_key, "Authorization": f"Bearer {token}", "Prefer": "return=representation"},
            timeout=30,
        )

    def close(self) -> None:
        self._client.close()

    def asks(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self._client.request(method, path, json=body, headers=headers)

    def inserts(self, **columns: Any) -> httpx.Response:
        """A task of their own, unless ``columns`` say otherwise."""
        row = {"task_type": "comfy", "params": {"of": self.id}, "status": "queued", "user_id": self.id, **columns}
        return self.asks("POST", "tasks", {name: value for name, value in row.items() if value is not ...})

    def inserted(self, **columns: Any) -> str:
        """The id of one that must be accepted."""
        answer = self.inserts(**columns)
        assert answer.status_code == 201, answer.text
        return str(answer.json()[0]["id"])

    def changes(self, task_id: str, **columns: Any) -> httpx.Response:
        return self.asks("PATCH", f"tasks?id=eq.{task_id}", columns)

    def sees(self) -> set[str]:
        """The ids of the tasks that it is shown."""
        return {row["id"] for row in self.asks("GET", "tasks?select=*").json()}


def somebody() -> str:
    return str(uuid.uuid4())


def refused(answer: httpx.Response) -> bool:
    """For want of a right, by PostgREST's word: 401 to the anonymous, 403 to others."""
    return answer.status_code in (401, 403) and answer.json()["code"] == "42501"
