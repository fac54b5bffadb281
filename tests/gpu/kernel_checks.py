"""Every kernel beside the same in numpy, to the bit, on values of chance of two jobs.

A check is given kernels of one dtype: `kernels.run(launch, *arrays)` runs a launch and writes its last arrays. Here
they are the GPU's; in tests/cuda those of g++.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mimicmotion_trt.cuda import launches
from mimicmotion_trt.denoise.kernels import to_pictures
from mimicmotion_trt.denoise.plan import Batching, make_variant
from mimicmotion_trt.denoise.segments import cut_segments, fusion_weights

Array = np.ndarray[Any, Any]
FRAMES, SEGMENT, JOBS, SIZE = 11, 5, 2, (4, 8)
PIXELS = SIZE[0] * SIZE[1]
SEGMENTS = cut_segments(FRAMES, SEGMENT, 2)
VARIANT = make_variant(SEGMENTS, fusion_weights(SEGMENTS), np.full(FRAMES, 2, np.float32), Batching((1,)))
TABLES = launches.make_tables(VARIANT, range(JOBS), JOBS)
ROWS = len(TABLES.frames)
STEPS = np.array([[0.3, 0.5, 0.9, -0.2], [0.1, 0.7, 0.8, -0.3]], np.float32)
"""Timestep, scale, keep and push of each job."""


WRITTEN = {"blend_step": 2, "to_pictures": 2, "to_pictures_narrow": 2}
"""How many of a kernel's last arrays it writes, where that is not one: `broken` comes before the result."""


class Kernels(Protocol):
    """Of one dtype of engines."""

    dtype: np.dtype[Any]

    def run(self, launch: Any, *arrays: Array) -> None:
        """Run a launch; its result is written into the last array, or the last two (`WRITTEN`)."""


def drawn(*shape: int) -> Array:
    """float32 values of chance."""
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def gather(kernels: Kernels) -> None:
    """Latents scaled and cast, the picture's or zeros beside them."""
    latents, image = drawn(JOBS * FRAMES, 4, *SIZE), drawn(JOBS, 4, *SIZE)
    found = np.full((ROWS, SEGMENT, 8, *SIZE), np.nan, kernels.dtype)
    given = (latents, image, TABLES.frames, TABLES.conditional, TABLES.jobs, STEPS)
    kernels.run(launches.gather(ROWS, SEGMENT, PIXELS), *given, found)
    for row, (frames, conditional, job) in enumerate(
        zip(TABLES.frames, TABLES.conditional, TABLES.jobs, strict=True)
    ):
        scaled = (latents[frames] * STEPS[job, 1]).astype(kernels.dtype)
        np.testing.assert_array_equal(found[row, :, :4], scaled)
        beside = (image[job] * np.float32(conditional)).astype(kernels.dtype)
        np.testing.assert_array_equal(found[row, :, 4:], np.broadcast_to(beside, scaled.shape))


def gather_conditions(kernels: Kernels, channels: int = 8, size: tuple[int, int] = (6, 8)) -> None:
    """Pose features of each row's frames, or zeros; the size decides whether packs of 16 bytes fill them."""
    source = drawn(JOBS * FRAMES, channels, *size).astype(kernels.dtype)
    found = np.full((ROWS, SEGMENT, channels, *size), np.nan, kernels.dtype)
    launch = launches.gather_conditions(ROWS, SEGMENT, channels * size[0] * size[1], kernels.dtype)
    kernels.run(launch, source, TABLES.frames, TABLES.conditional, found)
    keep = TABLES.conditional[:, None, None, None, None].astype(kernels.dtype)
    np.testing.assert_array_equal(found, source[TABLES.frames] * keep)


def numbers(kernels: Kernels) -> None:
    """Time steps and micro-conditions of each row's job."""
    found, ids = np.full(ROWS, np.nan, np.float32), np.array([[6, 127, 0.02], [5, 90, 0]], np.float32)
    kernels.run(launches.timesteps(ROWS), TABLES.jobs, STEPS, found)
    np.testing.assert_array_equal(found, STEPS[TABLES.jobs, 0])
    found = np.full((ROWS, 3), np.nan, np.float32)
    kernels.run(launches.time_ids(ROWS), ids, TABLES.jobs, found)
    np.testing.assert_array_equal(found, ids[TABLES.jobs])


