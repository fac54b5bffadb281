"""The data set of prepared clips: seeds, mirrors, references, and data that is damaged or gone."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mimicmotion_trt.errors import MotionError, SettingsError
from mimicmotion_trt.media.picture import encode_picture
from mimicmotion_trt.pose.sequence import SHAPES
from mimicmotion_trt.training.config import Config, DataConfig, ValidationConfig
from mimicmotion_trt.training.data.samples import (
    HeldOut,
    clips_key,
    open_dataset,
    usable_sample,
    with_reference,
)
from mimicmotion_trt.training.data.shards import ShardWriter, read_entries
from mimicmotion_trt.training.data.transforms import Augment, Variation, mirror
from mimicmotion_trt.training.footage import ShardClips, open_clips
from mimicmotion_trt.training.synthetic import SyntheticClip, make_clip

FRAMES, HEIGHT, WIDTH = 24, 96, 64
SIZE = [WIDTH, HEIGHT]
DIGESTS = [f"{value:08x}{'0' * 16}" for value in (1, 2**30, 2**31, 3 * 2**30)]  # the first is held out


@lru_cache
def source(seed: int) -> SyntheticClip:
    return make_clip(seed, FRAMES, HEIGHT, WIDTH, blur=0.0, occlusion=False)


def write(folder: Path, clips: int = 6, shard_clips: int = 2) -> Path:
    writer = ShardWriter(folder, shard_clips)
    for seed in range(clips):
        clip = source(seed)
        meta = {"video": f"{seed}.mp4", "digest": DIGESTS[seed % 4], "fps": 15.0, "size": SIZE}
        pictures = (encode_picture(frame, ".jpg") for frame in clip.frames)
        writer.add(f"{seed:024x}-000000", meta, clip.truth, pictures)
    writer.close()
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"))


def opened(folder: Path, **options: Any) -> ShardClips:
    return ShardClips(folder, **{"frames": 8, "size": (WIDTH, HEIGHT), "fps": 15.0} | options)


def place(clip: SyntheticClip, picture: np.ndarray) -> int:
    """Which frame of the clip a picture is."""
    return int(np.abs(clip.frames.astype(int) - picture).mean(axis=(1, 2, 3)).argmin())


def test_a_sample_is_a_window_and_a_reference_away_from_it(shards: Path) -> None:
    dataset = opened(shards, clips=12)
    starts = set()
    for index in range(len(dataset)):
        sample = dataset[index]
        clip = source((1, 2, 3, 5)[index % 4])  # 0 and 4 are held out
        start = place(clip, sample["frames"][0])
        assert [place(clip, frame) for frame in sample["frames"]] == list(range(start, start + 8))
        reference = place(clip, sample["reference"])
        apart = max(start - reference, reference - (start + 7))
        assert apart >= min(15, max(start, FRAMES - start - 8)) > 0
        assert np.allclose(sample["observed"].body, clip.truth.body[start : start + 8], atol=1e-6)
        assert np.allclose(sample["reference_pose"].body[0], clip.truth.body[reference], atol=1e-6)
        starts.add(start)
    assert len(starts) > 5


def test_the_same_seed_gives_the_same_samples_and_others_differ(shards: Path) -> None:
    one, two = (opened(shards, augment=Augment(), seed=3) for _ in range(2))
    two = pickle.loads(pickle.dumps(two))
    other = opened(shards, augment=Augment(), seed=4)
    for index in range(4):
        first, second, third = one[index], two[index], other[index]
        assert first["frames"].tobytes() == second["frames"].tobytes()
        assert first["reference"].tobytes() == second["reference"].tobytes()
        assert first["observed"] == second["observed"]
        assert first["frames"].tobytes() != third["frames"].tobytes()


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (64, 64), (96, 144)])
def test_pictures_and_keypoints_move_together(tmp_path: Path, size: tuple[int, int]) -> None:
    """A white spot on the right wrist is found at the right wrist, or at the left one if mirrored."""
    truth = source(3).truth
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 60, np.uint8)
    for frame, (x, y) in zip(frames, truth.body[:, 4] * (WIDTH, HEIGHT), strict=True):
        cv2.circle(frame, (int(x), int(y)), 2, (255, 255, 255), -1)
    writer = ShardWriter(tmp_path, 1)
    meta = {"video": "v", "digest": DIGESTS[0], "fps": 15.0, "size": SIZE}
    writer.add("a-0", meta, truth, (encode_picture(frame, ".jpg") for frame in frames))
    dataset = opened(
        tmp_path, size=size, clips=24, max_enlarge=1.5, augment=Augment(scale=(0.6, 1.0), shift=0.2)
    )
    mirrored, checked = Counter[bool](), 0
    for index in range(24):
        sample = dataset[index]
        pictures, poses = with_reference(sample)
        wrists = poses.body[:, [4, 7]] * size
        spots = [spot(picture) for picture in pictures]
        pairs = [pair for pair in zip(spots, wrists, strict=True) if pair[0] is not None]
        if not pairs:
            continue
        errors = np.array([np.hypot(*(wrist - at).T) for at, wrist in pairs])
        limit = 2.0 * max(size[0] / WIDTH, size[1] / HEIGHT) / 0.6
        flipped = bool(errors[:, 1].mean() < errors[:, 0].mean())
        assert errors[:, int(flipped)].max() < limit
        mirrored[flipped] += 1
        checked += len(pairs)
    assert min(mirrored[True], mirrored[False]) >= 5
    assert checked > 100


def spot(picture: np.ndarray) -> np.ndarray | None:
    """Middle (x, y) of what is bright, unless it is not there or touches the edge."""
    bright = picture.min(axis=2) > 140
    if not bright.any() or bright[[0, -1]].any() or bright[:, [0, -1]].any():
        return None
    rows, columns = np.nonzero(bright)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def test_mirroring_swaps_left_and_right() -> None:
    poses = source(8).truth
    turned = mirror(poses)
    for name, (right, left) in {
        "shoulder": (2, 5),
        "wrist": (4, 7),
        "ankle": (10, 13),
        "ear": (16, 17),
    }.items():
        assert np.allclose(turned.body[:, right, 0], 1 - poses.body[:, left, 0]), name
        assert np.array_equal(turned.body_score[:, right], poses.body_score[:, left]), name
    assert np.allclose(turned.hands[:, 0, :, 0], 1 - poses.hands[:, 1, :, 0])
    for right, left in ((0, 16), (17, 26), (31, 35), (36, 45), (39, 42), (48, 54), (60, 64)):
        assert np.allclose(turned.face[:, right, 0], 1 - poses.face[:, left, 0])
    assert np.array_equal(turned.face[:, [8, 30, 51, 57], 1], poses.face[:, [8, 30, 51, 57], 1])
    again = mirror(turned)
    for name in SHAPES:
        assert np.allclose(getattr(again, name), getattr(poses, name), atol=1e-6)


def test_a_symmetric_face_stays_itself_when_mirrored() -> None:
    """The order of a mirrored face is right for all 68 points: it maps a symmetric face onto itself."""
    poses = source(8).truth[:1]
    symmetric = replace(poses, face=(poses.face + mirror(poses).face) / 2)
    assert np.allclose(mirror(symmetric).face, symmetric.face, atol=1e-6)
    order = mirror(replace(poses, face=np.tile(np.arange(68)[:, None] / 100, 2)[None])).face[0, :, 1] * 100
    assert sorted(order.round().astype(int)) == list(range(68))


def test_colours_are_varied_alike_and_can_be_left_alone() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    plain = Variation(False, 1.0, (0.0, 0.0), 1.0, 1.0, 0.0)
    assert plain.recolour(picture) is picture
    grey = Variation(False, 1.0, (0.0, 0.0), 1.0, 0.0, 0.0).recolour(picture)
    assert np.ptp(grey, axis=2).max() <= 1
    bright = Variation(False, 1.0, (0.0, 0.0), 1.0, 1.0, 0.1).recolour(np.full_like(picture, 100))
    assert set(bright.ravel()) <= {125, 126}


def test_a_slower_rate_takes_every_other_frame(shards: Path) -> None:
    sample = opened(shards, fps=7.5)[0]
    clip = source(1)
    start = place(clip, sample["frames"][0])
    assert [place(clip, frame) for frame in sample["frames"]] == list(range(start, start + 16, 2))
    assert sample["observed"].fps == 7.5


def test_clips_much_slower_than_the_wanted_rate_are_left_out(shards: Path) -> None:
    """Shown at 24 frames a second a dance of 15 would be half again as fast."""
    assert len(opened(shards, fps=22.4)) == 4
    with pytest.raises(SettingsError, match="slower than two thirds of the wanted rate': 4"):
        opened(shards, fps=24.0)


def test_small_clips_are_enlarged_only_as_far_as_was_allowed(shards: Path) -> None:
    with pytest.raises(SettingsError, match="smaller than the wanted size") as caught:
        opened(shards, size=(128, 128))
    assert "max_enlarge, now 1" in caught.value.remedy
    assert len(opened(shards, size=(128, 128), max_enlarge=2.0)) == 4
    assert len(opened(shards, size=(64, 64))) == 4  # a cut of that shape is as wide


def test_clips_of_all_videos_may_be_asked_for(shards: Path) -> None:
    parts = [{entry.key for entry in opened(shards, held_out=part).entries} for part in (False, True)]
    assert {entry.key for entry in opened(shards, held_out=None).entries} == parts[0] | parts[1]


def test_a_reference_shows_the_person(tmp_path: Path) -> None:
    """Four points that are sure, as a clip has to have: one point of a passing hand is not enough."""
    truth = source(0).truth
    score = np.full_like(truth.body_score, 0.2)
    score[:, 4] = 0.9
    score[::2] = truth.body_score[::2]
    writer = ShardWriter(tmp_path, 1)
    pictures = [encode_picture(frame, ".jpg") for frame in source(0).frames]
    meta = {"video": "v", "digest": DIGESTS[0], "fps": 15.0, "size": SIZE}
    writer.add("a-0", meta, replace(truth, body_score=score), pictures)
    dataset = opened(tmp_path, frames=4, clips=40)
    references = []
    for index in range(40):
        with suppress(MotionError):  # the window leaves no such frame
            references.append(place(source(0), dataset[index]["reference"]))
    assert len(references) > 5
    assert all(reference % 2 == 0 for reference in references)


def test_training_finds_the_data_set_by_its_name(shards: Path) -> None:
    config = DataConfig(
        source="mimicmotion_trt.training.footage:open_clips", path=str(shards), clips=12, frames=8,
        height=192, width=128, max_enlarge=2.0,
    )  # fmt: skip
    train, held_out = open_dataset(config), open_dataset(config, held_out=True)
    assert len(train) == len(held_out) == 12
    assert train[5]["frames"].shape == (7, 192, 128, 3)
    assert isinstance(train, ShardClips)
    assert isinstance(held_out, ShardClips)
    videos = [{e.meta["digest"] for e in dataset.entries} for dataset in (train, held_out)]
    assert videos == [set(DIGESTS[1:]), {DIGESTS[0]}]
    with pytest.raises(SettingsError, match="not given"):
        open_clips(DataConfig())


def test_other_shards_are_stored_under_another_name(tmp_path: Path) -> None:
    config = DataConfig(
        source="mimicmotion_trt.training.footage:open_clips", path=str(tmp_path), frames=9, max_enlarge=2.0
    )
    write(tmp_path)
    before = clips_key(config, open_clips(config))
    assert before == clips_key(config, open_clips(config))
    writer = ShardWriter(tmp_path, 2)
    clip = source(6)
    meta = {"video": "6.mp4", "digest": DIGESTS[2], "fps": 15.0, "size": SIZE}
    writer.add("new-000000", meta, clip.truth, (encode_picture(frame, ".jpg") for frame in clip.frames))
    writer.close()
    after = clips_key(config, open_clips(config))
    assert after != before
    (tmp_path / "shard-000003.tar").unlink()  # its index alone makes no clip
    assert clips_key(config, open_clips(config)) == before


def test_damage_is_skipped_with_a_counted_reason(tmp_path: Path) -> None:
    folder = write(tmp_path, clips=12)
    spoil_keypoints(folder / "shard-000000.json")  # clip 1; clip 0 is held out
    (folder / "shard-000001.tar").unlink()  # clips 2, 3
    entry = read_entries(folder)[0][3]
    assert entry.key.startswith(f"{5:024x}")
    with entry.shard.open("r+b") as file:  # clip 5: its frames
        file.seek(entry.end - 40_000)
        file.write(b"\xff" * 30_000)
    (folder / "shard-000003.json").write_text("{")  # clips 6, 7
    with (folder / "shard-000005.tar").open("r+b") as file:  # clip 11; clip 10 stays
        file.truncate(read_entries(folder)[0][-1].offset + 5000)
    dataset = opened(folder, frames=20)
    assert dataset.skipped == {
        "its shard is missing": 2,
        "the index of a shard is damaged": 1,
        "its shard is cut off": 1,
    }
    found = [usable_sample(dataset, index) for index in range(len(dataset))]
    assert all(len(sample["frames"]) == 20 for sample, _ in found)
    reasons = Counter(reason for _, reason in found)
    assert reasons == {"": 2, "the keypoints of a clip cannot be used": 1, "the data of a clip is damaged": 1}
    (folder / "shard-000004.tar").unlink()  # while training runs
    (folder / "shard-000005.tar").unlink()
    with pytest.raises(MotionError, match="none of 4 clips can be used"):
        usable_sample(dataset, 2)
    with pytest.raises(MotionError, match="a shard cannot be read"):
        dataset[2]


def spoil_keypoints(index: Path) -> None:
    """NaN among the keypoints of a shard's last clip, its checksum right."""
    listed = json.loads(index.read_text())
    entry = read_entries(index.parent)[0][1]
    with tarfile.open(entry.shard) as tar:
        member = tar.getmember(f"{entry.key}.npz")
        with np.load(io.BytesIO(tar.extractfile(member).read())) as file:  # type: ignore[union-attr]
            arrays = dict(file)
    arrays["body"][3, 4] = np.nan
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    data = buffer.getvalue()
    row = listed["clips"][1]
    blocks = [-(-size // 512) for size in (len(data), row["sizes"][1])]
    assert blocks[0] == blocks[1]
    row["sizes"][1], row["checks"][1] = len(data), zlib.crc32(data)
    index.write_text(json.dumps(listed))
    with entry.shard.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(data)


def test_nobody_is_held_out_and_trained_on(tmp_path: Path) -> None:
    """However many frames a clip needs for either: the video that is held out is so though its clips are short."""
    writer = ShardWriter(tmp_path, 2)
    for seed, frames in enumerate((10, FRAMES, FRAMES)):
        meta = {
            "video": f"{seed}.mp4",
            "digest": DIGESTS[seed + 1],
            "fps": 15.0,
            "size": SIZE,
        }  # none of the first 20th
        pictures = [encode_picture(frame, ".jpg") for frame in source(seed).frames[:frames]]
        writer.add(f"{seed:024x}-000000", meta, source(seed).truth[:frames], pictures)
    writer.close()
    train, held_out = opened(tmp_path), opened(tmp_path, held_out=True)
    people = [{entry.meta["digest"] for entry in dataset.entries} for dataset in (train, held_out)]
    assert people == [{DIGESTS[2], DIGESTS[3]}, {DIGESTS[1]}]
    assert {entry.meta["digest"] for entry in opened(tmp_path, frames=15).entries} == people[0]

    config = DataConfig(
        source="mimicmotion_trt.training.footage:open_clips",
        path=str(tmp_path),
        frames=8,
        height=64,
        width=64,
    )
    validation = ValidationConfig(frames=15)
    with pytest.raises(SettingsError, match="holds no clip that is held out") as caught:
        HeldOut(Config(output="unused", base="unused", data=config, validation=validation))
    assert caught.value.field == "validation.frames"
    HeldOut(Config(output="unused", base="unused", data=config, validation=replace(validation, every=0)))


def test_of_a_single_video_nothing_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, clips=1)
    assert len(opened(tmp_path)) == 1
    with pytest.raises(SettingsError, match="single video"):
        opened(tmp_path, held_out=True)


def test_unusable_shards_are_refused(shards: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SettingsError):
            opened(folder)
    with pytest.raises(SettingsError, match="too short for the window"):
        opened(shards, frames=FRAMES)
    with pytest.raises(IndexError):
        opened(shards)[10**6]
    assert opened(shards, frames=FRAMES - 1)[0]["frames"].shape[0] == FRAMES - 1


def test_shards_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    clip = source(0)
    meta = {"video": "v", "digest": DIGESTS[0], "fps": 15.0, "size": SIZE}

    def failing() -> Any:
        yield encode_picture(clip.frames[0], ".jpg")
        raise MotionError("no more")

    writer = ShardWriter(tmp_path, 4)
    with pytest.raises(MotionError):
        writer.add("a-0", meta, clip.truth, failing())
    assert not list(tmp_path.glob("shard-*"))
    writer = ShardWriter(tmp_path, 4)  # clears up
    assert not list(tmp_path.glob(".shard-*"))
    pictures = [encode_picture(frame, ".jpg") for frame in clip.frames]
    writer.add("a-0", meta, clip.truth, pictures)
    writer.close()
    writer.close()
    again = ShardWriter(tmp_path, 4)
    assert set(again.done) == {"a-0"}
    (tmp_path / "shard-000000.tar").unlink()
    assert ShardWriter(tmp_path, 4).done == {}
    assert read_entries(tmp_path) == ([], Counter({"its shard is missing": 1}))
