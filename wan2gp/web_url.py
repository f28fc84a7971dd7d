"""http(s) URLs that strangers gave: taken apart once, strictly, and shown without what may be secret."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

MAX_URL = 8192
"""Longest URL, characters."""
SHOWN = 300
"""Longest URL in logs and rows, characters."""
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_-])?")
_IPV6 = re.compile(r"[0-9a-f:.]+(%[0-9a-z._~-]+)?")
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
_QUERY_SAFE = _PATH_SAFE + "?"


class BadUrl(ValueError):
    """The URL cannot be used; the message says why, and never holds the query."""


@dataclass(frozen=True)
class WebUrl:
    """One http(s) URL. ``host`` is ASCII and lower case; an IPv6 address stands without brackets."""

    scheme: str
    host: str
    port: int
    path: str
    """Percent-encoded, begins with a slash."""
    query: str = field(repr=False)
    authorization: str | None = field(default=None, repr=False)
    """The header's value, from ``user:password@`` in the URL."""

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
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"[:SHOWN]


def parse_url(url: str) -> WebUrl:
    """Raises :class:`BadUrl`."""
    url = url.strip()
    if len(url) > MAX_URL:
        raise BadUrl(f"it has {len(url)} characters, the limit is {MAX_URL}")
    if any(character <= " " or character == "\x7f" for character in url):
        raise BadUrl("it contains a blank or a control character")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadUrl(str(error)) from error
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        begins = scheme + ":" if scheme else url.partition("?")[0][:40]
        raise BadUrl(f"it begins with {begins!r}, not with http:// or https://")
    if not parts.hostname:
        raise BadUrl("it names no host")
    return WebUrl(
        scheme=scheme,
        host=_ascii_host(parts.hostname),
        port=_PORTS[scheme] if port is None else port,
        path=quote(parts.path or "/", safe=_PATH_SAFE),
        query=quote(parts.query, safe=_QUERY_SAFE),
        authorization=_basic(parts.username, parts.password),
    )


def _ascii_host(host: str) -> str:
    """Only what a name or an address is written with: of anything else, two readers make two hosts."""
    try:
        plain = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise BadUrl("its host is not a valid name") from error
    plain = plain.lower().rstrip(".")
    if not (_IPV6 if ":" in plain else _NAME).fullmatch(plain):
        raise BadUrl("its host is not a valid name")
    return plain


def _basic(user: str | None, password: str | None) -> str | None:
    if user is None and password is None:
        return None
    pair = f"{unquote(user or '')}:{unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")
