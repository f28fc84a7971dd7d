"""One file by PUT to a URL that its task gave: signed by somebody else, and reaching wherever they say.

So no key goes with it, only a checked public address is connected to, redirects are not followed, and the query, which
is the permission to write there, stands in no message.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import json
import re
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from wan2gp import __version__
from wan2gp.addresses import Resolve, resolve
from wan2gp.brake import Brake
from wan2gp.pinned import PrivateAddress, dial, find, reason, speak
from wan2gp.supervisor.direct_store import PutFailed
from wan2gp.supervisor.patience import Patience, apart
from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.storage_answers import spoken
from wan2gp.supervisor.supabase_project import retry_after_s
from wan2gp.supervisor.upload_file import UploadFile, plain_mime, stopped
from wan2gp.web_url import BadUrl, WebUrl, parse_url

_BODY_BYTES = 16 * 1024
_SECRET_CHARACTERS = 6
"""A value of the query that is as long as this may be a signature; shorter ones are numbers and names."""
_NOW_ONLY = frozenset({408, 423, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 544})
_XML = re.compile(r"<(Code|Message)>(.*?)</\1>", re.DOTALL)


def put(
    url: str,
    file: Path,
    mime: str,
    *,
    stop: threading.Event,
    allow_private_urls: bool = False,
    begun_before: bool = False,
    patience: Patience | None = None,
    lookup: Resolve = resolve,
) -> None:
    """Send ``file``; returns when the server has taken it. ``stop`` ends it at once.

    ``allow_private_urls``: of private addresses, and without TLS. ``begun_before``: an earlier call may have been taken
    without anybody's hearing of it, so that a server which takes nothing twice may refuse this one.

    Raises :class:`PublishFailed`: ``publish.bad_put_url``, ``publish.put_refused``, ``publish.file_changed`` (these
    are permanent), ``publish.put_unavailable``, ``worker.stopping``.
    """
    place = _checked(url, allow_private_urls)
    patience = patience or Patience()
    sender = _Sender(place, allow_private_urls, patience, lookup, doubtful=begun_before)
    try:
        apart(lambda: patience.persist(lambda: sender.send(file, plain_mime(mime), stop), stop), stop)
    except PublishFailed as failure:
        sender.brake.pull(stopped())  # what still hangs in a call leaves it
        if isinstance(failure, PutFailed):
            failure.arrived = sender.doubtful
        raise


def _checked(url: str, private: bool) -> WebUrl:
    try:
        place = parse_url(url)
    except BadUrl as error:
        raise _bad_url(str(error)) from None
    if place.authorization is not None:
        raise _bad_url("it holds a user or a password: give a signed URL without them")
    if place.scheme != "https" and not private:
        raise _bad_url(f"{place.shown} is not https, so anybody on the way could read and change the result")
    return place


def _bad_url(why: str) -> PublishFailed:
    return PublishFailed("publish.bad_put_url", f"put_url cannot be used: {why}", permanent=True)


@dataclass
class _Sender:
    """All tries of one file."""

    place: WebUrl
    private: bool
    patience: Patience
    lookup: Resolve
    brake: Brake = field(default_factory=Brake)
    doubtful: bool = False
    """An earlier try sent everything and saw no answer, or none that is the server's own: the file may be there."""

    def send(self, file: Path, mime: str, stop: threading.Event) -> None:
        self.brake = Brake()  # one that was pulled stays pulled
        with UploadFile(file, stop) as opened, contextlib.ExitStack() as closing:
            connection = self._connect(closing)
            response = self._exchange(connection, opened, mime, closing)
            self._judge(response)

    def _connect(self, closing: contextlib.ExitStack) -> http.client.HTTPConnection:
        place, limits = self.place, self.patience
        try:
            allowed = find(
                place.host,
                place.port,
                private=self.private,
                timeout_s=limits.connect_s,
                brake=self.brake,
                lookup=self.lookup,
            )
            raw = closing.enter_context(
                dial(allowed, place.port, connect_s=limits.connect_s, idle_s=limits.write_s, brake=self.brake)
            )
            closing.enter_context(self.brake.stops_socket(raw))
            with self.brake.within(
                limits.connect_s + limits.write_s, self._unavailable("its handshake takes too long")
            ):
                return speak(place.scheme, place.host, place.port, raw, closing)
        except PrivateAddress as error:
            raise _bad_url(
                f"{error}: use a public host, or let the worker's operator set WAN2GP_ALLOW_PRIVATE_PUT_URLS"
            ) from None
        except ssl.SSLCertVerificationError as error:
            self.brake.check()
            why = error.verify_message or "not valid"
            raise self._refused(f"its certificate is refused: {why}") from None
        except (OSError, ValueError) as error:
            self.brake.check()
            raise self._unavailable(f"no connection with {place.host}: {reason(error)}") from None

    def _exchange(
        self, connection: http.client.HTTPConnection, file: UploadFile, mime: str, closing: contextlib.ExitStack
    ) -> http.client.HTTPResponse:
        sent = False
        try:
            with contextlib.suppress(ConnectionError):  # it may have answered before the end, and closed
                self._request(connection, file, mime)
                sent = True
            if connection.sock is not None:
                connection.sock.settimeout(self.patience.answer_s)
            with self.brake.within(self.patience.answer_s, self._unavailable("it gives no answer in time")):
                response = closing.enter_context(contextlib.closing(connection.getresponse()))
            self.brake.check()
            return response
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.doubtful = self.doubtful or sent
            self.brake.check()
            raise self._unavailable(f"it gives no answer: {self._spoken(reason(error))}") from None

    def _request(self, connection: http.client.HTTPConnection, file: UploadFile, mime: str) -> None:
        connection.putrequest("PUT", self.place.target, skip_accept_encoding=True)
        headers = {
            "User-Agent": f"wan2gp/{__version__}",
            "Content-Type": mime,
            "Content-Length": str(file.size),
            "Connection": "close",
        }
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        for piece in file.pieces(0, file.size):
            connection.send(piece)

    def _judge(self, response: http.client.HTTPResponse) -> None:
        """Raises unless the server has the file."""
        status = response.status
        if 200 <= status < 300:
            return
        body = self._body(response)
        true_status, text = _read(body, status)
        if self.doubtful and true_status in (409, 412):
            return  # it is there since the try whose answer was lost
        said = f"{true_status} {_phrase(true_status)}".strip()
        said = f"{said}: {words}" if (words := self._spoken(text)) else said
        if true_status in _NOW_ONLY or status in _NOW_ONLY:
            # Whoever stands before the server says so of files, too, that the server has stored by now.
            self.doubtful = self.doubtful or max(status, true_status) >= 500
            raise self._unavailable(f"it answered {said}", retry_after_s(response.headers.get("Retry-After")))
        if 300 <= status < 400:
            raise self._refused(f"it redirects ({said}), which is not followed: give the final URL")
        if status in (401, 403) or true_status in (400, 401, 403):
            raise self._refused(f"it answered {said}: is the URL signed for PUT, and not expired?")
        raise self._refused(f"it answered {said}")

    def _body(self, response: http.client.HTTPResponse) -> str:
        try:
            with self.brake.within(self.patience.connect_s, self._unavailable("its answer takes too long")):
                return response.read(_BODY_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException, ValueError):
            return ""

    def _spoken(self, text: str) -> str:
        """Some servers repeat the signature that they did not like."""
        return spoken(text, self._secrets())

    def _secrets(self) -> tuple[str, ...]:
        values = {pair.partition("=")[2] for pair in self.place.query.split("&")}
        values |= {unquote(value) for value in values}
        long = [value for value in values if len(value) >= _SECRET_CHARACTERS]
        return tuple(sorted({self.place.query, *long} - {""}, key=len, reverse=True))

    def _refused(self, why: str) -> PublishFailed:
        return PutFailed("publish.put_refused", f"cannot send the result to {self.place.shown}: {why}", permanent=True)

    def _unavailable(self, why: str, again_s: float | None = None) -> PublishFailed:
        return PutFailed(
            "publish.put_unavailable",
            f"cannot send the result to {self.place.shown}: {why}",
            permanent=False,
            retry_after_s=again_s,
        )


def _read(body: str, status: int) -> tuple[int, str]:
    """The status that is meant, and the words: Storage says 400 for everything, and S3 speaks XML."""
    found = _XML.findall(body)
    if found:
        return status, ", ".join(words for _, words in found)
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return status, body
    if not isinstance(told, dict):
        return status, body
    text, true_status = str(told.get("message") or told.get("error") or body), str(told.get("statusCode", ""))
    return (int(true_status) if re.fullmatch("[1-5][0-9]{2}", true_status) else status), text


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""
