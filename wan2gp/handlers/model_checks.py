"""Whether a file of weights is whole, by its own structure: a truncated one is found without its checksum.

Nothing here loads weights: a header is read, within bounds, and compared with the size of the file. Formats:
safetensors (https://github.com/huggingface/safetensors#format), GGUF and ZIP, as PyTorch saves, by their magic and end.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import msgspec

from wan2gp.lora_names import PICKLES, SUFFIX

HEADER_MAX = 25_000_000
"""Bytes of a safetensors header that are read. The format allows four times as many; models of thousands of tensors
have less than one million."""
_LENGTH = struct.Struct("<Q")
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64},
    "C64": 64,
}
"""Of one element. Of a type that is not here only the place is compared."""


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def damage(path: Path, name: str) -> str | None:
    """What is wrong with the file, continuing "it …", or None. ``name``: as it is called, which says its format.
    Raises :class:`OSError`."""
    size = path.stat().st_size
    if not size:
        return "is empty"
    lower = name.lower()
    with path.open("rb") as file:
        if lower.endswith(SUFFIX):
            return _safetensors(file, size)
        if lower.endswith(".gguf"):
            return None if file.read(4) == b"GGUF" else "is no GGUF file"
        if lower.endswith(PICKLES) and file.read(2) == b"PK":
            return None if zipfile.is_zipfile(file) else "has lost its end"
    return None


def _safetensors(file: BinaryIO, size: int) -> str | None:
    length = int.from_bytes(file.read(_LENGTH.size), "little")
    if size < _LENGTH.size + 2:
        return f"has only {size} bytes"
    if length > HEADER_MAX:
        return "is no safetensors file: it has no header"
    if _LENGTH.size + length > size:
        return "has lost its end: not even its header is whole"
    try:
        header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        tensors = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in header.items() if name != _NOTES}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "is no safetensors file: its header cannot be read"
    return _misplaced(tensors, size - _LENGTH.size - length)


_NOTES = "__metadata__"


def _misplaced(tensors: dict[str, _Tensor], data_bytes: int) -> str | None:
    """The tensors lie one behind the other and fill the file to its end."""
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = tensor.data_offsets
        bits = _BITS.get(tensor.dtype)
        elements = math.prod(tensor.shape) if min(tensor.shape, default=0) >= 0 and len(tensor.shape) < 20 else -1
        if begin != at or end < begin or (bits is not None and end - begin != -(-elements * bits // 8)):
            return f"is damaged: the tensor {name[:80]!r} is not where its header says"
        at = end
    if at > data_bytes:
        return f"has lost its end: {at - data_bytes} of {at} bytes are missing"
    if at < data_bytes:
        return f"is damaged: {data_bytes - at} bytes stand behind its end"
    return None


def fsync_folder(folder: Path) -> None:
    """So that a rename in it outlives a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
