"""What the U-Net is judged and calibrated on is the runtime's own loop, by the bundle's own settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt.export.build import image_statistics, model_defaults
from mimicmotion_trt.export.options import Options
from mimicmotion_trt.export.proof import Case
from mimicmotion_trt.export.trajectory import (
    FEWEST_CELLS,
    MOST_CELLS,
    MOST_FRAMES,
    clip_shape,
    record_trajectory,
)
from mimicmotion_trt.training.checkpoints import Model, load_model

OPTIONS = Options(
    segment=4,
    sizes=((64, 64),),
    defaults={
        "canvas": 256, "sigma_min": 0.1, "sigma_max": 40.0, "guidance": [1.0, 1.0], "noise_aug": 0.5,
        "motion_bucket": 90,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def model(micro) -> Model:
    return load_model(micro.base, micro.checkpoint)


def record(model: Model, options: Options, **how: int) -> list[Case]:
    image = image_statistics(model.feature_extractor, model.image_encoder)
    frames = options.model_defaults["segment"]
    return record_trajectory(model, image, model_defaults(model, options), options.sizes[0], frames, **how)


def test_sigmas_guidance_and_conditions_are_the_bundles(model):
    cases = record(model, OPTIONS, steps=3)
    assert len(cases) == 3  # guidance of 1: the conditional branch alone
    sigmas = [math.exp(4 * case.inputs["timestep"].item()) for case in cases]
    assert sigmas[0] == pytest.approx(40, rel=1e-5)
    assert sigmas[-1] == pytest.approx(0.1, rel=1e-5)
    for case in cases:
        assert case.inputs["latents"].shape == (1, 4, 8, 8, 8)
        assert case.inputs["time_ids"].tolist() == [[6.0, 90.0, 0.5]]
        assert case.inputs["pose"].abs().sum() > 0
        again = model.unet(*case.inputs.values())[0]
        torch.testing.assert_close(again, case.answers[0])


def test_with_guidance_there_are_both_branches(model):
    cases = record(model, Options(segment=3, sizes=((64, 64),), defaults={"canvas": 256}), steps=2)
    assert len(cases) == 4
    empty = [not case.inputs["embedding"].any() for case in cases]
    assert sorted(empty) == [False, False, True, True]
    assert 4 * cases[0].inputs["timestep"].item() == pytest.approx(math.log(model.scheduler["sigma_max"]))


def test_other_seeds_are_other_people(model):
    def first(**how: int) -> Any:
        return record(model, OPTIONS, steps=1, **how)[0].inputs

    one, same, other = first(seed=1), first(seed=1), first(seed=2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(not torch.equal(one[name], other[name]) for name in ("latents", "embedding", "pose"))


def test_the_shape_is_the_bundles_as_far_as_a_cpu_computes_it():
    assert clip_shape(6_300_000, (128, 192), 8) == ((128, 192), 8)
    assert clip_shape(1_524_000_000, (576, 1024), 72) == ((64, 128), 4)
    assert clip_shape(1_524_000_000, (1024, 576), 2) == ((128, 64), 2)


def test_a_shape_of_few_cells_gives_way_to_a_larger_one():
    """Norms over one or two cells at the deepest level would judge rounding, not the engine."""
    assert clip_shape(6_300_000, (64, 64), 8) == ((128, 128), 8)
    assert clip_shape(6_300_000, (64, 128), 3) == ((128, 192), 3)
    assert clip_shape(6_300_000, (64, 192), 3) == ((64, 256), 3)
    assert clip_shape(6_300_000, (128, 128), 3) == ((128, 128), 3)
    assert clip_shape(1_524_000_000, (64, 64), 8) == ((64, 128), 4)  # a wide network: two will do


@given(
    st.integers(10**5, 10**10), st.integers(1, 32), st.integers(1, 32), st.integers(2, 200)
)  # fmt: skip
def test_no_shape_is_larger_than_asked_or_allowed(weights, wide, high, segment):
    (width, height), frames = clip_shape(weights, (64 * wide, 64 * high), segment)
    assert width % 64 == height % 64 == 0
    assert 64 <= width <= 64 * max(wide, 4)
    assert 64 <= height <= 64 * max(high, 4)
    assert width * height // 64 <= MOST_CELLS
    assert width * height // 64 >= (FEWEST_CELLS if weights < 7 * 10**8 else 128)
    assert 2 <= frames <= min(MOST_FRAMES, segment)
