"""Files made from a grammar: each gives the right video or a clear error, and nothing is left behind."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mimicmotion_trt import Animator, MimicMotionError, PoseSequence
from mimicmotion_trt.media.reader import VideoReader
from mimicmotion_trt.pose import draw_poses

ROOT = Path(__file__).parents[2]
SIZE = (64, 96)
SECONDS = 1.6
BEEP = 0.6
FORMS = {
    "mp4": (("libx264", "libx265", "mpeg4"), ("", "aac", "ac3", "libmp3lame")),
    "mov": (("libx264", "prores_ks", "mjpeg"), ("", "aac", "pcm_s16le")),
    "matroska": (("libx264", "libvpx-vp9", "mpeg4"), ("", "aac", "libopus", "flac", "pcm_s16le")),
    "webm": (("libvpx", "libvpx-vp9"), ("", "libopus")),
    "avi": (("mpeg4", "mjpeg"), ("", "libmp3lame", "pcm_s16le")),
    "mpegts": (("libx264", "mpeg2video"), ("", "aac", "ac3", "mp2")),
    "flv": (("libx264", "flv1"), ("", "aac")),
}
PIXELS = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p"}
CODECS = {"flv1": "flv"}
DAMAGES = ("none", "none", "none", "truncated", "joined", "late", "zeros", "sound")


@dataclass(frozen=True)
class Made:
    """One file and what it should show."""

    words: str
    data: bytes
    rate: Fraction
    turn: int
    beep: float | None
    damage: str


def grammar(count: int, seed: int) -> Iterator[tuple[str, str, str, Fraction, int, str]]:
    chosen = random.Random(seed)
    for _ in range(count):
        container = chosen.choice(list(FORMS))
        codecs, sounds = FORMS[container]
        rate = chosen.choice([Fraction(30), Fraction(30000, 1001), Fraction(25), Fraction(24), Fraction(50)])
        if container == "avi" or "mpeg4" in codecs:
            rate = rate.limit_denominator(1001)
        turn = chosen.choice([0, 0, 90, 180, 270]) if container in ("mp4", "mov") else 0
        yield container, chosen.choice(codecs), chosen.choice(sounds), rate, turn, chosen.choice(DAMAGES)


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """Skeletons, so that no estimator has to find anybody."""
    poses = PoseSequence.load(ROOT / "demo" / "balance.npz")
    return draw_poses(poses.take(np.arange(80) % len(poses)), SIZE[1], SIZE[0], 256)


def make(pictures: np.ndarray, container: str, codec: str, sound: str, rate: Fraction, turn: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(CODECS.get(codec, codec), rate=rate)
        upright = np.rot90(pictures, turn // 90, axes=(1, 2))
        stream.width, stream.height = upright.shape[2], upright.shape[1]
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        if turn:
            stream.set_display_rotation(-turn)
        audio = output.add_stream(sound, rate=48_000, layout="mono") if sound else None
        for picture in upright[: round(SECONDS * rate)]:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        output.mux(stream.encode(None))
        if audio is not None:
            times = np.arange(round(SECONDS * 48_000)) / 48_000
            wave = np.sin(times * 2 * np.pi * 1000) * ((times >= BEEP) & (times < BEEP + 0.1)) * 20_000
            for start in range(0, len(wave), 960):
                tone = av.AudioFrame.from_ndarray(
                    wave[None, start : start + 960].astype(np.int16), "s16", "mono"
                )
                tone.rate, tone.pts, tone.time_base = 48_000, start, Fraction(1, 48_000)
                output.mux(audio.encode(tone))
            output.mux(audio.encode(None))
    return file.getvalue()


def damaged(data: bytes, damage: str, sound: str) -> bytes:
    if damage == "truncated":
        return data[: len(data) * 2 // 3]
    if damage == "joined":
        return data + data
    if damage == "zeros":
        middle = len(data) // 2
        return data[:middle] + bytes(200) + data[middle + 200 :]
    if damage == "sound" and sound:
        spoiled = bytearray(data)
        with av.open(io.BytesIO(data)) as container:
            packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size > 8]
        for packet in packets:
            place = data.find(packet)  # transport streams cut packets up
            if place >= 0:
                spoiled[place : place + len(packet)] = b"\xff" * len(packet)
        return bytes(spoiled)
    return data


def onset(path: Path) -> float:
    exact = {"async": "1", "first_pts": "0", "min_hard_comp": "0.0005"}
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("dblp", "mono", 48_000, options=exact)
        pieces = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        pieces += resampler.resample(None)
    samples = np.concatenate([piece.to_ndarray()[0] for piece in pieces])
    power = np.convolve(samples**2, np.ones(48) / 48, "same")
    return float(np.argmax(power > 0.3 * power.max())) / 48_000


def check(animator: Animator, drawn: np.ndarray, tmp_path: Path, choice: tuple[object, ...]) -> str:
    """ "" or what the error said; everything else is asserted."""
    container, codec, sound, rate, turn, damage = choice
    data = damaged(make(drawn, container, codec, sound, rate, turn), damage, sound)  # type: ignore[arg-type]
    (tmp_path / "motion").write_bytes(data)
    before = VideoReader(tmp_path / "motion") if damage == "none" else None
    settings = animator.settings(
        steps=1, size=(64, 64), segment=8, overlap=2, guidance=(1, 1), layout="compact"
    )
    pose = PoseSequence.load(ROOT / "demo" / "balance.npz")[:1]
    picture = ROOT / "demo" / "person.jpg"
    output = tmp_path / "out.mp4"
    try:
        job = animator.animate(
            picture, tmp_path / "motion", settings, reference_pose=pose, motion_kind="pose-video"
        )
        result = job.result()
        result.save(output)
    except MimicMotionError as error:
        failure: MimicMotionError | None = error
    else:
        failure = None
    if failure is not None:
        assert failure.remedy
        assert damage not in ("none", "sound"), str(failure)
        assert [path.name for path in tmp_path.iterdir()] == ["motion"]
        return
    assert {path.name for path in tmp_path.iterdir()} == {"motion", "out.mp4"}
    written = VideoReader(output)
    length = len(result) / result.fps
    assert abs(written.frame_count / written.fps - length) < 1 / written.fps  # type: ignore[operator]
    if before is not None:
        assert before.size == SIZE
        assert length == pytest.approx(SECONDS, abs=1.01 / result.fps)
        _, first = next(before.frames())
        assert np.abs(first.astype(int) - drawn[0]).mean() < 12  # upright
        if sound and container != "avi":  # what MP3 in AVI begins with depends on who made it
            assert onset(output) == pytest.approx(BEEP, abs=0.002 + 0.002 * (sound in ("libmp3lame", "mp2")))


@pytest.mark.parametrize(
    "choice",
    [
        *grammar(20, seed=1),
        *(pytest.param(choice, marks=pytest.mark.slow) for choice in grammar(200, seed=2)),
    ],
    ids=lambda c: "-".join(map(str, c)).replace("/", ":"),
)
def test_every_file_gives_its_video_or_a_clear_error(
    animator: Animator, drawn: np.ndarray, tmp_path: Path, choice: tuple[object, ...]
) -> None:
    check(animator, drawn, tmp_path, choice)
