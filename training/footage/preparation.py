"""From a folder of recordings to a folder of shards and a report of it; a stopped run can go on."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...errors import InputError, LimitError, MotionError, SettingsError
from ...files import write_text
from ...media.picture import encode_picture, read_picture, write_picture
from ...media.sheet import Row, contact_sheet
from ...pose import PoseEstimator, PoseSequence, draw_poses
from ..data.shards import Entry, ShardWriter
from ..data.transforms import Picture, Rectangle, around_person, share_inside
from .cutting import DAMAGED, LARGE, OUTSIDE, SMALL, TWICE, Rules, Span, cut, jitter
from .survey import Survey, Surveyor
from .videos import Video, find_videos, open_frames

SETTINGS = "settings.json"
KEPT, LEFT_OUT = "kept.jpg", "left-out.jpg"
_ROWS, _ROWS_A_REASON, _COLUMNS, _TILE = 16, 3, 6, 200
_LEAST_INSIDE = 0.7


@dataclass(frozen=True, slots=True)
class Options:
    """What decides about the clips; all shards of a folder are made with the same options."""

    size: tuple[int, int] | None = None
    """(width, height) of the frames, cropped about the person; None keeps the recording's own."""
    fps: float = 15.0
    """At most this rate."""
    frames_fps: float = 30.0
    """The rate of folders of frames."""
    rules: Rules = field(default_factory=Rules)
    estimator: str = "mediapipe"
    max_enlarge: float = 2.0
    """Clips whose crop would have to be enlarged more than this are left out."""

    def __post_init__(self) -> None:
        rules, sides = self.rules, self.size or (16, 16)
        checks = {
            "size": (min(sides) >= 16 and max(sides) <= 8192, "16 to 8192 pixels"),
            "fps": (0 < self.fps <= 1000, "a rate above 0, at most 1000"),
            "frames-fps": (0 < self.frames_fps <= 1000, "a rate above 0, at most 1000"),
            "min-frames": (rules.min_frames >= 4, "4 or more"),
            # or halves of a long shot would be too short
            "max-frames": (rules.max_frames >= 2 * rules.min_frames, "at least twice --min-frames"),
            "max-jitter": (rules.max_jitter > 0, "a number above 0"),
            "max-enlarge": (self.max_enlarge >= 1, "1 or more"),
        }
        for name, (sound, wanted) in checks.items():
            if not sound:
                raise SettingsError(f"--{name} is out of range.", remedy=f"Choose {wanted}.", field=name)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a span of a recording, or of a whole one (`span` None)."""

    video: Video
    span: Span | None
    reason: str
    """Empty if it was kept."""
    key: str = ""
    detail: str = ""


class Preparation:
    """Makes or continues the folder `output`: shards, and in `cache` the surveys. Only one may work on a folder."""

    def __init__(
        self, folder: Path, output: Path, options: Options, estimator: PoseEstimator, shard_clips: int = 64,
        limit: int | None = None,
    ) -> None:  # fmt: skip
        """`limit`: how many recordings at most. Raises `InputError` if there are none."""
        self._options = options
        self.videos = find_videos(folder, output)[:limit]
        _check_settings(output / SETTINGS, options)
        rates = (options.fps, options.frames_fps)
        self._survey = Surveyor(output / "cache", estimator, options.estimator, *rates)
        self.writer = ShardWriter(output, shard_clips)

    def run(
        self, frames_done: Callable[[Video, int], None], video_done: Callable[[Video, list[Verdict]], None]
    ) -> list[Verdict]:
        """Prepare all recordings. Shards that are complete stay if it is stopped.

        `frames_done(video, frames)` is called after each frame, `video_done(video, verdicts)` after each recording.
        """
        verdicts: list[Verdict] = []
        seen: set[str] = set()
        try:
            for video in self.videos:
                judged = self._prepare(video, seen, frames_done)
                verdicts += judged
                video_done(video, judged)
            self.writer.close()
        finally:
            self.writer.discard()
        return verdicts

    def _prepare(
        self, video: Video, seen: set[str], frames_done: Callable[[Video, int], None]
    ) -> list[Verdict]:
        try:
            digest = video.digest()
            if digest in seen:
                return [Verdict(video, None, TWICE)]
            seen.add(digest)
            survey = self._survey(video, digest, lambda done: frames_done(video, done))
            return self._write(video, digest, survey, cut(survey, self._options.rules))
        except LimitError as error:
            return [Verdict(video, None, LARGE, detail=error.message)]
        except InputError as error:
            return [Verdict(video, None, DAMAGED, detail=error.message)]

    def _write(self, video: Video, digest: str, survey: Survey, spans: list[Span]) -> list[Verdict]:
        verdicts, wanted = [], []
        for span in spans:
            clip = None
            if not span.reason:
                clip = _Clip.of(survey.poses[span.start : span.stop], self._options.size)
                span = replace(span, reason=clip.fault(self._options.max_enlarge))
            if clip is None or span.reason:
                verdicts.append(Verdict(video, span, span.reason))
                continue
            key = f"{digest}-{span.start:06d}"
            verdicts.append(Verdict(video, span, "", key))
            if key not in self.writer.done:
                wanted.append((key, span, clip))
        if wanted:
            with open_frames(video, self._options.fps, self._options.frames_fps) as (_, frames):
                numbered = enumerate(frames)
                for key, span, clip in wanted:
                    pictures = [clip.encode(frame) for frame in _between(numbered, span)]
                    if len(pictures) < len(span):
                        raise MotionError(f"{video.name} has fewer frames than before.", field="videos")
                    self.writer.add(key, clip.meta(video, digest, span), clip.poses, pictures)
        return verdicts


@dataclass(frozen=True, slots=True)
class _Clip:
    """A span's crop, and its poses in it."""

    crop: Rectangle
    size: tuple[int, int]
    poses: PoseSequence
    inside: float
    """Share of the person's visible body points that lies inside the crop."""
    jitter: float

    @classmethod
    def of(cls, poses: PoseSequence, size: tuple[int, int] | None) -> _Clip:
        size = size or poses.size
        crop = around_person(poses, size[0] / size[1])
        moved = crop.move(poses, size)
        return cls(crop, size, moved, share_inside(moved) / max(share_inside(poses), 1e-9), jitter(poses))

    def fault(self, max_enlarge: float) -> str:
        """Why it is left out; empty if it is kept."""
        if self.size[0] > max_enlarge * self.crop.width:
            return SMALL
        return OUTSIDE if self.inside < _LEAST_INSIDE else ""

    def encode(self, frame: Picture) -> bytes:
        return encode_picture(self.crop.cut(frame, self.size), ".jpg")

    def meta(self, video: Video, digest: str, span: Span) -> dict[str, Any]:
        return {
            "video": video.name, "digest": digest, "start": span.start, "stop": span.stop, "fps": self.poses.fps,
            "size": list(self.size), "crop": asdict(self.crop), "jitter": round(self.jitter, 5),
        }  # fmt: skip