def blend_step(kernels: Kernels) -> None:
    """All predictions weighted and guided, and the Euler step, over all jobs."""
    predictions = drawn(ROWS, SEGMENT, 4, *SIZE).astype(kernels.dtype)
    latents, guidance = drawn(JOBS * FRAMES, 4, *SIZE), drawn(JOBS * FRAMES)
    found, broken = latents.copy(), np.zeros(JOBS, np.int32)
    given = (predictions, TABLES.first, TABLES.covers, guidance, STEPS)
    kernels.run(launches.blend_step(FRAMES, PIXELS, JOBS), *given, broken, found)
    assert not broken.any(), "not equal"
    flat = predictions.reshape(-1, 4, *SIZE).astype(np.float32)
    for frame in range(JOBS * FRAMES):
        _, _, keep, push = STEPS[frame // FRAMES]
        expected = latents[frame] * keep
        for prediction, conditional, weight in TABLES.covers[TABLES.first[frame] : TABLES.first[frame + 1]]:
            guide = guidance[frame] if conditional else np.float32(1) - guidance[frame]
            expected += weight * guide * push * flat[prediction]
        np.testing.assert_array_equal(found[frame], expected)


def decoder_input(kernels: Kernels) -> None:
    """Latents over the scaling factor."""
    latents, found = drawn(FRAMES, 4, *SIZE), np.full((FRAMES, 4, *SIZE), np.nan, kernels.dtype)
    kernels.run(launches.decoder_input(FRAMES, PIXELS, 0.18215), latents, found)
    np.testing.assert_array_equal(found, (latents / np.float32(0.18215)).astype(kernels.dtype))


def planes_to_pictures(kernels: Kernels, width: int = 64) -> None:
    """Planes in [-1, 1], and some beyond, to bytes."""
    planes = (0.6 * drawn(3, 3, 6, width)).astype(kernels.dtype)
    found, expected = (np.zeros((3, 6, width, 3), np.uint8) for _ in range(2))
    broken = np.zeros(1, np.int32)
    kernels.run(launches.to_pictures(3, 6 * width, kernels.dtype), planes, broken, found)
    assert not broken.any(), "not equal"
    to_pictures(planes.astype(np.float32), expected)
    np.testing.assert_array_equal(found, expected)


def not_finite(kernels: Kernels) -> None:
    """One value of one job's predictions, and one of a plane, that is no number is noticed; the other job is not."""
    for bad in (np.nan, np.inf, -np.inf):
        predictions = drawn(ROWS, SEGMENT, 4, *SIZE).astype(kernels.dtype)
        predictions[-1, -1, 2, 1, 3] = bad
        broken, latents = np.zeros(JOBS, np.int32), drawn(JOBS * FRAMES, 4, *SIZE)
        given = (predictions, TABLES.first, TABLES.covers, drawn(JOBS * FRAMES), STEPS)
        kernels.run(launches.blend_step(FRAMES, PIXELS, JOBS), *given, broken, latents)
        np.testing.assert_array_equal(broken, [0, 1])
        for width in (64, 7):
            planes = drawn(2, 3, 6, width).astype(kernels.dtype)
            planes[1, 1, 2, 5], broken = bad, np.zeros(1, np.int32)
            pictures = np.zeros((2, 6, width, 3), np.uint8)
            kernels.run(launches.to_pictures(2, 6 * width, kernels.dtype), planes, broken, pictures)
            np.testing.assert_array_equal(broken, [1])


CHECKS: dict[str, Callable[[Kernels], None]] = {
    "gather": gather,
    "gather_conditions": gather_conditions,
    "gather_conditions_narrow": lambda kernels: gather_conditions(kernels, 3, (5, 3)),
    "numbers": numbers,
    "blend_step": blend_step,
    "decoder_input": decoder_input,
    "to_pictures": planes_to_pictures,
    "to_pictures_narrow": lambda kernels: planes_to_pictures(kernels, 7),
    "not_finite": not_finite,
}
"""All of them, by what they check."""
