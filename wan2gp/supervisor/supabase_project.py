"""A Supabase project as a worker reaches it: one HTTP client for all of its parts, and what that client saw.

The key is an opaque string: a ``service_role`` JWT or ``sb_secret_…``. It leaves this module in headers only.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from wan2gp.config_options import Secret
from wan2gp.supervisor.queue import QueueRefused

if TYPE_CHECKING:
    from supabase import Client

CONNECT_S = 5.0
READ_S = 15.0
"""Longest wait for a connection, and for the next bytes of an answer, seconds."""
RETRY_AFTER_MAX_S = 86400.0
"""The longest pause that a ``Retry-After`` header is believed, seconds."""
KEEP_ALIVE_S = 60.0
"""How long an idle connection is kept at least, seconds: httpx's own 5 would mean a TLS handshake for every poll."""


@dataclasses.dataclass
class Seen:
    """The answers that one thread got while it watched; :mod:`postgrest` drops the status of an error."""

    deadline: float | None = None
    """When all of it must be over, by the monotonic clock."""
    silence_s: float | None = None
    """Longest wait for the next bytes, seconds; None: the client's own."""
    status: int | None = None
    """Of the last answer, None before the first."""
    retry_after_s: float | None = None
    """What the last answer asked for, seconds."""
    location: str | None = None
    """Where the last answer sent us, without query or credentials."""
    json: bool = False
    """Whether the last answer says that it is JSON."""
    bytes: int = 0
    """Size of the last answer's body on the wire."""


class SupabaseProject:
    """The addresses, the key and the connections of one project. Safe to use from several threads, not across a fork.

    Makes no network call before the first request. Raises :class:`QueueRefused` for a URL or a key that no request
    can carry, without repeating the key.
    """

    def __init__(self, url: str, key: Secret, *, poll_interval_s: float = 10.0) -> None:
        """``poll_interval_s``: the longest pause between two calls, which a connection shall outlive."""
        self.url = _checked_url(url)
        self._key = _checked_key(key)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._client: Client | None = None
        self.http = self._connections(poll_interval_s)

    @property
    def rest_url(self) -> str:
        return self.url + "/rest/v1"

    @property
    def storage_url(self) -> str:
        return self.url + "/storage/v1"

    @property
    def functions_url(self) -> str:
        return self.url + "/functions/v1"

    @property
    def client(self) -> Client:
        """supabase-py on :attr:`http`. Made at the first use, for it takes 0.3 s and 39 MB."""
        with self._lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def headers(self) -> dict[str, str]:
        """What authorises a request to any part of the project."""
        key = self._key.reveal()
        return {"apikey": key, "Authorization": f"Bearer {key}"}

    @contextmanager
    def watch(self, deadline: float | None = None, silence_s: float | None = None) -> Iterator[Seen]:
        """Notes the answers that this thread gets inside; its requests end by ``deadline`` (``time.monotonic()``)."""
        seen = self._local.seen = Seen(deadline, silence_s)
        try:
            yield seen
        finally:
            self._local.seen = None

    def close(self) -> None:
        """Closes the connections; requests made afterwards fail."""
        self.http.close()

    def __repr__(self) -> str:
        return f"SupabaseProject({self.url!r})"

    def _connections(self, poll_interval_s: float) -> httpx.Client:
        try:
            return httpx.Client(
                http2=False,
                timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
                limits=httpx.Limits(keepalive_expiry=max(KEEP_ALIVE_S, 3 * poll_interval_s)),
                # A proxy of the environment sees nothing of TLS; over plain HTTP it would read the key.
                trust_env=self.url.startswith("https:"),
                event_hooks={"request": [self._bound], "response": [self._note]},
            )
        except (ImportError, ValueError) as error:
            raise QueueRefused(
                f"cannot use the proxy that the environment names ({type(error).__name__}): "
                "give an http:// proxy in HTTPS_PROXY, or name the project's host in NO_PROXY"
            ) from None

    def _make_client(self) -> Client:
        from supabase import create_client
        from supabase.lib.client_options import SyncClientOptions

        # Nobody logs in here: no session is kept, and no timer renews one. Retries are the caller's.
        wanted: dict[str, Any] = {
            "httpx_client": self.http,
            "auto_refresh_token": False,
            "persist_session": False,
            "postgrest_client_retry": False,
        }
        known = {one.name for one in dataclasses.fields(SyncClientOptions)}
        options = SyncClientOptions(**{name: value for name, value in wanted.items() if name in known})
        client = create_client(self.url, self._key.reveal(), options)
        _ = client.postgrest  # made lazily otherwise, by each thread that comes first
        return client

    def _seen(self) -> Seen | None:
        return getattr(self._local, "seen", None)

    def _bound(self, request: httpx.Request) -> None:
        """A request gets no more time than its caller has left."""
        seen = self._seen()
        if seen is None:
            return
        most = seen.silence_s if seen.silence_s is not None else READ_S
        if seen.deadline is not None:
            most = min(most, max(0.01, seen.deadline - time.monotonic()))
        limits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {name: min(most, limit or most) for name, limit in limits.items()}

    def _note(self, response: httpx.Response) -> None:
        seen = self._seen()
        if seen is None:
            return
        seen.status = response.status_code
        seen.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
        seen.location = _bare(response.headers.get("Location"))
        seen.json = response.headers.get("Content-Type", "").partition(";")[0].strip().endswith("json")
        seen.bytes = 0
        response.stream = _Counted(response.stream, seen)


class _Counted(httpx.SyncByteStream):
    """A body that must have come by the deadline: the time-out of a single read does not stop one that drips."""

    def __init__(self, stream: Any, seen: Seen) -> None:
        self._stream = stream
        self._seen = seen

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            self._seen.bytes += len(part)
            yield part
            if self._seen.deadline is not None and time.monotonic() > self._seen.deadline:
                raise httpx.ReadTimeout("the answer came too slowly")

    def close(self) -> None:
        self._stream.close()


def retry_after_s(value: str | None) -> float | None:
    """The pause that a ``Retry-After`` header asks for, seconds; None when it asks for none that can be read."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), RETRY_AFTER_MAX_S)
    try:
        pause = parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, IndexError, OverflowError, OSError):
        return None
    return min(max(0.0, pause), RETRY_AFTER_MAX_S)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise QueueRefused(f"cannot read the Supabase URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise QueueRefused("cannot read the Supabase URL: it is not https://<project>.supabase.co")
    return url.rstrip("/")


def _checked_key(key: Secret) -> Secret:
    """A key that fits into a header: what refuses it later would repeat it."""
    if not key:
        raise QueueRefused("the Supabase project needs a key: give SUPABASE_SERVICE_ROLE_KEY or its file")
    if not _fits_header(key):
        raise QueueRefused(
            "the Supabase key holds characters that no key has (a space or a line break?): copy it again"
        )
    return key


def _fits_header(key: Secret) -> bool:
    value = key.reveal()
    return value.isascii() and value.isprintable() and " " not in value


def _bare(location: str | None) -> str | None:
    if not location:
        return None
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else parts.path
