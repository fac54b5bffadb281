"""An animation that was stopped goes on in another process, and makes the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, Settings
from mimicmotion_trt.denoise.checkpoint import LATENTS, POSES, Checkpoints
from mimicmotion_trt.errors import CheckpointError
from mimicmotion_trt.events import Progress

SMALL = {
    "steps": 4,
    "guidance": 1,
    "size": (64, 64),
    "frames": 5,
    "segment": 4,
    "overlap": 2,
    "decode_chunk": 2,
}


def stop_after(animation: Any, events: int | None = None) -> tuple[list[Progress], list[np.ndarray]]:
    """Take so many events, or all of them: the events and the frames that came."""
    seen, frames = [], []
    for event in animation:
        seen.append(event)
        if event.frames is not None:
            frames.extend(event.frames)
        if len(seen) == events:
            break
    animation.close()
    return seen, frames


@pytest.fixture
def start(person: Path, person_pose, dance, tmp_path: Path) -> Callable[..., Any]:
    """Start an animation over a folder of checkpoints; every step is kept."""

    def stream(
        animator: Animator, motion: Any = dance, *, build: str = "", folder: str = "job", **settings: Any
    ):
        wanted = animator.settings(**SMALL | settings)
        (tmp_path / folder).mkdir(exist_ok=True)
        checkpoints = Checkpoints(tmp_path / folder, build or animator.build, wanted, share=1e9)
        return animator.stream(person, motion, wanted, reference_pose=person_pose, checkpoints=checkpoints)

    return stream


def check_every_stop(start, animator, motion, **settings) -> None:
    """Stop after each event in turn; what goes on has the same frames and repeats no finished step."""
    events, frames = stop_after(start(animator, motion, folder="whole", **settings))
    assert events[-1].stage == "decode"
    for count in range(1, len(events)):
        stopped, _ = stop_after(start(animator, motion, folder=f"stopped{count}", **settings), count)
        rest, again = stop_after(start(animator, motion, folder=f"stopped{count}", **settings))
        np.testing.assert_array_equal(again, frames)
        ended = [
            event.step for event in stopped if event.stage == "denoise" and event.segment == event.segments
        ]
        repeated = [
            event for event in rest if event.stage == "denoise" and event.step <= max(ended, default=-1)
        ]
        if settings.get("reuse_interval", 1) == 1:
            assert [event for event in repeated if event.segment == event.segments] == []


def test_stopped_after_any_step_or_chunk_it_makes_the_same_frames(start, animator, dance):
    check_every_stop(start, animator, dance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "shifted"},
        {"guidance": (1.5, 3.0)},
        {"guidance_interval": (0.3, 20.0), "guidance": 2},
        {"noise": "independent", "noise_aug": 0.1},
        {"pose_strength": 2.0, "image_strength": 0.5, "pose_start": 0.25, "pose_end": 0.75},
    ],
)
def test_so_it_is_with_every_kind_of_step(start, animator, dance, settings):
    check_every_stop(start, animator, dance, **settings)


@pytest.mark.parametrize("posed", [{}, pytest.param({"pose_end": 0.75}, marks=pytest.mark.slow)])
def test_with_cached_features_only_a_full_step_is_a_place_to_go_on(start, deep_bundle, dance, posed):
    with Animator.load(deep_bundle, threads=2) as animator:
        check_every_stop(start, animator, dance, reuse_interval=2, frames=3, decode_chunk=4, **posed)


def test_the_poses_of_a_video_are_found_once(start, animator, clip_of, tmp_path):
    events, frames = stop_after(start(animator, clip_of(5), folder="whole"))
    stop_after(start(animator, clip_of(5)), [event.stage for event in events].index("encode") + 1)
    assert (tmp_path / "job" / POSES).exists()
    rest, again = stop_after(start(animator, clip_of(5)))
    assert len([event for event in rest if event.stage == "pose"]) == 1
    np.testing.assert_array_equal(again, frames)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_checkpoint_is_not_taken_but_the_one_before(animator, tmp_path, damage):
    checkpoints = made(tmp_path)
    for steps in (1, 2, 3):
        checkpoints.offer(steps, lambda steps=steps: np.full((2, 4, 1, 1), steps, np.float32))
    newest = tmp_path / LATENTS[0]
    data = newest.read_bytes()
    newest.write_bytes(
        {"cut": data[:-40], "bit": data[:60] + bytes([data[60] ^ 1]) + data[61:], "empty": b""}[damage]
    )
    loaded = made(tmp_path).load()
    assert loaded is not None
    assert (loaded.steps, loaded.latents.max()) == (2, 2.0)


def made(folder: Path, build: str = "a build", share: float = 1e9, **more: Any) -> Checkpoints:
    return Checkpoints(folder, build, Settings(), share=share, **more)


def test_another_build_cannot_go_on_and_says_so(start, animator):
    stop_after(start(animator), 5)
    with pytest.raises(CheckpointError, match="another build"):
        stop_after(start(animator, build="another"))
    with pytest.raises(CheckpointError, match="other settings"):
        stop_after(start(animator, seed=5))
    with pytest.raises(CheckpointError, match="other settings"):
        stop_after(start(animator, pose_strength=0.5))


def test_the_writing_takes_at_most_its_share_of_the_time(tmp_path, monkeypatch):
    """A step takes a tenth of a second, and writing a checkpoint a twentieth."""
    now, spent = 0.0, 0.0

    def slow_sync(_: int) -> None:
        nonlocal now, spent
        now, spent = now + 0.025, spent + 0.025  # of the file, and of its folder

    def slow() -> np.ndarray:
        return np.zeros((1, 4, 1, 1), np.float32)

    monkeypatch.setattr(os, "fsync", slow_sync)
    checkpoints = made(tmp_path, share=0.02, clock=lambda: now)
    for step in range(1, 1001):
        now += 0.1
        checkpoints.offer(step, slow)
    assert 0.01 < spent / now <= 0.02
    checkpoints.urgent = True
    checkpoints.offer(1001, slow)
    loaded = made(tmp_path).load()
    assert loaded is not None
    assert loaded.steps == 1001, "one that is asked for is always made"


def test_where_nothing_can_be_written_the_animation_goes_on(start, animator, tmp_path):
    _, frames = stop_after(start(animator, folder="whole"))
    animation = start(animator)
    (tmp_path / "job").rmdir()
    np.testing.assert_array_equal(stop_after(animation)[1], frames)
