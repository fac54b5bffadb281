"""Frames before those that are asked for are not decoded where a key frame allows it, and nothing else changes."""

from __future__ import annotations

import io
import random
from fractions import Fraction

import av
import numpy as np
import pytest

from mimicmotion_trt import MotionError
from mimicmotion_trt.media.reader import VideoReader

SIZE, FRAMES = (64, 48), 60
X264 = ("open-gop=1:bframes=3", "bframes=0", "intra-refresh=1:bframes=0", "bframes=3:b-pyramid=strict:ref=4")
MADE = [
    *[("mp4", "libx264", f"x264-params=scenecut=0:{more}") for more in X264],
    ("mp4", "libx264", "movflags=frag_keyframe+empty_moov"),
    ("mov", "libx265", "x265-params=log-level=none"),
    ("mp4", "libx265", "x265-params=open-gop=0:log-level=none"),
    ("matroska", "libx264", "bf=2"),
    ("matroska", "libsvtav1", "preset=12"),
    ("webm", "libvpx-vp9", "auto-alt-ref=1"),
    ("webm", "libvpx", "deadline=realtime"),
    ("mov", "mjpeg", ""),
    ("avi", "mpeg4", "bf=2"),
    ("mpegts", "libx264", "bf=2"),
]
TIMES = ("steady", "varying", "paused", "late", "twice")


def recording(form: str, codec: str, option: str, every: int, times: str, seed: int = 0) -> bytes:
    """Frames of moving noise, a key frame at least every `every`; `times`: how frames follow each other."""
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    still = rng.integers(0, 255, (SIZE[1], 4 * SIZE[0], 3), np.uint8)
    file, at = io.BytesIO(), 4.0 if times == "late" else 0.0
    name, _, value = option.partition("=")
    options = {"movflags": value} if name == "movflags" else {}
    with av.open(file, "w", format=form, options=options) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = every
        if option and not options:
            stream.options = {name: value}
        if times != "steady":
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(FRAMES):
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(still[:, index * 2 : index * 2 + SIZE[0]])
            )
            picture.pts, picture.time_base = round(at * 1000), Fraction(1, 1000)
            if times == "steady":
                picture.pts, picture.time_base = index, Fraction(1, 25)
            output.mux(stream.encode(picture))
            at += chance.choice((0.02, 0.04, 0.04, 0.04, 0.09)) if times == "varying" else 0.04
            at += 1.5 if times == "paused" and index == FRAMES // 2 else 0
        output.mux(stream.encode(None))
    return file.getvalue() * (2 if times == "twice" else 1)


@pytest.mark.parametrize(("form", "codec", "option"), MADE)
def test_frames_from_anywhere_are_those_of_the_whole(form: str, codec: str, option: str):
    chance = random.Random(f"{form} {codec} {option}")
    for every, times in ((5, "steady"), (12, chance.choice(TIMES[1:]))):
        if form == "avi" or codec == "mjpeg":
            times = "steady"
        reader = VideoReader(recording(form, codec, option, every, times))
        whole = list(reader.frames())
        for begin in chance.sample(range(len(whole)), 8):
            step = chance.choice((1, 1, 3))
            part = list(reader.pick(range(begin, len(whole), step), 6))
            expected = whole[begin::step][:6]
            assert [at for at, _ in part] == [at for at, _ in expected], (every, times, begin)
            for index, ((_, one), (_, other)) in enumerate(zip(part, expected, strict=True)):
                assert np.array_equal(one, other), (every, times, begin, index)


def test_damage_before_a_part_is_no_matter():
    data = bytearray(recording("mp4", "libx264", "x264-params=scenecut=0", 10, "steady"))
    with av.open(io.BytesIO(data)) as container:
        second = [packet for packet in container.demux(video=0) if packet.size][12]
        at, size = second.pos or 0, second.size
    whole = list(VideoReader(bytes(data)).frames())
    data[at + 4 : at + size] = bytes(size - 4)
    reader = VideoReader(bytes(data))
    with pytest.raises(MotionError, match="damaged"):
        list(reader.frames())
    part = [picture for _, picture in reader.pick(range(20, FRAMES))]
    assert all(np.array_equal(one, other) for one, (_, other) in zip(part, whole[20:], strict=True))
