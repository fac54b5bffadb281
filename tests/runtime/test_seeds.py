"""Several videos of one job: pose and picture are computed once, and each is what its seed makes alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import OutputError, Result, SettingsError, read_facts
from mimicmotion_trt.denoise.checkpoint import Checkpoints
from mimicmotion_trt.denoise.cost import MIMICMOTION, cost_of
from mimicmotion_trt.media.writer import numbered_outputs
from mimicmotion_trt.settings import Settings

SHORT: dict[str, Any] = {"steps": 2, "frames": 3, "guidance": 1, "size": (64, 64), "decode_chunk": 2}
SEEDS = (4, 1, 9)


@pytest.fixture(scope="module")
def result(animator, person, person_pose, dance) -> Result:
    settings = animator.settings(**SHORT, seeds=SEEDS)
    return animator.animate(person, dance, settings, reference_pose=person_pose).result()


@pytest.mark.parametrize("noise_aug", [0.0, 0.02])
def test_each_video_is_the_one_that_its_seed_makes_alone(animator, person, person_pose, dance, noise_aug):
    """Also where the noise on the picture is the seed's."""
    shared = animator.settings(**SHORT, noise_aug=noise_aug)
    job = animator.animate(person, dance, replace(shared, seeds=SEEDS[:2]), reference_pose=person_pose)
    stages = [(event.stage, event.video, event.step) for event in job]
    assert [one for one in stages if one[0] == "pose"] == [("pose", 1, 3)]
    assert [one for one in stages if one[0] == "denoise"] == [
        ("denoise", (n + 1) // 2, n) for n in range(1, 5)
    ]
    videos = job.result().videos
    assert len(videos) == 2
    for video, seed in zip(videos, SEEDS, strict=False):
        alone = animator.animate(
            person, dance, replace(shared, seed=seed), reference_pose=person_pose
        ).result()
        np.testing.assert_array_equal(video.frames(), alone.frames())
        assert video.facts == alone.facts
    assert not np.array_equal(videos[0].frames(), videos[1].frames())


def test_they_are_saved_under_numbers(result, tmp_path):
    names = result.save_all(tmp_path / "out.mp4")
    assert [name.name for name in names] == ["out-1.mp4", "out-2.mp4", "out-3.mp4"]
    assert [read_facts(name).settings.seed for name in names] == list(SEEDS)
    result.save(tmp_path / "first.mp4")
    assert (tmp_path / "first.mp4").read_bytes() == names[0].read_bytes()
    assert [path.parent.name for path in result.save_all(f"{tmp_path}/frames/")[:1]] == [tmp_path.name]
    assert sorted(path.name for path in (tmp_path / "frames-3").iterdir()) == [
        "00001.png",
        "00002.png",
        "00003.png",
    ]


def test_a_pattern_says_where_the_number_goes():
    assert numbered_outputs("a/take_%02d.webm", 2) == ["a/take_01.webm", "a/take_02.webm"]
    assert numbered_outputs("a/take_%02d.webm", 1) == ["a/take_%02d.webm"]
    for one in ("-", "frames/%04d.png"):
        with pytest.raises(OutputError, match="2 videos cannot be written") as caught:
            numbered_outputs(one, 2)
        assert caught.value.remedy


@pytest.mark.parametrize("seeds", [(), (1, 1), (1, -2), "1,x", (1.5, 2), range(101), 7])
def test_seeds_that_are_none(seeds):
    with pytest.raises(SettingsError) as caught:
        Settings(seeds=seeds)
    assert caught.value.field.startswith("settings.seeds")
    assert caught.value.remedy


def test_seeds_are_given_as_numbers_or_as_text():
    assert Settings(seeds="3,1, 2").each_seed == Settings(seeds=[3, 1, 2]).each_seed == (3, 1, 2)
    assert Settings(seed=7).each_seed == (7,)


def test_the_second_and_third_cost_no_encoding():
    settings = Settings(size=(576, 1024), segment=16)
    one, three = cost_of(MIMICMOTION, settings, 72), cost_of(MIMICMOTION, replace(settings, seeds=SEEDS), 72)
    assert (three.encode, three.denoise, three.decode) == (one.encode, 3 * one.denoise, 3 * one.decode)


@pytest.mark.parametrize("stopped_at", [("denoise", 2, 3), ("decode", 2, 4), ("decode", 1, 3)])
def test_a_job_goes_on_in_the_video_in_which_it_was_stopped(
    animator, person, person_pose, dance, tmp_path: Path, result, stopped_at
):
    settings = animator.settings(**SHORT, seeds=SEEDS)

    def run() -> Any:
        checkpoints = Checkpoints(tmp_path, animator.build, settings, share=1e6)
        return animator.stream(person, dance, settings, reference_pose=person_pose, checkpoints=checkpoints)

    for event in (stopped := run()):
        if (event.stage, event.video, event.step) == stopped_at:
            break
    stopped.close()
    made: dict[int, list[np.ndarray]] = {}
    for event in run():
        if event.frames is not None:
            made.setdefault(event.video, []).append(event.frames)
    assert list(made) == list(range(stopped_at[1], 4))
    for number, frames in made.items():
        np.testing.assert_array_equal(np.concatenate(frames), result.videos[number - 1].frames())
