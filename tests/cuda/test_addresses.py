"""No kernel leaves its buffers, and none counts elements in 32 bits."""

from __future__ import annotations

import numpy as np
import pytest

from mimicmotion_trt.cuda import launches
from mimicmotion_trt.cuda.launches import COVER, THREADS

CELLS = 72 * 128
STEP = np.array([0.5, 2.0, 3.0, 4.0], np.float32)
"""Timestep, scale, keep and push."""


def test_a_write_past_the_end_is_seen(host):
    launch = launches.timesteps(8)
    jobs = np.zeros(8, np.int32)
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        host.run(launch, jobs, STEP, np.empty(7, np.float32))
    host.run(launch, jobs, STEP, np.empty(8, np.float32))  # and it goes on


def test_gather_beyond_two_to_the_31_elements(host, vast):
    frames = np.zeros((2**31 // (8 * CELLS) + 2, 1), np.int32)
    conditional = np.ones(len(frames), np.int32)
    latents, picture = (np.full((4, CELLS), value, np.float32) for value in (1, 7))
    out = np.empty((8, CELLS), host.dtype)
    launch = launches.gather(*frames.shape, CELLS)
    buffer = vast(out, len(frames))
    last = launch.blocks - CELLS // THREADS
    jobs = np.zeros_like(conditional)
    host.run(launch, latents, picture, frames, conditional, jobs, STEP, buffer, first_block=last)
    assert (out[:4] == 2).all()
    assert (out[4:] == 7).all()


def test_conditions_beyond_two_to_the_31_elements(host, vast):
    channels = 320
    count = 2**31 // (channels * CELLS) + 2
    frames = np.arange(count, dtype=np.int32)[:, None]
    pose, out = (np.full((channels, CELLS), value, host.dtype) for value in (3, 0))
    launch = launches.gather_conditions(count, 1, pose.size, host.dtype)
    tables = frames, np.ones(count, np.int32)
    host.run(launch, vast(pose, count), *tables, vast(out, count), first_block=launch.blocks - 2)
    assert (out[-1, -THREADS:] == 3).all()


def test_blend_step_beyond_two_to_the_31_elements(host, vast):
    count = 2**31 // (4 * CELLS) + 2
    prediction, latents = np.full((4, CELLS), 5, host.dtype), np.full((4, CELLS), 1, np.float32)
    covers = np.array([(count - 1, 1, 0.5)], COVER)
    launch = launches.blend_step(1, CELLS)
    guidance, first = np.full(1, 2, np.float32), np.array([0, 1], np.int32)
    broken = np.zeros(1, np.int32)
    host.run(launch, vast(prediction, count), first, covers, guidance, STEP, broken, latents)
    assert (latents == 3 * 1 + 4 * 0.5 * 2 * 5).all()


@pytest.mark.parametrize("odd", [0, 1])
def test_pictures_beyond_two_to_the_31_bytes(host, vast, odd):
    pixels = 576 * 1024 + odd
    count = 2**31 // (3 * pixels) + 2
    planes, out = np.ones((3, pixels), host.dtype), np.zeros((pixels, 3), np.uint8)
    launch = launches.to_pictures(count, pixels, host.dtype)
    broken = np.zeros(1, np.int32)
    host.run(launch, vast(planes, count), broken, vast(out, count), first_block=launch.blocks - 1)
    assert not broken.any()
    assert (out[-1] == 255).all()
