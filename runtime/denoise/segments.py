"""How a clip is cut into overlapping segments, and how much each counts where they overlap."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..settings import Fusion, Layout

Segments = NDArray[np.intp]
"""[S,N]: the frames of each segment; frame 0, the reference picture's own, stands in every one."""


def cut_segments(
    frames: int, segment: int, overlap: int, layout: Layout = "reference", shift: float = 0.0
) -> Segments:
    """Segments that cover `frames` frames, frame 0 included; a short clip is one short segment.

    `reference` (MimicMotion's code): windows of N-1 frames every N-C, and one more that ends at the last
    frame if that is not covered yet. `compact`: as few windows as the same overlap allows, all equally
    long, as short as they may be and spread evenly.

    `shifted`: windows of N-1 frames side by side, the first of which begins int(shift C) frames before the
    clip, 0 <= shift < 1; windows that reach out of the clip are pushed into it, so that only the first and
    the last may overlap their neighbour. As `shift` changes from step to step, borders move over the C frames
    on which segments overlap in the other layouts, at no more than the reference's cost (after Ji et al. 2024,
    "Sonic": time-aware position shift fusion).
    """
    if frames <= segment:
        return np.arange(frames, dtype=np.intp)[None]
    if layout == "reference":
        window, starts = segment - 1, _reference_starts(frames, segment, overlap)
    elif layout == "shifted":
        window, starts = segment - 1, _shifted_starts(frames - 1, segment - 1, int(shift * overlap))
    else:
        count, window = compact_windows(frames, segment, overlap)
        starts = [1 + index * (frames - 1 - window) // (count - 1) for index in range(count)]
    segments = np.zeros((len(starts), window + 1), np.intp)
    segments[:, 1:] = np.asarray(starts)[:, None] + np.arange(window)
    return segments


def _reference_starts(frames: int, segment: int, overlap: int) -> list[int]:
    starts = [i + 1 for i in range(0, frames - segment + 1, segment - overlap)]
    if starts[-1] + segment - 1 < frames:
        starts.append(frames - segment + 1)
    return starts


def compact_windows(frames: int, segment: int, overlap: int) -> tuple[int, int]:
    """How many segments the layout `compact` makes of a clip longer than one, and their driven frames."""
    driven, shared = frames - 1, overlap - 1  # neighbouring windows share C-1 driven frames and frame 0
    count = math.ceil((driven - shared) / (segment - 1 - shared))
    return count, math.ceil((driven + (count - 1) * shared) / count)


def _shifted_starts(driven: int, window: int, before: int) -> list[int]:
    grid = np.arange(-before, driven, window)
    return [1 + int(start) for start in np.clip(grid, 0, driven - window)]


def fusion_weights(segments: Segments, fusion: Fusion = "triangular") -> NDArray[np.float32]:
    """Weights [S,N] of each segment's prediction for each of its frames; they sum to 1 over a frame.

    `triangular`: min(u, 2-u) with u = 2(k+0.5)/N for the segment's frame k (MimicMotion's code). `linear`: over the
    n driven frames that two neighbours share, the later one's weight grows by 1/(n+1) a frame (MimicMotion,
    sec. 3.4).
    """
    count, length = segments.shape
    if fusion == "triangular":
        u = 2 * (np.arange(length) + 0.5) / length
        weights = np.tile(np.minimum(u, 2 - u), (count, 1))
    else:
        weights = np.ones((count, length))
        for before in range(count - 1):
            shared = np.intersect1d(segments[before, 1:], segments[before + 1, 1:])
            rise = np.arange(1, len(shared) + 1) / (len(shared) + 1)
            weights[before + 1, 1 : 1 + len(shared)] *= rise
            weights[before, length - len(shared) :] *= rise[::-1]
    total = np.zeros(segments.max() + 1)
    np.add.at(total, segments, weights)
    normalised: NDArray[np.float32] = (weights / total[segments]).astype(np.float32)
    return normalised
