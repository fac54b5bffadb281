"""How strong pose and picture are, and in which steps there is a pose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import Animator, Limits, Settings, SettingsError
from mimicmotion_trt.denoise.cost import ModelStats, cost_of
from mimicmotion_trt.denoise.schedule import steps_of
from mimicmotion_trt.engines import Bundle
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.settings import make_settings

Array = np.ndarray[Any, Any]
NEVER = {"pose_start": 0.01, "pose_end": 0.02}
"""Of a few steps none is between: round(S * 0.01) is round(S * 0.02)."""


@pytest.fixture
def refused() -> Callable[..., SettingsError]:
    """The error of settings that are refused."""

    def make(**values: Any) -> SettingsError:
        with pytest.raises(SettingsError) as caught:
            Settings(**values)
        return caught.value

    return make


@pytest.fixture(scope="module")
def run(golden_run) -> Any:
    return golden_run("single")


def sampled(animator: Animator, run: Any, **chosen: Any) -> Array:
    """The golden run's latents after the last step, with some settings replaced."""
    settings = replace(run.settings, **chosen)
    return np.asarray(
        animator.sample(run.picture, run.poses, settings, initial_latents=run.initial_latents[0])
    )


# --- which steps have a pose -----------------------------------------------------------------------------


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_the_steps_with_a_pose_are_those_of_the_formula(steps, start, end):
    start, end = sorted((start, end))
    if start == end:
        return
    found = steps_of(make_settings({}, {"steps": steps, "pose_start": start, "pose_end": end}))
    posed = [index for index in range(steps) if round(steps * start) <= index < round(steps * end)]
    assert [index for index, step in enumerate(found) if step.posed] == posed


def test_all_steps_have_a_pose_unless_told_otherwise():
    assert all(step.posed for step in steps_of(make_settings({}, {"steps": 25})))


def test_halves_go_to_the_even_step():
    """As Python's round and the ComfyUI wrapper's: 2.5 is 2, 7.5 is 8."""
    steps = steps_of(make_settings({}, {"steps": 25, "pose_start": 0.1, "pose_end": 0.3}))
    assert [index for index, step in enumerate(steps) if step.posed] == [2, 3, 4, 5, 6, 7]


# --- what comes of it ------------------------------------------------------------------------------------


def test_at_the_defaults_conditions_are_the_networks_answers_to_the_bit(animator, run):
    networks, picture = animator.networks, read_picture(run.picture)
    conditions = networks.condition(picture, 2, run.settings)
    assert conditions.embedding.tobytes() == networks.embed_picture(picture).tobytes()
    given = np.stack([frame / np.float32(127.5) - 1 for frame in run.pose_frames[:2].astype(np.float32)])
    features = np.empty_like(conditions.pose)
    networks["pose_net"].bind({"pose": given}, {"features": features})()
    for _ in networks.encode_poses(run.poses[:2], conditions.pose, run.settings.pose_strength):
        pass
    np.testing.assert_array_equal(conditions.pose, features)


def test_stated_defaults_are_the_defaults_to_the_bit(animator, run):
    stated = {"pose_strength": 1, "pose_start": 0, "pose_end": 1, "image_strength": 1}
    np.testing.assert_array_equal(sampled(animator, run, **stated), sampled(animator, run))


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (2.0, 2.0)])
def test_a_strength_of_zero_is_no_pose_in_any_step(animator, run, guidance):
    without = sampled(animator, run, pose_strength=0, guidance=guidance)
    np.testing.assert_array_equal(sampled(animator, run, **NEVER, guidance=guidance), without)
    blank = replace(run.settings, guidance=guidance, pose_strength=0)
    other = animator.sample(
        run.picture, np.full_like(run.poses, 255), blank, initial_latents=run.initial_latents[0]
    )
    np.testing.assert_array_equal(other, without)


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (2.0, 2.0)])
def test_without_its_token_a_picture_still_counts_by_its_latents(animator, run, guidance):
    plain = sampled(animator, run, guidance=guidance)
    without = sampled(animator, run, guidance=guidance, image_strength=0)
    assert not np.array_equal(without, plain)
    other = replace(run.settings, guidance=guidance, image_strength=0)
    picture = 255 - read_picture(run.picture)
    found = animator.sample(picture, run.poses, other, initial_latents=run.initial_latents[0])
    assert not np.array_equal(found, without)


def test_more_strength_moves_the_video_further(animator, run):
    plain = sampled(animator, run)
    for name in ("pose_strength", "image_strength"):
        near, far = (np.linalg.norm(sampled(animator, run, **{name: value}) - plain) for value in (1.1, 2.0))
        assert 0 < near < far


def test_the_steps_before_the_pose_ends_are_those_of_the_whole_pose(animator, run):
    after: dict[float, list[Array]] = {1.0: [], 0.5: []}
    for end, seen in after.items():
        animator.sample(
            run.picture,
            run.poses,
            replace(run.settings, steps=4, pose_end=end),
            on_step=lambda index, latents, seen=seen: seen.append(latents),
        )
    for index, (whole, half) in enumerate(zip(*after.values(), strict=True)):
        assert np.array_equal(whole, half) == (index < 2)


