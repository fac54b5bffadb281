"""Any common picture becomes uint8 RGB; anything else becomes an error that says what to do."""

import io
import struct
import sys
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mimicmotion_trt.errors import LimitError, OutputError, PictureError
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media.picture import fit_picture, read_picture, write_picture

QUARTERS = np.zeros((40, 60, 3), np.uint8)
QUARTERS[:20, :30], QUARTERS[20:, :30], QUARTERS[:20, 30:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(picture, suffix=".png"):
    return cv2.imencode(suffix, picture)[1].tobytes()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


END = chunk(b"IEND", b"")


def png(width, depth, kind, row, transparent, more=b""):
    """A PNG of one row with a tRNS chunk."""
    header = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), more, chunk(b"tRNS", transparent)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IDAT", zlib.compress(b"\0" + row))]) + END


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def linear_profile(space):
    """An ICC profile of sRGB's primaries, or of grey, whose values are proportional to light."""

    def xyz(*values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {b"wtpt": xyz(0.9642, 1, 0.8249)}
    curve = b"curv" + bytes(8)
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {b"rXYZ": xyz(0.4361, 0.2225, 0.0139), b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
        tags |= {b"bXYZ": xyz(0.1431, 0.0606, 0.7139), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_formats_give_the_same_pixels(suffix):
    assert np.array_equal(read_picture(encoded(QUARTERS[..., ::-1], suffix)), QUARTERS)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".gif", ".jp2", ".ppm"])
def test_other_formats_are_read_too(suffix):
    picture = read_picture(encoded(QUARTERS[..., ::-1], suffix))
    assert picture.shape == QUARTERS.shape
    assert picture.dtype == np.uint8
    assert abs(int(picture[5, 5, 0]) - 255) < 12


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
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
def test_a_picture_is_turned_upright(form, orientation, upright):
    """By EXIF, and in AVIF by irot and imir, as which Pillow writes it."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = orientation
    picture = read_picture(saved(Image.fromarray(QUARTERS), form, exif=turned))
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


def test_grey_of_any_depth_may_have_a_transparent_value():
    rows = {1: b"\x40", 2: b"\x10", 4: b"\x0f", 8: b"\x00\xff", 16: b"\x00\x00\xff\xff"}
    for depth, row in rows.items():  # black, then the highest value (or 1 of 2 bits)
        for key, expected in ((0, [255, 85 if depth == 2 else 255]), (1, [0, 255])):
            highest = 1 if depth == 2 else 2**depth - 1
            made = png(2, depth, 0, row, struct.pack(">H", key * highest))
            assert read_picture(made)[0, :, 0].tolist() == expected


def test_a_palette_may_be_transparent_in_part():
    colours = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
    picture = read_picture(png(2, 8, 3, b"\0\1", bytes([128]), colours))
    assert picture[0].tolist() == [[132, 137, 142], [200, 100, 50]]


def test_cmyk_becomes_rgb():
    picture = Image.fromarray(QUARTERS).convert("CMYK")
    assert np.abs(read_picture(saved(picture, "JPEG", quality=95)).astype(int) - QUARTERS).mean() < 5


PROFILED = [(form, mode) for form in ("PNG", "TIFF") for mode in ("L", "LA", "P", "RGB", "RGBA")]
PROFILED += [
    ("JPEG", "L"),
    ("JPEG", "RGB"),
    ("WEBP", "RGB"),
    ("WEBP", "RGBA"),
    ("AVIF", "L"),
    ("AVIF", "RGBA"),
]


@pytest.mark.parametrize(("form", "mode"), PROFILED)
def test_a_colour_profile_is_brought_to_srgb(form, mode):
    """128 of 255 in linear light is 188 in sRGB."""
    picture = Image.new("L", (16, 16), 128).convert(mode)
    space = b"GRAY" if mode == "L" else b"RGB "
    linear = saved(picture, form, icc_profile=linear_profile(space))
    assert np.abs(read_picture(linear)[4:12, 4:12].astype(int) - 188).max() <= 1


def test_a_profile_that_does_not_fit_is_left_aside():
    picture = Image.new("RGB", (2, 2), (9, 8, 7))
    for profile in (b"rubbish", linear_profile(b"GRAY")):
        assert read_picture(saved(picture, "PNG", icc_profile=profile))[0, 0].tolist() == [9, 8, 7]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(form):
    first = Image.fromarray(QUARTERS)
    others = [Image.new("RGB", first.size, grey) for grey in ("black", "white")]
    made = saved(first, form, save_all=True, append_images=others, duration=100)
    assert np.abs(read_picture(made).astype(int) - QUARTERS).mean() < 6


def test_deep_grey_of_other_formats():
    assert read_picture(b"P5 2 1 65535\n" + struct.pack(">2H", 0x8080, 0xFFFF))[0, :, 0].tolist() == [
        128,
        255,
    ]
    light = Image.fromarray(np.array([[-1, 0.5, 2, np.nan]], np.float32))
    assert read_picture(saved(light, "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0]


def test_a_tiff_of_floating_colours_is_told_from_a_damaged_one():
    made = cv2.imencode(".tiff", np.full((4, 4, 3), 0.5, np.float32))[1].tobytes()
    with pytest.raises(PictureError, match="a kind that is not read"):
        read_picture(made)


def test_a_transparent_colour_of_16_bits():
    row = struct.pack(">6H", 0xFFFF, 0, 0, 0, 0, 0xFFFF)
    picture = read_picture(png(2, 16, 2, row, struct.pack(">3H", 0xFFFF, 0, 0)))
    assert picture[0].tolist() == [[255, 255, 255], [0, 0, 255]]
    near = struct.pack(">6H", *[0x8000] * 3, *[0x8001] * 3)
    picture = read_picture(png(2, 16, 2, near, struct.pack(">3H", *[0x8000] * 3)))
    assert picture[0].tolist() == [[255] * 3, [128] * 3]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_2000_of_8_and_16_bits(kind, channels):
    for share in (1.0, 0.5, 0.0):
        pixels = np.full((32, 32, channels), round(np.iinfo(kind).max * share), kind)
        picture = read_picture(cv2.imencode(".jp2", pixels)[1].tobytes())
        assert np.abs(picture - 255 * share).max() <= 1


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
        b"BM" + struct.pack("<3I", 54, 0, 54) + struct.pack("<IiiHH", 40, 90_000, -90_000, 1, 24) + bytes(24),
        b"GIF89a"
        + struct.pack("<HHxxx", 65_535, 65_535)
        + b","
        + struct.pack("<4HxBx", 0, 0, 65_535, 65_535, 8)
        + b";",
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


@settings(max_examples=150)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=200))
def test_random_bytes_are_an_error_of_ours_or_a_picture(signature, tail):
    with suppress(PictureError, LimitError):
        assert read_picture(signature + tail).ndim == 3


@settings(max_examples=80)
@given(st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif"]), st.data())
def test_damaged_pictures_are_an_error_of_ours_or_a_picture(suffix, data):
    damaged = bytearray(encoded(QUARTERS, suffix))
    for _ in range(3):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PictureError, LimitError):
        assert read_picture(bytes(damaged)).dtype == np.uint8


SIDE = st.integers(1, 200)


@settings(max_examples=150)
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


def test_heic_as_phones_write_it_with_the_extra_heif():
    pillow_heif = pytest.importorskip("pillow_heif")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    heif = pillow_heif.from_pillow(Image.fromarray(QUARTERS))
    heif.info["exif"] = turned.tobytes()
    heif.save(file, quality=95)
    assert np.abs(read_picture(file.getvalue()).astype(int) - np.rot90(QUARTERS, -1)).mean() < 6


def test_heic_is_named_where_it_cannot_be_read(monkeypatch):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PictureError, match="HEIC") as caught:
        read_picture(b"\0\0\0\x18ftypheic" + bytes(40))
    assert "heif" in caught.value.remedy


def test_transparent_parts_lie_over_a_chosen_colour():
    made = saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG")
    assert read_picture(made, over="black").max() == 0
    assert read_picture(made, over="#102030")[0, 0].tolist() == [16, 32, 48]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16"])
def test_a_picture_of_pillow_is_read_as_its_file_is_and_stays_as_it_was(mode):
    image = Image.fromarray(QUARTERS)
    image = (
        Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(40, 100))
        if mode == "I;16"
        else image.convert(mode)
    )
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = saved(image, "TIFF" if mode == "CMYK" else "PNG", exif=exif)
    opened = Image.open(io.BytesIO(data))
    size = opened.size
    np.testing.assert_array_equal(read_picture(opened), read_picture(data))
    assert opened.size == size
    np.testing.assert_array_equal(read_picture(opened), read_picture(data))  # loaded now
