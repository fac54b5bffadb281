"""Pictures in Display P3, Adobe RGB and CMYK come to sRGB as LittleCMS and as arithmetic bring them there."""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from mimicmotion_trt.media.picture import read_picture

SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""Linear RGB to XYZ under D50, as in all of these profiles."""
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
D50 = np.array([0.9642, 1.0, 0.8249])


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2."""
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(*D50), **tags}
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value.ljust(-(-len(value) // 4) * 4, b"\0")
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(matrix: np.ndarray, curve: bytes) -> bytes:
    columns = {b"rgb"[k : k + 1] + b"XYZ": b"XYZ " + bytes(4) + fixed(*matrix[:, k]) for k in range(3)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return profile(b"mntr", b"RGB ", b"XYZ ", {**columns, **curves})


SRGB_CURVE = (
    b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)
ADOBE_CURVE = b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0233)  # 2.19921875


def to_light(values: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_light(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def to_lab(light: np.ndarray) -> np.ndarray:
    """Linear sRGB [...,3] to Lab under D50."""
    ratio = light @ SRGB.T / D50
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def cmyk_profile() -> bytes:
    """A printer whose corners are those of plain CMYK in sRGB, and straight in Lab between them (lut16)."""
    inks = np.array(list(itertools.product((0.0, 1.0), repeat=4)))
    lab = to_lab(to_light((1 - inks[:, :3]) * (1 - inks[:, 3:])))
    grid = np.stack([lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], axis=1)
    straight = struct.pack(">2H", 0, 65535)
    table = b"mft2" + bytes(4) + struct.pack(">4B", 4, 3, 2, 0) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += struct.pack(">HH", 2, 2) + 4 * straight + grid.round().astype(">u2").tobytes() + 3 * straight
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def saved(picture: Image.Image, form: str, icc: bytes) -> bytes:
    file = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    picture.save(file, form, icc_profile=icc, **options)
    return file.getvalue()


def colours(channels: int) -> np.ndarray:
    """Every corner, and 4,000 colours between, in a picture [80,51,channels] of flat blocks."""
    random = np.random.default_rng(3)
    corners = np.array(list(itertools.product((0, 255), repeat=channels)), np.uint8)
    found = np.concatenate([corners, random.integers(0, 256, (4080 - len(corners), channels), np.uint8)])
    return found.reshape(80, 51, channels)


def by_littlecms(picture: Image.Image, icc: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return np.asarray(converted).astype(int)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    ("matrix", "curve"), [(P3, SRGB_CURVE), (ADOBE, ADOBE_CURVE)], ids=["Display P3", "Adobe RGB"]
)
def test_wide_rgb_comes_to_srgb(form: str, matrix: np.ndarray, curve: bytes) -> None:
    icc, values = rgb_profile(matrix, curve), colours(3)
    file = saved(Image.fromarray(values), form, icc)
    with Image.open(io.BytesIO(file)) as stored:  # lossy formats store other values
        values = np.asarray(stored.convert("RGB"))
    found = read_picture(file).astype(int)
    assert np.abs(found - by_littlecms(Image.fromarray(values), icc)).max() <= 1
    share = values / 255
    light = to_light(share) if curve is SRGB_CURVE else share**2.19921875
    exact = from_light(light @ matrix.T @ np.linalg.inv(SRGB).T) * 255
    off = np.abs(found - exact)
    assert off.mean() < 0.5
    assert off.max() < 3, "LittleCMS rounds on its way"


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_comes_to_srgb(form: str) -> None:
    """Also where the file has its inks inverted, as JPEGs do."""
    icc, values = cmyk_profile(), colours(4)
    file = saved(Image.fromarray(values, "CMYK"), form, icc)
    with Image.open(io.BytesIO(file)) as stored:
        values = np.asarray(stored)
    found = read_picture(file).astype(int)
    assert np.abs(found - by_littlecms(Image.fromarray(values, "CMYK"), icc)).max() <= 1


def test_the_corners_of_cmyk_are_its_inks() -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    file = saved(Image.fromarray(inks, "CMYK"), "TIFF", cmyk_profile())
    expected = [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]
    assert np.abs(read_picture(file)[0].astype(int) - expected).max() <= 2
