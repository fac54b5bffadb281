"""Of several people the one who is meant is followed: through crossings, behind others, and back again."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt.errors import SettingsError
from mimicmotion_trt.pose.follow import Follower, Seen, assign, choose, distinct, hold_poses, likeness
from mimicmotion_trt.pose.sequence import PoseSequence, single_frame

SIZE = (640, 360)
SHAPE = np.array(
    [
        *[(0, 0), (0, 20), (-20, 25), (-25, 50), (-22, 75), (20, 25), (25, 50), (22, 75)],
        *[
            (-12, 80),
            (-13, 120),
            (-14, 160),
            (12, 80),
            (13, 120),
            (14, 160),
            (-4, -4),
            (4, -4),
            (-9, 0),
            (9, 0),
        ],
    ]
)
"""Someone who stands upright, in OpenPose's order, the nose at (0, 0)."""


def person(x: float, y: float = 100.0, scale: float = 1.0, seed: int = 0) -> Seen:
    """Someone whose nose is at (x, y); the seed moves their joints by a pixel or two."""
    noise = np.random.default_rng(seed).normal(size=SHAPE.shape)
    return Seen(SHAPE * scale + (x, y) + noise, np.full(len(SHAPE), 0.9))


def follow(frames: list[list[tuple[str, Seen]]], who: str | None = None) -> list[str]:
    """The names of those who are followed, frame by frame; "" where nobody is. The order of people is shuffled."""
    follower, chance, names = Follower(who), np.random.default_rng(0), []
    for number, people in enumerate(frames):
        mixed = people if number == 0 else [people[i] for i in chance.permutation(len(people))]
        found = follower.update([seen for _, seen in mixed], SIZE)
        names.append("" if found is None else mixed[found][0])
    return names


@pytest.mark.parametrize(
    ("who", "name"), [("left", "a"), ("right", "b"), ("1", "a"), ("2", "b"), (None, "a")]
)
@pytest.mark.parametrize("speed", [4, 8, 16])
def test_two_people_who_cross_stay_who_they_are(who, name, speed):
    """They walk through each other's place; where they meet, both are seen in one place for a moment."""
    times = range(0, 400, speed)
    frames = [[("a", person(100 + t, seed=t)), ("b", person(500 - t, 104, seed=t + 1))] for t in times]
    assert set(follow(frames, who)) == {name}


@pytest.mark.parametrize("hidden", [3, 8, 15])
def test_someone_behind_another_is_waited_for_and_found_again(hidden):
    """While they are hidden nobody is taken for them, not even who stands before them."""
    frames = []
    for t in range(60):
        people = [("a", person(100 + 5 * t, seed=t)), ("b", person(240, 110, 1.2, seed=t + 99))]
        behind = 24 <= t < 24 + hidden
        frames.append(people[1:] if behind else people)
    names = follow(frames, "left")
    assert names[:24] == ["a"] * 24
    assert names[24 : 24 + hidden] == [""] * hidden
    assert names[24 + hidden :] == ["a"] * (36 - hidden)


def test_when_two_become_one_for_a_moment_the_crossing_goes_on():
    """Four frames in which the estimator finds only the one in front."""
    frames = []
    for t in range(0, 400, 8):
        a, b = ("a", person(100 + t, seed=t)), ("b", person(500 - t, 104, seed=t + 1))
        frames.append([b] if 184 <= t < 216 else [a, b])
    names = follow(frames, "left")
    assert [name for name in names if name] == ["a"] * (len(frames) - names.count(""))
    assert names.count("") == 4
    assert set(follow(frames, "right")) == {"b"}


def test_whoever_comes_later_is_not_taken():
    frames = [[("a", person(300, seed=t))] for t in range(5)]
    frames += [[("b", person(300 + 3 * t, 90, 1.8, seed=t)), ("a", person(300, seed=t))] for t in range(20)]
    assert set(follow(frames)) == {"a"}


def test_in_another_scene_the_nearest_is_taken():
    frames = [[("a", person(100, seed=t))] for t in range(3)]
    frames += [[("c", person(600, seed=t)), ("b", person(450, seed=t))] for t in range(3)]
    assert follow(frames) == ["a"] * 3 + ["b"] * 3


