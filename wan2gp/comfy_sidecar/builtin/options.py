"""The command line: every flag a supervisor may pass to ComfyUI is accepted; most have no effect here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SWITCHES = """
auto-launch cuda-malloc disable-cuda-malloc force-fp32 force-fp16 fp32-unet fp64-unet bf16-unet fp16-unet
fp8_e4m3fn-unet fp8_e5m2-unet fp8_e8m0fnu-unet fp16-vae fp32-vae bf16-vae cpu-vae fp8_e4m3fn-text-enc
fp8_e5m2-text-enc fp16-text-enc fp32-text-enc bf16-text-enc force-channels-last disable-ipex-optimize
supports-fp8-compute use-split-cross-attention use-quad-cross-attention use-pytorch-cross-attention
use-sage-attention use-flash-attention disable-xformers force-upcast-attention dont-upcast-attention gpu-only
highvram normalvram lowvram novram cpu async-offload force-non-blocking disable-smart-memory deterministic
mmap-torch-files disable-mmap quick-test-for-ci windows-standalone-build disable-all-custom-nodes
disable-api-nodes multi-user enable-compress-response-body disable-auto-launch
"""
"""Accepted and without effect here."""

VALUES = """
tls-keyfile tls-certfile oneapi-device-selector preview-method default-hashing-function front-end-version
comfy-api-base database-url
"""
"""Accepted with one value, without effect here."""

OPTIONAL_VALUES = "enable-cors-header directml"
LISTS = "extra-model-paths-config whitelist-custom-nodes fast"


@dataclass(frozen=True)
class Options:
    """What the engine takes from the command line. `cache_lru` is None for the default cache, 0 for none."""

    addresses: tuple[str, ...]
    port: int
    input_dir: Path
    output_dir: Path
    temp_dir: Path
    max_upload_bytes: int
    cache_lru: int | None
    metadata: bool
    announce: bool
    log_level: str
    log_stdout: bool
    extra_nodes: Path | None


def parse(argv: Sequence[str]) -> Options:
    """Exits with code 2 for a flag ComfyUI does not have, as ComfyUI does."""
    args = _parser().parse_args(argv)
    base = args.base_directory or Path.cwd() / "comfyui-builtin"
    cache_lru: int | None = None
    if args.cache_none:
        cache_lru = 0
    elif args.cache_lru > 0:
        cache_lru = args.cache_lru
    return Options(
        addresses=tuple(part.strip() for part in args.listen.split(",")),
        port=args.port,
        input_dir=(args.input_directory or base / "input").absolute(),
        output_dir=(args.output_directory or base / "output").absolute(),
        temp_dir=((args.temp_directory or base) / "temp").absolute(),
        max_upload_bytes=round(args.max_upload_size * 1024 * 1024),
        cache_lru=cache_lru,
        metadata=not args.disable_metadata,
        announce=not args.dont_print_server,
        log_level=args.verbose,
        log_stdout=args.log_stdout,
        extra_nodes=args.extra_nodes,
    )


def _existing_dir(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a valid directory.")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wan2gp.comfy_sidecar.builtin", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--listen", nargs="?", default="127.0.0.1", const="0.0.0.0,::", metavar="IP")
    add("--port", type=int, default=8188)
    add("--base-directory", type=Path)
    add("--input-directory", type=Path)
    add("--output-directory", type=Path)
    add("--temp-directory", type=Path, help="the folder in which the folder `temp` is made")
    add("--user-directory", type=_existing_dir)
    add("--front-end-root", type=_existing_dir)
    add("--max-upload-size", type=float, default=100, metavar="MB")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument("--cache-classic", action="store_true")
    cache.add_argument("--cache-lru", type=int, default=0)
    cache.add_argument("--cache-none", action="store_true")
    add("--disable-metadata", action="store_true", help="write no prompt into the files")
    add("--dont-print-server", action="store_true")
    add(
        "--verbose",
        nargs="?",
        default="INFO",
        const="DEBUG",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    add("--log-stdout", action="store_true")
    add(
        "--extra-nodes",
        type=Path,
        help="a Python file with NODE_CLASS_MAPPINGS (only this engine has the flag)",
    )
    add("--cuda-device", "--default-device", type=int)
    add("--preview-size", type=int)
    add("--reserve-vram", type=float)
    for name in SWITCHES.split():
        add(f"--{name}", action="store_true")
    for name in VALUES.split():
        add(f"--{name}")
    for name in OPTIONAL_VALUES.split():
        add(f"--{name}", nargs="?")
    for name in LISTS.split():
        add(f"--{name}", nargs="*", action="append")
    return parser
