"""Driving videos come as upright RGB frames at a constant rate, or as an error that says why not."""

import io
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt.errors import LimitError, MotionError
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media.reader import VideoReader

CONTAINERS = [
    ("mp4", "libx264", "yuv420p"),
    ("mov", "libx264", "yuv420p"),
    ("matroska", "libx265", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("mpegts", "libx264", "yuv420p"),
    ("mp4", "libx264", "yuv420p10le"),
    ("mov", "prores_ks", "yuv422p10le"),
    ("avi", "mjpeg", "yuvj420p"),
]


@pytest.mark.parametrize(("container", "codec", "pixels"), CONTAINERS)
def test_codecs_and_containers(clip, frame, container, codec, pixels):
    data = clip(12, rate=25, container=container, codec=codec, pixels=pixels)
    video = VideoReader(data)
    assert (video.size, video.has_audio) == ((64, 48), False)
    assert video.fps == pytest.approx(25)
    assert video.frame_count == 12
    read = list(video.frames())
    assert [time for time, _ in read] == pytest.approx([k / 25 for k in range(12)])
    for index, (_, picture) in enumerate(read):
        assert picture.dtype == np.uint8
        assert np.abs(picture.astype(int) - frame(index)).mean() < 10


def test_a_gif(clip):
    video = VideoReader(clip(10, rate=20, container="gif", codec="gif", pixels="rgb8"))
    assert video.fps == pytest.approx(20)
    assert len(list(video.frames())) == 10


@pytest.mark.parametrize("rate", ["30000/1001", "24000/1001", "25/2", "60"])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_the_rate_is_exact(clip, rate, container):
    video = VideoReader(clip(30, rate=rate, container=container))
    assert video.fps == pytest.approx(float(Fraction(rate)), rel=1e-6)


def test_stride_and_limit(clip, index_of):
    video = VideoReader(clip(20))
    read = list(video.frames(stride=3, limit=4))
    assert [round(index_of(picture)) for _, picture in read] == [0, 3, 6, 9]
    assert [time for time, _ in read] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert len(list(video.frames(stride=7))) == 3  # each call starts anew
    with pytest.raises(ValueError, match="stride"):
        next(video.frames(stride=0))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(
    ("times", "rate"),
    [
        ([*range(0, 400, 20), *range(400, 2001, 80)], 50),  # 50 frames a second, then 12.5
        ([0, *range(3000, 4600, 40)], 25),  # a still, then a pause, then 25 a second
        ([*range(0, 1000, 40), 3000], 25),  # a last frame after a pause
        ([round(k * 100 / 3) for k in range(30)] + [round(1000 + k * 200 / 3) for k in range(15)], 30),
    ],
)
def test_the_usual_distance_of_frames_sets_the_rate(clip, index_of, container, times, rate):
    video = VideoReader(clip(times=times, container=container))
    assert video.fps == pytest.approx(rate)
    read = list(video.frames())
    assert len(read) == pytest.approx(rate * times[-1] / 1000 + 1, abs=rate / 12)
    for time, picture in read:
        shown = times[round(index_of(picture))] / 1000
        on_screen = max(t / 1000 for t in times if t / 1000 <= time + 1e-3)  # until the next frame comes
        assert shown == on_screen or abs(shown - time) <= 0.5 / rate + 1e-3
        assert abs(shown - time) <= abs(on_screen - time) + 1e-3


def test_a_frame_that_is_held_stays_until_the_next_one(clip, index_of):
    """A second's pause, then half the rate: as a player shows it."""
    times = [*range(0, 400, 40), *range(1360, 1760, 40), 1840, 1920]
    shown = [round(index_of(picture)) for _, picture in VideoReader(clip(times=times)).frames()]
    assert shown == [*range(9), *[9] * 25, *range(10, 19), 19, 19, 19, 20, 20, 21]


def test_small_jitter_is_no_varying_rate(clip, index_of):
    times = [round(k * 1000 / 30) for k in range(30)]
    video = VideoReader(clip(times=times, container="matroska"))
    assert [round(index_of(picture)) for _, picture in video.frames()] == list(range(30))


def test_time_starts_at_the_first_frame(clip):
    video = VideoReader(clip(times=range(5000, 6000, 100), container="matroska"))
    assert video.fps == pytest.approx(10)
    assert [time for time, _ in video.frames()] == pytest.approx([k / 10 for k in range(10)])


@pytest.mark.parametrize(
    ("turn", "size", "corner"),
    [(0, (64, 48), (0, 0)), (90, (48, 64), (1, 0)), (180, (64, 48), (1, 1)), (-90, (48, 64), (0, 1))],
)
def test_rotation_is_applied(clip, turn, size, corner):
    """The white block at the top left turns anticlockwise with the picture."""
    video = VideoReader(clip(3, rotation=turn))
    assert video.size == size
    _, picture = next(video.frames())
    assert picture.shape == (size[1], size[0], 3)
    assert picture[-corner[0] * 4 or 3, -corner[1] * 4 or 3].min() > 230
    assert picture[size[1] // 2, size[0] // 2].min() < 200


def test_odd_sizes_and_sound(clip):
    data = clip(5, size=(63, 47), codec="libvpx-vp9", container="webm", sound="libopus")
    video = VideoReader(data)
    assert (video.size, video.has_audio) == ((63, 47), True)
    assert next(video.frames())[1].shape == (47, 63, 3)


def test_pixels_that_are_not_square(frame):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(frame(0))))
        output.mux(stream.encode(None))
    assert VideoReader(file.getvalue()).size == (96, 48)


