"""Prepared clips: made once, made again if damaged, bad ones left out with a reason."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt.errors import MotionError, OutputError, SettingsError
from mimicmotion_trt.pose import draw_poses
from mimicmotion_trt.training.config import Config, DataConfig, ValidationConfig
from mimicmotion_trt.training.data.samples import (
    HeldOut,
    SyntheticClips,
    certain,
    clips_key,
    drawn_poses,
    open_dataset,
    usable_sample,
    with_reference,
)
from mimicmotion_trt.training.data.store import ClipOrder, Store

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
    whole = file.read_bytes()
    name, extra = struct.unpack("<HH", whole[26:30])
    packing = whole.index(b"PK\x01\x02") + 10
    for times, place in enumerate((30 + name + extra, len(whole) // 2, packing), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        np.testing.assert_array_equal(store[2]["frame"], SyntheticClips(CONFIG)[2]["frames"][0])
        assert made["made"] == times


def test_workers_make_the_same_clips(tmp_path):
    alone, together = (Store(tmp_path / name, SyntheticClips(CONFIG), first_frame) for name in "ab")
    reports = []
    alone.fill(range(9), 0)
    together.fill(range(9), 1, lambda *done: reports.append(done))
    assert reports == [(done, 9) for done in range(1, 10)]
    for index in range(9):
        np.testing.assert_array_equal(alone[index]["frame"], together[index]["frame"])


@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_share_the_work(tmp_path, workers):
    """Here the second one makes all that is left while the first one makes its first clip."""
    made, reports = Counter(), []

    def make(sample):
        made.update(["made"])
        if made["made"] == 1:
            Store(tmp_path, SyntheticClips(CONFIG), make).fill(range(9), 0)
        return first_frame(sample)

    Store(tmp_path, SyntheticClips(CONFIG), make).fill(range(9), workers, lambda *done: reports.append(done))
    assert made["made"] == 10  # the one that both began with
    assert reports[-1] == (9, 9)
    assert len(list(tmp_path.glob("*.npz"))) == 9


def test_clips_that_cannot_be_used_are_counted(tmp_path):
    store = Store(tmp_path, Faulty({4, 5}), first_frame)
    store.fill(range(3, 7), 0)
    sound = [store[index]["frame"].tobytes() for index in range(12) if index not in (4, 5)]
    assert {store[4]["frame"].tobytes(), store[5]["frame"].tobytes()} <= set(sound)
    assert store.skipped == {"nobody is there": 2}
    with (tmp_path / "left-out.jsonl").open("a") as file:
        file.write('{"clip": 7, "rea')  # what a kill leaves
    assert Store(tmp_path, Faulty({4, 5}), first_frame).skipped == {"nobody is there": 2}  # from the cache


def test_what_was_left_out_and_is_sound_now_is_not_counted(tmp_path):
    Store(tmp_path, Faulty({4}), first_frame).fill([4], 0)
    (tmp_path / "0000004.npz").unlink()
    store = Store(tmp_path, Faulty(set()), first_frame)
    assert store.skipped == {"nobody is there": 1}
    np.testing.assert_array_equal(store[4]["frame"], SyntheticClips(CONFIG)[4]["frames"][0])
    assert not store.skipped


def test_what_a_data_set_left_out_when_it_was_opened_counts(tmp_path):
    dataset = Faulty({4})
    dataset.skipped = Counter({"its shard is missing": 64})
    store = Store(tmp_path, dataset, first_frame)
    store.fill([4], 0)
    assert store.skipped == {"its shard is missing": 64, "nobody is there": 1}


def test_a_long_damaged_stretch_is_passed_over():
    class Long(Faulty):
        def __len__(self) -> int:
            return 400

    dataset = Long(set(range(300)))
    replacing = [usable_sample(dataset, index) for index in range(0, 300, 60)]
    assert {reason for _, reason in replacing} == {"nobody is there"}
    assert len({sample["frames"].tobytes() for sample, _ in replacing}) > 1  # not all by the same neighbour
    again, _ = usable_sample(dataset, 60)
    np.testing.assert_array_equal(again["frames"], replacing[1][0]["frames"])
    assert usable_sample(dataset, 300)[1] == ""
    with pytest.raises(MotionError, match="none of 12 clips can be used: nobody is there"):
        usable_sample(Faulty(set(range(12))), 3)


def faulty_source(config: DataConfig, *, held_out: bool = False) -> Faulty:
    """A data set whose first clip that is held out is damaged; without a path all of them are."""
    return Faulty(({0} if config.path else set(range(12))) if held_out else set())


def run_config(**changes: Any) -> Config:
    data = replace(CONFIG, source=f"{__name__}:faulty_source", path="some")
    return Config(output="unused", base="unused", **{"stage": "vae", "data": data, **changes})


def test_a_damaged_clip_that_is_held_out_is_passed_over():
    held_out = HeldOut(run_config(validation=ValidationConfig(clips=3)))
    for _ in range(2):
        samples = held_out.samples()
        assert [sample["frames"].tobytes() for sample in samples] == [
            SyntheticClips(CONFIG)[index]["frames"].tobytes() for index in (1, 2, 3)
        ]
    assert held_out.skipped == {"held out: nobody is there": 1}
    config = run_config(data=replace(CONFIG, source=f"{__name__}:faulty_source"))
    with pytest.raises(MotionError, match="no clip that is held out can be used: nobody is there"):
        HeldOut(config).samples()


def test_validation_may_ask_for_more_clips_than_an_epoch_has():
    config = run_config(data=replace(CONFIG, clips=2), validation=ValidationConfig(clips=3))
    assert len(HeldOut(config).samples()) == 3


def test_clips_that_are_held_out_are_as_long_as_their_stage_needs():
    validation = ValidationConfig(clips=1, frames=5, settings={"overlap": 1})
    for stage, frames in (("vae", 2), ("motion", 5), ("together", 5)):
        config = run_config(stage=stage, data=CONFIG, validation=validation)
        assert len(HeldOut(config).samples()[0]["frames"]) == frames


def test_what_is_held_out_is_opened_only_to_validate():
    data = replace(CONFIG, source="nowhere:clips")
    HeldOut(run_config(data=data, validation=ValidationConfig(every=0)))
    with pytest.raises(SettingsError, match="no clips for validation") as caught:
        HeldOut(run_config(data=data, stage="motion", validation=ValidationConfig(settings={"overlap": 1})))
    assert caught.value.field == "validation.frames"
    assert "now 15" in caught.value.remedy


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OutputError, match=r"cache.*cannot be written"):
        Store(tmp_path / "cache" / "clips", SyntheticClips(CONFIG), first_frame).fill([0], 0)


def test_every_clip_comes_once_in_an_epoch_in_another_order():
    order = ClipOrder(7, 20)
    first, second = ([order[20 * epoch + k] for k in range(20)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == [order[k] for k in range(20)]


def test_people_that_are_held_out_are_others():
    train, held_out = open_dataset(CONFIG), open_dataset(CONFIG, held_out=True)
    assert not np.array_equal(train[0]["reference"], held_out[0]["reference"])
    pictures, poses = with_reference(train[0])
    assert len(pictures) == len(poses) == CONFIG.frames
    np.testing.assert_array_equal(pictures[0], train[0]["reference"])
    np.testing.assert_array_equal(poses.body[0], train[0]["reference_pose"].body[0])


def test_drawings_without_doubt_are_of_full_brightness_or_none():
    _, poses = with_reference(open_dataset(CONFIG)[1])
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
