"""A video in pieces: each portion of frames gives data soon, and the pieces are one ordinary MP4."""

import io

import av
import numpy as np
import pytest

from mimicmotion_trt.errors import OutputError
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.media.writer import FragmentedMp4


@pytest.fixture
def portions(frame):
    frames = np.stack([frame(index, 64, 64) for index in range(30)])
    return [frames[start : start + 8] for start in range(0, 30, 8)]


def pieces(portions, **kwargs):
    video = FragmentedMp4(15, (64, 64), **kwargs)
    return [video.write(portion) for portion in portions] + [video.close()]


def test_the_pieces_are_one_video(portions, index_of):
    data = b"".join(pieces(portions))
    assert data.index(b"moov") < data.index(b"moof")
    video = VideoReader(data)
    assert (video.size, video.fps) == ((64, 64), pytest.approx(15))
    read = list(video.frames())
    assert [round(index_of(picture)) for _, picture in read] == list(range(30))
    with av.open(io.BytesIO(data)) as video:
        frames = list(video.decode(video=0))
    assert [frame.time for frame in frames] == pytest.approx([k / 15 for k in range(30)])
    assert [k for k, frame in enumerate(frames) if frame.key_frame] == [0, 7, 15, 23, 29]


@pytest.mark.parametrize("sound", ["", "aac"])
def test_every_portion_gives_data_soon(portions, clip, sound):
    made = pieces(portions, audio=clip(90, sound=sound))
    sofar = b""
    for index, piece in enumerate(made[:-1]):
        sofar += piece
        with av.open(io.BytesIO(sofar)) as video:  # what a viewer has by now
            shown = len(list(video.decode(video=0)))
        given = sum(map(len, portions[: index + 1]))
        assert given - 3 <= shown <= given
    assert made[-1]


@pytest.mark.parametrize(
    ("container", "sound"), [("mp4", "aac"), ("matroska", "pcm_s16le"), ("mpegts", "aac")]
)
def test_sound_lasts_as_long_as_the_frames(portions, clip, container, sound):
    data = b"".join(pieces(portions, audio=clip(90, container=container, sound=sound)))
    with av.open(io.BytesIO(data)) as video:
        heard = list(video.decode(audio=0))
    assert heard[-1].time == pytest.approx(2.0, abs=0.06)
    assert len(list(VideoReader(data).frames())) == 30


def test_sound_that_ends_early_does_not_hold_back_frames(portions, clip):
    made = pieces(portions, audio=clip(6, sound="aac"))  # 0.2 s
    assert all(len(piece) > 100 for piece in made)
    assert len(list(VideoReader(b"".join(made)).frames())) == 30


def test_the_same_portions_give_the_same_bytes(portions, clip):
    sound = clip(60, sound="aac")
    assert pieces(portions, audio=sound) == pieces(portions, audio=sound)


def test_frames_must_fit(portions):
    video = FragmentedMp4(15, (64, 64))
    with pytest.raises(OutputError, match="a frame is an array"):
        video.write(portions[0][:, :32])
    video.abort()
    assert video.close() == b""


def test_closing_at_once_is_harmless():
    FragmentedMp4(15, (64, 64)).close()
    FragmentedMp4(15, (64, 64)).abort()
