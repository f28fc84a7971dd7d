"""What ComfyUI needs of this machine: its checkout and interpreter, models wherever they lie, and its own port."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from wan2gp.config import Config
from wan2gp.supervisor.needs import Needs

SPARE_PORTS = 4
"""Ports besides COMFY_PORT: for one that is taken, and for one that is taken between the look and the bind."""
PATH_LIST = "extra_model_paths.yaml"
LIST_FLAG = "--extra-model-paths-config"
PLACE_FLAGS = (
    *("--base-directory", "--models-directory", "--front-end-root", "--tls-keyfile", "--tls-certfile"),
    *(LIST_FLAG, "--extra-nodes"),
)
"""Flags of ComfyUI that name what it reads."""
VENVS = ("venv", ".venv")
NODE_LEVELS = 2
"""How far below the directory of packs of nodes links are looked for: the packs are large, and links lie near the top.
"""
WEB_PORTS = {"http": 80, "https": 443}


def comfy_needs(config: Config) -> Needs:
    """For the handler ``comfy`` and the server below it. Looks at no disk."""
    folder = None if config.comfy_path == "builtin" or config.comfy_url else _folder(config)
    lists = _flag_values(config.comfy_args, LIST_FLAG)
    bases = [*([folder] if folder else []), *_flag_values(config.comfy_args, "--base-directory")]
    ports, udp = _network(config)
    return Needs(
        read=tuple(_reads(config, folder)),
        write_settings=config.comfy_writable_paths,
        models=tuple(f"{base}/models" for base in bases),
        path_lists=(*lists, f"{folder}/{PATH_LIST}") if folder else tuple(lists),
        # A checkout whose parts lie on another disk: `models` on a network volume, say; and packs of nodes elsewhere.
        links={**({folder: 0} if folder else {}), **{f"{base}/custom_nodes": NODE_LEVELS for base in bases}},
        interpreters=tuple(_interpreters(config, folder)),
        tcp=ports,
        own_ports=not config.comfy_url,
        spare_ports=0 if config.comfy_url else SPARE_PORTS,
        udp=udp,
    )


def _folder(config: Config) -> str:
    return str(Path(config.comfy_path).expanduser().absolute())


def _reads(config: Config, folder: str | None) -> Iterator[str]:
    yield from config.input_allow_paths
    if config.comfy_warmup_workflow:
        yield str(Path(config.comfy_warmup_workflow).expanduser().absolute())
    for flag in PLACE_FLAGS:
        yield from _flag_values(config.comfy_args, flag)
    if folder is not None:
        yield folder


def _interpreters(config: Config, folder: str | None) -> Iterator[str]:
    if config.comfy_python:
        yield os.path.abspath(shutil.which(config.comfy_python) or config.comfy_python)
    if folder is not None:
        yield from (f"{folder}/{name}/bin/python" for name in VENVS)


def _flag_values(args: str, flag: str) -> list[str]:
    """All values that a command line gives to a flag, as absolute paths. A flag may have several: they end where the
    next one begins (argparse's ``nargs="+"``, which ComfyUI's list of paths has)."""
    found: list[str] = []
    ours = False
    for word in shlex.split(args):
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            ours = name == flag and not equals
            found += [value] if name == flag and equals else []
        elif ours:
            found.append(word)
    return [str(Path(value).expanduser().absolute()) for value in found if value]


def _network(config: Config) -> tuple[tuple[int, ...] | None, bool]:
    """Ports, and whether names must be looked up."""
    if config.comfy_network == "open":
        return None, True
    if not config.comfy_url:
        return (config.comfy_port,), False
    parts = urlsplit(config.comfy_url)
    return (parts.port or WEB_PORTS[parts.scheme],), not _is_address(parts.hostname or "")


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return host == "localhost"
