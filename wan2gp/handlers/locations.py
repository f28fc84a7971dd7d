"""URLs as a download needs them: taken apart once, strictly, and shown without what may be secret."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from urllib.parse import unquote, urljoin

from wan2gp.handlers.api import TaskFailure
from wan2gp.protocol import Signed, Source
from wan2gp.storage_address import NO_STORAGE, BadAddress, StorageAddress, is_storage, parse_address
from wan2gp.web_url import BadUrl, WebUrl, parse_url


@dataclass(frozen=True)
class Location(WebUrl):
    """Where one source is to be had."""

    address: StorageAddress | None = None
    """What it is called, where it is a URL that the supervisor had signed. It is a place of the operator's own then."""

    @property
    def shown(self) -> str:
        """For logs and rows: without user, password and query, where signatures are."""
        return super().shown if self.address is None else self.address.shown

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
    try:
        found = parse_url(url)
    except BadUrl as error:
        raise _bad(str(error)) from error
    return Location(found.scheme, found.host, found.port, found.path, found.query, found.authorization)


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
