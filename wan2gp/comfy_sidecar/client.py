"""ComfyUI's HTTP API as typed calls over one kept-alive session. For one thread.

Nothing is ever sent twice by itself: after :class:`Unreachable` or :class:`ApiError` on POST /prompt the caller must
look the prompt's id up, since an answer of 500 does not mean that it was not queued.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import requests

from wan2gp.comfy_sidecar.errors import ApiError, PromptRefused, Unreachable
from wan2gp.comfy_sidecar.multipart import FileForm

ANSWER_S = 3.0
"""Limit for an ordinary answer. A garbage collection or a node that holds the GIL delays one by a second; longer
silences are for the caller to count, who must also look at cancellation meanwhile."""
POST_S = 5.0
"""Validation runs every node's own code and may take longer, but while it does the caller must be able to look at
cancellation: an unanswered POST is a doubtful one, and is looked up."""
TRANSFER_S = 300.0
WHOLE_CATALOGUE_S = 15.0
CHUNK_BYTES = 1 << 20
SHOWN_CHARS = 300
Json = dict[str, Any]


@dataclass(frozen=True)
class Queue:
    """The prompt ids in the server's queue."""

    running: tuple[str, ...]
    pending: tuple[str, ...]

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self.running or prompt_id in self.pending


def _for_ever() -> bool:
    return True


class ComfyClient:
    """``base_url`` without a trailing slash. ``local``: take no proxies from the environment.

    ``alive``: whether the process that is meant still runs. When it does not, nothing is sent and no answer counts:
    whoever serves on its port by then is a stranger.
    """

    def __init__(self, base_url: str, *, local: bool = True, alive: Callable[[], bool] = _for_ever) -> None:
        self.base_url = base_url.rstrip("/")
        self._alive = alive
        self._session = requests.Session()
        self._session.trust_env = not local

    def close(self) -> None:
        self._session.close()

    def system_stats(self, timeout_s: float = ANSWER_S) -> Json:
        """``system`` has ``comfyui_version`` and ``argv``."""
        return self._object("GET", "/system_stats", timeout_s=timeout_s)

    def queue(self) -> Queue:
        """Whole prompts are sent for it: ask rarely."""
        body = self._object("GET", "/queue")
        return Queue(_ids(body.get("queue_running")), _ids(body.get("queue_pending")))

    def history(self, prompt_id: str) -> Json | None:
        """The entry of a prompt that ended, else None: unknown, pending, running and forgotten look alike."""
        entry = self._object("GET", f"/history/{quote(prompt_id, safe='')}").get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def object_info(self, class_type: str | None = None) -> Json:
        """What one node class declares, under its name; ``{}`` for an unknown one. None: all classes, which is large.

        Raises :class:`ApiError` (500) for a class whose own code fails to say; such a one is missing among all.
        """
        if class_type is None:
            return self._object("GET", "/object_info", timeout_s=WHOLE_CATALOGUE_S)
        return self._object("GET", f"/object_info/{quote(class_type, safe='')}")

    def post_prompt(self, graph: Json, prompt_id: str, client_id: str) -> Json:
        """Queue a graph; returns ``node_errors``: outputs that will not run although the answer is 200.

        Raises :class:`PromptRefused` for a graph that cannot run; :class:`Unreachable` and :class:`ApiError` leave
        open whether it was queued.
        """
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id}
        response = self._send("POST", "/prompt", timeout_s=POST_S, body=body)
        if response.status_code == 400:
            answer = _loads(response)
            given = answer if isinstance(answer, dict) else {}
            raise PromptRefused(_mapping(given.get("error")), _mapping(given.get("node_errors")))
        answer = self._checked("POST", "/prompt", response)
        return dict(_mapping(answer.get("node_errors")))

    def delete_pending(self, prompt_id: str) -> None:
        """Acts on a waiting prompt only; silent about any other."""
        self._plain("/queue", {"delete": [prompt_id]})

    def interrupt(self, prompt_id: str) -> None:
        """Acts only if that prompt runs, and may be lost right after it began: repeat until it is gone."""
        self._plain("/interrupt", {"prompt_id": prompt_id})

    def free(self) -> None:
        """Drop models and cached node results; done by the worker after what runs."""
        self._plain("/free", {"unload_models": True, "free_memory": True})

    def forget(self, prompt_id: str) -> None:
        """Remove an entry of the history."""
        self._plain("/history", {"delete": [prompt_id]})

    def upload(self, path: Path, name: str, subfolder: str) -> str:
        """Send an input; returns the name under which nodes find it. ``name`` is plain ASCII."""
        form = FileForm("image", path, name, {"subfolder": subfolder, "type": "input"})
        response = self._send("POST", "/upload/image", timeout_s=TRANSFER_S, form=form)
        answer = self._checked("POST", "/upload/image", response)
        stored, folder = str(answer.get("name", name)), str(answer.get("subfolder", subfolder))
        return f"{folder}/{stored}" if folder else stored

    def download(self, wanted: Mapping[str, str], path: Path) -> None:
        """``wanted`` has filename, subfolder and type. Raises :class:`ApiError` with status 404 for a missing file."""
        self._check_alive("GET", "/view")
        try:
            with self._session.get(
                f"{self.base_url}/view", params=dict(wanted), timeout=TRANSFER_S, stream=True
            ) as response:
                self._raise_for(response, "GET", "/view")
                with path.open("xb") as file:
                    for chunk in response.iter_content(CHUNK_BYTES):
                        file.write(chunk)
        except requests.RequestException as error:
            raise Unreachable(f"GET /view: {_reason(error)}") from error

    def _object(self, method: str, path: str, *, timeout_s: float = ANSWER_S) -> Json:
        return self._checked(method, path, self._send(method, path, timeout_s=timeout_s))

    def _plain(self, path: str, body: Json) -> None:
        self._raise_for(self._send("POST", path, timeout_s=ANSWER_S, body=body), "POST", path)

    def _send(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: Json | None = None,
        form: FileForm | None = None,
    ) -> requests.Response:
        self._check_alive(method, path)
        try:
            response = self._session.request(
                method,
                self.base_url + path,
                json=body,
                data=form,
                headers=None if form is None else {"Content-Type": form.content_type},
                timeout=timeout_s,
            )
        except requests.RequestException as error:
            raise Unreachable(f"{method} {path}: {_reason(error)}") from error
        self._check_alive(method, path)
        return response

    def _check_alive(self, method: str, path: str) -> None:
        if not self._alive():
            raise Unreachable(f"{method} {path}: the process has ended")

    def _checked(self, method: str, path: str, response: requests.Response) -> Json:
        self._raise_for(response, method, path)
        body = _loads(response)
        if not isinstance(body, dict):
            raise ApiError(f"{method} {path} answered no JSON object", response.status_code)
        return body

    def _raise_for(self, response: requests.Response, method: str, path: str) -> None:
        if response.status_code != 200:
            text = " ".join(response.text.split())[:SHOWN_CHARS]
            raise ApiError(f"{method} {path} answered {response.status_code}: {text}", response.status_code)


def without_credentials(url: str) -> str:
    """The URL as it may be shown: no user, password or query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _ids(items: Any) -> tuple[str, ...]:
    if not isinstance(items, list):
        return ()
    return tuple(str(item[1]) for item in items if isinstance(item, list) and len(item) > 1)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _loads(response: requests.Response) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(response.content)
    return None


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return "refused or reset the connection" if isinstance(error, requests.ConnectionError) else str(error)
