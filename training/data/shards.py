"""Shards: tar files in the webdataset convention with an index beside each, and the data set that reads them.

A clip is one sample: `KEY.json` (where it comes from), `KEY.npz` (its `PoseSequence`), `KEY.0000.jpg` and on
(its frames). `shard-000000.json` says where the clips of `shard-000000.tar` lie and what their checksums are.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MotionError, OutputError, PictureError, SettingsError
from ...files import write_atomic
from ...media.picture import read_picture
from ...pose import PoseSequence
from ..config import DataConfig
from .samples import Sample
from .transforms import NONE, Augment, Picture, Rectangle, Variation, around_person, mirror, somebody

_BLOCK = tarfile.BLOCKSIZE
HELD_OUT_SHARE = 0.05
"""About this share of the videos, by their content, is never trained on."""
_SMALL = "smaller than the wanted size"
_GAP_SECONDS = 1.0
_SLOWEST = 2 / 3
"""Of the wanted rate; the rounding of a stride is no further off."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip in a shard."""

    shard: Path
    key: str
    offset: int
    """Where its first header begins, in bytes."""
    sizes: tuple[int, ...]
    checks: tuple[int, ...]
    """Bytes and CRC-32 of its members: description, keypoints, frames."""
    meta: Mapping[str, Any]
    """`video`, `digest`, `start` and `stop` (frames), `fps`, `size`, `crop`, `jitter`."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.sizes) - 2

    @property
    def end(self) -> int:
        """Where its last block ends, in bytes."""
        return self.offset + sum(map(_stored, self.sizes))

    def poses(self) -> PoseSequence:
        """Its keypoints; raises `MotionError` if they are damaged."""
        (data,) = self._read([1])
        try:
            poses = PoseSequence.load(data)
        except MotionError as error:
            raise MotionError(
                "the keypoints of a clip cannot be used.", remedy=error.message, field="data"
            ) from error
        if len(poses) != self.frames:
            raise MotionError("a clip has other numbers of frames and poses.", field="data")
        return poses

    def pictures(self, frames: Sequence[int]) -> list[bytes]:
        """The JPEG data of some of its frames; raises `MotionError` if it is damaged."""
        return self._read([2 + frame for frame in frames])

    def _read(self, members: Sequence[int]) -> list[bytes]:
        found = []
        try:
            with self.shard.open("rb") as file:
                for member in members:
                    file.seek(self.offset + sum(map(_stored, self.sizes[:member])) + _BLOCK)
                    found.append(file.read(self.sizes[member]))
        except OSError as error:
            raise MotionError(
                "a shard cannot be read.", remedy=f"It is {self.shard}.", field="data"
            ) from error
        if [zlib.crc32(data) for data in found] != [self.checks[member] for member in members]:
            raise MotionError(
                "the data of a clip is damaged.",
                remedy=f"It is {self.key} in {self.shard}; delete the shard and prepare it again.",
                field="data",
            )
        return found


class ShardWriter:
    """Adds clips to the shards of a folder; `done` has the clips that complete shards hold.

    A shard is written under another name, and renamed once it has `clips` clips or the writer is closed.
    Only one process may write to a folder.
    """

    def __init__(self, folder: Path, clips: int) -> None:
        self._folder, self._clips, self._part = folder, clips, folder / ".shard-part.tar"
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".shard-*"):
            left.unlink()
        entries, _ = read_entries(folder)
        self.done = {entry.key: entry for entry in entries}
        self._tar: tarfile.TarFile | None = None
        self._index: list[dict[str, Any]] = []

    def add(self, key: str, meta: Mapping[str, Any], poses: PoseSequence, pictures: Iterable[bytes]) -> None:
        """Add a clip: its JPEG pictures are taken one by one. Raises `OutputError` if it cannot be written."""
        try:
            if self._tar is None:
                self._tar = tarfile.open(self._part, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            tar = self._tar
            row: dict[str, Any] = {"key": key, "offset": tar.offset, "sizes": [], "checks": [], "meta": meta}
            for name, data in _members(key, meta, poses, pictures):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                row["sizes"].append(len(data))
                row["checks"].append(zlib.crc32(data))
            self._index.append(row)
            if len(self._index) >= self._clips:
                self.close()
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be written: {error}", field="output") from error

    def close(self) -> None:
        """Finish the shard that is being written, if any."""
        if self._tar is None:
            return
        self._tar.close()
        name = next(n for i in range(10**6) if not (self._folder / f"{(n := f'shard-{i:06d}')}.tar").exists())
        write_atomic(self._folder / f"{name}.json", json.dumps({"format": 1, "clips": self._index}))
        os.replace(self._part, self._folder / f"{name}.tar")
        for row in self._index:
            self.done[row["key"]] = _entry(self._folder / f"{name}.tar", row)
        self._tar, self._index = None, []

    def discard(self) -> None:
        """Delete the shard that is being written, if any."""
        if self._tar is not None:
            self._tar.close()
            self._part.unlink()
            self._tar, self._index = None, []


def read_entries(folder: Path) -> tuple[list[Entry], Counter[str]]:
    """The clips of all shards in `folder` in the shards' order, and why others cannot be read -> how many."""
    entries: list[Entry] = []
    skipped: Counter[str] = Counter()
    for index in sorted(folder.glob("shard-*.json")):
        shard = index.with_suffix(".tar")
        try:
            found = [_entry(shard, row) for row in json.loads(index.read_text())["clips"]]
        except (OSError, ValueError, KeyError, TypeError):
            skipped["the index of a shard is damaged"] += 1
            continue
        if not shard.is_file():
            skipped["its shard is missing"] += len(found)
            continue
        size = shard.stat().st_size
        whole = [entry for entry in found if entry.end <= size]
        if len(whole) < len(found):
            skipped["its shard is cut off"] += len(found) - len(whole)
        entries += whole
    for tar in folder.glob("shard-*.tar"):
        if not tar.with_suffix(".json").exists():
            skipped["a shard has no index"] += 1
    return entries, skipped


