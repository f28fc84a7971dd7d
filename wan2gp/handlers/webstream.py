"""One HTTP request to one checked address, and its body as decoded pieces. Redirects are the caller's.

The address connected to is the one that was checked: see :mod:`wan2gp.pinned`.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from wan2gp import __version__
from wan2gp.addresses import Address, Resolve, resolve
from wan2gp.brake import Brake
from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.locations import Location
from wan2gp.pinned import PrivateAddress, dial, find, reason, speak

_PIECE = 256 * 1024
_ZLIB_HEAD = 2  # bytes
_SLICE = 16 * 1024
"""Compressed bytes at a time: what a member leaves over is copied, and a file may be nothing but tiny members."""
_GZIP_HEAD = b"\x1f\x8b"
_ANY_ZLIB, _BARE_DEFLATE = 47, -15  # window bits: gzip or zlib by its header; no header at all


@dataclass(frozen=True)
class Limits:
    """``_s`` are seconds. ``allow_private_hosts``: host names and addresses as they stand in URLs."""

    max_bytes: int = 4 * 1024**3
    total_s: float = 1800.0
    idle_s: float = 30.0
    connect_s: float = 10.0
    allow_private_urls: bool = False
    allow_private_hosts: frozenset[str] = field(default_factory=frozenset)

    def may_be_private(self, host: str) -> bool:
        return self.allow_private_urls or host in self.allow_private_hosts


class Reply:
    """The head of an answer, and its body, to be read once."""

    def __init__(self, location: Location, response: http.client.HTTPResponse, brake: Brake, idle_s: float) -> None:
        self._response = response
        self._brake = brake
        self._idle_s = idle_s
        self._location = location
        self.status = response.status
        self.reason = response.reason
        self.length = response.length
        """Bytes of the body as sent, None when the server does not say."""
        self.received = 0
        """Bytes of the body that have come so far, as sent."""
        self._chunked = bool(response.chunked)
        self._encoding = (response.headers.get("Content-Encoding") or "identity").strip().lower()

    @property
    def plain(self) -> bool:
        """True when the body arrives as it is, so that ``length`` is the file's."""
        return self._encoding in ("identity", "")

    @property
    def has_end(self) -> bool:
        """False for a body that ends with its connection: then a part cannot be told from the whole."""
        return self.length is not None or self._chunked or not self.plain

    def header(self, name: str) -> str | None:
        return self._response.headers.get(name)

    def pieces(self) -> Iterator[bytes]:
        """The decoded body in pieces of bounded size; it may be endless, and pieces may be empty without end.

        Raises :class:`TaskFailure`: ``input.http_error`` for a body that breaks off or cannot be decoded,
        ``input.timeout`` for one that falls silent.
        """
        if self.plain:
            return self._raw()
        if self._encoding in ("gzip", "x-gzip", "deflate"):
            return self._inflated()
        raise TaskFailure(
            "input.http_error",
            f"{self._location.shown} sends its body in the encoding {self._encoding[:40]!r}, which was not asked for",
        )

    def _raw(self) -> Iterator[bytes]:
        got = 0
        while self.length is None or got < self.length:
            piece = self._read(_PIECE if self.length is None else min(_PIECE, self.length - got), got)
            if not piece:
                break
            got += len(piece)
            self.received = got
            yield piece
        if self.length is not None and got < self.length:
            raise self._broken(got, f"{self.length} were announced")

    def _inflated(self) -> Iterator[bytes]:
        inflater, begun, held = zlib.decompressobj(_ANY_ZLIB), False, b""
        over = False
        for piece in self._slices():
            yield b""  # so that whoever reads can count what comes and gives nothing
            piece, held = held + piece, b""
            while piece and not over:
                if len(piece) < _ZLIB_HEAD and (inflater.eof or not begun):  # one byte does not show what comes
                    held = piece
                    break
                if inflater.eof:  # gzip files may stand one behind the other, and padding behind the last
                    over = not piece.startswith(_GZIP_HEAD)
                    inflater = inflater if over else zlib.decompressobj(_ANY_ZLIB)
                    continue
                try:
                    plain = inflater.decompress(piece, _PIECE)
                except zlib.error as error:
                    if begun or self._encoding != "deflate":
                        raise self._broken(self.received, f"it is no {self._encoding} data") from error
                    inflater, begun = zlib.decompressobj(_BARE_DEFLATE), True  # as many servers misread the standard
                    continue
                begun = True
                piece = inflater.unused_data or inflater.unconsumed_tail
                if plain:
                    yield plain
        while not inflater.eof:  # a last piece as long as the bound may have left something behind
            plain = inflater.decompress(b"", _PIECE)
            if not plain:
                raise self._broken(self.received, f"its {self._encoding} data are incomplete")
            yield plain

    def _slices(self) -> Iterator[bytes]:
        for piece in self._raw():
            for start in range(0, len(piece), _SLICE):
                yield piece[start : start + _SLICE]

    def _read(self, wanted: int, got: int) -> bytes:
        try:
            piece = self._response.read1(wanted)
        except TimeoutError as error:
            self._brake.check()
            raise _silent(self._location, self._idle_s, got) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._brake.check()
            raise self._broken(got, reason(error)) from error
        self._brake.check()  # a connection that was shut down reads like a body that has ended
        return piece

    def _broken(self, got: int, why: str) -> TaskFailure:
        return TaskFailure(
            "input.http_error", f"the download from {self._location.shown} broke off after {got} bytes: {why}"
        )


