"""Several jobs at once on one GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, Limits, PoseSequence
from mimicmotion_trt.cuda.program import StepProgram
from mimicmotion_trt.denoise.checkpoint import Checkpoints
from mimicmotion_trt.pose.sequence import SHAPES

pytestmark = pytest.mark.gpu
STEPS, MANY = 8, 40


@pytest.fixture
def load(torch_bundle_of: Callable[[str], Path], device: str) -> Iterator[Callable[..., Animator]]:
    """An animator in float32 by its limits."""
    opened: list[Animator] = []

    def make(**limits: int) -> Animator:
        opened.append(Animator.load(torch_bundle_of("fp32"), device=device, limits=Limits(**limits)))
        return opened[-1]

    yield make
    for animator in opened:
        animator.close()


def at_once(work: Callable[[int], Any], jobs: int = 2) -> list[Any]:
    with ThreadPoolExecutor(jobs) as threads:
        return list(threads.map(work, range(1, jobs + 1)))


def test_two_jobs_at_once_give_the_bytes_that_each_gives_alone(load, sample):
    animator = load(jobs=2)

    def video(seed: int) -> Any:
        return animator.decode(sample(animator, seed=seed, steps=STEPS), 4)

    alone = [video(seed) for seed in (1, 2)]
    for found, expected in zip(at_once(video), alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_jobs_that_share_rows_stay_near_what_each_gives_alone(load, sample, relative, monkeypatch):
    """Many steps, so that both are denoised at the same time; who asks while the GPU computes goes with the next."""
    together, advance = [], StepProgram.advance

    def counted(program: StepProgram, steps: Any) -> None:
        together.append(len(steps))
        advance(program, steps)

    monkeypatch.setattr(StepProgram, "advance", counted)
    animator = load(jobs=2, together=2)

    def latents(seed: int) -> Any:
        return sample(animator, seed=seed, steps=MANY)

    alone = [latents(seed) for seed in (1, 2)]
    assert set(together) == {1}
    both = at_once(latents)
    assert 2 in together
    for found, expected in zip(both, alone, strict=True):
        assert relative(found, expected) <= 1e-4


def test_jobs_of_other_strengths_share_rows_and_capture_nothing_anew(load, sample, relative):
    """One with its pose throughout, one weaker and only at first; the program is that of the jobs alone."""
    animator = load(jobs=2, together=2)
    kinds = {1: {}, 2: {"pose_strength": 0.5, "image_strength": 2.0, "pose_end": 0.5}}

    def latents(seed: int) -> Any:
        return sample(animator, seed=seed, steps=MANY, **kinds[seed])

    alone = [latents(seed) for seed in kinds]
    assert relative(*alone) > 1e-2
    made = animator.sampler.programs.made
    for found, expected in zip(at_once(latents), alone, strict=True):
        assert relative(found, expected) <= 1e-4
    assert animator.sampler.programs.made == made


def test_a_job_that_stops_half_way_leaves_the_other_as_it_is_alone(load, sample):
    animator = load(jobs=2)
    alone = sample(animator, seed=2, steps=STEPS)

    class StoppedError(Exception):
        pass

    def stop(index: int, now: Any) -> None:
        if index == STEPS // 2:
            raise StoppedError

    def latents(seed: int) -> Any:
        if seed == 2:
            return sample(animator, seed=2, steps=STEPS)
        with pytest.raises(StoppedError):
            sample(animator, seed=1, steps=STEPS, on_step=stop)
        return None

    np.testing.assert_array_equal(at_once(latents)[1], alone)


@pytest.mark.parametrize("settings", [{}, {"reuse_interval": 2}, {"pose_start": 0.3, "pose_end": 0.7}])
def test_an_animation_stopped_after_any_step_goes_on_with_the_same_frames(full, tmp_path, settings):
    check_every_stop(full, tmp_path, **settings)


def check_every_stop(animator: Animator, folder: Path, **settings: Any) -> None:
    """Stop an animation after each event in turn, and let another one go on from its checkpoints."""
    chance = np.random.default_rng(0)
    picture = chance.integers(0, 255, (128, 64, 3), np.uint8)
    poses = chance.integers(0, 255, (9, 128, 64, 3), np.uint8)
    points = {name: np.full((1, *shape), 0.5, np.float32) for name, shape in SHAPES.items()}
    reference = PoseSequence(**points, fps=25.0, size=(64, 128))
    wanted = animator.settings(**{"steps": 4, "size": (64, 128), **settings})

    def frames(name: str, events: int | None = None) -> Any:
        (folder / name).mkdir(exist_ok=True)
        checkpoints = Checkpoints(folder / name, animator.build, wanted, share=1e9)
        animation = animator.stream(picture, poses, wanted, reference_pose=reference, checkpoints=checkpoints)
        seen = list(itertools.islice(animation, events))
        animation.close()
        return np.concatenate(
            [event.frames for event in seen if event.frames is not None] or [poses[:0]]
        ), len(seen)

    whole, count = frames("whole")
    for events in range(1, count):
        frames(f"stopped{events}", events)
        np.testing.assert_array_equal(frames(f"stopped{events}")[0], whole)
