"""`kernels.cu` to machine code: NVRTC, once for each GPU architecture, then from a cache on disk.

Needs no GPU and no driver.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..errors import KernelError
from ..files import cache_folder, keep_in_cache

SOURCE = Path(__file__).with_name("kernels.cu")
REALS = {"float16": "__half", "float32": "float"}
"""numpy's name of the engines' dtype -> REAL in the source."""

_INSTALL = 'Install the GPU packages: pip install "mimicmotion-trt[gpu]", or [rtx] for TensorRT-RTX.'
_UPDATE = (
    "Update the GPU packages (pip install -U cuda-core cuda-bindings nvidia-cuda-nvrtc nvidia-cuda-runtime "
    "nvidia-cuda-crt): an older NVRTC does not know a newer GPU. If that does not help, report this log."
)


def compile_kernels(arch: str, dtype: str, cache: Path | None = None) -> bytes:
    """The cubin of the kernels for an architecture such as "sm_90", with REAL = `dtype`, float16 or float32.

    `cache` is a folder, by default `cache_folder()`. Raises `KernelError` if the kernels do not compile.
    """
    if dtype not in REALS:
        raise KernelError(f"there are no CUDA kernels for {dtype}.", remedy=f"Use {' or '.join(REALS)}.")
    source = SOURCE.read_text(encoding="utf-8")
    # No fused multiply-add: the same bits as numpy, and at the speed of memory it costs nothing.
    options = {"arch": arch, "std": "c++17", "fma": False, "define_macro": [("REAL", REALS[dtype])]}
    key = hashlib.sha256(repr((source, options, _nvrtc_version())).encode()).hexdigest()
    path = (cache or cache_folder()) / "kernels" / f"{arch}-{dtype}-{key[:32]}.cubin"
    cubin = _read(path)
    if cubin is None:
        cubin = _compile(source, options)
        keep_in_cache(path, hashlib.sha256(cubin).digest() + cubin)
    return cubin


def _compile(source: str, options: dict[str, Any]) -> bytes:
    from cuda.core import Program, ProgramOptions

    headers = _headers()
    try:
        program = Program(source, "c++", ProgramOptions(name=SOURCE.name, include_path=[headers], **options))
        return bytes(program.compile("cubin").code)
    except Exception as error:  # cuda.core and NVRTC raise kinds of their own, without a common base
        log = str(error).replace("\0", "").strip()
        raise KernelError(
            f"the CUDA kernels do not compile for {options['arch']}: {log}", remedy=_UPDATE
        ) from error


def _nvrtc_version() -> tuple[int, int]:
    try:
        import cuda.core  # noqa: F401 - that it is there is checked before anything is read from the cache
        from cuda.bindings import nvrtc

        result, major, minor = nvrtc.nvrtcVersion()
    except ImportError as error:
        raise KernelError(f"cuda.core cannot be imported: {error}.", remedy=_INSTALL) from error
    except Exception as error:  # the library itself was not found, in one of several kinds of error
        raise KernelError(f"NVRTC cannot be loaded: {error}", remedy=_INSTALL) from error
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(f"NVRTC does not tell its version: {result}.", remedy=_UPDATE)
    return major, minor


def _headers() -> str:
    from cuda.pathfinder import find_nvidia_header_directory

    folder = find_nvidia_header_directory("cudart")
    if folder is None:
        raise KernelError("CUDA's headers (cuda_fp16.h) were not found.", remedy=_INSTALL)
    return str(folder)


def _read(path: Path) -> bytes | None:
    """A cached cubin; None if there is none or it is damaged. Its first 32 bytes are the digest of the rest."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, cubin = stored[:32], stored[32:]
    return cubin if hashlib.sha256(cubin).digest() == digest else None
