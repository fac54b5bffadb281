"""The measures against numbers worked out by hand, and the command on a real bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mimicmotion_trt import PoseSequence
from mimicmotion_trt.denoise.segments import cut_segments
from mimicmotion_trt.training import metrics
from mimicmotion_trt.training.evaluate import MOST_SEED, STRIDE, app, unseen
from mimicmotion_trt.training.synthetic import TRAIN_SEEDS, VALIDATION_SEEDS, make_clip

ROOT = Path(__file__).parents[2]


def video(level: int, frames: int = 4, size: int = 16) -> np.ndarray:
    return np.full((frames, size, size, 3), level, np.uint8)


def test_psnr():
    assert metrics.psnr(video(10), video(20)) == pytest.approx(20 * np.log10(25.5))
    assert metrics.psnr(video(10), video(10)) == metrics.MOST
    half = video(10)
    half[:2] = 20
    assert metrics.psnr(half, video(20)) == pytest.approx((metrics.MOST + 20 * np.log10(25.5)) / 2)


def test_ssim():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert metrics.ssim(noise, noise) == pytest.approx(1.0)
    assert abs(metrics.ssim(noise, noise[::-1])) < 0.1
    # Two flat pictures: (2ab + c1) / (a² + b² + c1), c1 = 0.01²
    a, b = 100 / 255, 150 / 255
    assert metrics.ssim(video(100, size=32), video(150, size=32)) == pytest.approx(
        (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    )


def test_following_counts_joints_that_are_seen_again_and_how_far_they_moved():
    wanted = make_clip(44, 3, 192, 128).truth
    joints = int((wanted.body_score > 0.3).sum())
    lower = replace(wanted, body=wanted.body + np.float32([0, 0.05]))
    assert metrics.following(lower, wanted) == {
        "joints_found": 1.0,
        "pose_error": pytest.approx(5.0, abs=1e-3),
    }
    aside = replace(wanted, body=wanted.body + np.float32([0.05, 0]))
    assert metrics.following(aside, wanted)["pose_error"] == pytest.approx(5.0 * 128 / 192, abs=1e-3)
    score = wanted.body_score.copy()
    score[0] = 0
    fewer = metrics.following(replace(wanted, body_score=score), wanted)
    assert fewer["joints_found"] == pytest.approx((score > 0.3).sum() / joints)
    assert metrics.following(None, wanted) == {"joints_found": 0.0, "pose_error": None}
    assert metrics.following(wanted, None) == {"joints_found": None, "pose_error": None}


def test_boxes_of_heads_eyes_and_hands_are_on_the_person():
    clip = make_clip(44, 3, 192, 128)
    for part in metrics.PARTS:
        found = metrics.boxes(clip.truth, part)
        assert found
        for frame, top, bottom, left, right in found:
            assert (clip.masks[frame, top:bottom, left:right] > 127).mean() > 0.3
    (_, top, bottom, left, right), *_ = metrics.boxes(clip.truth, "eyes")
    (_, *head), *_ = metrics.boxes(clip.truth, "heads")
    assert head[0] <= top < bottom <= head[1]
    assert head[2] <= left < right <= head[3]


def test_sharpness_is_the_share_of_the_truths_edges():
    sharp = video(0)
    sharp[:, :, 8:] = 200
    where = metrics.whole(sharp)
    assert metrics.sharpness(sharp, sharp, where) == 1
    assert metrics.sharpness(sharp // 2, sharp, where) == pytest.approx(0.25)
    assert metrics.sharpness(sharp, video(3), where) is None


def test_flicker_counts_only_where_the_truth_stands_still():
    truth, given = video(100, frames=3), video(100, frames=3)
    truth[1:, :8] = 30  # moves in the upper half, in the first step
    given[1] = 108
    assert metrics.flicker(given, truth) == pytest.approx(8.0)
    assert metrics.flicker(truth, truth) == 0
    assert metrics.flicker(truth[:1], truth[:1]) is None


def test_hand_psnr_looks_at_the_boxes_only():
    hands = np.zeros((4, 2, 21, 2), np.float32)
    scores = np.zeros((4, 2, 21), np.float32)
    hands[1, 0] = np.linspace((0.26, 0.26), (0.49, 0.49), 21)  # pixels 4 to 7 of 16
    scores[1, 0] = 1.0
    pose = PoseSequence(
        body=np.zeros((4, 18, 2), np.float32),
        body_score=np.zeros((4, 18), np.float32),
        hands=hands,
        hands_score=scores,
        face=np.zeros((4, 68, 2), np.float32),
        face_score=np.zeros((4, 68), np.float32),
        fps=15.0,
        size=(16, 16),
    )
    given, truth = video(0), video(100)
    given[1, 4:8, 4:8] = 90
    hands = metrics.boxes(pose, "hands")
    assert metrics.psnr_in(given, truth, hands) == pytest.approx(20 * np.log10(25.5))
    assert metrics.psnr_in(given, truth, metrics.boxes(pose[2:], "hands")) is None


def test_border_jump():
    truth = np.stack([np.full((4, 4, 3), 10 * k, np.uint8) for k in range(6)])  # moves by 10 a frame
    assert metrics.border_jump(truth, truth, [3]) == 0.0
    jumping = truth.copy()
    jumping[3:] += 5  # 15 where the border is
    assert metrics.border_jump(jumping, truth, [3]) == pytest.approx(5.0)
    assert metrics.border_jump(jumping, truth, [2]) == pytest.approx(-5.0 / 4)
    assert metrics.border_jump(truth, truth, []) is None


def test_borders_of_segments():
    plan = cut_segments(25, 16, 6)  # frames 1-15 and 10-24 of the sequence: video frames 0-14 and 9-23
    assert metrics.segment_borders(plan) == [9, 15]
    assert metrics.segment_borders(cut_segments(10, 16, 6)) == []


def test_every_seed_shows_people_never_seen_in_training():
    assert [unseen(seed, 7) for seed in (0, 88)] == [1_000_007, 1_088_007]
    assert unseen(1234, 0) == 1_000_000 + 1_234_000 + len(VALIDATION_SEEDS)
    places = [range(unseen(seed, 0), unseen(seed, STRIDE - 1) + 1) for seed in (*range(120), 1234, MOST_SEED)]
    for place, after in pairwise(places):
        assert len(place) == STRIDE
        assert place.stop <= after.start
        assert place.stop <= VALIDATION_SEEDS.start or place.start >= VALIDATION_SEEDS.stop
    assert places[0].start >= TRAIN_SEEDS.stop


def test_measures_are_means_of_those_that_have_a_value():
    assert metrics.means([{"a": 1.0, "b": None}, {"a": 3.0, "b": 4.0}]) == {"a": 2.0, "b": 4.0}
    assert metrics.means([{"b": None}]) == {"b": None}


@pytest.mark.slow
def test_the_command_ends_with_a_line_of_json(bundle, tmp_path):
    command = [sys.executable, ROOT / "training" / "evaluate.py", "--bundle", bundle, "--synthetic", "1"]
    command += [
        "--frames",
        "20",
        "--seed",
        "1",
        "--json",
        "--setting",
        "steps=1",
        "--setting",
        "size=[64,64]",
    ]
    done = subprocess.run(
        [*command, "--poses", "--sheet", tmp_path / "sheet.png"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for name in (
        "psnr",
        "ssim",
        "psnr_repeat_reference",
        "ssim_repeat_reference",
        "psnr_vae",
        "ssim_vae",
        "border_jump",
    ):
        assert isinstance(result[name], float)
    assert {"hand_psnr", "joints_found", "pose_error"} <= set(result)
    assert result["psnr_repeat_reference"] > result["psnr"]  # the weights are random
    assert (tmp_path / "sheet.png").is_file()


SMALL = ("--frames", "4", "--setting", "steps=1", "--setting", "size=[64,64]", "--json")


def test_recordings_that_training_holds_out_are_measured(recordings, tmp_path):
    flags = ["--shards", recordings, "--clips", "1", "--sheet", tmp_path / "sheet.png", *SMALL]
    done = CliRunner().invoke(app, list(map(str, flags)))
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["clips"], result["source"]) == (1, str(recordings))
    assert {"psnr", "ssim", "psnr_repeat_reference", "psnr_vae", "hand_psnr"} <= set(result)
    assert "clip 1/1: psnr " in done.stderr
    assert "0:00:00 left" in done.stderr
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--synthetic", "2"], "clips are either drawn or recorded"),
        (["--setting", "size=[128,128]"], "smaller than the wanted size"),
        (["--frames", "12"], "too short for the window"),
    ],
)
def test_recordings_that_do_not_fit_are_told(recordings, flags, told):
    done = CliRunner().invoke(app, ["--shards", str(recordings), *SMALL, *flags])
    assert done.exit_code == 1
    assert told in done.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--every-video"], "--every-video means nothing without --shards"),
        (["--fps", "15"], "--fps means nothing without --shards"),
        (["--shards", "shards", "--style", "doll"], "--style means nothing with --shards"),
    ],
)
def test_flags_that_would_mean_nothing_are_refused(flags, told):
    done = CliRunner().invoke(app, flags)
    assert done.exit_code == 1
    assert told in done.stderr