def _between(numbered: Iterator[tuple[int, Picture]], span: Span) -> Iterator[Picture]:
    """The pictures of a span. `numbered` is read up to the span's end, so the next span can go on from there."""
    for index, frame in numbered:
        if index >= span.start:
            yield frame
        if index == span.stop - 1:
            return


def _check_settings(path: Path, options: Options) -> None:
    """Keep the options of a new folder; raise `SettingsError` if the folder was begun with others.

    Options that an older file does not name had their defaults.
    """
    mine, defaults = (json.loads(json.dumps(asdict(one))) for one in (options, Options()))
    try:
        theirs = {**defaults, **json.loads(path.read_text())}
    except (OSError, ValueError, TypeError):
        write_text(path, json.dumps(mine, indent=2) + "\n")
        return
    if theirs != mine:
        raise SettingsError(
            f"{path.parent} was begun with other settings, see {path.name}.",
            remedy="Give the same, or another output.",
            field="output",
        )


def summary(verdicts: Sequence[Verdict], done: dict[str, Entry], skipped: Counter[str]) -> dict[str, Any]:
    """`videos`, `clips`, `frames`, `seconds`, `left_out` and `unreadable` (reason -> count), `shards`."""
    entries = [done[verdict.key] for verdict in verdicts if verdict.key in done]
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason)
    return {
        "videos": len({verdict.video.name for verdict in verdicts}),
        "clips": len(entries),
        "frames": sum(entry.frames for entry in entries),
        "seconds": round(sum(entry.frames / float(entry.meta["fps"]) for entry in entries), 2),
        "left_out": dict(sorted(reasons.items())),
        "unreadable": dict(sorted(skipped.items())),
        "shards": sorted({entry.shard.name for entry in done.values()}),
    }


