"""Which environment variables a child may have: those on a list, and nothing that looks like a credential.

An engine runs other people's code, so it gets what it needs to run (paths, locale, the GPU's and the caches' settings)
and no more. A list of what is secret could never be complete.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

_EXACT = frozenset(
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TERM TMPDIR TEMP TMP PWD VIRTUAL_ENV LD_LIBRARY_PATH LD_PRELOAD "
    "PYTHONPATH PYTHONHOME PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONWARNINGS PYTHONUTF8 PYTHONFAULTHANDLER "
    "PYTHONPYCACHEPREFIX PYTHONIOENCODING SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE DO_NOT_TRACK "
    "XDG_RUNTIME_DIR XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME RUNPOD_POD_ID".split()
)
_PREFIXES = (
    *("LC_", "CUDA_", "NVIDIA_", "NCCL_", "NV_", "CUBLAS_", "CUDNN_", "HIP_", "ROCR_", "ROCM_", "HSA_", "ZE_"),
    *("TORCH", "PYTORCH_", "TRITON_", "XFORMERS_", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "KMP_", "GOMP_", "MALLOC_"),
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "VHS_", "IMAGEIO_", "FFMPEG_", "OPENCV_", "NUMBA_"),
    *("TF_", "JAX_", "XLA_", "LOKY_"),
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|PRIVATE|(?:^|_)(?:API)?_?KEY(?:S|$|_)|AUTH", re.IGNORECASE)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()
"""Flags of an interpreter that imports nothing from its working directory, where handlers may write (from 3.11 on)."""


def for_children(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of ``environ`` that any process below the supervisor may see."""
    return {name: value for name, value in environ.items() if _allowed(name, value)}


def _allowed(name: str, value: str) -> bool:
    if _SECRET.search(name) or _URL_WITH_PASSWORD.search(value):
        return False
    return name in _EXACT or name.startswith(_PREFIXES)
