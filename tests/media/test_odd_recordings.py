"""Recordings that players take and programs stumble over, each with its right value."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from mimicmotion_trt.errors import MotionError
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.media.writer import FragmentedMp4, VideoWriter

CASES = Path(__file__).parents[1] / "data" / "inputs"


def carry_over(source, output, stride=2):
    """What an animation writes: every second frame, with the sound."""
    video = VideoReader(source)
    audio = source if video.has_audio else None
    with VideoWriter(output, fps=video.fps / stride, size=video.size, audio=audio) as writer:
        for _, frame in video.frames(stride):
            writer.write(frame)
    return writer


def heard(video):
    """The sound in samples of 48 kHz from the first frame on."""
    with av.open(video if isinstance(video, str) else io.BytesIO(video)) as container:
        start = next(container.decode(video=0)).time
    with av.open(video if isinstance(video, str) else io.BytesIO(video)) as container:
        exact = {"async": "1", "first_pts": "0", "min_hard_comp": "0.0005"}
        resampler = av.AudioResampler("dblp", "mono", 48_000, options=exact)
        pieces = [p for frame in container.decode(audio=0) for p in resampler.resample(frame)]
        pieces += resampler.resample(None)
    return np.concatenate([piece.to_ndarray()[0] for piece in pieces])[round(start * 48_000) :]


def onset(samples):
    """Seconds until the first beep."""
    power = np.convolve(samples**2, np.ones(48) / 48, "same")
    return np.argmax(power > 0.3 * power.max()) / 48_000


@pytest.mark.parametrize(
    ("name", "rate", "frames"),
    [
        ("mono_stereo.ts", 30, 24),
        ("joined.ts", 30, 24),
        ("zero_size.mp4", 30, 24),
        ("preview_first.mkv", 30, 24),
        ("pause.mp4", 30, 99),
        ("no_key_first.mkv", 30, 12),
    ],
)
def test_frames_as_any_player_shows_them(name, rate, frames):
    video = VideoReader(CASES / name)
    assert (video.fps, video.size) == (pytest.approx(rate), (256, 384))
    assert len(list(video.frames(stride=2))) == frames


def test_sound_of_both_parts_where_its_channels_change(tmp_path):
    writer = carry_over(CASES / "mono_stereo.ts", tmp_path / "out.mp4")
    assert (writer.frames, writer.note) == (24, "")
    sound = heard(str(tmp_path / "out.mp4"))
    assert len(sound) / 48_000 == pytest.approx(1.6, abs=0.03)
    assert all(np.abs(piece).max() > 0.05 for piece in np.array_split(sound, 16))


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_sound_is_in_step_where_the_first_frames_cannot_be_decoded(tmp_path, suffix):
    carry_over(CASES / "no_key_first.mkv", tmp_path / f"out{suffix}")
    assert onset(heard(str(tmp_path / f"out{suffix}"))) == pytest.approx(0.127, abs=0.002)


def beeping(clip, **options):
    """24 frames at 24 a second, a beep of 0.1 s after 0.5 s."""
    return clip(24, rate=24, beep=0.5, **options)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ""])
@pytest.mark.parametrize(
    ("container", "codec", "sound"),
    [
        ("mp4", "libx264", "aac"),
        ("matroska", "libx264", "pcm_s16le"),
        ("webm", "libvpx-vp9", "libopus"),
        ("mpegts", "libx264", "aac"),
        ("matroska", "libx264", "ac3"),
    ],
)
def test_sound_is_in_step(clip, tmp_path, container, codec, sound, suffix):
    """To 2 ms, in every container, for the fragmented MP4 too."""
    data = beeping(clip, container=container, codec=codec, sound=sound)
    if suffix:
        carry_over(data, tmp_path / f"out{suffix}")
        written = (tmp_path / f"out{suffix}").read_bytes()
    else:
        video = VideoReader(data)
        movie = FragmentedMp4(video.fps / 2, video.size, audio=data)
        written = movie.write(np.stack([frame for _, frame in video.frames(2)])) + movie.close()
    assert onset(heard(written)) == pytest.approx(0.5, abs=0.002)


def test_a_recorder_that_began_anew(clip, tmp_path):
    """Two recordings whose times both begin at 0 follow each other; so does their sound."""
    part = beeping(clip, container="mpegts", sound="aac")
    video = VideoReader(part + part)
    assert video.frame_count == 48
    assert len(list(video.frames())) == 48
    carry_over(part + part, tmp_path / "out.mp4", stride=1)
    sound = heard(str(tmp_path / "out.mp4"))
    assert onset(sound) == pytest.approx(0.5, abs=0.002)
    assert 1 + onset(sound[48_000:]) == pytest.approx(1.5, abs=0.002)


def beeps(samples):
    """Seconds at which beeps begin."""
    power = np.convolve(samples**2, np.ones(48) / 48, "same")
    loud = np.flatnonzero(power > 0.3 * power.max())
    return [at / 48_000 for before, at in zip([-48_000, *loud], loud, strict=False) if at - before > 4800]


@pytest.mark.parametrize(
    ("offsets", "sounds", "expected"),
    [
        (
            (10, 5, 1),
            ("aac", "aac", "aac"),
            (0.5, 1.5, 2.5),
        ),  # two breaks, the sound a little longer than the picture
        ((100, 3, 100), ("mp2", "mp2", "mp2"), (0.5, 1.5, 2.5)),
        ((1, 5, 1), ("ac3", "ac3", "ac3"), (0.5, 4.5, 5.5)),  # seconds are lost, then a break
        ((1, 20, 3), ("aac", "mp2", "ac3"), (0.5, 1.5, 2.5)),
        ((95443, 95450), ("mp2", "aac"), (0.5, 7.5)),  # the clock of transport streams begins anew at 95443.7
    ],
)
def test_recordings_in_a_row_with_their_sound(clip, tmp_path, offsets, sounds, expected):
    """Each of a second with a beep after half of it; times, and codecs, as several recorders leave them."""
    parts = [
        clip(24, rate=24, beep=0.5, container="mpegts", sound=sound, begin=offset)
        for offset, sound in zip(offsets, sounds, strict=True)
    ]
    writer = carry_over(b"".join(parts), tmp_path / "out.mp4", stride=1)
    assert writer.note == ""
    assert beeps(heard(str(tmp_path / "out.mp4"))) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts", "flv"])
@pytest.mark.parametrize("silence", [0.4, 2.0, 3.1])
def test_sound_that_pauses_goes_on_in_step(clip, tmp_path, container, silence):
    data = clip(120, rate=24, beep=4.5, container=container, sound="aac", silent=(1.0, 1.0 + silence))
    carry_over(data, tmp_path / "out.mp4", stride=1)
    assert onset(heard(str(tmp_path / "out.mp4"))) == pytest.approx(4.5, abs=0.002)


def test_sound_that_ends_early_or_starts_late(clip, tmp_path):
    for name, beginning in (("early", 0.0), ("late", 0.75)):
        data = clip(48, rate=24, sound="aac", container="matroska", heard=(beginning, beginning + 0.5))
        writer = carry_over(data, tmp_path / f"{name}.mp4")
        assert (writer.frames, writer.note) == (24, "")
        sound = heard(str(tmp_path / f"{name}.mp4"))
        loud = np.flatnonzero(np.abs(sound) > 0.1) / 48_000
        assert loud[0] == pytest.approx(beginning, abs=0.003)
        assert loud[-1] == pytest.approx(beginning + 0.5, abs=0.03)


def test_sound_that_cannot_be_decoded_is_left_out_and_named(clip, tmp_path):
    data = bytearray(clip(24, rate=24, sound="aac", container="mp4"))
    with av.open(io.BytesIO(bytes(data))) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for place, size in places:
        data[place : place + size] = b"\xff" * size
    writer = carry_over(bytes(data), tmp_path / "out.mp4")
    assert writer.frames == 12
    assert "sound was left out: it cannot be decoded" in writer.note
    assert not VideoReader(tmp_path / "out.mp4").has_audio


def test_packets_of_sound_that_are_damaged_are_silent(clip, tmp_path):
    data = bytearray(clip(48, rate=24, sound="aac", container="mp4"))
    with av.open(io.BytesIO(bytes(data))) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for place, size in places[30:40]:
        data[place : place + size] = b"\xff" * size
    writer = carry_over(bytes(data), tmp_path / "out.mp4")
    assert "10 pieces of the motion's sound" in writer.note
    assert len(heard(str(tmp_path / "out.mp4"))) / 48_000 == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("container", ["matroska", "avi", "flv"])
def test_a_truncated_file_is_named_so_with_a_remedy_in_frames_of_the_output(clip, container):
    codec = "mpeg4" if container == "avi" else "libx264"
    data = clip(48, rate=24, container=container, codec=codec, noisy=True)
    video = VideoReader(data[: len(data) * 2 // 3])
    taken = []
    with pytest.raises(MotionError, match=r"truncated after frame \d+ of (24|25|16)") as caught:
        taken.extend(video.frames(stride=2))
    assert f"at most {len(taken)} frames" in caught.value.remedy
    assert len(list(video.frames(stride=2, limit=len(taken)))) == len(taken)
