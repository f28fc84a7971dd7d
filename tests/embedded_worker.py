"""A process that owns an embedded Postgres, to be killed: ``embedded_worker.py DATA_DIR RUN_DIR [docker] [weak]``.

It prints one line of JSON (``pid`` and ``url``, or ``error``) and ends cleanly at the end of its input. With ``docker``
it first takes away what Docker's default seccomp profile takes away: new user namespaces. With ``weak`` root is one for
whom modes of files count, as in a container without the capability DAC_OVERRIDE.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from pathlib import Path

from wan2gp.supervisor.embedded import EmbeddedPostgres, EmbeddedUnavailable

_UNSHARE = {"x86_64": 272, "aarch64": 97}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1
_ALLOW, _REFUSE_EPERM = 0x7FFF0000, 0x00050001


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def refuse_namespaces() -> None:
    """A BPF program of four instructions: unshare answers EPERM, all else goes through."""
    instructions = (
        (0x20, 0, 0, 0),  # load the system call's number
        (0x15, 0, 1, _UNSHARE[os.uname().machine]),
        (0x06, 0, 0, _REFUSE_EPERM),
        (0x06, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program)) == 0, os.strerror(
        ctypes.get_errno()
    )


def main(data_dir: str, run_dir: str, *rest: str) -> None:
    if "weak" in rest:
        assert ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0) == 0
    if "docker" in rest:
        refuse_namespaces()
    server = EmbeddedPostgres(Path(data_dir), Path(run_dir))
    try:
        server.start()
    except EmbeddedUnavailable as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    print(json.dumps({"pid": server.pid, "url": server.url.reveal()}), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
