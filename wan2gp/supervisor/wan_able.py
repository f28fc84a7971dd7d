"""Whether this worker can serve generation tasks, and which: looked at on the disk, without starting the engine.

What only a start shows (a broken environment, no CUDA) breaks the handler instead, whose cause then says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from wan2gp.config import Config
from wan2gp.model_places import FOLDERS, WEIGHTS, place_of
from wan2gp.supervisor.wan_needs import weights_places
from wan2gp.wan_types import TYPES
from wan2gp.wan_weights import NoWeights, choices_of, preferred

PROGRAM, API, API_MARK = "wgp.py", Path("shared", "api.py"), "class WanGPSession"
API_CHARS = 200_000
NOTICE = (
    "WanGP (https://github.com/deepbeepmeep/Wan2GP), which is not part of wan2gp: its own license applies. "
    "Selling access to it needs its author's permission, and sold outputs a credit: see docs/tasks.md"
)


def wan_unable(config: Config) -> str | None:
    """Why no task can be served, and what to do; None: nothing speaks against it."""
    if not config.wan2gp_path:
        return "no Wan2GP on this worker: set WAN2GP_PATH to its checkout"
    checkout = _checkout(config)
    if not checkout.is_dir():
        return f"no Wan2GP at {checkout} (WAN2GP_PATH): there is no such directory"
    if not (checkout / PROGRAM).is_file():
        return f"no Wan2GP at {checkout} (WAN2GP_PATH): it holds no {PROGRAM}"
    if API_MARK not in _text(checkout / API):
        return f"the Wan2GP at {checkout} (WAN2GP_PATH) is too old: its {API} has no WanGPSession; update it"
    if config.wan2gp_python and shutil.which(str(Path(config.wan2gp_python).expanduser())) is None:
        return f"no interpreter for Wan2GP: {config.wan2gp_python} (WAN2GP_PYTHON) is no program"
    return None


def wan_unable_types(config: Config) -> Mapping[str, str]:
    """Types whose own model has no weights here while none may be fetched. Rows of them that name another model wait
    too: the queue is asked by type."""
    if config.wan_download or wan_unable(config) is not None:
        return {}
    places = [Path(place) for place in weights_places(_checkout(config))]
    why = {model: _lacking(config, places, model) for model in {row.model for row in TYPES.values()}}
    return {name: sentence for name, row in TYPES.items() if (sentence := why[row.model]) is not None}


def _lacking(config: Config, places: list[Path], model: str) -> str | None:
    try:
        choices = choices_of(_checkout(config), model)
    except NoWeights:
        return None  # it is for the engine to say that there is no such model
    lacking = [preferred(urls) for urls in choices if not any(_is_here(config, places, url) for url in urls)]
    if not lacking:
        return None
    return (
        f"the weights of its model {model} are not on this machine (wan.download=false): put {' and '.join(lacking)} "
        f"into {places[0]}, or let the worker fetch them (wan.download=true)"
    )


def _is_here(config: Config, places: list[Path], url: str) -> bool:
    kept = config.models_directory() / FOLDERS[WEIGHTS] / place_of(WEIGHTS, url)
    return any(path.is_file() for path in (kept, *(place / url.rpartition("/")[2] for place in places)))


def _checkout(config: Config) -> Path:
    return Path(config.wan2gp_path).expanduser().absolute()


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(API_CHARS)
    except OSError:
        return ""
