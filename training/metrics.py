"""How near a video is to the truth, on uint8 pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..denoise.schedule import steps_of
from ..denoise.segments import Segments, cut_segments
from ..pose import PoseSequence
from ..pose.rescale import VISIBLE
from ..settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

Pictures = NDArray[np.uint8]
MOST = 99.0
"""Decibels of pictures without any difference, where the logarithm has no value."""


def compare(
    video: Pictures, truth: Pictures, reference: Pictures, poses: PoseSequence, settings: Settings
) -> dict[str, float | None]:
    """All measures of a video [F,H,W,3]; `poses` tell where parts are, `settings` where segments meet.

    `…_repeat_reference` are those of the reference picture [H,W,3] shown all the time.
    """
    still = np.broadcast_to(reference, truth.shape)
    return {
        "psnr": psnr(video, truth),
        "ssim": ssim(video, truth),
        "psnr_repeat_reference": psnr(still, truth),
        "ssim_repeat_reference": ssim(still, truth),
        "hand_psnr": psnr_in(video, truth, boxes(poses, "hands", least=0.0)),
        "head_psnr": psnr_in(video, truth, boxes(poses, "heads")),
        "sharpness": sharpness(video, truth, whole(truth)),
        **{f"sharpness_{part}": sharpness(video, truth, boxes(poses, part)) for part in PARTS},
        "flicker": flicker(video, truth),
        "border_jump": border_jump(video, truth, borders(settings, len(truth))),
    }


def psnr(video: Pictures, truth: Pictures) -> float:
    """Peak signal-to-noise ratio in dB: the mean over the frames of videos [F,H,W,3]."""
    pairs = zip(video, truth, strict=True)
    return float(np.mean([decibels((picture.astype(np.float64) - true) ** 2) for picture, true in pairs]))


def decibels(errors: NDArray[np.float64]) -> float:
    """10 log10(255²/MSE) of squared errors, at most 99."""
    error = float(np.mean(errors))
    return min(MOST, 10 * float(np.log10(255.0**2 / error))) if error else MOST


def ssim(video: Pictures, truth: Pictures) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), mean over frames [F,H,W,3]."""
    import torch

    a, b = (
        torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).double() / 255 for x in (video, truth)
    )
    return float(similarity(a, b))


