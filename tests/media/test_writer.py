"""Finished videos appear whole or not at all, with exact times, the driving video's sound and equal bytes."""

import io
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mimicmotion_trt.errors import OutputError
from mimicmotion_trt.media.movie import exact_rate
from mimicmotion_trt.media.picture import read_picture
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.media.writer import VideoWriter

VIDEOS = [".mp4", ".mov", ".mkv", ".webm", ".gif"]


@pytest.fixture
def pictures():
    """A block that moves over a gradient."""
    made = []
    for index in range(24):
        picture = np.empty((64, 128, 3), np.uint8)
        picture[...] = np.linspace(30, 220, 128, dtype=np.uint8)[None, :, None]
        picture[20:40, index * 4 : index * 4 + 20] = (220, 40, 60)
        made.append(picture)
    return made


def write(path, pictures, *, fps=12.5, **kwargs):
    height, width = pictures[0].shape[:2]
    with VideoWriter(path, fps=fps, size=(width, height), **kwargs) as video:
        for picture in pictures:
            video.write(picture)
    return path


@pytest.mark.parametrize("suffix", VIDEOS)
def test_frames_come_back(tmp_path, pictures, suffix):
    path = write(tmp_path / f"dance{suffix}", pictures)
    video = VideoReader(path)
    assert video.size == (128, 64)
    assert video.fps == pytest.approx(12.5)
    read = list(video.frames())
    assert len(read) == len(pictures)
    for (_, picture), sent in zip(read, pictures, strict=True):
        assert np.abs(picture.astype(int) - sent).mean() < 3
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing else is left


@pytest.mark.parametrize("suffix", VIDEOS)
def test_the_same_frames_give_the_same_bytes(tmp_path, pictures, clip, suffix):
    sound = clip(30, sound="aac")
    first = write(tmp_path / f"a{suffix}", pictures, audio=sound).read_bytes()
    assert write(tmp_path / f"b{suffix}", pictures, audio=sound).read_bytes() == first


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_however_often_grainy_waves_are_written(tmp_path, suffix):
    """x264's macroblock tree gave other bytes for these frames nearly every time."""
    y, x, t, channel = np.ogrid[:240, :320, :10, :3]
    waves = 128 + 100 * np.sin(x / 7 + t / 3 + channel) * np.cos(y / 11 - t / 5)
    waves += np.random.default_rng(0).normal(0, 12, waves.shape)
    pictures = list(waves.clip(0, 255).astype(np.uint8).transpose(2, 0, 1, 3))
    assert len({write(tmp_path / f"{k}{suffix}", pictures).read_bytes() for k in range(3)}) == 1


def test_mp4_plays_anywhere(tmp_path, pictures):
    data = write(tmp_path / "dance.mp4", pictures).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # can start before it is all there
    with av.open(io.BytesIO(data)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 1  # BT.709, and said so
        assert stream.duration * stream.time_base == Fraction(24, 1) / Fraction(25, 2)
        assert "creation_time" not in video.metadata


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (29.97, Fraction(30000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (15, Fraction(15)),
        (24, Fraction(24)),
        (10 / 3, Fraction(10, 3)),
    ],
)
def test_rates_are_exact(tmp_path, pictures, fps, exact):
    assert exact_rate(fps) == exact
    path = write(tmp_path / "dance.mp4", pictures, fps=fps)
    with av.open(str(path)) as video:
        assert video.streams.video[0].average_rate == exact
        times = [frame.pts * frame.time_base for frame in video.decode(video=0)]
    assert times == pytest.approx([float(k / exact) for k in range(24)], abs=1e-4)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 5000])
