"""Pictures in and out: any common file to uint8 RGB, a folder of them, and back."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from ..errors import LimitError, MimicMotionError, MotionError, OutputError, PictureError, SettingsError
from ..files import output_errors, plain_file, write_atomic
from ..limits import Limits, check_limit
from ..validation import ArrayLike, described, plain_array

Picture = NDArray[np.uint8]
PictureLike = str | Path | bytes | ArrayLike
"""A file, the bytes of one, a picture of Pillow, or uint8 [H,W,3] RGB of numpy or of PyTorch on the CPU."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""What `write_picture` writes and what counts as a pose picture in a folder."""

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of HEIC files, which phones write; Pillow reads them with pillow-heif only."""
_REMEDY = "Give a JPEG, PNG, WebP, AVIF, BMP or TIFF picture."


def read_picture(
    source: PictureLike, limits: Limits | None = None, *, over: str = "white", shows: bool = False
) -> Picture:
    """A picture as uint8 [H,W,3] RGB.

    `source` is a file, the bytes of one, a picture of Pillow, or uint8 [H,W,3] RGB already. The picture is turned
    upright (EXIF, and AVIF's and HEIC's own rotation), its colour profile is converted to sRGB, transparent parts are
    laid over the colour `over` (a name or #rrggbb), grey, CMYK and 16-bit pictures become 8-bit RGB, and of an
    animation the first frame is taken. Bytes and pixels are checked before anything is decoded.

    Raises `PictureError` if this is no whole picture, `LimitError` if it is larger than `limits` allow, and with
    `shows` `SettingsError` if nothing of it is transparent, so that `over` would not be seen.
    """
    limits = limits or Limits()
    if isinstance(source, Image.Image):
        _check_pixels(source.size, limits)
        with _picture_errors("the picture", source.format or source.mode):
            rawmode = _rawmode(source)
            return _upright_rgb(source.copy(), rawmode, over, shows)
    given: Any = source
    if not isinstance(given, str | Path | bytes | bytearray | memoryview):
        given = plain_array(given, PictureError, "image")
    if isinstance(given, np.ndarray):
        if shows:
            raise _opaque(over)
        return _checked_array(given, limits)
    if not isinstance(given, str | Path | bytes | bytearray | memoryview):
        remedy = "Give a path, a file's bytes, a picture of Pillow, or uint8 [H,W,3] in RGB order."
        raise _fault(f"the picture is {described(given)}.", remedy)
    if isinstance(given, bytes | bytearray | memoryview):
        name, data = "the picture", bytes(given)
        check_limit("bytes of the picture", len(data), limits.picture_bytes, field="image")
    else:
        path = plain_file(given, "picture", _fault, _REMEDY)
        check_limit("bytes of the picture", path.stat().st_size, limits.picture_bytes, field="image")
        name, data = path.name, path.read_bytes()
    if not data:
        raise _fault(f"{name} is empty.")
    kind = picture_format(data)
    if not kind and data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        raise _fault(
            f"{name} is a HEIC picture, which is read with the package pillow-heif only.",
            "Install mimicmotion-trt[heif], or save the picture as JPEG.",
        )
    if not kind:
        raise _fault(f"{name} is not a picture that can be read.")
    with _picture_errors(name, kind):
        return _decode(data, kind, limits, over, shows)


@contextmanager
def _picture_errors(name: str, kind: str) -> Iterator[None]:
    """Pillow's errors as ours; `kind` is the picture's format."""
    try:
        yield
    except MimicMotionError:
        raise
    except Image.DecompressionBombError as error:  # a few plugins look before we can
        why = f"pixels of the picture: {name} has more than Pillow decodes."
        raise LimitError(why, remedy="Shrink it.", field="image") from error
    except MemoryError as error:
        raise LimitError(f"{name} does not fit into memory.", remedy="Shrink it.", field="image") from error
    except Exception as error:  # Pillow's errors share no base class
        why = str(error).strip().rstrip(".") or type(error).__name__
        if why == "unknown pixel mode":  # a whole TIFF, of colours in floating point for instance
            message = f"{name} is a {kind} picture with pixels of a kind that is not read."
            raise _fault(message, "Save it as PNG.") from error
        message = f"{name} is a {kind} picture that is truncated (cut off) or damaged: {why}."
        raise _fault(message, "Copy the file again, or give another picture.") from error


def picture_format(data: bytes) -> str:
    """Pillow's name of the format by the first bytes of a file (PNG, JPEG, GIF, ...); empty if it is none."""
    Image.init()  # imports Pillow's plugins, once
    if data[4:8] == b"ftyp" and "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    for kind in _FORMATS:
        accept = Image.OPEN[kind][1] if kind in Image.OPEN else None
        if accept is not None and accept(data[:16]) is True:
            return kind
    return ""


def list_pictures(folder: str | Path) -> list[Path]:
    """The pictures of a folder in natural order: frame_2 before frame_10; hidden files are left out.

    Raises `MotionError` if it is no folder or holds no picture.
    """
    folder = Path(folder)
    try:
        names = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    except (OSError, ValueError) as error:
        raise _motion_fault(f"{folder} is not a folder that can be read.", "Check the path.") from error
    pictures = [path for path in names if path.is_file() and not path.name.startswith(".")]
    if not pictures:
        raise _motion_fault(f"{folder} holds no pictures.", f"Put {', '.join(PICTURE_SUFFIXES)} files there.")
    return sorted(pictures, key=natural_order)


def read_pictures(
    paths: Sequence[Path], limits: Limits | None = None, *, over: str = "white"
) -> Iterator[Picture]:
    """Yields pictures as uint8 [H,W,3] RGB, one in memory at a time.

    Raises `MotionError` if one cannot be read or differs in size from the first, and `LimitError` if one has more
    pixels than a frame may have.
    """
    limits = limits or Limits()
    first: tuple[int, ...] = ()
    for path in paths:
        try:
            picture = read_picture(path, limits, over=over)
        except PictureError as error:
            raise _motion_fault(error.message, error.remedy) from error
        except LimitError as error:
            raise LimitError(error.message, remedy=error.remedy, field="motion") from error
        rows, columns = picture.shape[:2]
        check_limit("pixels of a pose picture", rows * columns, limits.frame_pixels, field="motion")
        first = first or picture.shape
        if picture.shape != first:
            raise _motion_fault(
                f"{path.name} is {columns}x{rows}, but {paths[0].name} is {first[1]}x{first[0]}.",
                "Make all pose pictures the same size.",
            )
        yield picture


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
    with output_errors(path):
        write_atomic(path, encode_picture(picture, path.suffix.lower()))


def encode_picture(picture: Picture, suffix: str = ".png") -> bytes:
    """The bytes of a picture file that holds uint8 [H,W,3] RGB."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(suffix, picture[..., ::-1], options)
    if not done:
        raise OutputError(f"the picture could not be encoded as {suffix}.", field="output")
    return data.tobytes()


def transparent_png(picture: object) -> bytes | None:
    """A PNG file of a picture of Pillow that may be transparent in part, its colour profile kept; None for others."""
    if not isinstance(picture, Image.Image) or not picture.has_transparency_data:
        return None
    upright = ImageOps.exif_transpose(picture)
    profile, file = picture.info.get("icc_profile"), io.BytesIO()
    (upright if upright.mode == "LA" else upright.convert("RGBA")).save(file, "PNG", icc_profile=profile)
    return file.getvalue()


def _checked_array(picture: NDArray[np.generic], limits: Limits) -> Picture:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise _fault(
            f"the picture is an array of {picture.dtype} {list(picture.shape)}.",
            "Give uint8 [H,W,3] in RGB order.",
        )
    _check_pixels(picture.shape[:2], limits)
    return np.ascontiguousarray(picture).view(np.uint8)


def _check_pixels(size: tuple[int, ...], limits: Limits) -> None:
    check_limit("pixels of the picture", math.prod(size), limits.picture_pixels, field="image")


def _decode(data: bytes, kind: str, limits: Limits, over: str, shows: bool) -> Picture:
    # The plugin is called directly: Image.open would judge the size by a limit that belongs to the process.
    with Image.OPEN[kind][0](io.BytesIO(data), "") as header:
        _check_pixels(header.size, limits)
        header.verify()  # Pillow decodes a PNG whose last bytes are missing
    with Image.OPEN[kind][0](io.BytesIO(data), "") as image:
        rawmode = _rawmode(image)
        image.load()  # a PNG's EXIF may come last
        return _upright_rgb(_deep_colour(data, image, rawmode) or image, rawmode, over, shows)


def _deep_colour(data: bytes, image: Image.Image, rawmode: object) -> Image.Image | None:
    """A picture as OpenCV reads it, where Pillow goes wrong with more than 8 bits; None for others.

    Pillow compares a PNG's transparent colour by its high bytes, and white of a deep JPEG 2000 becomes black.
    """
    depth = 8
    if rawmode == "RGB;16B" and "transparency" in image.info:
        depth = 16
    elif image.format == "JPEG2000" and image.mode in ("RGB", "RGBA"):
        at = data.find(b"\xff\x4f\xff\x51")  # the codestream's head: bits less one follow 42 bytes on
        depth = (data[at + 42] & 0x7F) + 1
    if depth <= 8:
        return None
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        return None
    order = [2, 1, 0, 3][: pixels.shape[2]]
    deep = Image.fromarray((pixels[..., order] >> (depth - 8)).astype(np.uint8))
    deep.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return deep


def _rawmode(image: Image.Image) -> object:
    """How the pixels lie in the file, while they are not loaded yet."""
    tile: Any = getattr(image, "tile", None)
    return tile[0].args if tile else None


def _upright_rgb(image: Image.Image, rawmode: object, over: str, shows: bool) -> Picture:
    """The pixels of an image that is ours to change."""
    image.load()
    with suppress(Exception):  # damaged EXIF takes nothing from the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(_to_rgb(image, rawmode, over, shows))


def _to_rgb(image: Image.Image, rawmode: object, over: str, shows: bool) -> Image.Image:
    """As RGB in sRGB, transparent parts over the colour `over`."""
    profile = image.info.get("icc_profile")
    image = _to_8_bit(image, rawmode)
    alpha: Image.Image | None = None
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = _as_mode(image, "LA" if grey else "RGBA")
        alpha = image.getchannel("A")
    if shows and (alpha is None or alpha.getextrema()[0] == 255):
        raise _opaque(over)
    if image.mode != "CMYK":
        image = _as_mode(image, "L" if grey else "RGB")
    colours = _to_srgb(image, profile)
    if alpha is None:
        return colours
    opaque = Image.new("RGB", colours.size, over)
    opaque.paste(colours, mask=alpha)
    return opaque


def _to_8_bit(image: Image.Image, rawmode: object) -> Image.Image:
    """Deeper grey pictures as mode L (or LA); a transparent colour in the scale of the 8-bit pixels."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        grey = Image.fromarray(_scaled(deep, 65535))
        if isinstance(key, int):
            grey.putalpha(Image.fromarray(np.where(deep == key, 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ("I", "F"):  # whole numbers to 65535 (PPM), or 0 to 1
        return Image.fromarray(_scaled(np.asarray(image), 65535 if image.mode == "I" else 1))
    if isinstance(key, int) and rawmode in ("L;2", "L;4"):  # Pillow stretches the pixels only
        image.info["transparency"] = key * (85 if rawmode == "L;2" else 17)
    elif isinstance(key, tuple) and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _scaled(values: NDArray[np.generic], top: float) -> Picture:
    """0..top to 0..255, rounded; beyond it clipped."""
    shares = np.nan_to_num(values.astype(np.float32) / np.float32(top), nan=0.0, posinf=1.0, neginf=0.0)
    scaled: Picture = (np.clip(shares, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return scaled


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An L, RGB or CMYK image as RGB in sRGB; without a usable profile its values are taken as sRGB."""
    if not profile:
        return _as_mode(image, "RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            image = _as_mode(image, "RGB")
        sought = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, sought, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged, or of another kind of picture
        return _as_mode(image, "RGB")
    assert converted is not None
    return converted


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converted; not copied where the mode is the same, for pictures are large."""
    return image if image.mode == mode else image.convert(mode)


def _keep(side: int, needed: float) -> int:
    """At least two pixels more than needed, and as odd or even as the side, so that the centre stays."""
    kept = math.ceil(needed) + 2
    return min(side, kept + (kept - side) % 2)


def _centre(picture: Picture, width: int, height: int) -> Picture:
    top = (picture.shape[0] - height) // 2
    left = (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def natural_order(path: Path) -> tuple[object, ...]:
    """A key that sorts frame_2 before frame_10."""
    # Text and numbers alternate, so that numbers are only ever compared with numbers.
    parts = re.split(r"([0-9]+)", path.name)
    return (*(int(p) if i % 2 else p.lower() for i, p in enumerate(parts)), path.name)


def _opaque(over: str) -> SettingsError:
    return SettingsError(
        f"background is {over}, and nothing of the picture is transparent.",
        remedy="Cut the person out (a PNG or WebP with transparency), or leave background out.",
        field="settings.background",
    )


def _fault(message: str, remedy: str = _REMEDY) -> PictureError:
    return PictureError(message, remedy=remedy, field="image")


def _motion_fault(message: str, remedy: str) -> MotionError:
    return MotionError(message, remedy=remedy, field="motion")