def similarity(planes: Tensor, truth: Tensor) -> Tensor:
    """The same of planes [N,3,H,W] from 0 to 1, as a number that gradients flow through."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    score: Any = structural_similarity_index_measure(planes, truth, data_range=1.0)
    return score  # type: ignore[no-any-return]


Box = tuple[int, int, int, int, int]
"""Frame, then rows and columns of pixels: top, bottom, left, right, ends excluded."""
PARTS = ("heads", "eyes", "hands")
_STILL = 2
"""Levels of 255 by which pixels that stand still may change."""


def boxes(poses: PoseSequence, part: str, least: float = 0.5) -> list[Box]:
    """Where `heads`, `eyes` or `hands` are of which at least half of the points are surer than `least`."""
    face, score = poses.face, poses.face_score
    eyes = (slice(36, 42), slice(42, 48))
    around, above, groups = {
        "heads": (0.1, 0.6, [(face, score)]),  # keypoints end at the brows
        "eyes": (0.15, 0.15, [(face[:, eye], score[:, eye]) for eye in eyes]),
        "hands": (0.0, 0.0, [(poses.hands[:, hand], poses.hands_score[:, hand]) for hand in (0, 1)]),
    }[part]
    size, found = (poses.size[1], poses.size[0]), list[Box]()
    for frame in range(len(poses)):
        for points, scores in groups:
            seen = scores[frame] > least
            if 2 * seen.sum() < len(seen):
                continue
            low, high = points[frame, seen].min(axis=0), points[frame, seen].max(axis=0)
            reach = high - low
            corners = np.stack([low - reach * (around, above), high + reach * around]).astype(np.float32)
            top, bottom, left, right = box_on_grid(corners, size)
            if bottom > top and right > left:
                found.append((frame, top, bottom, left, right))
    return found


def whole(pictures: Pictures) -> list[Box]:
    """The boxes of whole pictures."""
    return [(frame, 0, pictures.shape[1], 0, pictures.shape[2]) for frame in range(len(pictures))]


def psnr_in(video: Pictures, truth: Pictures, where: Sequence[Box]) -> float | None:
    """PSNR in dB over all pixels in the boxes; None if there is none."""
    errors = []
    for frame, top, bottom, left, right in where:
        one, other = (x[frame, top:bottom, left:right].astype(np.float64) for x in (video, truth))
        errors.append(((one - other) ** 2).ravel())
    return decibels(np.concatenate(errors)) if errors else None


def sharpness(video: Pictures, truth: Pictures, where: Sequence[Box]) -> float | None:
    """The energy of the video's gradients over that of the truth's, in all boxes; 1 is as sharp as the truth."""

    def energy(pictures: Pictures, box: Box) -> float:
        frame, top, bottom, left, right = box
        cut = pictures[frame, top:bottom, left:right].astype(np.float64)
        return float((np.diff(cut, axis=0) ** 2).sum() + (np.diff(cut, axis=1) ** 2).sum())

    wanted = sum(energy(truth, box) for box in where)
    return sum(energy(video, box) for box in where) / wanted if wanted else None


def flicker(video: Pictures, truth: Pictures) -> float | None:
    """Mean change from frame to frame, in levels of 255, of pixels where the truth stands still; None without any."""
    still = np.abs(np.diff(truth.astype(np.int16), axis=0)).max(axis=-1) <= _STILL
    changes = np.abs(np.diff(video.astype(np.int16), axis=0)).mean(axis=-1)
    return float(changes[still].mean()) if still.any() else None


def following(found: PoseSequence | None, wanted: PoseSequence | None) -> dict[str, float | None]:
    """How a video follows its motion: body joints `found` in it by an estimator, and those `wanted`, of the truth.

    `joints_found`: the share of the truth's joints that are seen in the same frame of the video. `pose_error`: how
    far these have moved, the median, in percent of the height. None where nobody is seen in the truth or the video.
    """
    if wanted is None:
        return {"joints_found": None, "pose_error": None}
    there = wanted.body_score > VISIBLE
    if found is None:
        return {"joints_found": 0.0, "pose_error": None}
    again = there & (found.body_score > VISIBLE)
    width, height = wanted.size
    away = np.linalg.norm((found.body - wanted.body) * (width / height, 1.0), axis=-1)[again]
    share = float(again.sum() / there.sum()) if there.any() else None
    return {"joints_found": share, "pose_error": 100 * float(np.median(away)) if away.size else None}


def box_on_grid(points: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right), ends excluded, of what the box around points [P,2] touches.

    Points are fractions of the picture's sides, `size` = (h, w) are the rows and columns of latents or pixels.
    """
    sides = np.array([size[1], size[0]], np.float64)
    low = np.floor(points.min(axis=0) * sides).astype(int)
    high = np.floor(points.max(axis=0) * sides).astype(int) + 1
    left, top = np.clip(low, 0, sides.astype(int))
    right, bottom = np.clip(high, 0, sides.astype(int))
    return int(top), int(bottom), int(left), int(right)


def border_jump(video: Pictures, truth: Pictures, borders: Sequence[int]) -> float | None:
    """How much more the video jumps where segments begin or end than elsewhere, in levels of 255.

    A frame's jump is the mean absolute difference to the frame before, less that of the truth. `borders`
    are the frames that follow a border; None without any. A seamless video has about 0.
    """
    if not borders or len(video) < 3:
        return None
    jumps = _changes(video) - _changes(truth)
    at = np.isin(np.arange(1, len(video)), borders)
    if at.all() or not at.any():
        return None
    return float(jumps[at].mean() - jumps[~at].mean())


def means(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each measure over the clips that have it."""
    result: dict[str, float | None] = {}
    for name in scores[0]:
        values = [value for value in (one[name] for one in scores) if value is not None]
        result[name] = float(np.mean(values)) if values else None
    return result


def describe(scores: Mapping[str, float | None]) -> str:
    """Measures in words: `psnr 23.431, ssim 0.823`."""
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)


def borders(settings: Settings, frames: int) -> list[int]:
    """`segment_borders` of a video of so many frames. Where borders move from step to step, those of the last one."""
    assert settings.segment is not None
    segment, last = settings.segment, steps_of(settings)[-1].shift
    return segment_borders(cut_segments(frames + 1, segment, settings.overlap, settings.layout, last))


def segment_borders(plan: Segments) -> list[int]:
    """Video frames at which a segment begins or after which one ends; frame 0 of `plan` is the reference."""
    last = int(plan.max())
    begins = {int(row[1]) - 1 for row in plan if len(row) > 1}
    ends = {int(row[-1]) for row in plan}
    return sorted((begins | ends) - {0, last})


def _changes(video: Pictures) -> NDArray[np.float64]:
    frames = video.astype(np.int16)
    changes: NDArray[np.float64] = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    return changes
