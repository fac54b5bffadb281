"""The kernels compile for every GPU they are meant for, once, and errors say what to do."""

from __future__ import annotations

import re
import sys

import pytest

import mimicmotion_trt as mm
from mimicmotion_trt.cuda import compiler
from mimicmotion_trt.cuda.compiler import compile_kernels
from mimicmotion_trt.cuda.launches import KERNELS

pytest.importorskip("cuda.bindings", reason="needs the GPU packages")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """NVRTC replaced by something quick; the architectures that were compiled for."""
    compiled: list[str] = []

    def compile_quickly(source: str, options: dict[str, str]) -> bytes:
        compiled.append(options["arch"])
        return options["arch"].encode()

    monkeypatch.setattr(compiler, "_compile", compile_quickly)
    return compiled


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_cubins_hold_every_kernel(arch, dtype, tmp_path):
    cubin = compile_kernels(arch, dtype, tmp_path)
    assert cubin[:4] == b"\x7fELF"
    assert int.from_bytes(cubin[18:20], "little") == 190  # EM_CUDA
    for kernel in KERNELS:
        assert f".text.{kernel}\0".encode() in cubin


def test_the_kernels_are_compiled_once(stand_in, tmp_path):
    for _ in range(3):
        assert compile_kernels("sm_90", "float16", tmp_path) == b"sm_90"
    assert stand_in == ["sm_90"]
    assert len(list(tmp_path.rglob("*"))) == 2  # a folder with one file: nothing is left beside it


def test_another_architecture_dtype_or_source_is_another_entry(stand_in, tmp_path, monkeypatch):
    compile_kernels("sm_90", "float16", tmp_path)
    compile_kernels("sm_120", "float16", tmp_path)
    compile_kernels("sm_90", "float32", tmp_path)
    changed = tmp_path / "kernels.cu"
    changed.write_text(compiler.SOURCE.read_text() + "// changed")
    monkeypatch.setattr(compiler, "SOURCE", changed)
    compile_kernels("sm_90", "float16", tmp_path)
    assert len(stand_in) == 4


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:20], lambda b: b[:-1], lambda b: b[:-1] + b"?"]
)
def test_a_damaged_entry_is_compiled_again(stand_in, tmp_path, damage):
    compile_kernels("sm_90", "float16", tmp_path)
    (entry,) = tmp_path.rglob("*.cubin")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert compile_kernels("sm_90", "float16", tmp_path) == b"sm_90"
    assert len(stand_in) == 2
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(stand_in, tmp_path):
    (tmp_path / "kernels").write_text("a file where the folder should be")
    assert compile_kernels("sm_90", "float16", tmp_path) == b"sm_90"


def test_a_kernel_that_does_not_compile(monkeypatch, tmp_path):
    broken = tmp_path / "kernels.cu"
    broken.write_text(compiler.SOURCE.read_text().replace("Place p = place(pixels);", "", 1))
    monkeypatch.setattr(compiler, "SOURCE", broken)
    with pytest.raises(mm.KernelError, match=r'identifier "p" is undefined') as caught:
        compile_kernels("sm_90", "float16", tmp_path)
    assert "kernels.cu(" in caught.value.message  # the line
    assert "pip install" in caught.value.remedy
    assert not list(tmp_path.rglob("*.cubin"))


def test_a_gpu_that_nvrtc_does_not_know(tmp_path):
    with pytest.raises(mm.KernelError, match=r"sm_990(.|\n)*architecture(.|\n)*Update"):
        compile_kernels("sm_990", "float16", tmp_path)


def test_a_dtype_without_kernels(tmp_path):
    with pytest.raises(mm.KernelError, match=r"bfloat16.*float16 or float32"):
        compile_kernels("sm_90", "bfloat16", tmp_path)


@pytest.mark.parametrize("missing", ["cuda.core", "cuda.bindings"])
def test_without_the_gpu_packages(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(mm.KernelError, match=r"mimicmotion-trt\[gpu\]"):
        compile_kernels("sm_90", "float16", tmp_path)


def test_without_the_headers(monkeypatch, tmp_path):
    import cuda.pathfinder

    monkeypatch.setattr(cuda.pathfinder, "find_nvidia_header_directory", lambda name: None)
    with pytest.raises(mm.KernelError, match=r"cuda_fp16\.h.*mimicmotion-trt\[gpu\]"):
        compile_kernels("sm_90", "float16", tmp_path)


def ptx_of(kernel: str) -> str:
    """What a kernel for float16 engines becomes before registers are given out."""
    from cuda.bindings import nvrtc

    flags = ["-arch=compute_80", "-std=c++17", "-fmad=false", f"-I{compiler._headers()}", "-DREAL=__half"]
    _, program = nvrtc.nvrtcCreateProgram(compiler.SOURCE.read_bytes(), b"kernels.cu", 0, [], [])
    (result,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytes(size)  # filled in place
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.decode().split(f".entry {kernel}(")[1].split(".entry ")[0]


@pytest.mark.parametrize("kernel", ["gather", "blend_step", "decoder_input"])
def test_latents_are_read_and_written_four_at_a_time(kernel):
    ptx = ptx_of(kernel)
    assert "ld.global.v4.f32" in ptx
    stores = re.findall(r"st\.global\.(\S+)", ptx)
    assert (
        stores
        == {"gather": ["v4.u16"] * 2, "blend_step": ["u32", "v4.f32"], "decoder_input": ["v4.u16"]}[kernel]
    )
    assert ".local" not in ptx
    assert "fma." not in ptx


def test_pictures_are_read_and_written_eight_at_a_time():
    ptx = ptx_of("to_pictures")
    assert re.findall(r"(?:ld|st)\.global\.(\S+)", ptx) == ["v4.u32"] * 3 + ["u32"] + ["v4.u16"] * 3
    assert ".local" not in ptx
