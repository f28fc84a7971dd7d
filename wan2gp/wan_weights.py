"""Which weights a model's definition names: read from Wan2GP's checkout, without its code. A leaf.

A definition (``defaults/<model>.json``, or the operator's in ``finetunes/``) lists the same weights in several
precisions, of which the engine loads one. What its code adds to that (text encoders, shared detectors) only the engine
knows: it asks for those when it loads the model for the first time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHOSEN = ("URLs", "URLs2")
"""Of each list the engine takes one."""
WHOLE = ("preload_URLs", "VAE_URLs", "loras")
DEEPEST = 10
"""Definitions that refer to one another."""
FILE_BYTES = 1 << 20
_NAME = re.compile(r"[\w.-]{1,100}")


class NoWeights(Exception):
    """They cannot be told; the message is a sentence."""


def weights_of(checkout: Path, model: str) -> tuple[str, ...]:
    """URLs, each once. Raises :class:`NoWeights`."""
    found = [url for key in CHOSEN for url in _one(_listed(checkout, model, key, DEEPEST))]
    found += [url for key in WHOLE for url in _listed(checkout, model, key, DEEPEST)]
    found += [url for urls in _modules(checkout, model, DEEPEST) for url in _one(urls)]
    plain = (url.partition("|")[0] for url in found)  # behind it stands a directory of the engine's
    urls = tuple(dict.fromkeys(url for url in plain if _is_web(url)))
    if not urls:
        raise NoWeights(f"the definition of the model {model} names no weights: the engine asks for them at its load")
    return urls


def choices_of(checkout: Path, model: str) -> tuple[tuple[str, ...], ...]:
    """The lists of which the engine needs one file each: the same weights in several precisions. Lists of which a file
    lies on this machine's disk by its path are left out. Raises :class:`NoWeights` without a definition."""
    found = [_listed(checkout, model, key, DEEPEST) for key in CHOSEN]
    found += _modules(checkout, model, DEEPEST)
    return tuple(tuple(urls) for urls in found if urls and all(_is_web(url) for url in urls))


def preferred(urls: Sequence[str]) -> str:
    """Of such a list, the file's name that the engine would load with the settings that it gets here."""
    return _one(list(urls))[0].rpartition("/")[2]


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _one(urls: list[str]) -> list[str]:
    """The one that the engine loads with the settings that it gets here: 8 bits before more, bf16 before fp16."""
    small = [url for url in urls if "int8" in _file(url)] or [url for url in urls if "fp8" in _file(url)]
    even = [url for url in small if "bf16" in _file(url)]
    return (even or small or urls)[:1]


def _file(url: str) -> str:
    return url.rpartition("/")[2].lower()


def _listed(checkout: Path, model: str, key: str, depth: int) -> list[str]:
    """A text instead of a list is the name of a model whose list it is."""
    given = _definition(checkout, model).get(key)
    if isinstance(given, str) and not given.startswith("http"):
        return _listed(checkout, given, key, depth - 1) if depth else []
    given = [given] if isinstance(given, str) else given
    return [url for url in given if isinstance(url, str)] if isinstance(given, list) else []


def _modules(checkout: Path, model: str, depth: int) -> Iterator[list[str]]:
    given = _definition(checkout, model).get("modules")
    for module in given if isinstance(given, list) else ():
        if isinstance(module, list):
            yield [url for url in module if isinstance(url, str)]
        elif isinstance(module, str) and module.startswith("http"):
            yield [module]
        elif isinstance(module, str) and depth:
            yield from _modules(checkout, module.partition("#")[0], depth - 1)


def _definition(checkout: Path, model: str) -> dict[str, Any]:
    if not _NAME.fullmatch(model):
        raise NoWeights(f"{model[:100]!r} is no name of a model")
    for folder in ("finetunes", "defaults"):  # the operator's own goes first, as in the engine
        try:
            with (checkout / folder / f"{model}.json").open(encoding="utf-8") as file:
                found = json.loads(file.read(FILE_BYTES))["model"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise NoWeights(f"the definition of the model {model} cannot be read: {error}") from error
        if isinstance(found, dict):
            return found
    raise NoWeights(f"there is no model {model} in {checkout}: see its directory `defaults` for those there are")
