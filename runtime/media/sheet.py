"""A contact sheet: labelled rows of evenly picked frames in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Row = tuple[str, Sequence[NDArray[np.uint8]]]

_BACKGROUND = (24, 26, 31)
_LABEL = (222, 226, 233)
_NUMBER = (140, 147, 160)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def contact_sheet(rows: Sequence[Row], *, columns: int = 8, tile_height: int = 160) -> NDArray[np.uint8]:
    """One uint8 [H,W,3] RGB picture of `rows`, each a label and its frames, uint8 [h,w,3] RGB of any size.

    A row shows at most `columns` frames, evenly picked from its first to its last, `tile_height` pixels high
    and as wide as their shape asks for. Raises `ValueError` if columns or tile_height is less than 1.
    """
    if columns < 1 or tile_height < 1:
        raise ValueError(f"columns {columns} and tile_height {tile_height} must be at least 1")
    gap = min(max(2, tile_height // 20), 12)
    margin = min(max(4, tile_height // 8), 32)
    bands = [_band(label, frames, columns, tile_height, gap) for label, frames in rows]
    width = max((band.shape[1] for band in bands), default=tile_height)
    framed = [
        cv2.copyMakeBorder(
            band, margin, 0, margin, margin + width - band.shape[1], cv2.BORDER_CONSTANT, value=_BACKGROUND
        )
        for band in bands
    ]
    return np.vstack([*framed, _dark(margin, width + 2 * margin)])


def _band(
    label: str, frames: Sequence[NDArray[np.uint8]], columns: int, tile_height: int, gap: int
) -> NDArray[np.uint8]:
    picked = evenly(len(frames), columns)
    tiles = [_tile(frames[index], tile_height) for index in picked]
    scale = min(max(0.35, tile_height / 320), 0.7)
    label = label.encode("ascii", "replace").decode()  # OpenCV's font knows no more
    count = f"{len(picked)} of {len(frames)}" if len(picked) < len(frames) else ""
    text_width, text_height = _measure(label, scale)
    head = text_height + 2 * gap if label else 0
    full = sum(tile.shape[1] for tile in tiles) + gap * max(0, len(tiles) - 1)
    needed = text_width + (3 * gap + _measure(count, scale)[0] if count else 0)
    band = _dark(head + (tile_height if tiles else 0), max(full, needed, 1))
    _write(band, label, 0, text_height, scale, _LABEL)
    if count:
        _write(band, count, text_width + 3 * gap, text_height, scale, _NUMBER)
    left = 0
    for tile in tiles:
        band[head:, left : left + tile.shape[1]] = tile
        left += tile.shape[1] + gap
    return band


def evenly(count: int, most: int) -> list[int]:
    """At most `most` indices, evenly from the first to the last of `count`."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count // 2]
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]


def _tile(frame: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    rows, columns = frame.shape[:2]
    width = max(1, round(columns * height / rows))
    interpolation = cv2.INTER_AREA if height < rows else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=interpolation)
    return resized.astype(np.uint8, copy=False)


def _measure(text: str, scale: float) -> tuple[int, int]:
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    return width, height + baseline // 2


def _write(
    band: NDArray[np.uint8], text: str, left: int, bottom: int, scale: float, colour: tuple[int, int, int]
) -> None:
    cv2.putText(band, text, (left, bottom), _FONT, scale, colour, 1, cv2.LINE_AA)


def _dark(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), _BACKGROUND, np.uint8)
