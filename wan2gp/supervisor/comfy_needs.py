"""What ComfyUI needs of this machine: its checkout and interpreter, models wherever they lie, and its own port."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from wan2gp.config import Config
from wan2gp.supervisor.grants import around, interpreter_reads, own_places
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
WEB_PORTS = {"http": 80, "https": 443}


def comfy_needs(config: Config) -> Needs:
    """For the handler ``comfy`` and the server below it."""
    closed = own_places(config)
    folder = None if config.comfy_path == "builtin" or config.comfy_url else _folder(config)
    read = [grant for place in _reads(config, folder) for grant in around(place, closed)]
    write = [grant for place in config.comfy_writable_paths for grant in around(place, closed)]
    lists = [*_flag_values(config.comfy_args, LIST_FLAG)]
    models = [f"{base}/{name}" for base in _bases(config, folder) for name in ("models", "custom_nodes")]
    ports, udp = _network(config)
    return Needs(
        read=tuple(read),
        write=tuple(write),
        models=tuple(models),
        path_lists=(*lists, f"{folder}/{PATH_LIST}") if folder else tuple(lists),
        tcp=ports,
        spare_ports=0 if config.comfy_url else SPARE_PORTS,
        own_ports=not config.comfy_url,
        udp=udp,
    )


def _folder(config: Config) -> str:
    return str(Path(config.comfy_path).expanduser().absolute())


def _bases(config: Config, folder: str | None) -> list[str]:
    return [*([folder] if folder else []), *_flag_values(config.comfy_args, "--base-directory")]


def _reads(config: Config, folder: str | None) -> Iterator[str]:
    yield from config.input_allow_paths
    if config.comfy_warmup_workflow:
        yield str(Path(config.comfy_warmup_workflow).expanduser().absolute())
    for flag in PLACE_FLAGS:
        yield from _flag_values(config.comfy_args, flag)
    if config.comfy_python:
        yield from interpreter_reads(config.comfy_python)
    if folder is None:
        return
    yield folder
    for name in ("venv", ".venv"):
        if os.path.exists(f"{folder}/{name}/bin/python"):
            yield from interpreter_reads(f"{folder}/{name}/bin/python")
    # A checkout whose parts lie on another disk: `models` on a network volume, say.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from [os.path.realpath(entry.path) for entry in entries if entry.is_symlink()]


def _flag_values(args: str, flag: str) -> list[str]:
    """All values that a command line gives to a flag, as absolute paths."""
    found: list[str] = []
    words = iter(shlex.split(args))
    for word in words:
        name, equals, value = word.partition("=")
        if name == flag:
            found.append(value if equals else next(words, ""))
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
