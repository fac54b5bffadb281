"""What a notebook shows: HTML that holds its pictures and videos itself."""

from __future__ import annotations

from base64 import b64encode
from html import escape

import numpy as np
from numpy.typing import NDArray

from .picture import encode_picture

WIDEST = 480
"""Pixels of a player."""


def picture_html(picture: NDArray[np.uint8], alt: str) -> str:
    """uint8 [H,W,3] RGB as an image; `alt` says what it shows."""
    data = b64encode(encode_picture(picture, ".jpg")).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}" style="max-width: 100%">'


def video_html(mp4: bytes, size: tuple[int, int]) -> str:
    """A player of an MP4 file whose pictures have this size (width, height)."""
    width = min(size[0], WIDEST)
    data = b64encode(mp4).decode()
    return f'<video controls loop width="{width}" src="data:video/mp4;base64,{data}"></video>'
