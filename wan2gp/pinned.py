"""Connections to hosts that strangers named: every address is checked, and the one connected to is a checked one.

The standard library's client on a socket of our own: the ``Host`` header, the TLS server name and the certificate are
those of the URL, whatever address it is. No proxy of the environment, no cookies, no ``.netrc``, no connection that is
used twice.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable, Collection, Sequence

import certifi

from wan2gp.addresses import Address, Resolve, is_public, own_addresses, resolve_within
from wan2gp.brake import Brake

_ADDRESSES_TRIED = 4


class PrivateAddress(Exception):
    """The host has no public address. Which it has stays unsaid: a row's author must not learn this network's names."""


def find(
    host: str,
    port: int,
    *,
    private: bool,
    timeout_s: float,
    brake: Brake,
    lookup: Resolve,
    own: Callable[[], Collection[Address]] = own_addresses,
) -> Sequence[Address]:
    """The addresses of ``host`` that may be connected to; ``private``: all may, this machine's ``own`` included.

    Raises :class:`PrivateAddress`, OSError, or what the brake was pulled with.
    """
    try:
        found = resolve_within(lookup, host, port, timeout_s, brake)
    except OSError:
        brake.check()
        raise
    if private:
        return found
    ours = own()
    allowed = [address for address in found if is_public(address) and address not in ours]
    if not allowed:
        raise PrivateAddress(f"the host {host} has a private address")
    return allowed


def dial(addresses: Sequence[Address], port: int, *, connect_s: float, idle_s: float, brake: Brake) -> socket.socket:
    """A connection to the first of the addresses that takes one within ``connect_s`` seconds; ``idle_s``: the longest
    that it may be silent afterwards. Raises OSError, or what the brake was pulled with."""
    error: OSError = OSError("it has no address")
    for address in addresses[:_ADDRESSES_TRIED]:
        try:
            return _dial(address, port, connect_s, idle_s, brake)
        except OSError as failed:
            brake.check()
            error = failed
    raise error


def _dial(address: Address, port: int, connect_s: float, idle_s: float, brake: Brake) -> socket.socket:
    connection = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        connection.settimeout(connect_s)
        with brake.stops_socket(connection):
            connection.connect((str(address), port))
        brake.check()
        connection.settimeout(idle_s)
    except BaseException:
        connection.close()
        raise
    return connection


def speak(
    scheme: str, host: str, port: int, raw: socket.socket, closing: contextlib.ExitStack
) -> http.client.HTTPConnection:
    """HTTP over the connection ``raw``, after the handshake of TLS where ``scheme`` is https. Raises OSError."""
    if scheme == "http":
        plain = http.client.HTTPConnection(host, port)
        plain.sock = raw
        return closing.enter_context(contextlib.closing(plain))
    trust = ssl.create_default_context()
    trust.load_verify_locations(certifi.where())  # beside the system's, which slim images lack
    secure = http.client.HTTPSConnection(host, port, context=trust)
    secure.sock = closing.enter_context(trust.wrap_socket(raw, server_hostname=host))
    return closing.enter_context(contextlib.closing(secure))


def reason(error: BaseException) -> str:
    """The library's words, short and on one line: a server can put anything into some of them."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in str(text))[:200]
