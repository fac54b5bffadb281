"""Options that trade quality for speed, through the bundle: off by default, exact at their ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, SettingsError
from mimicmotion_trt.denoise.loop import CpuDenoiser
from mimicmotion_trt.denoise.plan import Batching, Conditions, make_plan
from mimicmotion_trt.denoise.schedule import sigmas_of
from mimicmotion_trt.denoise.shapes import EngineShapes
from mimicmotion_trt.engines import EngineSpec, network_specs
from mimicmotion_trt.settings import make_settings

Array = np.ndarray[Any, Any]
SPECS = network_specs(pose_channels=5, token_width=6, image_size=8, cached_channels=3)


@pytest.fixture(scope="module")
def deep_animator(deep_bundle: Path) -> Iterator[Animator]:
    with Animator.load(deep_bundle, threads=2) as loaded:
        yield loaded


def sampled(animator: Animator, run: Any, **options: Any) -> Array:
    """The golden run's latents after the last step, with some settings replaced."""
    settings = replace(run.settings, **options)
    return np.asarray(
        animator.sample(run.picture, run.poses, settings, initial_latents=run.initial_latents[0])
    )


def distance(found: Array, exact: Array) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


# --- through the bundle ----------------------------------------------------------------------------------


def test_an_interval_of_all_sigmas_is_exact_and_one_of_none_is_no_guidance(animator, golden_run):
    run = golden_run("long")
    exact = sampled(animator, run)
    np.testing.assert_array_equal(sampled(animator, run, guidance_interval=(0.0, 1e4)), exact)
    never = sampled(animator, run, guidance_interval=(5e3, 1e4))
    np.testing.assert_array_equal(never, sampled(animator, run, guidance=(1.0, 1.0)))
    some = sampled(animator, run, guidance_interval=(0.3, 20.0))
    assert 0 < distance(some, exact) < distance(never, exact)


def test_a_clip_of_one_segment_has_no_borders_to_shift(animator, golden_run):
    run = golden_run("single")
    np.testing.assert_array_equal(sampled(animator, run, layout="shifted"), sampled(animator, run))


@pytest.mark.parametrize("frames", [2, 8, 9, 13, 15, 16, 21])
def test_the_shifted_layout_takes_any_number_of_frames(animator, golden_run, frames):
    run = golden_run("long")
    settings = replace(run.settings, layout="shifted", steps=2)
    first, second = (animator.sample(run.picture, run.poses[:frames], settings) for _ in range(2))
    assert first.shape[0] == frames
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)


def test_aligned_steps_are_those_of_the_settings(animator, golden_run):
    settings = animator.settings(steps=10, schedule="align-your-steps")
    plan = animator.sampler.plan(5, settings, (8, 16))
    assert plan.steps[1].sigma == np.float32(54.5)
    assert [step.sigma for step in plan.steps] == sigmas_of(settings)[:-1].tolist()
    assert np.isfinite(sampled(animator, golden_run("single"), schedule="align-your-steps")).all()


def test_reuse_of_nothing_is_exact_and_more_reuse_is_further_from_it(animator, deep_animator, golden_run):
    run = golden_run("long")
    exact = sampled(animator, run)
    np.testing.assert_array_equal(sampled(deep_animator, run, reuse_interval=1), exact)
    two, all_but_one = (distance(sampled(deep_animator, run, reuse_interval=k), exact) for k in (2, 1000))
    assert 0 < two < all_but_one < 1


def test_reuse_goes_together_with_a_limited_guidance(deep_animator, golden_run):
    run = golden_run("long")
    found = sampled(deep_animator, run, reuse_interval=2, guidance_interval=(0.3, 20.0), layout="compact")
    assert np.isfinite(found).all()


def test_a_bundle_without_the_engines_is_told_how_to_get_them(animator, golden_run):
    assert not animator.manifest.reuses
    with pytest.raises(SettingsError) as caught:
        sampled(animator, golden_run("single"), reuse_interval=2)
    assert caught.value.field == "settings.reuse_interval"
    assert "--deep-cache" in caught.value.remedy


# --- the step program ------------------------------------------------------------------------------------


class Told:
    """An engine that predicts nothing and tells what ran, on how many rows, and what was kept."""

    def __init__(self, name: str, told: list[tuple[Any, ...]]) -> None:
        self.name, self.told = name, told

    @property
    def spec(self) -> EngineSpec:
        return SPECS[self.name]

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        self.spec.check(inputs, outputs)

        def call() -> None:
            outputs["prediction"][:] = 0
            if self.name == "unet_caching":
                outputs["cached_features"][:] = inputs["timestep"][:, None, None, None, None]
            kept = (
                {float(value) for value in np.unique(inputs["cached_features"])}
                if "cached_features" in inputs
                else None
            )
            self.told.append((self.name, len(inputs["latents"]), kept))

        return call

    def close(self) -> None:
        pass


def program(**chosen: Any) -> list[tuple[Any, ...]]:
    """What runs when ten frames in segments of four (overlap 2) are denoised, all rows of a step in one call."""
    settings = make_settings({"segment": 4, "overlap": 2, "guidance": 2.0}, chosen)
    plan = make_plan(settings, 10, (2, 2), EngineShapes({}), lambda _: Batching(most=64))
    conditions = Conditions(
        np.ones((1, 6), np.float32),
        np.ones((4, 2, 2), np.float32),
        np.ones((10, 5, 2, 2), np.float32),
        (6, 127, 0),
    )
    told: list[tuple[Any, ...]] = []
    caches = plan.caches_features
    unet = Told("unet_caching" if caches else "unet", told)
    shallow = Told("unet_shallow", told) if caches else None
    denoiser = CpuDenoiser(unet, plan, conditions, np.zeros((10, 4, 2, 2), np.float32), shallow=shallow)
    for step in plan.steps:
        denoiser.step(step)
    return [(*ran, plan.steps) for ran in told]


def test_steps_that_are_not_guided_run_only_conditional_rows():
    told = program(steps=2, guidance_interval=(1.0, 1000.0))
    assert [(name, rows) for name, rows, *_ in told] == [("unet", 8), ("unet", 4)]  # four segments


def test_cached_features_are_those_of_the_last_full_step_of_the_same_variant():
    told = program(steps=6, reuse_interval=2, guidance_interval=(1.0, 100.0))
    steps = told[0][-1]
    assert [step.guided for step in steps] == [False, False, True, True, False, False]
    assert [step.full for step in steps] == [True, False] * 3
    assert [(name, rows) for name, rows, *_ in told] == [
        ("unet_caching", 4), ("unet_shallow", 4), ("unet_caching", 8), ("unet_shallow", 8),
        ("unet_caching", 4), ("unet_shallow", 4),
    ]  # fmt: skip
    kept = [value for _, _, value, _ in told if value is not None]
    assert kept == [{float(np.float32(steps[index].timestep))} for index in (0, 2, 4)]