def write_report(
    folder: Path, numbers: dict[str, Any], verdicts: list[Verdict], done: dict[str, Entry], options: Options
) -> None:
    """Write `report.json`, `kept.jpg` and `left-out.jpg` into `folder`."""
    rows = [
        {
            "video": verdict.video.name,
            "frames": None if verdict.span is None else [verdict.span.start, verdict.span.stop],
            "left_out": verdict.reason or None, "key": verdict.key or None,
            **({"detail": verdict.detail} if verdict.detail else {}),
        }
        for verdict in verdicts
    ]  # fmt: skip
    write_text(folder / "report.json", json.dumps({**numbers, "verdicts": rows}, indent=1) + "\n")
    kept = [done[verdict.key] for verdict in verdicts if verdict.key in done]
    write_picture(folder / KEPT, _sheet([_kept_row(entry) for entry in _evenly(kept, _ROWS)]))
    write_picture(folder / LEFT_OUT, _sheet(_left_out_rows(verdicts, options)))


def _kept_row(entry: Entry) -> Row:
    """A clip read back from its shard, with its poses drawn over it."""
    label = f"{entry.meta['video']} {entry.meta['start']}-{entry.meta['stop']}"
    try:
        picked = _evenly(range(entry.frames), _COLUMNS)
        poses = entry.poses().take(picked)
        pictures = [read_picture(data) for data in entry.pictures(picked)]
    except InputError as error:
        return f"{label}: {error.message}", []
    return f"{label}, jitter {entry.meta.get('jitter')}", _overlaid(pictures, poses)


def _overlaid(pictures: list[Picture], poses: PoseSequence) -> list[Picture]:
    height, width = pictures[0].shape[:2]
    columns = max(1, round(width * _TILE / height))
    small = [cv2.resize(picture, (columns, _TILE), interpolation=cv2.INTER_AREA) for picture in pictures]
    drawn = draw_poses(poses, _TILE, columns, 512)
    return [np.maximum(picture // 2, pose) for picture, pose in zip(small, drawn, strict=True)]


def _left_out_rows(verdicts: list[Verdict], options: Options) -> list[Row]:
    """A few of each reason, reason by reason."""
    by_reason: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.reason:
            by_reason[verdict.reason].append(verdict)
    rows: list[Row] = []
    for reason, found in sorted(by_reason.items()):
        for verdict in _evenly(found, _ROWS_A_REASON):
            place, pictures = "", list[Picture]()
            if (span := verdict.span) is not None:
                place = f" {span.start}-{span.stop}"
                pictures = _frames(verdict.video, _evenly(range(span.start, span.stop), _COLUMNS), options)
            label = f"{reason} (1 of {len(found)}): {verdict.video.name}{place} {verdict.detail}"
            rows.append((label[:120], pictures))
    return rows


def _frames(video: Video, wanted: Sequence[int], options: Options) -> list[Picture]:
    found: list[Picture] = []
    with suppress(InputError), open_frames(video, options.fps, options.frames_fps) as (_, frames):
        # of an unreadable recording the verdict says what is wrong
        found.extend(frame for index, frame in enumerate(islice(frames, max(wanted) + 1)) if index in wanted)
    return found


def _sheet(rows: list[Row]) -> Picture:
    return contact_sheet(rows or [("none", [])], columns=_COLUMNS, tile_height=_TILE)


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]