def test_senseless_rates_are_refused(tmp_path, fps):
    with pytest.raises(OutputError, match="frame rate"):
        VideoWriter(tmp_path / "a.mp4", fps=fps, size=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_a_gif_keeps_its_speed(tmp_path, pictures):
    """A GIF counts hundredths of a second, so 15 frames a second are 7, 6, 7, 7, 6, ... of them."""
    with av.open(str(write(tmp_path / "dance.gif", pictures, fps=15))) as video:
        times = [float(frame.pts * frame.time_base) for frame in video.decode(video=0)]
    assert times == pytest.approx([k / 15 for k in range(24)], abs=0.006)
    video = VideoReader(write(tmp_path / "fast.gif", pictures, fps=100))
    assert len(list(video.frames())) == 12  # players do not show more than 50 a second


SOUNDS = [
    ("mp4", "aac", ".mp4", "aac"),
    ("mp4", "aac", ".mov", "aac"),
    ("mp4", "aac", ".mkv", "aac"),
    ("mp4", "aac", ".webm", "opus"),
    ("webm", "libopus", ".webm", "opus"),
    ("webm", "libopus", ".mkv", "opus"),
    ("webm", "libopus", ".mp4", "aac"),
    ("matroska", "pcm_s16le", ".mp4", "aac"),
    ("mpegts", "aac", ".mp4", "aac"),
    ("avi", "mp3", ".mp4", "mp3float"),
]


@pytest.mark.parametrize(("container", "sound", "suffix", "codec"), SOUNDS)
def test_sound_is_carried_over_and_cut(tmp_path, pictures, clip, container, sound, suffix, codec):
    encoder = "libmp3lame" if sound == "mp3" else sound
    video_codec = "libvpx-vp9" if container == "webm" else "libx264"
    driving = clip(90, container=container, codec=video_codec, sound=encoder)  # 3 s
    path = write(tmp_path / f"dance{suffix}", pictures, audio=driving)  # 1.92 s
    with av.open(str(path)) as video:
        stream = video.streams.audio[0]
        assert stream.codec_context.name == codec
        heard = list(video.decode(stream))
    wave = np.concatenate([frame.to_ndarray().astype(float).ravel() for frame in heard])
    last = heard[-1]
    assert heard[0].time < 0.06
    assert last.time + last.samples / last.sample_rate == pytest.approx(1.92, abs=0.06)
    spectrum = np.abs(np.fft.rfft(wave))
    assert np.argmax(spectrum) * last.sample_rate / len(wave) == pytest.approx(440, abs=3)


def test_sound_stays_in_step_with_a_late_first_frame(tmp_path, pictures, clip):
    """The reader's clock starts at the first frame, so the sound's does too."""
    data = clip(60, times=range(500, 2500, 33), container="matroska", sound="libopus")
    path = write(tmp_path / "dance.mkv", pictures, audio=data)
    with av.open(str(path)) as video:
        heard = list(video.decode(audio=0))
    assert abs(heard[0].time) < 0.03
    assert heard[-1].time == pytest.approx(1.5, abs=0.06)  # 2 s of sound, the first half second dropped


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_driving_video_without_sound_is_fine(tmp_path, pictures, clip, suffix):
    path = write(tmp_path / f"dance{suffix}", pictures, audio=clip(10))
    assert not VideoReader(path).has_audio


def test_damaged_sound_does_not_cost_the_video(tmp_path, pictures, clip):
    data = bytearray(clip(60, container="matroska", sound="pcm_s16le"))
    path = write(tmp_path / "dance.mp4", pictures, audio=bytes(data[: len(data) // 2]))
    assert len(list(VideoReader(path).frames())) == 24


def test_sound_that_is_missing_is_named(tmp_path, pictures):
    with VideoWriter(tmp_path / "a.mp4", fps=15, size=(128, 64), audio=tmp_path / "missing.mp4") as video:
        video.write(pictures[0])
    assert "missing.mp4 does not exist" in video.note
    assert not VideoReader(tmp_path / "a.mp4").has_audio


@pytest.mark.parametrize("output", ["frames/", "frames/%04d.png", "frames"])
def test_a_sequence_of_pictures(tmp_path, pictures, output):
    folder = tmp_path / "frames"
    if output != "frames/":
        folder.mkdir()
    for count in (24, 3):  # the second, shorter one replaces the first
        write(f"{tmp_path}/{output}", pictures[:count])
        names = sorted(p.name for p in folder.iterdir())
        digits = 4 if "%" in output else 5
        assert names == [f"{k:0{digits}d}.png" for k in range(1, count + 1)]
    assert np.array_equal(read_picture(folder / names[2]), pictures[2])
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]


@pytest.mark.parametrize("name", ["dance.mp4", "dance.gif", "frames/"])
def test_an_exception_leaves_nothing_behind(tmp_path, pictures, name):
    before = tmp_path / "dance.mp4"
    before.write_bytes(b"an earlier result")

    def interrupted():
        with VideoWriter(f"{tmp_path}/{name}", fps=15, size=(128, 64)) as video:
            video.write(pictures[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == [before]
    assert before.read_bytes() == b"an earlier result"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dance.xyz", "suffix"),
        ("dance", "suffix"),
        ("dance.png", "suffix"),
        ("nowhere/dance.mp4", "No such file"),
        ("nowhere/%04d.png", "does not exist"),
        ("folder.mp4", "folder"),
    ],
)
def test_outputs_that_cannot_be_written(tmp_path, name, says):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match=says) as caught:
        VideoWriter(tmp_path / name, fps=15, size=(64, 64))
    assert caught.value.remedy
    assert caught.value.field == "output"
    assert [p.name for p in tmp_path.iterdir()] == ["folder.mp4"]


def test_a_folder_that_takes_no_files():
    with pytest.raises(OutputError, match="cannot be written"):
        VideoWriter("/proc/dance.mp4", fps=15, size=(64, 64))


def test_frames_must_fit(tmp_path, pictures):
    for wrong in (pictures[0][:32], pictures[0].astype(np.float32), pictures[0][..., 0]):
        with (
            pytest.raises(OutputError, match="a frame is an array"),
            VideoWriter(tmp_path / "a.mp4", fps=15, size=(128, 64)) as video,
        ):
            video.write(wrong)
    with pytest.raises(OutputError, match="no frame"):
        VideoWriter(tmp_path / "a.mp4", fps=15, size=(128, 64)).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", VIDEOS)
def test_odd_sizes_do_not_crash(tmp_path, suffix):
    path = write(tmp_path / f"odd{suffix}", [np.full((33, 47, 3), 90, np.uint8)] * 3)
    assert VideoReader(path).size in {(47, 33), (48, 34)}


def test_nothing_is_printed(tmp_path, pictures, clip, capfd):
    write(tmp_path / "dance.mp4", pictures, audio=clip(10, sound="aac"))
    write(tmp_path / "dance.webm", pictures)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_a_finished_video_that_cannot_be_moved_into_place_is_kept(tmp_path, pictures):
    writer = VideoWriter(tmp_path / "dance.mp4", fps=15, size=(128, 64))
    writer.write(pictures[0])
    (tmp_path / "dance.mp4").mkdir()  # something came in the way meanwhile
    with pytest.raises(OutputError, match="directory") as caught:
        writer.close()
    kept = caught.value.remedy.removeprefix("The finished video was kept as ").rstrip(".")
    assert len(list(VideoReader(kept).frames())) == 1
    shutil.rmtree(Path(kept).parent)
    assert list(tmp_path.iterdir()) == [tmp_path / "dance.mp4"]
