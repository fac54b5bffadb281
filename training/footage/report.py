"""What came of a preparation: numbers as JSON, and contact sheets of what was kept and what was left out."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...errors import InputError
from ...media.picture import read_picture, write_picture
from ...media.sheet import Row, contact_sheet
from ...pose import PoseSequence, draw_poses
from ..data.shards import Entry
from ..data.transforms import Picture
from ..files import write_text
from .preparation import Options, Verdict
from .videos import Video, open_frames

KEPT, LEFT_OUT = "kept.jpg", "left-out.jpg"
_ROWS, _ROWS_A_REASON, _COLUMNS, _TILE = 16, 3, 6, 200


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
    folder: Path,
    numbers: dict[str, Any],
    verdicts: Sequence[Verdict],
    done: dict[str, Entry],
    options: Options,
) -> None:
    """Write `report.json`, `kept.jpg` and `left-out.jpg` into `folder`."""
    rows = [
        {
            "video": verdict.video.name,
            "frames": None if verdict.span is None else [verdict.span.start, verdict.span.stop],
            "left_out": verdict.reason or None,
            "key": verdict.key or None,
            **({"detail": verdict.detail} if verdict.detail else {}),
        }
        for verdict in verdicts
    ]
    write_text(folder / "report.json", json.dumps({**numbers, "verdicts": rows}, indent=1) + "\n")
    kept = [done[verdict.key] for verdict in verdicts if verdict.key in done]
    write_picture(folder / KEPT, _sheet([_kept_row(entry) for entry in _evenly(kept, _ROWS)]))
    left = _left_out_rows([verdict for verdict in verdicts if verdict.reason], options)
    write_picture(folder / LEFT_OUT, _sheet(left))


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
    scale = _TILE / height
    small = [
        np.asarray(
            cv2.resize(p, (max(1, round(width * scale)), _TILE), interpolation=cv2.INTER_AREA), np.uint8
        )
        for p in pictures
    ]
    drawn = draw_poses(poses, small[0].shape[0], small[0].shape[1], 512)
    return [np.maximum(picture // 2, pose) for picture, pose in zip(small, drawn, strict=True)]


def _left_out_rows(verdicts: list[Verdict], options: Options) -> list[Row]:
    """A few of each reason, reason by reason."""
    by_reason: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_reason[verdict.reason].append(verdict)
    rows: list[Row] = []
    for reason, found in sorted(by_reason.items()):
        for verdict in _evenly(found, _ROWS_A_REASON):
            span = verdict.span
            place = "" if span is None else f" {span.start}-{span.stop}"
            label = f"{reason} (1 of {len(found)}): {verdict.video.name}{place} {verdict.detail}"
            pictures = [] if span is None else _frames(
                verdict.video, _evenly(range(span.start, span.stop), _COLUMNS), options
            )  # fmt: skip
            rows.append((label[:120], pictures))
    return rows


def _frames(video: Video, wanted: Sequence[int], options: Options) -> list[Picture]:
    found: list[Picture] = []
    try:
        with open_frames(video, options.fps, options.frames_fps) as (_, frames):
            for index, frame in enumerate(frames):
                if index in wanted:
                    found.append(frame)
                if len(found) == len(wanted):
                    break
    except InputError:
        pass  # its verdict says what is wrong with it
    return found


def _sheet(rows: list[Row]) -> Picture:
    return contact_sheet(rows or [("none", [])], columns=_COLUMNS, tile_height=_TILE)


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]
