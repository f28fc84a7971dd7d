"""Publishing by ``generate-upload-url``: each file goes by one streamed PUT to a URL that the function signed.

Such a URL overwrites nothing, so a name is used once: it holds the attempt and the lease, and whatever is found under
it is what an earlier try of ours has sent.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from wan2gp.supervisor.edge_calls import UPLOAD_URL, EdgeCalls, Said
from wan2gp.supervisor.patience import Patience, apart
from wan2gp.supervisor.publish import PublishFailed, Staged
from wan2gp.supervisor.queue import AccessDenied, FunctionsMissing, QueueUnavailable
from wan2gp.supervisor.spool import Ending
from wan2gp.supervisor.staging import check, places, safe_name, take
from wan2gp.supervisor.storage import Bucket
from wan2gp.supervisor.storage_answers import RETRY, Answer, Target, failure_of, spoken, unavailable
from wan2gp.supervisor.storage_store import FILE_MODE, LEASE_CHARACTERS, Either, settle_all, untaken
from wan2gp.supervisor.supabase_project import SupabaseProject
from wan2gp.supervisor.upload_file import UploadFile

BUCKET = "image_uploads"
"""The functions know no other."""
REMEMBERED = 1000
_NAME = re.compile(r"[^A-Za-z0-9._-]")
"""What a name has none of: the path must stand in a URL as it is."""
_SIGNED = "/object/upload/sign/"
_NAME_TAKEN = 500
"""Said, among other things, of a name that a try of an earlier life has used."""
_EXISTS = ("KeyAlreadyExists", "Duplicate")
_BODY_MAX = 64 * 1024


class EdgeStore:
    """A :class:`~wan2gp.supervisor.publish.Store`."""

    def __init__(
        self,
        project: SupabaseProject,
        *,
        uploads: int = 3,
        calls: EdgeCalls | None = None,
        patience: Patience | None = None,
    ) -> None:
        """``uploads``: files sent at once."""
        self._project = project
        self._calls = calls or EdgeCalls(project)
        self._patience = patience or Patience()
        self._pool = ThreadPoolExecutor(uploads, thread_name_prefix="upload")
        self._bucket = Bucket(project, BUCKET, patience=self._patience)
        self._lock = threading.Lock()
        self._sent: OrderedDict[str, Staged] = OrderedDict()

    def stage(self, ending: Ending, folder: Path) -> list[Staged]:
        """See :class:`~wan2gp.supervisor.publish.Store`. Where the files will be is the function's to say."""
        staged = []
        for artifact, path in zip(ending.artifacts, places(ending, folder), strict=True):
            take(ending, artifact, path)
            check(path, artifact, FILE_MODE)
            staged.append(Staged(artifact, path))
        return staged

    def upload(
        self,
        ending: Ending,
        staged: Sequence[Staged],
        stop: threading.Event,
        sent: Callable[[Staged], None] = lambda item: None,
    ) -> list[Staged]:
        """All files of one ending, side by side; what an earlier call of this life has sent is not sent again."""
        over = Either(stop)
        names = _names(ending, staged)
        running = [
            self._pool.submit(self._once, ending, item, name, over, sent)
            for item, name in zip(staged, names, strict=True)
        ]
        settle_all(running, over)
        return [future.result() for future in running]

    def commit(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """It is public already."""

    def withdraw(self, ending: Ending, staged: Sequence[Staged]) -> None:
        """Delete what was sent; with a personal access token nothing can be, and it stays."""
        paths = [item.storage_path for item in staged if item.storage_path is not None]
        try:
            if paths:
                self._bucket.remove(paths)
        except PublishFailed as failure:
            if failure.code != "publish.forbidden":
                raise

    def _once(
        self, ending: Ending, item: Staged, name: str, stop: threading.Event, told: Callable[[Staged], None]
    ) -> Staged:
        if item.url is not None:
            return item
        key = f"{ending.key}/{item.path.name}"
        with self._lock:
            sent = self._sent.get(key)
        if sent is None:
            sent = _Upload(self._project, self._calls, self._patience, ending, item, name).run(stop)
            with self._lock:
                self._sent[key] = sent
                while len(self._sent) > REMEMBERED:
                    self._sent.popitem(last=False)
        told(sent)
        return sent


class _Upload:
    """One file on its way."""

    def __init__(
        self,
        project: SupabaseProject,
        calls: EdgeCalls,
        patience: Patience,
        ending: Ending,
        item: Staged,
        name: str,
    ) -> None:
        self._project = project
        self._calls = calls
        self._patience = patience
        self._ending = ending
        self._item = item
        self._first, self._name = name, name
        self._number = 1
        self._doubtful: str | None = None
        """A path to which the file was sent without an answer."""

    def run(self, stop: threading.Event) -> Staged:
        """Raises :class:`PublishFailed`."""
        path = ""

        def work() -> None:
            nonlocal path
            path = self._patience.persist(lambda: self._try(stop), stop)

        apart(work, stop)
        url = f"{self._project.storage_url}/object/public/{BUCKET}/{quote(path)}"
        return dataclasses.replace(self._item, url=url, storage_path=path)

    def _try(self, stop: threading.Event) -> str:
        """Sends it; returns its path in the bucket. Every try has a URL of its own: one does not hold for ever."""
        if self._doubtful is not None and self._is_there(self._doubtful):
            return self._doubtful
        target = Target("upload", BUCKET, self._name, self._item.artifact.bytes)
        url, path = self._place(target)
        with UploadFile(self._item.path, stop) as file:
            answer = self._send(url, path, file, dataclasses.replace(target, path=path))
        if 200 <= answer.status < 300 or not answer.kinds.isdisjoint(_EXISTS) or answer.true_status == 409:
            return path  # nobody else has this name, and a file is there whole or not at all
        raise failure_of(answer, dataclasses.replace(target, path=path))

    def _place(self, target: Target) -> tuple[str, str]:
        """The URL to send to, and the path that it means."""
        body = {
            "task_id": self._ending.task_id,
            "filename": self._name,
            "content_type": self._item.artifact.mime,
            "generate_thumbnail_url": False,
        }
        try:
            said = self._calls.once(UPLOAD_URL, body)
        except (AccessDenied, FunctionsMissing) as error:
            raise PublishFailed("publish.forbidden", f"{target.cannot()}: {error}; {RETRY}", permanent=True) from None
        except QueueUnavailable as error:
            if getattr(error, "status", None) == _NAME_TAKEN:
                self._rename()
            raise unavailable(target, str(error), getattr(error, "retry_after_s", None)) from None
        if not said.ok:
            raise PublishFailed(
                "publish.refused",
                f"{target.cannot()}: the Edge Function {UPLOAD_URL} refuses it: {said.words} (HTTP {said.status}): "
                f"mend that, {RETRY}",
                permanent=True,
            )
        return self._read(said, target)

    def _rename(self) -> None:
        self._number += 1
        self._name = f"{self._number}-{self._first}"

    def _read(self, said: Said, target: Target) -> tuple[str, str]:
        """Only the signature is taken from the answer, whose address may be one that only the function reaches."""
        body = said.json()
        url, path = (body.get("upload_url"), body.get("storage_path")) if isinstance(body, dict) else (None, None)
        parts = urlsplit(str(url))
        if not isinstance(path, str) or _SIGNED not in parts.path or "token=" not in parts.query:
            raise unavailable(target, f"the Edge Function {UPLOAD_URL} answered with no upload URL ({said.words[:50]})")
        return f"{self._project.storage_url}{_SIGNED}{parts.path.partition(_SIGNED)[2]}?{parts.query}", path

    def _send(self, url: str, path: str, file: UploadFile, target: Target) -> Answer:
        """No key goes with it: the URL is the permission."""
        secrets = (urlsplit(url).query.partition("token=")[2],)
        headers = {"Content-Type": self._item.artifact.mime, "Content-Length": str(file.size)}
        limits = self._patience
        timeout = httpx.Timeout(limits.answer_s, connect=limits.connect_s, write=limits.write_s)
        problem: PublishFailed
        try:
            with self._project.http.stream(
                "PUT", url, content=_pieces(file), headers=headers, timeout=timeout, follow_redirects=False
            ) as response:
                return Answer(response.status_code, response.headers, _text(response), secrets)
        except (httpx.HTTPError, httpx.StreamError) as error:
            problem = unavailable(target, f"no answer from Storage: {spoken(str(error), secrets) or 'it hung up'}")
        self._doubtful = path
        raise problem

    def _is_there(self, path: str) -> bool:
        """Whether anybody can have the whole file from the bucket, if that is a public one."""
        try:
            response = self._project.http.head(
                f"{self._project.storage_url}/object/public/{BUCKET}/{quote(path)}",
                timeout=httpx.Timeout(self._patience.answer_s, connect=self._patience.connect_s),
                follow_redirects=False,
            )
        except httpx.HTTPError:
            return False
        size = response.headers.get("Content-Length", "")
        return response.is_success and size == str(self._item.artifact.bytes)


def _pieces(file: UploadFile) -> Iterator[bytes]:
    yield from file.pieces(0, file.size)


def _text(response: httpx.Response) -> str:
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) > _BODY_MAX:
            break
    return body[:_BODY_MAX].decode("utf-8", "replace")


def _names(ending: Ending, staged: Sequence[Staged]) -> list[str]:
    """A name for each file: by attempt and lease, so that no two tries share one; with the node's id on a clash."""
    mark = f"{ending.attempt}-{ending.lease_id[:LEASE_CHARACTERS]}"
    names: list[str] = []
    for artifact in (item.artifact for item in staged):

        def named(middle: str, name: str = artifact.name) -> str:
            return f"{mark}-{_NAME.sub('_', middle + safe_name(name))}"

        names.append(untaken(names, artifact.node_id, named))
    return names
