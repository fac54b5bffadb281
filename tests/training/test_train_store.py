"""Prepared clips: made once, made again if damaged, bad ones left out with a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt.errors import MotionError, SettingsError
from mimicmotion_trt.pose import draw_poses
from mimicmotion_trt.training.config import DataConfig
from mimicmotion_trt.training.samples import (
    SyntheticClips,
    certain,
    clips_key,
    drawn_poses,
    open_dataset,
    slots,
    sound_sample,
)
from mimicmotion_trt.training.store import Store, clip_at

CONFIG = DataConfig(clips=12, characters=3, frames=3, height=64, width=64)


class Faulty:
    """The synthetic clips, of which some cannot be used."""

    def __init__(self, bad: set[int]) -> None:
        self.clips, self.bad = SyntheticClips(CONFIG), bad

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Any:
        if index in self.bad:
            raise MotionError("nobody is there.")
        return self.clips[index]


def first_frame(sample):
    return {"frame": sample["frames"][0]}


def test_a_clip_is_made_once(tmp_path):
    made = Counter()

    def make(sample):
        made.update(["made"])
        return first_frame(sample)

    for _ in range(2):
        store = Store(tmp_path, SyntheticClips(CONFIG), make)
        np.testing.assert_array_equal(store[2]["frame"], SyntheticClips(CONFIG)[2]["frames"][0])
    assert made["made"] == 1
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_array_equal(store[2]["frame"], SyntheticClips(CONFIG)[2]["frames"][0])
    assert made["made"] == 2


def test_workers_make_the_same_clips(tmp_path):
    alone, together = (Store(tmp_path / name, SyntheticClips(CONFIG), first_frame) for name in "ab")
    reports = []
    alone.fill(range(9), 0)
    together.fill(range(9), 1, lambda *done: reports.append(done))
    assert reports == [(done, 9) for done in range(1, 10)]
    for index in range(9):
        np.testing.assert_array_equal(alone[index]["frame"], together[index]["frame"])


def test_clips_that_cannot_be_used_are_counted(tmp_path):
    store = Store(tmp_path, Faulty({4, 5}), first_frame)
    store.fill(range(3, 7), 0)
    np.testing.assert_array_equal(store[4]["frame"], store[6]["frame"])
    assert store.skipped == {"nobody is there.": 3}
    with pytest.raises(MotionError, match="12 clips from 3 on cannot be used"):
        sound_sample(Faulty(set(range(12))), 3)


def test_every_clip_comes_once_in_an_epoch_in_another_order():
    first, second = ([clip_at(7, 20, 20 * epoch + k) for k in range(20)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == [clip_at(7, 20, k) for k in range(20)]


def test_people_that_are_held_out_are_others():
    train, held_out = open_dataset(CONFIG), open_dataset(CONFIG, held_out=True)
    assert not np.array_equal(train[0]["reference"], held_out[0]["reference"])
    pictures, poses = slots(train[0])
    assert len(pictures) == len(poses) == CONFIG.frames
    np.testing.assert_array_equal(pictures[0], train[0]["reference"])
    np.testing.assert_array_equal(poses.body[0], train[0]["reference_pose"].body[0])


def test_drawings_without_doubt_are_of_full_brightness_or_none():
    _, poses = slots(open_dataset(CONFIG)[1])
    scores = poses.body_score.copy()
    scores[:, 4], scores[:, 7] = 0.5, 0.3  # a joint of no more than 0.3 is not drawn
    poses = replace(poses, body_score=scores)
    aware = drawn_poses(poses, 64, 64, 256)
    np.testing.assert_array_equal(aware, draw_poses(poses, 64, 64, 256))
    sure = certain(poses)
    assert set(np.unique(sure.body_score)) <= {0.0, 1.0}
    assert (sure.body_score[:, 4] == 1).all()
    assert (sure.body_score[:, 7] == 0).all()
    np.testing.assert_array_equal(sure.body, poses.body)
    full = drawn_poses(poses, 64, 64, 256, confidence_aware=False)
    np.testing.assert_array_equal(full, draw_poses(sure, 64, 64, 256))
    assert full.max() >= aware.max()


def test_stored_clips_are_named_by_all_that_changes_them():
    dataset = open_dataset(CONFIG)
    key = clips_key(CONFIG, dataset)
    assert key == clips_key(replace(CONFIG, cache="elsewhere", workers=3, clips=99), dataset)
    assert key != clips_key(replace(CONFIG, confidence_aware=False), dataset)
    assert key != clips_key(replace(CONFIG, canvas=128), dataset)


def test_a_source_that_is_not_there():
    with pytest.raises(SettingsError, match=r"nowhere:clips.*cannot be used"):
        open_dataset(replace(CONFIG, source="nowhere:clips"))
