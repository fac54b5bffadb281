"""From a folder of recordings to a folder of shards, video by video; interrupted, it goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ...errors import InputError, MotionError, OutputError, SettingsError
from ...media.picture import encode_picture
from ...pose import PoseEstimator, PoseSequence
from .crop import Crop, Picture, around_person, share_inside
from .cutting import DAMAGED, OUTSIDE, TWICE, Rules, Span, cut, jitter
from .shards import ShardWriter
from .survey import Survey, Surveyor
from .videos import Video, find_videos, opened

SETTINGS = "settings.json"
_LEAST_INSIDE = 0.7


@dataclass(frozen=True, slots=True)
class Options:
    """What decides about the clips; one folder of shards has one set of them."""

    size: tuple[int, int] | None = None
    """(width, height) of the frames, cropped about the person; None keeps the recording's own."""
    fps: float = 15.0
    """At most this rate."""
    frames_fps: float = 30.0
    """The rate of folders of frames."""
    rules: Rules = field(default_factory=Rules)
    estimator: str = "mediapipe"

    def __post_init__(self) -> None:
        rules = self.rules
        sides = self.size or (16, 16)
        checks = {
            "size": min(sides) >= 16 and max(sides) <= 8192,
            "fps": 0 < self.fps <= 1000 and 0 < self.frames_fps <= 1000,
            "min-frames": rules.min_frames >= 4,
            "max-frames": rules.max_frames >= 2 * rules.min_frames,  # or halves of a long shot were too short
            "max-jitter": rules.max_jitter > 0,
        }
        for name, sound in checks.items():
            if not sound:
                raise SettingsError(
                    f"--{name} is out of range.",
                    remedy="Sizes are 16 to 8192, rates above 0, frames 4 or more, the most twice the least.",
                    field=name,
                )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a span of a recording, or of a whole one (`span` None)."""

    video: Video
    span: Span | None
    reason: str
    """Empty if it was kept."""
    key: str = ""
    detail: str = ""


class Progress(Protocol):
    """Who is told."""

    def begin(self, videos: int) -> None:
        """So many recordings."""

    def frames(self, video: str, done: int) -> None:
        """So many frames of one are posed."""

    def end(self, video: str, kept: int, left_out: Counter[str]) -> None:
        """One recording is done."""


class Preparation:
    """Makes or continues the folder `output`: shards, and in `cache` the surveys. See `alone`."""

    def __init__(
        self, folder: Path, output: Path, options: Options, estimator: PoseEstimator, shard_clips: int = 64,
        limit: int | None = None, count: Callable[[Picture], int] | None = None,
    ) -> None:  # fmt: skip
        """`limit`: how many recordings at most. Raises `InputError` if nothing is there to do."""
        self._options = options
        self.videos = find_videos(folder, output)[:limit]
        _agree(output / SETTINGS, options)
        self._survey = Surveyor(
            output / "cache", estimator, options.estimator, options.fps, options.frames_fps, count
        )
        self.writer = ShardWriter(output, shard_clips)

    def run(self, progress: Progress) -> list[Verdict]:
        """Do all recordings; whole shards stay whatever stops it."""
        verdicts: list[Verdict] = []
        seen: set[str] = set()
        progress.begin(len(self.videos))
        try:
            for video in self.videos:
                told = self._do(video, seen, progress)
                verdicts += told
                reasons = Counter(verdict.reason for verdict in told if verdict.reason)
                progress.end(video.name, sum(not verdict.reason for verdict in told), reasons)
            self.writer.close()
        finally:
            self.writer.drop()
        return verdicts

    def _do(self, video: Video, seen: set[str], progress: Progress) -> list[Verdict]:
        try:
            digest = video.digest()
            if digest in seen:
                return [Verdict(video, None, TWICE)]
            seen.add(digest)
            survey = self._survey(video, digest, lambda done: progress.frames(video.name, done))
            spans = cut(survey, self._options.rules)
            return self._write(video, digest, survey, spans)
        except InputError as error:
            return [Verdict(video, None, DAMAGED, detail=error.message)]

    def _write(self, video: Video, digest: str, survey: Survey, spans: list[Span]) -> list[Verdict]:
        verdicts, wanted = [], []
        for span in spans:
            clip = (
                _Clip.of(survey.poses[span.start : span.stop], self._options.size)
                if not span.reason
                else None
            )
            if clip is None:
                verdicts.append(
                    Verdict(video, replace(span, reason=span.reason or OUTSIDE), span.reason or OUTSIDE)
                )
                continue
            key = f"{digest}-{span.start:06d}"
            verdicts.append(Verdict(video, span, "", key))
            if key not in self.writer.done:
                wanted.append((key, span, clip))
        if wanted:
            with opened(video, self._options.fps, self._options.frames_fps) as (_, frames):
                numbered = enumerate(frames)
                for key, span, clip in wanted:
                    pictures = [clip.encode(frame) for frame in _between(numbered, span)]
                    if len(pictures) < len(span):
                        raise MotionError(f"{video.name} has fewer frames than before.", field="videos")
                    self.writer.add(key, clip.meta(video, digest, span), clip.poses, pictures)
        return verdicts


@dataclass(frozen=True, slots=True)
class _Clip:
    """How one span's pictures and poses are brought to their size."""

    crop: Crop
    size: tuple[int, int]
    poses: PoseSequence
    trembles: float

    @classmethod
    def of(cls, poses: PoseSequence, size: tuple[int, int] | None) -> _Clip | None:
        """None where too much of the person is outside the crop."""
        size = size or poses.size
        crop = around_person(poses, size[0] / size[1])
        moved = crop.move(poses, size)
        if share_inside(moved) < _LEAST_INSIDE * share_inside(poses):
            return None
        return cls(crop, size, moved, jitter(poses))

    def encode(self, frame: Picture) -> bytes:
        return encode_picture(self.crop.cut(frame, self.size), ".jpg")

    def meta(self, video: Video, digest: str, span: Span) -> dict[str, Any]:
        return {
            "video": video.name,
            "digest": digest,
            "start": span.start,
            "stop": span.stop,
            "fps": self.poses.fps,
            "size": list(self.size),
            "crop": asdict(self.crop),
            "jitter": round(self.trembles, 5),
        }


def _between(numbered: Iterator[tuple[int, Picture]], span: Span) -> Iterator[Picture]:
    """The pictures of a span out of a running count, which is left at the span's end."""
    for index, frame in numbered:
        if index >= span.start:
            yield frame
        if index == span.stop - 1:
            return


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Makes the folder, and keeps other runs out of it; raises `OutputError` if one is at work there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
    except BlockingIOError as error:
        raise OutputError(f"another run is at work on {output}.", field="output") from error
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error}", field="output") from error
    with lock:
        yield


def _agree(path: Path, options: Options) -> None:
    """Shards of one folder are all made alike; raises `SettingsError`."""
    mine = json.loads(json.dumps(asdict(options)))
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError):
        beside = path.with_name(f".{path.name}")
        beside.write_text(json.dumps(mine, indent=2) + "\n")
        os.replace(beside, path)
        return
    if theirs != mine:
        raise SettingsError(
            f"{path.parent} was begun with other settings, see {path.name}.",
            remedy="Give the same, or another output.",
            field="output",
        )
