"""What Supabase Storage answers instead of success, made a failure with a code and advice.

Its HTTP status is 400 for nearly everything, and the true one stands in the body; a gateway before it, and the protocol
of resumable uploads, mean the status that they send.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from wan2gp.supervisor.publish import PublishFailed
from wan2gp.supervisor.supabase_project import retry_after_s

_SAID = 200
_FORBIDDEN = ("AccessDenied", "InvalidJWT", "InvalidSignature", "SignatureDoesNotMatch", "ExpiredToken")
_NOW_ONLY = frozenset({408, 423, 425, 429})
RETRY = "then run `wan2gp-ctl publish retry`"


@dataclass(frozen=True)
class Target:
    """What a request is about. ``size``: of the file that is sent, bytes."""

    verb: str
    """``upload``, ``delete`` …: the sentence begins with it."""
    bucket: str
    path: str = ""
    size: int | None = None

    @property
    def shown(self) -> str:
        return f"{self.bucket}/{self.path}" if self.path else self.bucket

    def cannot(self) -> str:
        """The beginning of a sentence that ends with the reason."""
        preposition = {"upload": "upload to", "delete": "delete in"}.get(self.verb, self.verb)
        return f"cannot {preposition} {self.shown}"


@dataclass(frozen=True)
class Answer:
    """One answer, its body cut at a bound."""

    status: int
    headers: httpx.Headers
    text: str
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What must not be repeated, whoever says it."""

    def json(self) -> Mapping[str, Any]:
        """The object in the body; empty for everything else."""
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def true_status(self) -> int:
        text = str(self.json().get("statusCode", ""))
        return int(text) if text.isascii() and text.isdigit() and len(text) == 3 else self.status

    @property
    def kinds(self) -> set[str]:
        """The names of the error, new and old."""
        body = self.json()
        return {str(body[key]) for key in ("code", "error") if key in body}

    @property
    def said(self) -> str:
        """Its own words, short, on one line, without secrets."""
        body = self.json()
        text = str(body.get("message") or body.get("msg") or body.get("error") or self.text)
        return spoken(text, self.secrets) or "without a word"


class StorageMissing(PublishFailed):
    """There is no such bucket, or no such object in it."""


def spoken(text: str, secrets: tuple[str, ...] = ()) -> str:
    """A stranger's words: no secret, nothing that moves a cursor, and not many of them."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:_SAID]


def failure_of(answer: Answer, target: Target) -> PublishFailed:
    """The failure that the answer means."""
    status, kinds = answer.true_status, answer.kinds
    if answer.status in _NOW_ONLY or status in _NOW_ONLY or (max(status, answer.status) >= 500 and status != 507):
        return unavailable(target, f"Storage answered {status}: {answer.said}", _retry_after(answer))
    if status in (402, 507) or "quota" in answer.said.lower():
        return _quota(answer, target)
    if "NoSuchBucket" in kinds or "Bucket not found" in kinds or answer.text.strip() == "Bucket not found":
        return bucket_missing(target)
    if "NoSuchKey" in kinds or "not_found" in kinds:
        return StorageMissing(
            "publish.object_missing", f"{target.cannot()}: Storage has no such object", permanent=True
        )
    if status in (401, 403) or not kinds.isdisjoint(_FORBIDDEN):
        return _forbidden(answer, target)
    if status == 413 or "EntityTooLarge" in kinds:
        return _too_large(answer, target)
    return _refused(answer, target, status)


def unavailable(target: Target, why: str, again_s: float | None = None) -> PublishFailed:
    """It may work later, without anybody's doing."""
    return PublishFailed("publish.unavailable", f"{target.cannot()}: {why}", permanent=False, retry_after_s=again_s)


def bucket_missing(target: Target) -> PublishFailed:
    return StorageMissing(
        "publish.bucket_missing",
        f"{target.cannot()}: the project has no bucket {target.bucket!r}: create it, or set SUPABASE_VIDEO_BUCKET to "
        f"one that exists, {RETRY}",
        permanent=True,
    )


def _quota(answer: Answer, target: Target) -> PublishFailed:
    return _permanent(
        "publish.quota",
        target,
        f"the project is over a quota ({answer.said}): free space, upgrade its plan or lift its spend cap, {RETRY}",
    )


def _forbidden(answer: Answer, target: Target) -> PublishFailed:
    return _permanent(
        "publish.forbidden",
        target,
        f"Storage does not accept the key for that ({answer.said}): give the project's own service role key in "
        f"SUPABASE_SERVICE_ROLE_KEY, {RETRY}",
    )


def _too_large(answer: Answer, target: Target) -> PublishFailed:
    size = f"the file's {target.size} bytes are" if target.size is not None else "it is"
    return _permanent(
        "publish.too_large",
        target,
        f"{size} more than the bucket or the project takes ({answer.said}): raise the file size limit of the bucket "
        f"{target.bucket!r} and the project's upload limit (Storage, Settings), {RETRY}",
    )


def _refused(answer: Answer, target: Target, status: int) -> PublishFailed:
    said = f"Storage answered {status}: {answer.said}"
    if status == 415 or "invalid_mime_type" in answer.kinds:
        advice = f"allow this type in the settings of the bucket {target.bucket!r}, {RETRY}"
    elif "InvalidKey" in answer.kinds:
        advice = f"use letters, digits and plain signs in WAN2GP_STORAGE_PATH, {RETRY}"
    elif status == 404 or 300 <= status < 400:
        advice = f"check that SUPABASE_URL is the project's own, {RETRY}"
    else:
        advice = f"mend what it names, {RETRY}"
    return _permanent("publish.refused", target, f"{said}: {advice}")


def _permanent(code: str, target: Target, why: str) -> PublishFailed:
    return PublishFailed(code, f"{target.cannot()}: {why}", permanent=True)


def _retry_after(answer: Answer) -> float | None:
    return retry_after_s(answer.headers.get("Retry-After"))
