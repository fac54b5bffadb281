"""The GPU's step program on this machine: the same kernels through g++, a real engine, and a stand-in for CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, SettingsError
from mimicmotion_trt.cuda.denoiser import ProgramCache, make_layout
from mimicmotion_trt.cuda.launches import Launch
from mimicmotion_trt.cuda.program import Layout, StepProgram
from mimicmotion_trt.denoise import Conditions, Denoiser, guidance_ramp, make_rows
from mimicmotion_trt.engines import Bundle, Engine, open_engine
from mimicmotion_trt.schedule import euler_steps, initial_scale, karras_sigmas
from mimicmotion_trt.segments import fusion_weights, plan_segments

CELLS = (8, 16)


class HostDevice:
    """Numpy's memory, the kernels of g++, and a record of what is put on the stream."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.told: list[str] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self.told.append("empty")
        return np.zeros(shape, dtype)

    def part(self, array: Any, start: int, stop: int) -> Any:
        return array[start:stop]

    def upload(self, values: Any, array: Any) -> None:
        assert (values.shape, values.dtype) == (array.shape, array.dtype)
        array[...] = values

    def download(self, array: Any) -> Any:
        return array.copy()

    def copy(self, source: Any, target: Any) -> None:
        target[...] = source

    def launch(self, what: Launch, *arrays: Any, stream: Any) -> None:
        self.told.append(what.kernel)
        self.host.run(what, *arrays)

    def call(self, binding: Any, stream: Any) -> None:
        self.told.append("engine")
        binding()

    def record(self, work: Callable[[Any], None], *, graphs: bool) -> Callable[[], None]:
        work(None)
        return lambda: work(None)


@pytest.fixture(scope="module")
def unet(bundle) -> Engine:
    return open_engine(Bundle.load(bundle), "unet", threads=1)


def make_conditions(unet: Engine, frames: int, seed: int) -> Conditions:
    """Random ones of the golden networks' widths."""
    chance = np.random.default_rng(seed)
    shapes = {tensor.name: tensor.shape for tensor in unet.spec.inputs}

    def drawn(*shape: Any) -> Any:
        return chance.normal(size=shape).astype(np.float32)

    return Conditions(
        embedding=drawn(1, shapes["embedding"][2]),
        image_latents=drawn(4, *CELLS),
        pose=drawn(frames, shapes["pose"][2], *CELLS) * np.float32(0.1),
        time_ids=(6.0, 127.0, 0.02),
    )


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize(
    ("frames", "segment", "overlap", "fusion", "guidance", "buckets"),
    [
        (9, 4, 2, "triangular", (2.0, 2.0), (1, 2, 4)),
        (9, 4, 2, "linear", (1.0, 3.0), (2,)),
        (3, 8, 2, "triangular", (1.0, 1.0), (1,)),
        (12, 5, 1, "triangular", (1.5, 1.5), (1, 4)),
    ],
)
def test_it_is_the_cpus_step_program(host, unet, frames, segment, overlap, fusion, guidance, buckets):
    plan = plan_segments(frames, segment, overlap, "reference")
    weights, ramp = fusion_weights(plan, fusion), guidance_ramp(guidance, frames)
    rows = make_rows(plan, weights, ramp)
    branches = (True,) if np.all(ramp == 1) else (True, False)
    layout = make_layout(plan, weights, ramp, buckets, CELLS)
    assert layout.branches == branches
    sizes = layout.batches
    device = HostDevice(host)
    program = StepProgram(device, unet, layout)
    for seed in (1, 2):  # two jobs on one program: nothing of the first is left, nothing is allocated
        conditions, sigmas = make_conditions(unet, frames, seed), karras_sigmas(3, 0.002, 700.0)
        noise = np.random.default_rng(seed).normal(size=(frames, 4, *CELLS)).astype(np.float32)
        noise *= np.float32(initial_scale(sigmas))
        expected = Denoiser(unet, conditions, rows, max(sizes))
        expected.latents[...] = noise
        device.told.clear()
        program.start(conditions, ramp, noise)
        for step in euler_steps(sigmas):
            expected.step(step)
            program.step(step)
            scale = np.abs(expected.latents).max()
            np.testing.assert_allclose(program.read(program.latents), expected.latents, atol=2e-6 * scale)
            np.testing.assert_allclose(program.read(program.previous), expected.previous, atol=2e-6 * scale)
        assert "empty" not in device.told
        once = ["gather", "gather_conditions", "gather_conditions", "timesteps", "engine"]
        assert [name.removesuffix("_narrow") for name in device.told] == 3 * (
            [*once * len(sizes), "blend_step"]
        )


def test_rows_that_fill_no_batch_are_padded():
    plan = plan_segments(9, 4, 2, "reference")
    layout = make_layout(plan, fusion_weights(plan, "triangular"), np.ones(9, np.float32), (2,), CELLS)
    assert sum(layout.batches) == len(plan) + len(plan) % 2
    assert set(layout.batches) == {2}


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_the_animator_on_it_is_the_animator_on_the_cpu(host, bundle):
    """All of `sample`, but for the device: program cache, layout, noise, latents read back."""
    with Animator.load(bundle, threads=1) as animator:
        width, height = animator.manifest.sizes[0]
        chance = np.random.default_rng(0)
        picture = chance.integers(0, 255, (height, width, 3), np.uint8)
        poses = chance.integers(0, 255, (7, height, width, 3), np.uint8)
        settings = animator.settings(steps=2, segment=4, overlap=1, guidance=(1.5, 2.0), seed=3)
        expected = animator.sample(picture, poses, settings)
        unet = animator._engines["unet"]
        device = HostDevice(host)
        animator._programs = ProgramCache(lambda layout: StepProgram(device, unet, layout))
        for _ in range(2):
            found = animator.sample(picture, poses, settings)
            np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
        assert animator._programs.made == 1
        with pytest.raises(SettingsError, match="GPU yet"):
            animator.sample(picture, poses, animator.settings(steps=3, guidance_interval=(0.1, 1.0)))


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_the_same_start_gives_the_same_bytes(host, unet):
    plan = plan_segments(5, 4, 1, "reference")
    weights = fusion_weights(plan, "triangular")
    layout = Layout(
        tuple(map(tuple, plan.tolist())), tuple(map(tuple, weights.tolist())), (True,), (1, 1), 5, CELLS
    )
    program = StepProgram(HostDevice(host), unet, layout)
    conditions, (step, *_) = make_conditions(unet, 5, 0), euler_steps(karras_sigmas(2, 0.1, 10.0))
    noise = np.random.default_rng(0).normal(size=(5, 4, *CELLS)).astype(np.float32)
    results = []
    for _ in range(2):
        program.start(conditions, guidance_ramp((1.0, 1.0), 5), noise)
        program.step(step)
        results.append(program.read(program.latents).tobytes())
    assert results[0] == results[1]