def test_who_does_not_come_back_is_given_up_after_a_while():
    frames = [[("a", person(100, seed=t)), ("b", person(500, seed=t))] for t in range(3)]
    frames += [[("b", person(500, seed=t))] for t in range(70)]
    names = follow(frames, "left")
    assert names[3:60] == [""] * 57
    assert names[-1] == "b"


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (None, 0),
        ("largest", 2),
        ("centre", 1),
        ("left", 3),
        ("right", 2),
        ("1", 3),
        ("2", 0),
        ("4", 2),
        ("5", None),
        ("0.4,0.2,0.6,0.9", 1),
        ("10,50,100,250", 3),
        ("600,0,640,20", None),
    ],
)
def test_the_person_who_is_meant(who, expected):
    people = [person(200), person(310), person(480, 80, 1.5), person(60)]
    assert choose(people, SIZE, who) == expected
    assert choose([], SIZE, who) is None


def test_a_number_that_comes_later_is_waited_for_and_one_that_never_comes_is_an_error():
    follower = Follower("2")
    assert follower.update([person(100)], SIZE) is None
    assert follower.update([person(100), person(300)], SIZE) == 1
    follower.check_found()
    follower = Follower("3")
    follower.update([person(100), person(300)], SIZE)
    with pytest.raises(SettingsError, match="person is 3, and no more than 2 people were seen") as caught:
        follower.check_found()
    assert caught.value.field == "settings.person"
    with pytest.raises(SettingsError, match="driver is 3") as caught:
        follower.check_found("driver")
    assert caught.value.field == "settings.driver"
    Follower("3").check_found()  # of nobody at all others tell


def test_findings_of_one_person_are_one():
    people = [person(100), person(102, seed=1), person(300), person(100, 104, seed=2)]
    assert distinct(people) == [0, 2]
    assert likeness(person(100), person(100)) == pytest.approx(1)
    assert likeness(person(100), person(400)) < 0.01


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 999))
def test_the_assignment_has_the_largest_sum(rows, columns, seed):
    values = np.random.default_rng(seed).uniform(-0.5, 1, (rows, columns)).clip(0)
    pairs = assign(values.tolist())
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    side = max(rows, columns)
    square = np.zeros((side, side))
    square[:rows, :columns] = values
    best = max((square[range(side), list(p)].sum() for p in permutations(range(side))), default=0.0)
    assert sum(values[pair] for pair in pairs) == pytest.approx(best)


def motion(scores: list[float]) -> PoseSequence:
    """Frames whose nose is at x = 0.1, 0.2, … and whose confidence is that."""
    parts: list[Any] = [
        single_frame((64, 64), body=np.full((18, 2), 0.1 * (n + 1)), body_score=np.full(18, score))
        for n, score in enumerate(scores)
    ]
    return replace(PoseSequence.concat(parts), fps=15.0)


def test_frames_without_the_person_hold_the_last_pose_with_falling_confidence():
    held, unseen = hold_poses(motion([0, 0, 0.8, 0, 0, 0.6, 0]))
    assert unseen.tolist() == [True, True, False, True, True, False, True]
    np.testing.assert_allclose(held.body[:, 0, 0], [0.3, 0.3, 0.3, 0.3, 0.3, 0.6, 0.6], rtol=1e-6)
    fade = [0.8 * 0.81, 0.8 * 0.9, 0.8, 0.8 * 0.9, 0.8 * 0.81, 0.6, 0.6 * 0.9]
    np.testing.assert_allclose(held.body_score[:, 3], fade, rtol=1e-6)
    assert held.fps == 15.0


@pytest.mark.parametrize("scores", [[0.5, 0.6], [0.0, 0.0]])
def test_a_motion_without_gaps_is_as_it_was(scores):
    poses = motion(scores)
    held, unseen = hold_poses(poses)
    assert held is poses
    assert not unseen.any()


def test_someone_who_is_held_for_a_time_is_drawn_until_then_and_is_gone_after_it():
    """A fifth of a second is 3 frames of 15 a second."""
    held, unseen = hold_poses(motion([0.9, 0, 0, 0, 0, 0]), hold=0.2)
    fade = 0.3 ** (np.arange(4) / 3)
    np.testing.assert_allclose(held.body_score[:, 3], [*(0.9 * fade), 0, 0], rtol=1e-6)
    assert unseen.sum() == 5
    fast = replace(motion([0.9, *[0] * 9]), fps=45.0)
    assert (hold_poses(fast, hold=0.2)[0].body_score[:, 0] > 0).sum() == 10
    gone, _ = hold_poses(motion([0, 0.9, 0, 0.7]), hold=0)
    np.testing.assert_allclose(gone.body_score[:, 0], [0, 0.9, 0, 0.7], rtol=1e-6)
