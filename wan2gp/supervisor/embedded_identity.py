"""As whom the embedded Postgres runs: it refuses uid 0, and ``initdb`` wants a uid that has a name.

An ordinary user with a name runs it as it is. Else a user namespace: inside, we look like a named user, outside every
file stays ours, nobody is created and no mode is changed. Where namespaces are refused (the default seccomp profile of
Docker, a chroot), root falls back to an unprivileged user that exists; that one must be able to reach the files. Where
it cannot (a checkout in root's home), it keeps of root's rights the one that passes by file modes, as it has inside a
namespace: still without any other, and not able to change who it is.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("embedded_launch.py")
_PREFERRED_USERS = ("postgres", "nobody")
_PROBE_S = 20.0


class EmbeddedUnavailable(Exception):
    """The embedded Postgres cannot run or be reached; the message says why and what to do."""


@dataclass(frozen=True)
class Identity:
    """``kind`` is ``plain``, ``namespace``, ``user`` or ``reaching``; ``uid`` and ``gid`` are what Postgres sees."""

    kind: str
    uid: int
    gid: int

    @property
    def foreign(self) -> bool:
        """True when the files must belong to ``uid`` rather than to us."""
        return self.kind in ("user", "reaching")

    @property
    def text(self) -> str:
        return "plain" if self.kind == "plain" else f"{self.kind}:{self.uid}:{self.gid}"

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """``argv`` under this identity, bound to the life of the calling thread."""
        return _launch(self, "run", argv)


def clean_environment() -> dict[str, str]:
    """What Postgres gets: no credentials, none of the PG* variables; only where the interpreter's own libraries are."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **kept}


def choose_identity(program: Path, data_dir: Path, owner: int | None) -> Identity:
    """The first identity that can execute ``program`` and enter ``data_dir``.

    ``owner``: uid that owns the existing cluster, None when there is none. Raises :class:`EmbeddedUnavailable`.
    """
    plain = Identity("plain", os.geteuid(), os.getegid())
    if os.geteuid() != 0 and _name_of(os.geteuid()):
        return plain
    refusals = []
    for candidate in _candidates(owner):
        refusal = _probe(candidate, [program, data_dir])
        if refusal is None:
            return candidate
        refusals.append(f"{candidate.text}: {refusal}")
    raise EmbeddedUnavailable(_NO_IDENTITY.format(uid=os.geteuid(), refusals="; ".join(refusals) or "no user to try"))


_NO_IDENTITY = (
    "cannot run the embedded Postgres as uid {uid}: it refuses root and nameless users, and no other identity works "
    "({refusals}). Run the worker as an ordinary user, or allow user namespaces, or put the data directory and the "
    "Python environment where the user `nobody` may reach them, or set DATABASE_URL."
)


def _candidates(owner: int | None) -> Iterator[Identity]:
    named = list(_named_users())
    root = os.geteuid() == 0
    if root and owner:
        with contextlib.suppress(KeyError):  # a cluster made by a fallback stays with its user
            group = pwd.getpwuid(owner).pw_gid
            yield from (Identity(kind, owner, group) for kind in ("user", "reaching"))
    if named:
        yield Identity("namespace", named[0].pw_uid, named[0].pw_gid)
    if root:
        users = [user for user in named if user.pw_name in _PREFERRED_USERS]
        for kind in ("user", "reaching"):
            yield from (Identity(kind, user.pw_uid, user.pw_gid) for user in users)


def _named_users() -> Iterator[pwd.struct_passwd]:
    for name in _PREFERRED_USERS:
        with contextlib.suppress(KeyError):
            yield pwd.getpwnam(name)
    yield from (user for user in pwd.getpwall() if user.pw_uid != 0 and user.pw_name not in _PREFERRED_USERS)


def _name_of(uid: int) -> str | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return None


def _launch(identity: Identity, verb: str, argv: Sequence[str | Path]) -> list[str]:
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), identity.text, verb]
    return [*launcher, *(str(part) for part in argv)]


def _probe(identity: Identity, paths: Sequence[Path]) -> str | None:
    """Why it cannot be used, or None."""
    try:
        done = subprocess.run(
            _launch(identity, "check", paths),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_S,
            env=clean_environment(),
        )
    except subprocess.TimeoutExpired:
        return "the probe did not end"
    if done.returncode == 0:
        return None
    return done.stderr.decode(errors="replace").strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}"
