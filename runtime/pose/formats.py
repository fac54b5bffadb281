"""Keypoints as other programs write them: OpenPose, DWPose, ComfyUI's POSE_KEYPOINT, COCO-WholeBody.

OpenPose's body has 18 points (as ours) or 25; hands 21 each, face 68 or 70. COCO-WholeBody's person has 133: 17 of
the body, 6 of the feet, 68 of the face, 21 of each hand. Files that do not state the picture's size are taken to be
of the smallest usual one that holds all points; those without a frame rate to be of 15 a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, MotionError
from ..files import output_errors, write_atomic
from .draw import ALL, Drawing, iter_pose_pictures
from .dwpose import from_wholebody
from .follow import MOST_PEOPLE, Follower, Seen
from .sequence import PoseSequence, single_frame

Points = npt.NDArray[np.float64]
Size = tuple[int, int]

WHOLEBODY = 133
_FPS = 15.0
_SIZES = (
    (512, 512), (640, 480), (480, 640), (768, 768), (576, 1024), (1024, 576), (1024, 1024), (720, 1280), (1280, 720),
    (1080, 1920), (1920, 1080), (2160, 3840), (3840, 2160),
)  # fmt: skip
_BODY_25 = (*range(8), *range(9, 15), *range(15, 19))
"""Of OpenPose's 25 points those that are ours; the eighth is the middle of the hips."""
_PARTS = ("pose_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "face_keypoints_2d")
_COCO_OF_OURS = (0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""COCO's numbers of our body points but the neck, in our order."""
_COCO = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
_REMEDY = (
    "Give keypoints as OpenPose, DWPose, ComfyUI, MMPose or COCO-WholeBody write them, or PoseSequence.save."
)

Person = Points
"""[128,3], x and y in pixels or in fractions of the picture and the score: our body, left and right hand, face."""


def read_foreign(values: Any, name: str, person: str | None = None) -> PoseSequence:
    """A sequence from what was read of a JSON file of another program; see `read_files`."""
    return read_files([values], name, person)


def read_files(files: Sequence[Any], name: str, person: str | None = None) -> PoseSequence:
    """A sequence from what was read of JSON files of another program, one after another.

    `person` says whom of several people, as `Settings.driver`; None takes the largest in the first frame that has
    somebody. Raises `MotionError`, and `SettingsError` if that person is never there.
    """
    try:
        frames, size, fps = _joined([_frames(values) for values in files])
        return _sequence(frames, size, fps, person)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise MotionError(
            f"{name} holds no keypoints: {error!s:.200}.", remedy=_REMEDY, field="motion"
        ) from error


def wholebody_sequence(points: npt.NDArray[Any], name: str) -> PoseSequence:
    """A sequence from an array [F,133,3] of x, y and score; raises `MotionError`."""
    if points.ndim != 3 or points.shape[1:] != (WHOLEBODY, 3) or not len(points):
        raise MotionError(
            f"{name} is {list(points.shape)}, not [frames,133,3].", remedy=_REMEDY, field="motion"
        )
    return read_foreign({"keypoints": points.astype(np.float64)}, name)


def save_poses(poses: PoseSequence, output: str, form: str = "mimicmotion", drawing: Drawing = ALL) -> None:
    """Write `.npz`, `.json` in this form, or the poses drawn at their own size: a folder of PNGs, a video, an
    animated `.webp` or `.apng`, or Motion JPEG (`.avi`).

    Raises `OutputError`.
    """
    path, (width, height) = Path(output), (max(2, side // 2 * 2) for side in poses.size)
    pictures = iter_pose_pictures(poses, height, width, min(width, height), drawing)
    if path.suffix.lower() == ".json" and form != "mimicmotion":
        with output_errors(path):
            write_atomic(path, write_foreign(poses, form))
    elif path.suffix.lower() in (".json", ".npz"):
        poses.save(path)
    elif path.suffix.lower() in (".webp", ".apng", ".avi"):
        from ..media.animated import encode_animation

        with output_errors(path):
            write_atomic(path, encode_animation(pictures, poses.fps, path.suffix.lower()))
    else:
        from ..media.writer import VideoWriter

        with VideoWriter(output, fps=poses.fps, size=(width, height)) as writer:
            for picture in pictures:
                writer.write(picture)


def write_foreign(poses: PoseSequence, form: str) -> bytes:
    """The JSON file of a sequence: `openpose` (ComfyUI's POSE_KEYPOINT, one entry a frame) or `coco-wholebody`."""
    if form == "coco-wholebody":
        entries = [{"image_id": i, "category_id": 1, **_as_coco(pose)} for i, pose in enumerate(poses)]
        width, height = poses.size
        images = [{"id": index, "width": width, "height": height} for index in range(len(poses))]
        return json.dumps({"fps": poses.fps, "images": images, "annotations": entries}).encode()
    width, height = poses.size
    people = [{"version": 1.3, "people": [_as_openpose(pose)]} for pose in poses]
    return json.dumps([{**one, "canvas_width": width, "canvas_height": height} for one in people]).encode()


# ---- what a file holds: people of frames, the picture's size, the rate ----

Frames = tuple[list[list[Any]], Size | None, float]


def _frames(values: Any) -> Frames:
    if isinstance(values, dict):
        fps = float(values.get("fps", _FPS))
        if "people" in values:
            return [values["people"] or []], _canvas(values), fps
        if "instance_info" in values:
            return [f["instances"] for f in values["instance_info"]], None, fps
        if "annotations" in values:
            images = values.get("images", ())
            sizes = {_checked_size(i["width"], i["height"]) for i in images if "width" in i}
            return _by_image(values["annotations"], images), max(sizes, default=None), fps
        if "keypoints" in values:
            return [[_of_wholebody(frame)] for frame in values["keypoints"]], _canvas(values), fps
        raise ValueError(f"its keys are {', '.join(map(str, list(values)[:8]))}")
    if not isinstance(values, list) or not values:
        raise ValueError("it is empty")
    first = values[0]
    if isinstance(first, dict) and "people" in first:
        return _joined([([frame["people"] or []], _canvas(frame), _FPS) for frame in values])
    if isinstance(first, dict) and "instances" in first:
        return [frame["instances"] for frame in values], None, _FPS
    if isinstance(first, dict) and "keypoints" in first:
        one_picture = "keypoint_scores" in first and "image_id" not in first  # MMPose's file of a picture
        return [values] if one_picture else _by_image(values), None, _FPS
    if isinstance(first, list):
        return [[_of_wholebody(frame)] for frame in values], None, _FPS
    raise ValueError("its entries are no frames")


def _joined(parts: Sequence[Frames]) -> Frames:
    """Parts one after another, as people of the first part's size and rate."""
    size, fps = parts[0][1:]
    frames: list[list[Any]] = []
    for people, own, _ in parts:
        read = [[_person(one) if isinstance(one, dict) else one for one in frame] for frame in people]
        if own is not None and size is not None and own != size:
            read = [[_moved(one, own, size) for one in frame] for frame in read]
        frames.extend(read)
    return frames, size, fps


def _moved(person: Person, own: Size, size: Size) -> Person:
    """A person of a picture of another size, the whole of which lies in the middle of one of `size`, in its shape.

    Fractions stay fractions, pixels stay pixels.
    """
    fractions = _in_fractions(person)
    points = person[:, :2] * (own if fractions else 1)
    scale = min(size[0] / own[0], size[1] / own[1])
    shift = (np.array(size) - np.array(own) * scale) / 2
    return np.column_stack([(points * scale + shift) / (size if fractions else 1), person[:, 2]])


def _in_fractions(points: Points) -> bool:
    """Whether places are fractions of the picture, and no pixels; `points` [P,3]."""
    seen = points[points[:, 2] > 0, :2]
    return bool(len(seen)) and float(seen.max()) <= 2


def _canvas(values: dict[str, Any]) -> Size | None:
    if "canvas_width" in values and "canvas_height" in values:
        return _checked_size(values["canvas_width"], values["canvas_height"])
    return None


def _checked_size(width: Any, height: Any) -> Size:
    size = int(width), int(height)
    if min(size) < 1:
        raise ValueError(f"its picture is {size[0]}x{size[1]}")
    return size


def _by_image(entries: Iterable[dict[str, Any]], images: Iterable[dict[str, Any]] = ()) -> list[list[Any]]:
    """COCO's entries: those of one image are the people of one frame.

    Images come by their numbers, and those without an entry show nobody; without a list of images so do the numbers
    that are left out, if no more are than are there. Images that have names come as they are listed.
    """
    frames: dict[Any, list[Any]] = {image["id"]: [] for image in images if "id" in image}
    listed = bool(frames)
    for entry in entries:
        frames.setdefault(entry.get("image_id", len(frames)), []).append(entry)
    if not all(type(number) is int for number in frames) or not frames:
        return list(frames.values())
    numbers = range(min(frames), max(frames) + 1)
    if listed or len(numbers) > 2 * len(frames):
        return [frames[number] for number in sorted(frames)]
    return [frames.get(number, []) for number in numbers]


# ---- a person ----


def _person(person: dict[str, Any]) -> Person:
    """A person in any of the forms."""
    if "keypoint_scores" in person:  # MMPose
        points = np.asarray(person["keypoints"], np.float64)
        points = points.reshape(-1, points.shape[-1])[:, :2]
        whole = np.column_stack([points, np.ravel(person["keypoint_scores"])])
        only_body = len(whole) == _COCO["keypoints"]
        return _of_wholebody(np.pad(whole, ((0, WHOLEBODY - len(whole)), (0, 0))) if only_body else whole)
    if "keypoints" in person:
        flat = _triples(person["keypoints"], 0)
        if len(flat) != WHOLEBODY:
            flat = np.concatenate([_triples(person.get(key), count) for key, count in _COCO.items()])
        return _of_wholebody(flat)
    body = _triples(person.get(_PARTS[0]), 0)
    if not len(body):  # the face or the hands alone were found
        body = np.zeros((18, 3))
    if len(body) == 25:
        body = body[list(_BODY_25)]
    if len(body) < 18:
        raise ValueError(f"a body has {len(body)} points, not 18 or 25")
    counts = zip(_PARTS[1:], (21, 21, 68), strict=True)
    left, right, face = (_triples(person.get(key), count) for key, count in counts)
    return np.concatenate([body[:18], left[:21], right[:21], face[:68]])


def _of_wholebody(points: Any) -> Person:
    """COCO-WholeBody's 133 points as ours; the neck is the middle of the shoulders."""
    whole = np.asarray(points, np.float64).reshape(-1, 3)
    if len(whole) != WHOLEBODY:
        raise ValueError(f"a person has {len(whole)} points, not {WHOLEBODY}")
    pose = from_wholebody(whole[:, :2], whole[:, 2], (1, 1))
    parts = (pose.body[0], *pose.hands[0], pose.face[0])
    scores = (pose.body_score[0], *pose.hands_score[0], pose.face_score[0])
    return np.column_stack([np.concatenate(parts), np.concatenate(scores)]).astype(np.float64)


def _triples(values: Any, count: int) -> Points:
    """[P,3] of a flat list; `count` points that are not seen where there are fewer."""
    flat = np.asarray(values if values is not None else [], np.float64).reshape(-1, 3)
    return flat if len(flat) >= count else np.zeros((count, 3))


# ---- a sequence ----


def _sequence(
    frames: Sequence[Sequence[Person]], size: Size | None, fps: float, person: str | None
) -> PoseSequence:
    """One person of each frame, followed as those of a video are; where they are not there nobody is."""
    everybody = [one for people in frames for one in people if (one[:, 2] > 0).any()]
    if not everybody:
        raise ValueError("nobody is in it")
    points = np.concatenate(everybody)
    seen = points[points[:, 2] > 0, :2]
    if not np.isfinite(seen).all():
        raise ValueError("a coordinate is not finite")
    fractions = _in_fractions(points)
    size = size or _usual_size((1.0, 1.0) if fractions else seen.max(axis=0).tolist())
    to_pixels = np.array([*size, 1] if fractions else [1, 1, 1], np.float64)
    follower, poses = Follower(person), []
    for people in frames:
        there = [Seen(one[:, :2], one[:, 2]) for one in (_clean(one * to_pixels) for one in people)]
        there = sorted((one for one in there if one.scores.any()), key=lambda one: -one.size)[:MOST_PEOPLE]
        chosen = follower.update(there, size)
        poses.append(single_frame(size) if chosen is None else _frame(there[chosen], size))
    follower.check_found()
    return replace(PoseSequence.concat(poses), fps=fps)


def _clean(person: Person) -> Person:
    """With scores in [0, 1], and 0 in place of what was not seen."""
    seen = person[:, 2:] > 0
    return np.where(seen, np.column_stack([person[:, :2], np.minimum(person[:, 2], 1)]), 0)


def _frame(seen: Seen, size: Size) -> PoseSequence:
    scores = seen.scores
    points = np.where(scores[:, None] > 0, seen.points / size, 0.5)
    body, hands, face = slice(0, 18), slice(18, 60), slice(60, 128)
    return single_frame(
        size,
        body=points[body],
        body_score=scores[body],
        hands=points[hands].reshape(2, 21, 2),
        hands_score=scores[hands].reshape(2, 21),
        face=points[face],
        face_score=scores[face],
    )


def _usual_size(corner: Sequence[float]) -> Size:
    for width, height in _SIZES:
        if corner[0] <= width and corner[1] <= height:
            return width, height
    return max(1, round(corner[0])), max(1, round(corner[1]))


# ---- written ----


def _flat(points: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], size: Size) -> list[float]:
    pixels = points * np.array(size, np.float32)
    kept = np.where(scores[:, None] > 0, np.column_stack([pixels, scores]), 0)
    return [round(float(value), 5) for value in kept.ravel()]


def _as_openpose(pose: PoseSequence) -> dict[str, list[float]]:
    size = pose.size
    return {
        "pose_keypoints_2d": _flat(pose.body[0], pose.body_score[0], size),
        "face_keypoints_2d": _flat(pose.face[0], pose.face_score[0], size),
        "hand_left_keypoints_2d": _flat(pose.hands[0, 0], pose.hands_score[0, 0], size),
        "hand_right_keypoints_2d": _flat(pose.hands[0, 1], pose.hands_score[0, 1], size),
    }


def _as_coco(pose: PoseSequence) -> dict[str, Any]:
    parts = _as_openpose(pose)
    body = np.zeros((17, 3))
    body[list(_COCO_OF_OURS)] = np.reshape(parts["pose_keypoints_2d"], (-1, 3))[[0, *range(2, 18)]]
    return {
        "keypoints": body.ravel().tolist(),
        "foot_kpts": [0.0] * 18,
        "face_kpts": parts["face_keypoints_2d"],
        "lefthand_kpts": parts["hand_left_keypoints_2d"],
        "righthand_kpts": parts["hand_right_keypoints_2d"],
    }