def _entry(shard: Path, row: Mapping[str, Any]) -> Entry:
    sizes, checks = tuple(map(int, row["sizes"])), tuple(map(int, row["checks"]))
    if len(sizes) != len(checks) or len(sizes) < 3:
        raise ValueError("sizes and checksums differ in number")
    meta = dict(row["meta"])
    int(str(meta["digest"])[:8], 16)
    if not float(meta["fps"]) > 0 or len(meta["size"]) != 2:
        raise ValueError("no frame rate, or no size")
    return Entry(shard, str(row["key"]), int(row["offset"]), sizes, checks, meta)


def _members(
    key: str, meta: Mapping[str, Any], poses: PoseSequence, pictures: Iterable[bytes]
) -> Iterator[tuple[str, bytes]]:
    yield f"{key}.json", json.dumps(meta).encode()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "poses.npz"
        poses.save(path)
        yield f"{key}.npz", path.read_bytes()
    for index, picture in enumerate(pictures):
        yield f"{key}.{index:04d}.jpg", picture


def _stored(size: int) -> int:
    """Bytes of a member with its header and its padding."""
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


class ShardClips:
    """Clips from shards, as `samples.ClipDataset`.

    Clip i is a window of stored clip `i % stored`. The window, its reference picture, crop, mirroring and colours
    are drawn from (`seed`, i), so clip i is always the same. The reference lies outside the window, a second away
    from it where the clip is long enough. `skipped`: reason -> how many clips were left out at the start.
    """

    def __init__(
        self, folder: Path, frames: int, size: tuple[int, int], fps: float, *, clips: int | None = None,
        held_out: bool | None = False, augment: Augment = NONE, seed: int = 0, max_enlarge: float = 1.0,
    ) -> None:  # fmt: skip
        """`frames` in a window at about `fps`; `size` is (width, height); `clips` in an epoch, None for all.

        `held_out`: whether the clips are those of videos that are held out, or of the others; None for all.
        """
        if not folder.is_dir():
            raise SettingsError(
                f"{folder} is not a folder.",
                remedy="Give the folder that `mimicmotion-trt prepare` wrote.",
                field="data.path",
            )
        self._frames, self._size, self._fps = frames, size, fps
        self._augment, self._seed, self._max_enlarge = augment, seed, max_enlarge
        entries, self.skipped = read_entries(folder)
        ours = _split(entries, held_out, folder)
        self.entries = [entry for entry in ours if self._usable(entry)]
        if not self.entries:
            part = " that is held out and" if held_out else ""
            largest = f", or allow frames to be enlarged (max_enlarge, now {max_enlarge:g})"
            small = largest if self.skipped[_SMALL] else ""
            raise SettingsError(
                f"{folder} holds no clip{part} that can be used: {dict(self.skipped) or 'it is empty'}.",
                remedy=f"Prepare recordings with shots of more than {frames} frames{small}.",
                field="data.path",
            )
        stored = repr([(entry.key, entry.checks) for entry in self.entries])
        self.content = hashlib.sha256(stored.encode()).hexdigest()
        """A hash of the clips' names and checksums, see `samples.clips_key`."""
        self._clips = clips or len(self.entries)

    def __len__(self) -> int:
        return self._clips

    def __getitem__(self, index: int) -> Sample:
        """Clip `index`; raises `MotionError` if its data is damaged, `IndexError` beyond the last."""
        if not 0 <= index < self._clips:
            raise IndexError(index)
        entry = self.entries[index % len(self.entries)]
        rng = np.random.default_rng([self._seed, index])
        variation = Variation.draw(self._augment, rng)
        poses = entry.poses()
        window, reference = self._choose(entry, poses, rng)
        chosen = poses.take([*window, reference])
        crop = around_person(chosen, self._size[0] / self._size[1], variation.scale, variation.shift)
        pictures = self._pictures(entry, [*window, reference], poses.size, crop, variation)
        chosen = crop.move(chosen, self._size)
        chosen = mirror(chosen) if variation.flipped else chosen
        chosen = replace(chosen, fps=poses.fps / self._stride(entry))
        return {
            "frames": pictures[:-1], "observed": chosen[:-1],
            "reference": pictures[-1], "reference_pose": chosen[-1],
        }  # fmt: skip

    def _usable(self, entry: Entry) -> bool:
        """Whether it is long enough, and its rate near enough to the wanted one; why not is counted."""
        reason = ""
        if float(entry.meta["fps"]) < _SLOWEST * self._fps:  # it would look faster than it was
            reason = "slower than two thirds of the wanted rate"
        elif entry.frames <= (self._frames - 1) * self._stride(entry) + 1:
            reason = "too short for the window and a reference"
        elif self._enlarged(entry) > self._max_enlarge:
            reason = _SMALL
        self.skipped.update([reason] if reason else [])
        return not reason

    def _enlarged(self, entry: Entry) -> float:
        """How many times a cut of the frames that is not varied has to be enlarged."""
        width, height = map(float, entry.meta["size"])
        return max(self._size[0] / width, self._size[1] / height)

    def _stride(self, entry: Entry) -> int:
        return max(1, round(float(entry.meta["fps"]) / self._fps))

    def _choose(self, entry: Entry, poses: PoseSequence, rng: np.random.Generator) -> tuple[list[int], int]:
        """The frames of the window, and the reference: a frame that shows the person."""
        stride = self._stride(entry)
        span = (self._frames - 1) * stride + 1
        start = int(rng.integers(entry.frames - span + 1))
        before, after = start, entry.frames - start - span  # frames that are free on each side
        gap = min(round(_GAP_SECONDS * float(entry.meta["fps"])), max(before, after))
        choices = [*range(start - gap + 1), *range(start + span + gap - 1, entry.frames)]
        shown = somebody(poses)
        seen = [frame for frame in choices if shown[frame]]
        if not seen:
            raise MotionError("nobody is seen where a reference could be taken.", field="data")
        return list(range(start, start + span, stride)), int(rng.choice(seen))

    def _pictures(
        self, entry: Entry, frames: list[int], stored: tuple[int, int], crop: Rectangle, variation: Variation
    ) -> Picture:
        pictures = np.empty((len(frames), self._size[1], self._size[0], 3), np.uint8)
        for place, data in zip(pictures, entry.pictures(frames), strict=True):
            try:
                picture = read_picture(data)
            except PictureError as error:
                raise MotionError("a frame of a clip cannot be decoded.", field="data") from error
            if (picture.shape[1], picture.shape[0]) != stored:
                raise MotionError("a clip has other sizes of frames and poses.", field="data")
            cut = variation.recolour(crop.cut(picture, self._size))
            place[...] = cut[:, ::-1] if variation.flipped else cut
        return pictures


