"""What Storage answers instead of a file, made a failure: its HTTP status says 400 for nearly everything.

The true status is in the body. A signature that it does not take is said in :data:`SIGNATURE`, for the supervisor,
which can have another one made.
"""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from typing import Any

from wan2gp.handlers.api import TaskFailure
from wan2gp.handlers.locations import Location
from wan2gp.handlers.webstream import Reply
from wan2gp.protocol import SIGNATURE

_BODY_BYTES = 16 * 1024
_GONE = ("NoSuchKey", "NoSuchBucket", "not_found", "Bucket not found")
_UNSIGNED = ("InvalidJWT", "InvalidSignature", "ExpiredToken", "SignatureDoesNotMatch")
_DENIED = (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN)


def refusal_of_storage(location: Location, reply: Reply) -> TaskFailure:
    """The failure to raise. Of Storage's own words only known ones are passed on: others may repeat the signature."""
    body = _body(reply)
    status = _status(body, reply.status)
    said = {str(body.get("code")), str(body.get("error"))}
    detail: dict[str, Any] = {"status": status}
    if status == http.HTTPStatus.NOT_FOUND or not said.isdisjoint(_GONE):
        return TaskFailure("input.not_found", f"{location.shown} is not in the project's Storage", detail=detail)
    if status in _DENIED or not said.isdisjoint(_UNSIGNED):
        sentence = f"{location.shown}: Storage does not take the signature that it made: are the clocks right?"
        return TaskFailure("input.http_error", sentence, detail={**detail, SIGNATURE: "refused"})
    if again := reply.header("Retry-After"):
        detail["retry_after"] = again[:64]
    return TaskFailure("input.http_error", f"{location.shown}: Storage answered {status}", detail=detail)


def _body(reply: Reply) -> Mapping[str, Any]:
    """What it says, where that is the JSON of its errors."""
    text = b""
    try:
        for piece in reply.pieces():
            text += piece
            if len(text) > _BODY_BYTES:
                return {}
        found = json.loads(text)
    except (TaskFailure, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _status(body: Mapping[str, Any], sent: int) -> int:
    text = str(body.get("statusCode", ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) == 3 else sent
