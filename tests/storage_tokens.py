"""Signed URLs as Storage makes them: a JWT over the object's path, with an end."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from typing import Any

from tests.storage_shelf import StorageError


class Tokens:
    """Made and checked with a secret of this stand-in's own."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.time
        self._secret = secrets.token_bytes(32)

    def sign(self, path: str, lifetime_s: float, **more: Any) -> str:
        payload = {"url": path, **more, "iat": int(self.clock()), "exp": self.clock() + lifetime_s}
        head = _encoded({"alg": "HS256"}) + "." + _encoded(payload)
        return f"{head}.{self._mark(head)}"

    def check(self, token: str, path: str) -> dict[str, Any]:
        """The payload. Raises :class:`StorageError` for a token that is forged, too old, or another object's."""
        head, _, mark = token.rpartition(".")
        if not hmac.compare_digest(mark, self._mark(head)):
            raise StorageError(400, "InvalidJWT", "signature verification failed")
        payload: dict[str, Any] = json.loads(_decoded(head.partition(".")[2]))
        if payload["exp"] < self.clock():
            raise StorageError(400, "InvalidJWT", '"exp" claim timestamp check failed')
        if payload["url"] != path:
            raise StorageError(400, "InvalidSignature", "Invalid signature")
        return payload

    def _mark(self, head: str) -> str:
        return _base64(hmac.new(self._secret, head.encode(), hashlib.sha256).digest())


def _encoded(value: Any) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
