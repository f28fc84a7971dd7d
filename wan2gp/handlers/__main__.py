"""``python -m wan2gp.handlers NAME``: what the shim starts. ``NAME`` is for whoever reads the list of processes.

Reads its :class:`~wan2gp.boot.Boot` from standard input, builds the target and serves until it is told to leave.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from wan2gp.boot import Boot, decode_boot
from wan2gp.handlers.api import Handler, HandlerContext
from wan2gp.handlers.link import Link
from wan2gp.handlers.runtime import serve
from wan2gp.processes import undumpable
from wan2gp.protocol import EngineState, Event, Hello
from wan2gp.secret import Secret

EXIT_BAD_START = 3
"""Exit status of a child that could not be built: its handler does not import or its engine does not start."""


def main() -> int:
    """Exit status 0 after an orderly leave, 3 when the handler cannot start, 1 for what nobody foresaw."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the rung above kill; close() runs on the way out
    boot = decode_boot(sys.stdin.buffer.read())
    _free_stdin()
    if boot.secrets:
        undumpable()  # before anything runs that is not ours: other handlers may have the same user id
    os.chdir(boot.home)
    link = Link(boot.endpoint, boot.identity, boot.beat_s)
    link.start()
    try:
        child = _build(boot, link)
    except Exception:
        # The catch-all around a start: whatever an engine raises at import becomes an exit status and last words.
        traceback.print_exc()
        link.close()
        return EXIT_BAD_START
    try:
        return _serve(child, boot, link)
    finally:
        link.close()


def _serve(child: Any, boot: Boot, link: Link) -> int:
    if isinstance(child, Handler):
        return serve(child, link, warm=boot.warm)
    link.send(Hello(os.getpid()))
    child.serve()
    return 0


def _build(boot: Boot, link: Link) -> Any:
    module, _, attribute = boot.target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    context = HandlerContext(
        name=boot.name,
        home=Path(boot.home),
        settings=boot.settings,
        event=lambda name, /, **fields: link.send(Event(name, fields)),
        engine_state=lambda state, **detail: link.send(EngineState(state, detail)),
        secrets={name: Secret(value) for name, value in boot.secrets.items()},
    )
    return target(context) if issubclass(target, Handler) else target(context, link)


def _free_stdin() -> None:
    """Nothing below this process inherits the pipe that carried the boot document."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


if __name__ == "__main__":
    sys.exit(main())
