"""Makes processes without end: `prey["times"]` of them in all, which sleep; what stopped it is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hostile.tries import Tries


def attempt(tries: Tries, prey: Mapping[str, Any], place: Path) -> None:
    made: list[int] = []
    tries("processes", lambda: forked(int(prey["times"]), made))
    time.sleep(float(prey.get("hold_s", 0)))
    for pid in made:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    tries("threads", lambda: threads(int(prey["times"])))
    tries.saw["made"] = str(len(made))


def forked(times: int, made: list[int]) -> int:
    for _ in range(times):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            while True:
                signal.pause()
        made.append(pid)
    return len(made)


def threads(times: int) -> int:
    over = threading.Event()
    running = []
    try:
        for _ in range(times):
            running.append(one := threading.Thread(target=over.wait, args=(60,), daemon=True))
            one.start()
    except RuntimeError as error:  # so Python calls EAGAIN
        raise BlockingIOError(11, str(error)) from error
    finally:
        over.set()
    return len(running)