def test_paths_and_bytes_are_the_same(clip, tmp_path):
    data = clip(4)
    path = tmp_path / "concat:odd name é.mp4"
    path.write_bytes(data)
    for source in (path, str(path), data):
        video = VideoReader(source)
        assert len(list(video.frames())) == 4


def test_a_damaged_video_says_how_far_it_got(tmp_path):
    path = tmp_path / "dance.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(60):
            picture = noise.integers(0, 255, (64, 64, 3), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        output.mux(stream.encode(None))
    whole = path.read_bytes()

    path.write_bytes(whole[: len(whole) // 2])
    video = VideoReader(path)
    with pytest.raises(MotionError, match=r"truncated after frame \d+ of 60") as caught:
        list(video.frames())
    assert "dance.mp4" in caught.value.message
    assert len(list(VideoReader(path).frames(limit=5))) == 5  # what is whole can be used

    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(middle // 4) + whole[middle + middle // 4 :])
    video = VideoReader(path)
    with pytest.raises(MotionError, match=r"damaged after frame \d+ of 60"):
        list(video.frames())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.mp4", None, "does not exist"),
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"Certainly not a video.\n" * 50, "not a video"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n", "not a video"),
        ("list2.mp4", b"ffconcat version 1.0\nfile '/etc/hostname'\n", "not a video"),
    ],
)
def test_what_is_no_video_says_so(tmp_path, capfd, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MotionError, match=says) as caught:
        VideoReader(path)
    assert name in caught.value.message
    assert caught.value.remedy
    assert caught.value.field == "motion"
    assert capfd.readouterr().err == ""


def test_an_mp4_without_its_index(clip):
    data = clip(20)
    with pytest.raises(MotionError, match="moov"):
        VideoReader(data[: len(data) // 2])


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=48_000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        tone.rate = 48_000
        output.mux(stream.encode(tone))
        output.mux(stream.encode(None))
    with pytest.raises(MotionError, match="no video, only audio"):
        VideoReader(path)


def test_a_video_without_frames(tmp_path):
    path = tmp_path / "nothing.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    with pytest.raises(MotionError, match=r"nothing.mkv"):
        VideoReader(path)


def test_a_folder_and_a_wrong_type(tmp_path):
    with pytest.raises(MotionError, match="directory"):
        VideoReader(tmp_path)
    with pytest.raises(MotionError, match="int"):
        VideoReader(7)


def test_limits_are_checked_before_decoding(clip):
    data = clip(2)
    with pytest.raises(LimitError, match="3,072"):
        VideoReader(data, Limits(frame_pixels=64 * 48 - 1))
    with pytest.raises(LimitError, match="bytes of the driving video"):
        VideoReader(data, Limits(motion_bytes=100))


def test_memory_does_not_grow_with_length(clip):
    """One megabyte a frame: all 300 would be 276 MB."""
    data = clip(300, size=(640, 480), codec="mpeg4")
    process = psutil.Process()
    video = VideoReader(data)
    frames = video.frames()
    for _ in range(60):
        next(frames)
    tracemalloc.start()
    before, count = process.memory_info().rss, 60
    for _ in frames:
        count += 1
    grown = process.memory_info().rss - before
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert count == 300
    assert grown < 60 * 2**20
    assert held < 8 * 2**20


@settings(max_examples=60)
@given(
    st.sampled_from([b"", b"\0\0\0\x18ftypmp42", b"\x1aE\xdf\xa3", b"RIFF0000AVI ", b"GIF89a"]),
    st.binary(max_size=400),
)
def test_random_bytes_are_an_error_of_ours_or_a_video(signature, tail):
    try:
        video = VideoReader(signature + tail)
        for _ in video.frames(limit=3):
            pass
    except (MotionError, LimitError):
        pass


def test_a_size_that_changes_midway_is_refused(clip):
    data = clip(10, container="h264") + clip(10, container="h264", size=(96, 64))
    video = VideoReader(data)
    with pytest.raises(MotionError, match="64x48 to 96x64"):
        list(video.frames())


def test_a_bare_stream_without_timestamps(clip, index_of):
    video = VideoReader(clip(12, rate=25, container="h264"))
    assert [round(index_of(picture)) for _, picture in video.frames()] == list(range(12))
