"""Synthetic people: the truth is where the picture has it, and a seed is a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.errors import MotionError, SettingsError
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.pose import PoseSequence, draw_poses
from mimicmotion_trt.training.synthetic import (
    TEST_SEEDS,
    TRAIN_SEEDS,
    Character,
    SyntheticClip,
    iter_clips,
    make_clip,
)
from mimicmotion_trt.training.synthetic.__main__ import main

DEMO = Path(__file__).parents[2] / "demo"
MOTION = DEMO / "balance.npz"
BONES = ((2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13))
SIZE = 192


@pytest.fixture(scope="module", params=["doll", "rich"])
def clips(request: pytest.FixtureRequest) -> list[SyntheticClip]:
    style = request.param
    return list(iter_clips(500, 12, 8, SIZE, SIZE, blur=0.0, occlusion=False, driven=False, style=style))


def pixels(points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of points [...,2] in fractions, kept inside the picture."""
    column = np.clip((points[..., 0] * width).astype(int), 0, width - 1)
    row = np.clip((points[..., 1] * height).astype(int), 0, height - 1)
    return row, column


def test_a_clip_has_the_stated_shapes_and_ranges() -> None:
    clip = make_clip(3, 5, 128, 64, fps=12.0)
    assert clip.frames.shape == (5, 128, 64, 3)
    assert clip.reference.shape == (128, 64, 3)
    assert clip.masks.shape == (5, 128, 64)
    assert clip.frames.dtype == clip.reference.dtype == clip.masks.dtype == np.uint8
    assert (len(clip.truth), len(clip.observed), len(clip.reference_pose)) == (5, 5, 1)
    assert clip.truth.fps == clip.observed.fps == 12.0
    assert clip.truth.size == (64, 128)
    assert 0.05 < (clip.masks > 127).mean() < 0.6


@pytest.mark.parametrize(
    "options",
    [{}, {"driven": True}, {"style": "rich"}, {"blur": 0.8, "occlusion": True}, {"character_seed": 9}],
)
def test_the_same_seed_gives_the_same_bytes(options: dict[str, Any]) -> None:
    one, two = (make_clip(11, 3, 96, 64, **options) for _ in range(2))
    assert one.frames.tobytes() == two.frames.tobytes()
    assert one.reference.tobytes() == two.reference.tobytes()
    assert one.truth == two.truth
    assert one.observed == two.observed
    assert one.character == two.character


def test_clips_of_other_seeds_differ_in_person_room_and_dance() -> None:
    clips = list(iter_clips(0, 6, 1, 96, 64))
    assert len({clip.frames.tobytes() for clip in clips}) == 6
    assert len({clip.character for clip in clips}) == 6
    assert len({clip.truth.body.tobytes() for clip in clips}) == 6
    assert TRAIN_SEEDS.stop <= TEST_SEEDS.start


def test_characters_are_many_and_plainly_different() -> None:
    people = [Character.from_seed(seed) for seed in range(300)]
    coarse = set()
    for one in people:
        colours = np.array([one.skin, one.top.colour, one.bottom.colour]) // 64
        coarse.add((one.hair.style, one.top.pattern, one.bottom.skirt, one.backdrop.kind, colours.tobytes()))
    assert len(coarse) > 294  # even so coarsely described, hardly two are alike
    apart = [np.linalg.norm(np.subtract(p.top.colour, p.backdrop.colours[0])) for p in people]
    assert np.mean(np.array(apart) > 80) > 0.97


def test_a_character_keeps_its_looks_in_another_clip() -> None:
    one, two = (make_clip(seed, 2, 96, 64, character_seed=5) for seed in (1, 2))
    assert one.character == two.character == Character.from_seed(5)
    assert one.truth != two.truth


def test_dolls_have_large_heads_and_stand_before_a_still_room() -> None:
    dolls = list(iter_clips(40, 30, 4, 96, 64))
    near = 0
    for clip in dolls:
        body = clip.character.body
        assert 0.215 <= body.head <= 0.25
        assert body.thigh + body.shin == pytest.approx(0.4)
        empty = ~(clip.masks[:, :48] > 0).any(axis=0)  # the floor has a shadow that moves
        room = clip.frames[:, :48][:, empty].astype(int)
        assert np.abs(room - room[0]).max() <= 1
        near += bool((clip.truth.body[:, [10, 13], 1] > 1).any())
    assert 8 <= near <= 22  # about half show no feet


