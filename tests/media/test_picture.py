"""Any common picture becomes uint8 RGB; anything else becomes an error that says what to do."""

import struct
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.errors import LimitError, OutputError, PictureError
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media import fit_picture, read_picture, write_picture

QUARTERS = np.zeros((40, 60, 3), np.uint8)
QUARTERS[:20, :30], QUARTERS[20:, :30], QUARTERS[:20, 30:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(picture, suffix=".png"):
    return cv2.imencode(suffix, picture)[1].tobytes()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def exif(orientation):
    return b"II*\0" + struct.pack("<IHHHIIxxxx", 8, 1, 0x112, 3, 1, orientation)


def oriented_jpeg(picture, orientation):
    body = b"Exif\0\0" + exif(orientation)
    jpeg = encoded(picture[..., ::-1], ".jpg")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def oriented_png(picture, orientation):
    png = encoded(picture[..., ::-1])
    return png[:33] + chunk(b"eXIf", exif(orientation)) + png[33:]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_formats_give_the_same_pixels(suffix):
    assert np.array_equal(read_picture(encoded(QUARTERS[..., ::-1], suffix)), QUARTERS)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".gif", ".jp2", ".ppm"])
def test_other_formats_are_read_too(suffix):
    picture = read_picture(encoded(QUARTERS[..., ::-1], suffix))
    assert picture.shape == QUARTERS.shape
    assert picture.dtype == np.uint8
    assert abs(int(picture[5, 5, 0]) - 255) < 12


@pytest.mark.parametrize("make", [oriented_jpeg, oriented_png])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, QUARTERS),
        (2, QUARTERS[:, ::-1]),
        (3, QUARTERS[::-1, ::-1]),
        (4, QUARTERS[::-1]),
        (5, QUARTERS.transpose(1, 0, 2)),
        (6, np.rot90(QUARTERS, -1)),
        (7, QUARTERS[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(QUARTERS, 1)),
    ],
)
def test_exif_orientation_is_applied(make, orientation, upright):
    picture = read_picture(make(QUARTERS, orientation))
    assert picture.shape == upright.shape
    assert np.abs(picture.astype(int) - upright).mean() < 5


def test_transparent_parts_lie_over_white():
    bgra = np.zeros((2, 3, 4), np.uint8)
    bgra[0, :, 2], bgra[0, :, 3] = 200, (0, 128, 255)
    red = read_picture(encoded(bgra))
    assert red[0].tolist() == [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    assert (red[1] == 255).all()


def test_grey_and_16_bit_become_8_bit_rgb():
    grey = np.array([[0, 128, 255]], np.uint8)
    deep = np.array([[[0, 0x8080, 0xFFFF]]], np.uint16)
    assert read_picture(encoded(grey)).tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    assert read_picture(encoded(deep)).tolist() == [[[255, 128, 0]]]


def test_an_array_is_checked_and_taken_as_it_is():
    assert np.array_equal(read_picture(QUARTERS), QUARTERS)
    assert np.array_equal(read_picture(QUARTERS[:, ::2]), QUARTERS[:, ::2])
    for wrong in (QUARTERS.astype(np.float32), QUARTERS[..., 0], np.zeros((4, 4, 4), np.uint8), QUARTERS[:0]):
        with pytest.raises(PictureError, match="array of"):
            read_picture(wrong)


@pytest.mark.parametrize(
    "header",
    [
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b""),
        b"\xff\xd8\xff\xc0" + struct.pack(">HBHH", 11, 8, 60_000, 60_000) + b"\1\0\0\0\xff\xda\0\2\xff\xd9",
        b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 90_000, -90_000, 1, 24) + bytes(24),
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"," + bytes(8) + b"\0\2\0;",
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\xff\xff\xff\x00" + bytes(8),
        b"II*\0\x08\0\0\0\x03\0"
        + struct.pack("<HHIIHHIIHHII", 256, 4, 1, 10**5, 257, 4, 1, 10**5, 273, 4, 1, 8)
        + bytes(4),
        b"P6 100000 100000 255\n",
    ],
    ids=["png", "jpeg", "bmp", "gif", "webp", "tiff", "ppm"],
)
def test_a_bomb_is_refused_by_its_header(header):
    with pytest.raises(LimitError, match="pixels of the picture") as caught:
        read_picture(header)
    assert caught.value.field == "image"