@contextlib.contextmanager
def request(
    location: Location,
    limits: Limits,
    brake: Brake,
    lookup: Resolve = resolve,
    conditions: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Reply]:
    """GET ``location``, with further headers in ``conditions``.

    Raises :class:`TaskFailure` (``input.forbidden_address``, ``.unreachable``, ``.timeout``, ``.http_error``), or what
    the brake was pulled with.
    """
    brake.check()
    with contextlib.ExitStack() as closing:
        raw = closing.enter_context(_connect(location, limits, brake, lookup))
        closing.enter_context(brake.stops_socket(raw))
        with brake.within(limits.idle_s, _silent(location, limits.idle_s)):  # bounds handshake and slow headers too
            response = _exchange(location, raw, limits, brake, closing, conditions)
        yield Reply(location, response, brake, limits.idle_s)


def _connect(location: Location, limits: Limits, brake: Brake, lookup: Resolve) -> socket.socket:
    """A connection to the first allowed address that takes one."""
    allowed = _allowed(location, limits, brake, lookup)
    try:
        return dial(allowed, location.port, connect_s=limits.connect_s, idle_s=limits.idle_s, brake=brake)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else reason(error)
        raise TaskFailure("input.unreachable", f"cannot connect to {_whom(location)}: {why}") from error


def _allowed(location: Location, limits: Limits, brake: Brake, lookup: Resolve) -> Sequence[Address]:
    # A place that the supervisor had signed is the operator's own; where it redirects to is anybody's again.
    private = location.address is not None or limits.may_be_private(location.host)
    try:
        return find(
            location.host, location.port, private=private, timeout_s=limits.connect_s, brake=brake, lookup=lookup
        )
    except PrivateAddress as error:
        raise TaskFailure(
            "input.forbidden_address",
            f"{error}: use a public host, or let the worker's operator add it to inputs.allow_private_hosts "
            "(WAN2GP_ALLOW_PRIVATE_URLS=1 allows all)",
        ) from error
    except OSError as error:
        whom = f"the host {location.host}" if location.address is None else _whom(location)
        raise TaskFailure("input.unreachable", f"cannot find {whom}: {reason(error)}") from error


def _exchange(
    location: Location,
    raw: socket.socket,
    limits: Limits,
    brake: Brake,
    closing: contextlib.ExitStack,
    conditions: Mapping[str, str],
) -> http.client.HTTPResponse:
    try:
        connection = speak(location.scheme, location.host, location.port, raw, closing)
        headers = {"User-Agent": f"wan2gp/{__version__}", "Accept": "*/*", "Connection": "close", **conditions}
        if location.authorization is not None:
            headers["Authorization"] = location.authorization
        connection.request("GET", location.target, headers=headers)
        response = closing.enter_context(contextlib.closing(connection.getresponse()))
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message or "not valid"
        raise TaskFailure(
            "input.unreachable", f"the certificate of {location.host} is refused: {why}", retryable=False
        ) from error
    except TimeoutError as error:
        brake.check()
        raise _silent(location, limits.idle_s) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        brake.check()
        raise TaskFailure("input.http_error", f"{location.shown} gave no HTTP answer: {reason(error)}") from error
    brake.check()
    return response


def _whom(location: Location) -> str:
    """For a row, whose author need not learn where the operator's own project is."""
    if location.address is not None:
        return f"the project's Storage, for {location.shown}"
    return f"{location.host} port {location.port}"


def _silent(location: Location, idle_s: float, got: int | None = None) -> TaskFailure:
    where = "no complete answer" if got is None else f"nothing more after {got} bytes"
    return TaskFailure("input.timeout", f"{location.shown} sent {where} within {idle_s:g} s")
