"""Pose pictures: a folder of frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import LimitError, PictureError
from ..limits import Limits, check_limit
from .picture import PICTURE_SUFFIXES, read_picture
from .source import fault


def list_pictures(folder: str | Path) -> list[Path]:
    """The pictures of a folder in natural order: frame_2 before frame_10; hidden files are left out.

    Raises `MotionError` if it is no folder or holds no picture.
    """
    folder = Path(folder)
    try:
        names = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    except (OSError, ValueError) as error:
        raise fault(f"{folder} is not a folder that can be read.", "Check the path.") from error
    pictures = [path for path in names if path.is_file() and not path.name.startswith(".")]
    if not pictures:
        raise fault(f"{folder} holds no pictures.", f"Put {', '.join(PICTURE_SUFFIXES)} files there.")
    return sorted(pictures, key=_natural)


def read_pictures(folder: str | Path, limits: Limits | None = None) -> Iterator[NDArray[np.uint8]]:
    """Yields the folder's pictures as uint8 [H,W,3] RGB in natural order, one in memory at a time.

    Raises `MotionError` at once if there are none, and on the way if one cannot be read or differs in size
    from the first; `LimitError` if one has more pixels than a frame may have.
    """
    return _read(list_pictures(folder), limits or Limits())


def _read(paths: list[Path], limits: Limits) -> Iterator[NDArray[np.uint8]]:
    first: tuple[int, ...] = ()
    for path in paths:
        try:
            picture = read_picture(path, limits)
        except PictureError as error:
            raise fault(error.message, error.remedy) from error
        except LimitError as error:
            raise LimitError(error.message, remedy=error.remedy, field="motion") from error
        rows, columns = picture.shape[:2]
        check_limit("pixels of a pose picture", rows * columns, limits.frame_pixels, field="motion")
        first = first or picture.shape
        if picture.shape != first:
            raise fault(
                f"{path.name} is {columns}x{rows}, but {paths[0].name} is {first[1]}x{first[0]}.",
                "Make all pose pictures the same size.",
            )
        yield picture


def _natural(path: Path) -> tuple[object, ...]:
    # Text and numbers alternate, so that numbers are only ever compared with numbers.
    parts = re.split(r"([0-9]+)", path.name)
    return (*(int(p) if i % 2 else p.lower() for i, p in enumerate(parts)), path.name)