def test_limits_count_bytes_and_pixels():
    with pytest.raises(LimitError, match="bytes of the picture"):
        read_picture(encoded(QUARTERS), Limits(picture_bytes=50))
    with pytest.raises(LimitError, match="2,400"):
        read_picture(QUARTERS, Limits(picture_pixels=2399))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.png", None, "does not exist"),
        ("empty.png", b"", "empty"),
        ("text.jpg", b"This is not a picture.", "not a picture"),
        ("cut.jpg", encoded(QUARTERS, ".jpg")[:-40], "cut off"),
        ("cut.png", encoded(QUARTERS)[:-20], "cut off"),
        ("cut.webp", encoded(QUARTERS, ".webp")[:-20], "cut off"),
        ("cut.tiff", encoded(QUARTERS, ".tiff")[:120], "cut|damaged|not a picture"),
    ],
)
def test_what_is_no_picture_says_so(tmp_path, capfd, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PictureError, match=says) as caught:
        read_picture(path)
    assert name in caught.value.message
    assert caught.value.remedy
    assert caught.value.field == "image"
    assert capfd.readouterr().err == ""


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(PictureError, match="directory"):
        read_picture(tmp_path)


SIGNATURES = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF89a", b"RIFF0000WEBP", b"II*\0", b"P6 "]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=200))
def test_random_bytes_are_an_error_of_ours_or_a_picture(signature, tail):
    with suppress(PictureError, LimitError):
        assert read_picture(signature + tail).ndim == 3


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif"]), st.data())
def test_damaged_pictures_are_an_error_of_ours_or_a_picture(suffix, data):
    damaged = bytearray(encoded(QUARTERS, suffix))
    for _ in range(3):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PictureError, LimitError):
        assert read_picture(bytes(damaged)).dtype == np.uint8


SIDE = st.integers(1, 200)


@settings(max_examples=150, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE)
def test_fit_gives_any_size_from_any_size(rows, columns, height, width):
    fitted = fit_picture(np.full((rows, columns, 3), 77, np.uint8), width, height)
    assert fitted.shape == (height, width, 3)
    assert fitted.dtype == np.uint8
    assert (fitted == 77).all()


def test_fit_leaves_a_fitting_picture_alone():
    assert fit_picture(QUARTERS, 60, 40) is QUARTERS


def test_fit_keeps_the_centre_and_the_shape():
    picture = np.zeros((101, 401, 3), np.uint8)
    picture[30:71, 180:221] = 255  # a square in the middle
    fitted = fit_picture(picture, 101, 101)
    assert np.array_equal(fitted, fitted[:, ::-1])
    assert np.array_equal(fitted, picture[:, 150:251])
    halved = fit_picture(picture, 50, 50)
    across, down = (halved[25, :, 0] > 127).sum(), (halved[:, 25, 0] > 127).sum()
    assert abs(across - down) <= 1  # still a square


def test_fit_does_not_blow_up_a_thin_strip():
    strip = np.zeros((60_000, 1, 3), np.uint8)  # plain covering would make 2048 x 122,880,000 of it
    assert fit_picture(strip, 2048, 2048).shape == (2048, 2048, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_written_pictures_come_back(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    write_picture(path, QUARTERS)
    assert np.abs(read_picture(path).astype(int) - QUARTERS).mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_writing_says_what_is_wrong(tmp_path):
    with pytest.raises(OutputError, match="suffix") as caught:
        write_picture(tmp_path / "picture.xyz", QUARTERS)
    assert ".png" in caught.value.remedy
    with pytest.raises(OutputError, match="cannot be written"):
        write_picture(tmp_path / "nowhere" / "picture.png", QUARTERS)
