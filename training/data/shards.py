"""Shards: tar files in the webdataset convention, each with an index beside it; written whole or not at all.

A clip is one sample: `KEY.json` (where it comes from), `KEY.npz` (its `PoseSequence`), `KEY.0000.jpg` and on
(its frames). `shard-000000.json` says where the clips of `shard-000000.tar` lie and what their checksums are.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import MotionError, OutputError
from ...files import write_atomic
from ...pose import PoseSequence

_BLOCK = tarfile.BLOCKSIZE
_PATTERN = "shard-*.json"


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
        try:
            with self.shard.open("rb") as file:
                return [self._member(file, member) for member in members]
        except OSError as error:
            raise MotionError(
                "a shard cannot be read.", remedy=f"It is {self.shard}.", field="data"
            ) from error

    def _member(self, file: BinaryIO, member: int) -> bytes:
        file.seek(self.offset + sum(map(_stored, self.sizes[:member])) + _BLOCK)
        data = file.read(self.sizes[member])
        if zlib.crc32(data) != self.checks[member]:
            raise MotionError(
                "the data of a clip is damaged.",
                remedy=f"It is {self.key} in {self.shard}; delete the shard and prepare it again.",
                field="data",
            )
        return data


class ShardWriter:
    """Adds clips to the shards of a folder; `done` has the clips that complete shards hold.

    A shard is written under another name, and renamed once it has `clips` clips or the writer is closed.
    Only one process may write to a folder.
    """

    def __init__(self, folder: Path, clips: int) -> None:
        self._folder, self._clips = folder, clips
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
            tar = self._tar or self._begin()
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
        os.replace(self._folder / ".shard-part.tar", self._folder / f"{name}.tar")
        for row in self._index:
            self.done[row["key"]] = _entry(self._folder / f"{name}.tar", row)
        self._tar, self._index = None, []

    def discard(self) -> None:
        """Delete the shard that is being written, if any."""
        if self._tar is not None:
            self._tar.close()
            (self._folder / ".shard-part.tar").unlink()
            self._tar, self._index = None, []

    def _begin(self) -> tarfile.TarFile:
        path = self._folder / ".shard-part.tar"
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by `close`
        return self._tar


def read_entries(folder: Path) -> tuple[list[Entry], Counter[str]]:
    """The clips of all shards in `folder` in the shards' order, and why others cannot be read -> how many."""
    entries: list[Entry] = []
    skipped: Counter[str] = Counter()
    for index in sorted(folder.glob(_PATTERN)):
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
    lonely = [tar for tar in folder.glob("shard-*.tar") if not tar.with_suffix(".json").exists()]
    if lonely:
        skipped["a shard has no index"] += len(lonely)
    return entries, skipped


def _entry(shard: Path, row: Mapping[str, Any]) -> Entry:
    sizes, checks = tuple(map(int, row["sizes"])), tuple(map(int, row["checks"]))
    if len(sizes) != len(checks) or len(sizes) < 3:
        raise ValueError("sizes and checksums differ in number")
    meta = dict(row["meta"])
    int(str(meta["digest"])[:8], 16)
    if not float(meta["fps"]) > 0:
        raise ValueError("no frame rate")
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
