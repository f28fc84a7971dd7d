"""``wan2gp-supervisor``: a thin first process that hides secrets, then becomes ``python -m wan2gp.supervisor``.

Popping a secret from ``os.environ`` leaves it in ``/proc/self/environ``, and arguments stay in ``/proc/self/cmdline``.
So this process puts its whole environment and arguments into an anonymous file and executes the supervisor anew, with
nothing but its options in the arguments and, in the environment, only the variables that children may have too.
"""

from __future__ import annotations

import json
import os
import sys

from wan2gp.environment import SAFE_PATH, for_children
from wan2gp.processes import undumpable

SEALED_FD_ENV = "WAN2GP_SEALED_FD"
"""Names the descriptor of the anonymous file; holds nothing secret itself."""
SECRET_FLAGS = ("--database-url", "--supabase-access-token")
HELP_FLAGS = frozenset({"-h", "--help", "--version"})


def main() -> int:
    """Parse, seal, execute. Returns only for ``--help``, ``--version`` and arguments that cannot be understood."""
    undumpable()  # what an earlier life left may still be there, with our user id
    arguments = sys.argv[1:]
    if HELP_FLAGS & set(arguments):
        from wan2gp.options import supervisor_parser

        supervisor_parser().parse_args(arguments)  # prints and leaves
    shown, secrets = split_secrets(arguments)
    descriptor = seal({"environ": dict(os.environ), "secrets": secrets})
    environment = {**for_children(os.environ), SEALED_FD_ENV: str(descriptor)}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *SAFE_PATH, "-m", "wan2gp.supervisor", *shown], environment)


def split_secrets(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without secret options, and those options' values by option."""
    shown: list[str] = []
    secrets: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in SECRET_FLAGS:
            shown.append(argument)
        elif equals:
            secrets[flag] = value
        else:
            secrets[flag] = next(rest, "")
    return shown, secrets


def seal(content: dict[str, object]) -> int:
    """An anonymous file with ``content``, open across the execution that follows. Returns its descriptor."""
    descriptor = os.memfd_create("wan2gp-sealed", 0)  # without CLOEXEC: it must survive the exec
    os.write(descriptor, json.dumps(content).encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def unseal(environ: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The environment and the secret options that :func:`main` sealed; the file is gone afterwards.

    Without one (the module was started directly) the environment as it is, and no secret options.
    """
    named = environ.pop(SEALED_FD_ENV, None)
    if named is None:
        return environ, {}
    with os.fdopen(int(named), "rb") as file:
        content = json.load(file)
    return content["environ"], content["secrets"]


if __name__ == "__main__":
    sys.exit(main())
