"""Remedies: what TensorRT says is answered with what helps, and the builder takes the commands that are proposed."""

from __future__ import annotations

import re
import shlex
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from mimicmotion_trt.engines import EnginePlan, Placement, Profile, cuda_gpu, tensorrt_backend
from mimicmotion_trt.engines.bundle import COMMAND
from mimicmotion_trt.engines.tensorrt_checks import check_gpu, check_validity, for_backend, for_gpu, without
from mimicmotion_trt.engines.tensorrt_library import Library, open_library
from mimicmotion_trt.errors import BundleError
from mimicmotion_trt.export import build_engines, tensorrt_build
from mimicmotion_trt.export.options import Options, PlanOptions

from .stand_in_tensorrt import SPEC

NAMES = {
    86: "NVIDIA RTX A6000",
    89: "NVIDIA GeForce RTX 4090",
    90: "NVIDIA H100 80GB HBM3",
    120: "NVIDIA RTX 5090",
}
BUILT = (
    Options(backend="tensorrt-rtx"),
    Options(backend="tensorrt-rtx", precision="fp8", margin=1.2),
    Options(backend="tensorrt-rtx", plan=PlanOptions(capabilities=("SM80",), refit=True)),
    Options(
        backend="tensorrt-rtx",
        precision="fp8",
        deep_cache=True,
        note="a remark, --refit",
        plan=PlanOptions(5, 1024, 0, ("SM120",), True, True, (36,)),
    ),
    Options(backend="tensorrt", precision="fp8", margin=0.9, plan=PlanOptions(4, 512, 2, (), True, True, (8, 16))),
    Options(backend="onnxruntime", precision="fp8", margin=1.5, deep_cache=True),
    Options(backend="onnxruntime", defaults={"canvas": 512, "guidance": [1.0, 1.0]}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("CUDA driver version is insufficient for CUDA runtime version", "GPU's driver"),
        ("Error Code 1: Cuda Driver (Loader version is insufficient for fatbin)", "GPU's driver"),
        ("Insufficient driver: 12040 < 13000", "GPU's driver"),
        (
            "Error Code 10: Internal Error (Could not find any implementation for node conv due to insufficient "
            "workspace. See verbose log for requested sizes.)",
            "more --workspace",
        ),
        ("Try increasing the workspace size with IBuilderConfig::setMemoryPoolLimit.", "more --workspace"),
        ("Insufficient workspace: provided 12 bytes but plan requires 34 bytes.", "more --workspace"),
        ("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (out of memory)", "fewer pixels"),
        ("Error Code 2: OutOfMemory (Requested size was 123 bytes.)", "fewer pixels"),
        ("Cannot reformat, possibly due to insufficient memory.", "fewer pixels"),
        ("CHECK(status == CUDA_SUCCESS) failed. Error Code 1: Cuda Driver (out of memory)", "fewer pixels"),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 7.5, "
            "please rebuild.",
            "on this machine, or with --capability",
        ),
        ("The engine cannot run on this GPU, which has compute capability 9.0", "with --capability"),
        (
            "The engine plan file is not compatible with this version of TensorRT, expecting library version "
            "11.4.0 got 11.3.0, please rebuild.",
            "version that built",
        ),
        (
            "Error Code 1: Serialization (Version tag does not match. Note: Current Version: 96, Serialized Engine "
            "Version: 97)",
            "version that built",
        ),
        ("Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.", "damaged"),
        ("CHECK(res == CUDA_SUCCESS) failed. ", "leave out --refit"),
        ("Insufficient registers (255) to compile instruction at line 3", "as usual"),
        ("This version does not support building engines for Windows.", "as usual"),
    ],
)
def test_what_the_library_says_is_answered_with_what_helps(said, remedy):
    library = Library("tensorrt", None, None, deque([said]))
    told, answer = library.explain("as usual")
    assert told == said
    assert remedy in answer


@pytest.fixture
def builder(monkeypatch):
    """What the builder makes of a command, or refuses: its own parser, its options, its look at the target."""

    def read(command: str, gpu: str = "") -> Options:
        seen: list[Options] = []

        def build(base: str, checkpoint: Path, output: Path, options: Options, **_: Any) -> None:
            tensorrt_build.check_target(options)
            seen.append(options)
            raise KeyboardInterrupt  # the command ends

        monkeypatch.setattr(build_engines, "build_bundle", build)
        monkeypatch.setattr(tensorrt_build, "gpu_name", lambda *_: gpu)
        python, script, *arguments = shlex.split(command)
        assert (python, script) == ("python", "export/build_engines.py")
        done = CliRunner().invoke(build_engines.app, arguments)
        assert seen, f"{command}: {done.output}"
        return seen[0]

    return read


