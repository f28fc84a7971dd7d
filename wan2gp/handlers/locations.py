"""URLs as a download needs them: taken apart once, strictly, and shown without what may be secret."""

from __future__ import annotations

import base64
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote, urljoin, urlsplit

from wan2gp.handlers.api import TaskFailure
from wan2gp.protocol import Signed, Source
from wan2gp.storage_address import NO_STORAGE, BadAddress, StorageAddress, is_storage, parse_address

MAX_URL = 8192
"""Longest URL, characters."""
_SHOWN = 300
_PORTS = {"http": 80, "https": 443}
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
_QUERY_SAFE = _PATH_SAFE + "?"


@dataclass(frozen=True)
class Location:
    """One http(s) URL. ``host`` is ASCII and lower case; an IPv6 address stands without brackets."""

    scheme: str
    host: str
    port: int
    path: str
    """Percent-encoded, begins with a slash."""
    query: str = field(repr=False)
    authorization: str | None = field(default=None, repr=False)
    """The header's value, from ``user:password@`` in the URL."""
    address: StorageAddress | None = None
    """What it is called, where it is a URL that the supervisor had signed. It is a place of the operator's own then."""

    @property
    def target(self) -> str:
        """What stands in the request line."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def shown(self) -> str:
        """For logs and rows: without user, password and query, where signatures are."""
        if self.address is not None:
            return self.address.shown
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"[:_SHOWN]

    @property
    def file_name(self) -> str:
        """The last part of the path, decoded: not yet safe as the name of a file."""
        return unquote(self.path.rpartition("/")[2]) if self.address is None else self.address.file_name

    @property
    def identity(self) -> Hashable:
        """The same for two signatures of one file in Storage."""
        return self if self.address is None else (self.origin, self.address)

    def redirected(self, to: str) -> Location:
        """Where ``to``, a header from this place, leads. Credentials stay within their origin."""
        base = f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}{self.target}"
        # Servers send raw UTF-8 here, which the HTTP library hands over as Latin-1.
        text = to.encode("latin-1", "ignore").decode("utf-8", "replace")
        try:
            found = parse_location(urljoin(base, text.strip()))
        except (TaskFailure, ValueError) as error:
            raise TaskFailure(
                "input.bad_url", f"{self.shown} redirects to where nothing can be had: {error}"
            ) from error
        if found.authorization is None and found.origin == self.origin:
            return Location(found.scheme, found.host, found.port, found.path, found.query, self.authorization)
        return found


def parse_location(url: str) -> Location:
    """Raises :class:`TaskFailure` (``input.bad_url``) with a sentence that names what is wrong, never the query."""
    url = url.strip()
    if len(url) > MAX_URL:
        raise _bad(f"it has {len(url)} characters, the limit is {MAX_URL}")
    if any(character <= " " or character == "\x7f" for character in url):
        raise _bad("it contains a blank or a control character")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad(str(error)) from error
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise _bad(f"it begins with {scheme + ':' if scheme else url[:40]!r}, not with http:// or https://")
    if not parts.hostname:
        raise _bad("it names no host")
    return Location(
        scheme=scheme,
        host=_ascii_host(parts.hostname),
        port=_PORTS[scheme] if port is None else port,
        path=quote(parts.path or "/", safe=_PATH_SAFE),
        query=quote(parts.query, safe=_QUERY_SAFE),
        authorization=_basic(parts.username, parts.password),
    )


def locate(source: Source, signed: Signed | None) -> Location:
    """Where a source is to be had; ``signed`` counts for ``storage:`` only. Raises as :func:`parse_location`."""
    if not is_storage(source.url):
        return parse_location(source.url)
    try:
        address = parse_address(source.url)
    except BadAddress as error:
        raise _bad(f"it {error}") from error
    if signed is None:
        raise TaskFailure("input.no_storage", f"{address.shown} {NO_STORAGE}")
    return replace(parse_location(signed.url), address=address)


def shown_url(url: str) -> str:
    """``url`` for logs and rows, also a malformed one."""
    try:
        return parse_address(url).shown if is_storage(url) else parse_location(url).shown
    except (TaskFailure, BadAddress):
        return "(a malformed URL)"


def _bad(why: str) -> TaskFailure:
    return TaskFailure("input.bad_url", f"the URL cannot be used: {why}")


def _ascii_host(host: str) -> str:
    if host.isascii():
        return host.lower().rstrip(".") or host
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise _bad("its host is not a valid name") from error


def _basic(user: str | None, password: str | None) -> str | None:
    if user is None and password is None:
        return None
    pair = f"{unquote(user or '')}:{unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")