def test_few_hands_are_before_a_dolls_face() -> None:
    over = []
    for clip in iter_clips(0, 60, 4, 96, 64):
        hands = clip.truth.hands[:, :, [0, 9]].reshape(4, 4, 2)
        face = clip.truth.face
        low, high = face.min(axis=1), face.max(axis=1)
        inside = (hands > low[:, None]) & (hands < high[:, None])
        over.append(inside.all(axis=-1).any(axis=1).mean())
    assert np.mean(over) < 0.1


def test_a_driver_of_another_build_moves_the_same_and_is_fitted_to_the_doll() -> None:
    own, driven = (make_clip(30, 6, 192, 128, driven=driven) for driven in (False, True))
    assert own.frames.tobytes() == driven.frames.tobytes()
    assert own.truth == driven.truth
    away = np.linalg.norm((driven.observed.body - driven.truth.body) * (128, 192), axis=-1)
    seen = (driven.observed.body_score > 0.3) & (driven.truth.body_score > 0.3)
    assert 2 < away[seen].mean() < 15  # pixels
    for start, end in BONES:
        both = seen[:, [start, end]].all(axis=1)
        one, two = (pose.body[both, end] - pose.body[both, start] for pose in (driven.truth, driven.observed))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        assert ((one * two).sum(axis=1) / lengths > 0.8).all()


def test_visible_joints_are_on_the_person(clips: list[SyntheticClip]) -> None:
    inside = []
    for clip in clips:
        row, column = pixels(clip.truth.body[:, :14], SIZE, SIZE)
        on = np.take_along_axis(clip.masks.reshape(8, -1), row * SIZE + column, axis=1) > 127
        inside += on[clip.truth.body_score[:, :14] == 1].tolist()
    assert len(inside) > 800
    assert np.mean(inside) > 0.995


def test_bare_wrists_and_fingers_have_the_colour_of_skin(clips: list[SyntheticClip]) -> None:
    alike = []
    for clip in clips:
        if clip.character.top.cover > 1:
            continue
        skin = np.array(clip.character.skin) / np.linalg.norm(clip.character.skin)
        body, hands = clip.truth, clip.truth.hands
        points = np.concatenate([body.body[:, [4, 7]], hands[:, :, [5, 9, 13]].reshape(8, 6, 2)], axis=1)
        scores = np.concatenate(
            [body.body_score[:, [4, 7]], body.hands_score[:, :, [5, 9, 13]].reshape(8, 6)], axis=1
        )
        for frame in range(8):
            row, column = pixels(points[frame][scores[frame] == 1], SIZE, SIZE)
            colour = clip.frames[frame][row, column].astype(float)
            alike += (colour @ skin / np.maximum(np.linalg.norm(colour, axis=-1), 1) > 0.985).tolist()
    assert len(alike) > 150
    assert np.mean(alike) > 0.95


def test_drawn_truth_lies_over_the_person(clips: list[SyntheticClip]) -> None:
    inside, total = 0, 0
    for clip in clips:
        drawn = draw_poses(clip.truth, SIZE, SIZE, canvas=2 * SIZE).max(axis=-1) > 64
        inside += int((drawn & (clip.masks > 64)).sum())
        total += int(drawn.sum())
    assert inside / total > 0.94  # the fingers' outlines are as wide as the fingers


def test_the_reference_shows_another_moment_of_the_same_motion(clips: list[SyntheticClip]) -> None:
    for clip in clips:
        assert clip.reference_pose != clip.truth[0]
        corner = slice(0, 12)
        room = clip.frames[:, corner, corner].astype(float).mean(axis=(0, 1, 2))
        assert np.abs(room - clip.reference[corner, corner].mean(axis=(0, 1))).max() < 60