def open_clips(config: DataConfig, *, held_out: bool = False) -> ShardClips:
    """For `data.source: mimicmotion_trt.training.footage:open_clips`, with `data.path` the folder of shards.

    Clips that are held out are not augmented. Raises `SettingsError`.
    """
    if config.path is None:
        raise SettingsError("data.path is not given.", remedy="Give the folder of shards.", field="data.path")
    return ShardClips(
        Path(config.path), config.frames - 1, (config.width, config.height), config.fps, clips=config.clips,
        held_out=held_out, augment=NONE if held_out else Augment(), max_enlarge=config.max_enlarge,
    )  # fmt: skip


def _split(entries: list[Entry], held_out: bool | None, folder: Path) -> list[Entry]:
    """The entries of the videos that are held out, or of the others: nobody is in both parts. None: all."""
    if held_out is None:
        return entries
    videos = sorted({str(entry.meta["digest"]) for entry in entries})
    if len(videos) < 2:
        if entries and held_out:
            raise SettingsError(
                f"{folder} holds clips of a single video, of which none can be held out.",
                remedy="Prepare a second one.",
                field="data.path",
            )
        return entries
    apart = [video for video in videos if int(video[:8], 16) < HELD_OUT_SHARE * 2**32]
    if not apart or len(apart) == len(videos):
        apart = videos[:1]
    return [entry for entry in entries if (entry.meta["digest"] in apart) == held_out]
