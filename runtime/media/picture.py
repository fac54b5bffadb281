"""Pictures in and out: any common file to uint8 RGB, and back."""

from __future__ import annotations

import math
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import LimitError, OutputError, PictureError
from ..limits import Limits, check_limit
from .header import Header, read_header

Picture = NDArray[np.uint8]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""What `write_picture` writes and what counts as a pose picture in a folder."""

_log_level = threading.Lock()
_REMEDY = "Give a JPEG, PNG, WebP, BMP or TIFF picture."


def read_picture(source: str | Path | bytes | Picture, limits: Limits | None = None) -> Picture:
    """A picture as uint8 [H,W,3] RGB.

    `source` is a file, the bytes of one, or uint8 [H,W,3] RGB already. EXIF orientation is applied,
    transparent parts are laid over white, grey and 16-bit pictures are brought to 8-bit RGB, and of an
    animation the first frame is taken. Bytes and pixels are checked before anything is decoded.

    Raises `PictureError` if this is no whole picture and `LimitError` if it is larger than `limits` allow.
    """
    limits = limits or Limits()
    if isinstance(source, np.ndarray):
        return _checked_array(source, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = "the picture", bytes(source)
        check_limit("bytes of the picture", len(data), limits.picture_bytes, field="image")
    else:
        name, data = _load(source, limits)
    if not data:
        raise _fault(f"{name} is empty.")
    header = read_header(data)
    if header is None or header.width < 1 or header.height < 1:
        raise _fault(f"{name} is not a picture that can be read.")
    check_limit("pixels of the picture", header.width * header.height, limits.picture_pixels, field="image")
    if not header.whole:
        raise _fault(f"{name} is cut off: its {header.kind} data ends too early.", "Copy the file again.")
    return _decode(name, data, header)


def fit_picture(picture: Picture, width: int, height: int) -> Picture:
    """The picture resized to cover width x height and cropped to it around the centre.

    uint8 [H,W,3] in, uint8 [height,width,3] out; returned as it is where the size already fits.
    """
    rows, columns = picture.shape[:2]
    if (columns, rows) == (width, height):
        return picture
    scale = max(width / columns, height / rows)
    # Cut off early what the crop would drop, or a strip of 1x10000 would be blown up before it is cropped.
    picture = _centre(picture, _keep(columns, width / scale), _keep(rows, height / scale))
    rows, columns = picture.shape[:2]
    size = (max(width, round(columns * scale)), max(height, round(rows * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(picture), size, interpolation=interpolation)
    return np.ascontiguousarray(_centre(resized.astype(np.uint8, copy=False), width, height))


def write_picture(path: str | Path, picture: Picture) -> None:
    """Write uint8 [H,W,3] RGB in the format of the path's suffix; the file appears whole or not at all.

    Raises `OutputError` if the suffix is unknown or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise OutputError(
            f"{path.name}: no picture format is known by the suffix {path.suffix!r}.",
            remedy=f"Choose one of {', '.join(PICTURE_SUFFIXES)}.",
            field="output",
        )
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_bytes(encode_picture(picture, path.suffix.lower()))
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}.",
            remedy="Choose a path in a folder that exists and that you may write to.",
            field="output",
        ) from error


def encode_picture(picture: Picture, suffix: str = ".png") -> bytes:
    """The bytes of a picture file that holds uint8 [H,W,3] RGB."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(suffix, picture[..., ::-1], options)
    if not done:
        raise OutputError(f"the picture could not be encoded as {suffix}.", field="output")
    return data.tobytes()


def _checked_array(picture: NDArray[np.generic], limits: Limits) -> Picture:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise _fault(
            f"the picture is an array of {picture.dtype} {list(picture.shape)}.",
            "Give uint8 [H,W,3] in RGB order.",
        )
    pixels = picture.shape[0] * picture.shape[1]
    check_limit("pixels of the picture", pixels, limits.picture_pixels, field="image")
    return np.ascontiguousarray(picture).view(np.uint8)


def _load(source: str | Path, limits: Limits) -> tuple[str, bytes]:
    try:
        path = Path(source)
        if path.is_dir():
            raise _fault(f"{path.name or path} is a directory, not a picture.")
        if not path.exists():
            raise _fault(f"{path} does not exist.", "Check the path.")
        if not path.is_file():
            raise _fault(f"{path} is not a plain file.")
        check_limit("bytes of the picture", path.stat().st_size, limits.picture_bytes, field="image")
        return path.name, path.read_bytes()
    except (OSError, ValueError, TypeError) as error:
        raise _fault(f"{source!s:.200} cannot be read: {error}.", "Check the path.") from error


def _decode(name: str, data: bytes, header: Header) -> Picture:
    try:
        with _quiet():
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _fault(f"{name} cannot be decoded: {error.err or error}.") from error
    except MemoryError as error:
        raise LimitError(f"{name} does not fit into memory.", remedy="Shrink it.", field="image") from error
    if pixels is None:
        raise _fault(f"{name} cannot be decoded: its {header.kind} data is damaged.")
    return _upright(_to_rgb(_to_8_bit(pixels)), header.orientation)


@contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV prints what is wrong with a picture; our error says it. Its log level belongs to the process."""
    with _log_level:
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            cv2.utils.logging.setLogLevel(level)


def _to_8_bit(pixels: NDArray[np.generic]) -> Picture:
    if pixels.dtype == np.uint8:
        return pixels.view(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating):
        bright = np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        return (np.clip(bright, 0, 1) * 255 + 0.5).astype(np.uint8)
    top = np.iinfo(pixels.dtype).max  # type: ignore[type-var]
    scaled: NDArray[np.float32] = np.clip(pixels, 0, top).astype(np.float32) * np.float32(255 / top)
    return (scaled + 0.5).astype(np.uint8)


def _to_rgb(pixels: Picture) -> Picture:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    colour = pixels[..., :1].repeat(3, axis=2) if channels < 3 else pixels[..., 2::-1]  # BGR to RGB
    if channels in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint16)
        colour = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(colour)


def _upright(picture: Picture, orientation: int) -> Picture:
    """EXIF: 2 to 4 flip or turn half way, 5 to 8 transpose as well."""
    if orientation >= 5:
        picture = picture.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _keep(side: int, needed: float) -> int:
    """At least two pixels more than needed, and as odd or even as the side, so that the centre stays."""
    kept = math.ceil(needed) + 2
    return min(side, kept + (kept - side) % 2)


def _centre(picture: Picture, width: int, height: int) -> Picture:
    top = (picture.shape[0] - height) // 2
    left = (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def _fault(message: str, remedy: str = _REMEDY) -> PictureError:
    return PictureError(message, remedy=remedy, field="image")