@pytest.mark.parametrize("capability", NAMES)
@pytest.mark.parametrize("options", BUILT[:4], ids=lambda options: options.arguments[10:40])
def test_the_builder_takes_what_a_refused_portable_plan_proposes(builder, options, capability):
    """Which goes on to run where it ran, but for one kept open, which is for one kind of GPU."""
    library = open_library("tensorrt-rtx")
    bits = int(library.api.EngineInvalidityDiagnostics.UNSUPPORTED_CC)
    runtime = SimpleNamespace(get_engine_validity=lambda data: (library.api.EngineValidity.INVALID, bits))
    gpu: Any = SimpleNamespace(name=NAMES[capability], capability=f"SM{capability}")
    with pytest.raises(BundleError) as caught:
        check_validity(
            library, runtime, b"", gpu, "unet.plan", f"{COMMAND} {options.arguments}", "SM80 SM120"
        )
    (command,) = re.findall("`(.*)`", caught.value.remedy)
    taken = builder(command, f"{gpu.name} {gpu.capability}")
    assert taken.backend == ("tensorrt" if capability == 90 else "tensorrt-rtx")
    before = options.plan.capabilities or ("SM80", "SM120")
    kept = () if options.plan.refit else before
    assert taken.backend == "tensorrt" or set(taken.plan.capabilities) == {*kept, gpu.capability}


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda:7"])
@pytest.mark.parametrize("options", BUILT[:5], ids=lambda options: options.arguments[10:40])
def test_a_plan_that_is_refused_without_a_gpu_proposes_the_cpu(builder, monkeypatch, options, device):
    """What the builder takes: the doctor proposes the same."""
    monkeypatch.setattr(cuda_gpu, "load_driver", lambda: SimpleNamespace(cuDriverGetVersion=no_driver))
    plan = EnginePlan(f"{options.backend} 1.0", "SM89", (Profile({}),))
    with pytest.raises(BundleError) as caught:
        tensorrt_backend.open_engine(
            Path("unet.plan"), SPEC, Placement(device), plan=plan,
            command=f"{COMMAND} {options.arguments}",
        )  # fmt: skip
    (command,) = re.findall("`(.*)`", caught.value.remedy)
    taken = builder(command)
    assert (taken.backend, taken.precision, taken.plan) == ("onnxruntime", "fp32", PlanOptions())
    assert (taken.sizes, taken.note, taken.deep_cache) == (options.sizes, options.note, options.deep_cache)


def no_driver() -> None:
    raise RuntimeError("libcuda.so.1 is not found")


@pytest.mark.parametrize("capability", NAMES)
def test_the_builder_takes_what_a_refused_plan_of_tensorrt_proposes(builder, capability):
    gpu: Any = SimpleNamespace(name=NAMES[capability], capability=f"SM{capability}")
    plan = EnginePlan("tensorrt 11.4.0.106", "NVIDIA L40S SM89", (Profile({}),))
    with pytest.raises(BundleError) as caught:
        check_gpu(gpu, plan, 1, "unet.plan", f"{COMMAND} {BUILT[4].arguments}", portable=False)
    (command,) = re.findall("`(.*)`", caught.value.remedy)
    taken = builder(command, f"{gpu.name} {gpu.capability}")
    assert taken.precision == ("fp8" if capability >= 89 else "fp16")


def test_commands_are_changed_option_by_option():
    old = f"{COMMAND} --backend tensorrt-rtx …"  # of a bundle that does not say its options
    assert for_gpu(old, "SM86", portable=True) == f"{old} --capability SM86"
    assert for_gpu("--capability SM86", "SM86", portable=True) == "--capability SM86"
    assert for_gpu("", "SM86", portable=True) == "--capability SM86"
    assert for_gpu(old, "SM86", portable=False) == old
    assert for_backend("--note 'a b' --backend x --refit", "torch") == "--note 'a b' --backend torch --refit"
    assert for_backend("", "torch") == "--backend torch"
    assert without("--refit --level 3 --note --level", ("--level",)) == "--refit --note --level"