def test_errors_grow_as_the_confidence_falls(clips: list[SyntheticClip]) -> None:
    errors, scores = [], []
    for clip in clips:
        errors.append(np.linalg.norm(clip.observed.body - clip.truth.body, axis=-1).ravel())
        scores.append(clip.observed.body_score.ravel())
    error, score = np.concatenate(errors), np.concatenate(scores)
    steps = [error[(score >= low) & (score < low + 0.4)].mean() for low in (0.0, 0.4, 0.8)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 4 * steps[-1]


def test_hands_drop_out_as_a_whole_and_hidden_points_are_unsure(clips: list[SyntheticClip]) -> None:
    dropped, hidden = 0, []
    for clip in clips:
        lost = (clip.observed.hands_score.max(axis=-1) < 0.3) & (clip.truth.hands_score.min(axis=-1) == 1)
        dropped += int(lost.sum())
        hidden += clip.observed.body_score[clip.truth.body_score < 0.3].tolist()
    assert dropped > 5
    assert np.mean(np.array(hidden) < 0.3) > 0.98


def test_something_passing_hides_points_and_is_not_the_person() -> None:
    clear, covered = (make_clip(8, 12, 96, 64, occlusion=passing, blur=0.0) for passing in (False, True))
    assert (covered.truth.body == clear.truth.body).all()
    assert (covered.truth.face_score <= clear.truth.face_score).all()
    assert covered.masks.astype(int).sum() < clear.masks.astype(int).sum()
    assert (covered.reference == clear.reference).all()


def test_blur_softens_what_moves_and_leaves_the_truth() -> None:
    sharp, soft = (make_clip(21, 6, 128, 64, blur=blur, occlusion=False) for blur in (0.0, 1.0))
    np.testing.assert_allclose(sharp.truth.body, soft.truth.body, atol=1e-6)
    edges = [np.abs(np.diff(c.frames.astype(float), axis=2)).mean() for c in (sharp, soft)]
    assert edges[1] < edges[0]


def test_a_real_motion_keeps_the_directions_of_its_bones() -> None:
    motion = PoseSequence.load(MOTION).strided(2)
    clip = make_clip(77, len(motion), 192, 128, motion=motion, fps=motion.fps)
    given, made = (sequence.body * sequence.size for sequence in (motion, clip.truth))
    for start, end in BONES:
        seen = (motion.body_score[:, [start, end]] > 0.3).all(axis=1)
        one, two = (points[seen, end] - points[seen, start] for points in (given, made))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        assert ((one * two).sum(axis=1) / lengths).min() > 0.999
    inside = ((clip.truth.body >= 0) & (clip.truth.body <= 1)).all(axis=-1)
    assert inside.mean() > 0.95


def test_a_motion_that_shows_little_still_gives_a_whole_person() -> None:
    motion = PoseSequence.load(MOTION)
    score = motion.body_score.copy()
    score[:, [0, 3, 4, 9, 10, 14, 15, 16, 17]] = 0
    for little in (motion[0], replace(motion, body_score=score)):
        clip = make_clip(1, 4, 96, 64, motion=little, occlusion=False)
        assert (clip.masks > 127).mean() > 0.04


def test_a_motion_without_a_person_is_refused() -> None:
    motion = PoseSequence.load(MOTION)
    with pytest.raises(MotionError, match="shoulders"):
        make_clip(1, 4, 64, 64, motion=replace(motion, body_score=np.zeros_like(motion.body_score)))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**9),
    frames=st.integers(1, 3),
    height=st.integers(16, 200),
    width=st.integers(16, 200),
)
def test_any_size_works(seed: int, frames: int, height: int, width: int) -> None:
    clip = make_clip(seed, frames, height, width)
    assert clip.frames.shape == (frames, height, width, 3)
    assert clip.frames.std() > 1
    assert clip.truth.body_score.max() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("frames", 0),
        ("height", 8),
        ("width", 5000),
        ("blur", 1.5),
        ("fps", 0.0),
        ("character_seed", -3),
    ],
)
def test_wrong_arguments_are_named(name: str, value: float) -> None:
    arguments = {"seed": 1, "frames": 2, "height": 64, "width": 64, name: value}
    with pytest.raises(SettingsError, match=name):
        make_clip(**arguments)  # type: ignore[arg-type]


def test_a_gallery_shows_people_a_clip_and_keypoints(tmp_path: Path) -> None:
    main(output=tmp_path / "sheet.png", count=9, size="64x64", tile=64, motion=MOTION)
    sheet = read_picture(tmp_path / "sheet.png")
    assert sheet.shape[0] > 5 * 64  # nine people in two rows, a clip, true and observed keypoints
    assert sheet.std() > 10


def test_the_demos_picture_and_dance_are_of_characters_that_training_never_sees() -> None:
    """As its README says."""
    picture_seed, dance_seed = 1_050_358, 1_050_883
    assert {picture_seed, dance_seed} <= set(TEST_SEEDS[:100_000])
    readme = (DEMO / "README.md").read_text()
    assert f"make_clip({picture_seed:_}, 1, 384, 256).reference" in readme
    assert f"make_clip({dance_seed:_}, 60, 384, 256, fps=30.0, driven=False).truth" in readme
    clip = make_clip(picture_seed, 1, 384, 256)
    difference = np.abs(read_picture(DEMO / "dancer.png").astype(int) - clip.reference)
    assert difference.mean() < 0.1  # other processors may round some pixels otherwise
    dance = make_clip(dance_seed, 60, 384, 256, fps=30.0, driven=False).truth
    np.testing.assert_allclose(PoseSequence.load(DEMO / "dance.npz").body, dance.body, atol=1e-3)
