"""TensorRT and TensorRT-RTX on this GPU, whichever is installed, with the golden networks; building takes minutes.

TensorRT-RTX offers no code for data-centre GPUs: its tests are skipped where its plans do not load.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, MimicMotionError
from mimicmotion_trt.engines import Bundle, call_sizes, open_engine
from mimicmotion_trt.engines.spec import FLAVOURS
from mimicmotion_trt.engines.tensorrt_library import open_library
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
BOUNDS = {"fp16": 0.02, "fp8": 0.5}
"""Largest relative L2 error of the last latents of a golden run."""
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def capability(needs_gpu: None) -> str:
    """Of this GPU: SM90."""
    import torch

    return "SM{}{}".format(*torch.cuda.get_device_capability())


@pytest.fixture(scope="module", params=list(FLAVOURS))
def library(request: pytest.FixtureRequest, capability: str) -> str:
    """The libraries that are installed and offer code for this GPU."""
    name: str = request.param
    if importlib.util.find_spec(FLAVOURS[name]) is None:
        pytest.skip(f"needs {name}, which is not installed")
    if name == "tensorrt-rtx" and not hasattr(open_library(name).api.ComputeCapability, capability):
        pytest.skip(f"TensorRT-RTX offers no code for {capability}")
    return name


@pytest.fixture(scope="module")
def build(golden: Path, library: str, capability: str, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A bundle of the golden networks for this GPU, built once for the same arguments."""
    folder = tmp_path_factory.mktemp(library)

    def make(
        name: str = "fp16", precision: str = "fp16", checkpoint: Path | None = None, **given: Any
    ) -> Path:
        refit_from = given.pop("refit_from", None)
        plan = PlanOptions(capabilities=(capability,) if library == "tensorrt-rtx" else (), **given)
        options = Options(
            backend=library, precision=precision, sizes=((64, 128), (128, 64)), segment=8, rows=(1, 2),
            defaults={"canvas": 512}, plan=plan,
        )  # fmt: skip
        base, weights = golden / "tiny" / "svd", checkpoint or golden / "tiny" / "mimicmotion.pth"
        build_bundle(base, weights, folder / name, options, refit_from=refit_from)
        return folder / name

    return make


def latents_of(bundle: Path, run: Any, **given: Any) -> Any:
    with Animator.load(bundle, **given) as animator:
        return animator.sample(
            run.picture,
            run.poses,
            run.settings,
            initial_latents=run.initial_latents[0],
            image_noise=run.noise,
        )


@pytest.mark.parametrize("name", ["single", "long", "augmented"])
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_golden_run_gives_the_references_latents(build, capability, golden_run, relative, precision, name):
    if precision == "fp8" and int(capability[2:]) < 89:
        pytest.skip(f"{capability} does not multiply in float8")
    run = golden_run(name)
    found = latents_of(build(precision, precision), run)
    assert relative(found, run.latents_after_step[-1]) <= BOUNDS[precision]


def test_the_unets_products_are_not_widened_to_float32(build):
    with closing(open_engine(Bundle.load(build()), "unet")) as engine:
        layers = engine.layers()
    assert layers.count > 0
    assert len(layers.wide) <= layers.count / 20


def test_weights_in_the_hosts_memory_give_the_same_answer(build, relative):
    bundle = Bundle.load(build("streaming", weight_streaming=True))
    at_home, streamed = (prediction_of(bundle, budget) for budget in (None, 0))
    assert relative(streamed, at_home) <= BOUNDS["fp16"]


def prediction_of(bundle: Bundle, budget: int | None) -> Any:
    """The U-Net's answer to random inputs with at most `budget` bytes of weights on the GPU; None: as fits best."""
    sizes, chance = call_sizes(8, (8, 16)), np.random.default_rng(0)
    with closing(open_engine(bundle, "unet")) as engine:
        engine.stream_weights(budget)
        inputs, outputs = (
            {tensor.name: chance.normal(size=tensor.sized(sizes)).astype(tensor.dtype) for tensor in tensors}
            for tensors in (engine.spec.inputs, engine.spec.outputs)
        )
        engine.bind(inputs, outputs)()
        return outputs["prediction"].astype(np.float32)


def test_refitted_plans_compute_with_the_new_weights(build, golden, golden_run, relative, tmp_path):
    """Against a torch bundle of these weights; plans of the old ones are at least twice as far away."""
    import torch

    state = torch.load(golden / "tiny" / "mimicmotion.pth", weights_only=True)
    other = tmp_path / "other.pth"
    torch.save(
        {key: value * 1.02 if key.startswith("unet.") else value for key, value in state.items()}, other
    )
    run, former = golden_run("single"), build("refit", refit=True)
    taken = build("refitted", checkpoint=other, refit=True, refit_from=former)
    options = Options(backend="torch", sizes=((64, 128), (128, 64)), segment=8, defaults={"canvas": 512})
    build_bundle(golden / "tiny" / "svd", other, tmp_path / "torch", options)
    before, after, expected = (latents_of(bundle, run) for bundle in (former, taken, tmp_path / "torch"))
    assert relative(after, expected) <= min(BOUNDS["fp16"], relative(before, expected) / 2)


def test_a_lora_at_load_gives_what_plans_of_the_merged_checkpoint_give(
    build, golden, golden_run, relative, tmp_path
):
    """Of a bundle of refittable plans; without the LoRA they are at least twice as far away."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(golden / "tiny" / "mimicmotion.pth", weights_only=True)
    draw, merged, keys = torch.Generator().manual_seed(0), dict(state), {}
    for name in [
        name for name in state if name.startswith("unet.") and ".attn1.to_" in name and "bias" not in name
    ]:
        down, up = (
            torch.randn(shape, generator=draw) * 0.1
            for shape in ((4, state[name].shape[1]), (len(state[name]), 4))
        )
        layer = name.removesuffix(".weight")
        keys |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
        merged[name] = state[name] + up @ down
    save_file(keys, tmp_path / "lora.safetensors")
    torch.save(merged, tmp_path / "merged.pth")
    run, plain = golden_run("single"), build("refit", refit=True)
    expected = latents_of(build("merged", checkpoint=tmp_path / "merged.pth", refit=True), run)
    before, after = latents_of(plain, run), latents_of(plain, run, lora=[tmp_path / "lora.safetensors"])
    assert relative(after, expected) <= min(BOUNDS["fp16"], relative(before, expected) / 2)


def test_a_plan_for_the_usual_gpus_loads_here_or_says_why_not(golden, capability, tmp_path):
    if importlib.util.find_spec(FLAVOURS["tensorrt-rtx"]) is None:
        pytest.skip("needs tensorrt-rtx, which is not installed")
    options = Options(backend="tensorrt-rtx", precision="fp16", sizes=((64, 128),), segment=8, rows=(1,))
    build_bundle(golden / "tiny" / "svd", golden / "tiny" / "mimicmotion.pth", tmp_path / "bundle", options)
    refused = ""
    try:
        Animator.load(tmp_path / "bundle").close()
    except MimicMotionError as error:
        refused = error.message
    if refused:
        pytest.skip(f"not for {capability}: {refused}")