def test_jobs_of_other_strengths_find_what_was_encoded_and_nothing_is_mixed(bundle, animator, run):
    jobs = [{"pose_strength": 2.0, "image_strength": 0.5}, {}, {"pose_strength": 0.5}]
    with Animator.load(bundle, threads=2, limits=Limits(reuse_bytes=1)) as forgetful:
        fresh = [sampled(forgetful, run, steps=1, **chosen) for chosen in jobs]
    sampled(animator, run, steps=1)
    before, encoded = animator.networks.cache.hits, 2 + -(-len(run.poses) // 8)
    for chosen, expected in zip(jobs, fresh, strict=True):
        np.testing.assert_array_equal(sampled(animator, run, steps=1, **chosen), expected)
    assert animator.networks.cache.hits == before + len(jobs) * encoded


def test_a_strength_is_applied_in_float32_before_the_dtype_of_the_unet(animator, pose_pictures):
    poses = pose_pictures(3)
    whole = np.empty((3, 32, 8, 8), np.float32)
    assert list(animator.networks.encode_poses(poses, whole, 1.3)) == [3]
    half = np.empty(whole.shape, np.float16)
    assert list(animator.networks.encode_poses(poses, half, 1.3)) == [3]
    np.testing.assert_array_equal(half, whole.astype(np.float16))


def test_padding_holds_the_last_pose_with_its_strength(animator, pose_pictures):
    found = np.empty((12, 32, 8, 8), np.float32)
    list(animator.networks.encode_poses(pose_pictures(10), found, 2.0))
    once = np.empty((10, 32, 8, 8), np.float32)
    list(animator.networks.encode_poses(pose_pictures(10), once))
    np.testing.assert_array_equal(found[:10], 2 * once)
    np.testing.assert_array_equal(found[10:], 2 * once[[9, 9]])


# --- with other options ----------------------------------------------------------------------------------


def test_features_are_not_reused_over_a_change_of_the_pose(deep_bundle, run):
    """Two steps, the second without pose: with features of the first it would have its pose."""
    with Animator.load(deep_bundle, threads=1) as animator:
        for chosen in ({"steps": 2, "pose_end": 0.5}, {"steps": 2, "pose_start": 0.5}):
            exact = sampled(animator, run, **chosen)
            found = sampled(animator, run, **chosen, reuse_interval=1000)
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * np.abs(exact).max())
        reused = sampled(animator, run, steps=4, pose_end=0.5, reuse_interval=2)
        assert not np.array_equal(reused, sampled(animator, run, steps=4, pose_end=0.5))


def test_the_estimate_counts_the_full_steps_of_a_pose_that_ends(deep_bundle):
    model = ModelStats.of(Bundle.load(deep_bundle).manifest)

    def denoise(**chosen: Any) -> float:
        return cost_of(model, Settings(steps=2, size=(64, 64), segment=8, **chosen), frames=7).denoise

    assert denoise(reuse_interval=2) < denoise()
    assert denoise(reuse_interval=2, pose_end=0.5) == denoise()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_reuse_starts_anew_where_the_pose_begins_or_ends(steps):
    found = steps_of(
        make_settings({}, {"steps": steps, "reuse_interval": 1000, "pose_start": 0.3, "pose_end": 0.7})
    )
    changes = [index for index in range(1, steps) if found[index].posed != found[index - 1].posed]
    assert [index for index, step in enumerate(found) if step.full] == [0, *changes]


def test_a_bundle_of_pytorch_gives_the_same(torch_bundle, animator, run):
    chosen = {"pose_strength": 1.5, "pose_start": 0.3, "image_strength": 0.7}
    with Animator.load(torch_bundle, device="cpu", threads=1) as other:
        found, expected = sampled(other, run, **chosen), sampled(animator, run, **chosen)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "field"), [(0.5, 0.5, "pose_start"), (0.7, 0.2, "pose_start"), (0, 0, "pose_end")]
)
def test_a_pose_ends_after_it_starts(refused, start, end, field):
    error = refused(pose_start=start, pose_end=end)
    assert error.field == f"settings.{field}"
    assert "pose_strength 0" in error.remedy


@pytest.mark.parametrize("name", ["pose_start", "pose_end"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "a", None, True])
def test_a_start_is_a_fraction(refused, name, value):
    assert refused(**{name: value}).field == f"settings.{name}"


@given(st.floats(0, 4), st.floats(0, 4), st.floats(0, 0.49), st.floats(0.5, 1))
def test_they_come_back_through_plain_values(pose, image, start, end):
    settings = Settings(pose_strength=pose, image_strength=image, pose_start=start, pose_end=end)
    assert Settings.from_dict(settings.to_dict()) == settings
