"""What a picture file says about itself before any pixel is decoded."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Header:
    """Stored size in pixels, the EXIF orientation (1 to 8) still to apply, and whether the file is whole."""

    kind: str
    width: int
    height: int
    orientation: int = 1
    whole: bool = True


def read_header(data: bytes) -> Header | None:
    """The header of a PNG, JPEG, GIF, WebP, BMP, TIFF, AVIF, JPEG 2000 or PNM file; None if it is none.

    Never raises, whatever the bytes are, and allocates next to nothing.
    """
    try:
        for signature, parse in _PARSERS:
            if signature.match(data):
                return parse(data)
    except (struct.error, LookupError, ValueError):
        pass  # the header itself is cut off
    return None


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    at, orientation = 8, 1
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
        if name == b"IEND":
            break
    else:
        return Header("PNG", width, height, orientation, whole=False)
    return Header("PNG", width, height, orientation, whole=at <= len(data))


def _jpeg(data: bytes) -> Header:
    at, orientation, size = 2, 1, (0, 0)
    while True:
        if data[at] != 0xFF:
            raise ValueError("not at a marker")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _orientation(data[at + 10 : at + 2 + length])
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (width, height)
        elif marker == 0xDA:  # pixels follow; inside them 0xFF is always stuffed, so this is the end marker
            whole = data.find(b"\xff\xd9", at) >= 0
            return Header("JPEG", *size, orientation, whole)
        at += 2 + length


def _gif(data: bytes) -> Header:
    return Header("GIF", *struct.unpack_from("<HH", data, 6))


def _webp(data: bytes) -> Header:
    (length,) = struct.unpack_from("<I", data, 4)
    whole = 8 + length <= len(data)
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(body[4:7], "little")
        height = 1 + int.from_bytes(body[7:10], "little")
        at = data.find(b"EXIF", 30) if body[0] & 8 else -1
        exif = data[at + 8 :].removeprefix(b"Exif\0\0") if at >= 0 else b""
        return Header("WebP", width, height, _orientation(exif), whole)
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return Header("WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), whole=whole)
    width, height = struct.unpack_from("<HH", body, 6)
    return Header("WebP", width & 0x3FFF, height & 0x3FFF, whole=whole)


def _bmp(data: bytes) -> Header:
    (kind,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if kind == 12 else "<ii", data, 18)
    return Header("BMP", abs(width), abs(height))  # a negative height only means top row first


def _tiff(data: bytes) -> Header:
    tags = _tiff_tags(data)
    return Header("TIFF", tags[256], tags[257])  # OpenCV applies a TIFF's orientation itself


def _avif(data: bytes) -> Header:
    sizes = [struct.unpack_from(">II", data, m.end() + 4) for m in re.finditer(b"ispe", data[: 1 << 16])]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header("AVIF", width, height)


def _jpeg2000(data: bytes) -> Header:
    at = data.index(b"\xff\x4f\xff\x51")  # start of codestream, then its size segment
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    return Header("JPEG 2000", max(0, right - left), max(0, bottom - top))


def _pnm(data: bytes) -> Header:
    plain = re.sub(rb"#[^\n]*\n", b" ", data[:4096])
    width, height = plain.split(maxsplit=3)[1:3]
    return Header("PNM", int(width), int(height))


_PARSERS = tuple(
    (re.compile(signature, re.DOTALL), parse)
    for signature, parse in (
        (rb"\x89PNG\r\n\x1a\n", _png),
        (rb"\xff\xd8\xff", _jpeg),
        (rb"GIF8[79]a", _gif),
        (rb"RIFF....WEBP", _webp),
        (rb"BM", _bmp),
        (rb"II\*\0|MM\0\*", _tiff),
        (rb"....ftypavi[fs]", _avif),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _jpeg2000),
        (rb"P[1-6]\s", _pnm),
    )
)


def _orientation(exif: bytes) -> int:
    try:
        orientation = _tiff_tags(exif).get(274, 1)
    except (struct.error, ValueError):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Whole numbers of the first directory; EXIF is laid out as a TIFF file is."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no byte order")
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    tags = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if kind in (3, 4):  # 16 and 32 bits
            (tags[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 8)
    return tags
