"""The driving video's sound, carried over into the finished video."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet

from ..errors import MotionError
from ..limits import Limits
from .reader import VideoReader
from .source import Source, reason, sound_of
from .timeline import timed_packets

_SAMPLE_RATE = 48_000  # both encoders take it
_NEEDS_SETUP = ("aac", "vorbis", "flac", "opus", "alac")  # copied only if the container stated their setup
_MPEG: Callable[[bytes], object] = lambda data: (data[1] & 0x1E, data[2] & 0x0C, data[3] >> 6 == 3)  # noqa: E731
_HEADERS: dict[str, Callable[[bytes], object]] = {
    "mp2": _MPEG,  # version, rate, mono
    "mp3": _MPEG,
    "ac3": lambda data: (data[4] & 0xC0, data[6] & 0xE0),  # rate, channels
    "aac": lambda data: data[0] == 0xFF and (data[2], data[3] >> 6),  # of ADTS: profile, rate, channels
}
"""What of a packet tells its form, of codecs that state it in every packet."""
_ALIGNMENT = "0.0015"
"""Seconds that sound may be off its time before silence is put in or samples are cut."""
_TRIED = 100
"""Packets in which a first piece of sound must be found."""

_CHECKED = Limits(motion_bytes=2**62)  # when the frames were read

SoundFile = str | Path | bytes
Sound = SoundFile | Sequence[tuple[SoundFile, float]]
"""One driving video, or several with the seconds of the finished video at which each begins."""


class AudioTrack:
    """Sound for `output`, counted from the first frame of the source's video.

    Copied as it is where its codec is in `copied`, else brought to one rate and layout and encoded by `encoder`.
    What cannot be decoded is silent, and whatever happens to the sound, the video goes on; `note` says so.
    """

    def __init__(
        self, parts: Sequence[_Part], output: OutputContainer, copied: frozenset[str], encoder: str
    ) -> None:
        self.note = ""
        """What was lost of the sound, and why; empty if nothing was."""
        self._output, self._parts, self._lost = output, parts, 0
        copy = len(parts) == 1 and parts[0].steady and parts[0].set_up and parts[0].codec in copied
        if copy:
            self._template = parts[0].source.open()
            sound = sound_of(self._template)
            assert sound is not None
            stream: Any = output.add_stream_from_template(sound)
        else:
            layout = "mono" if all(part.mono for part in parts) else "stereo"
            bit_rate = 192_000 if encoder == "aac" else 128_000
            stream = output.add_stream(encoder, rate=_SAMPLE_RATE, layout=layout, bit_rate=bit_rate)
        self._stream: AudioStream = stream
        self._packets = self._timed(self._copied() if copy else self._encoded())
        self._waiting: tuple[Fraction, Packet[AudioStream]] | None = None

    def write_until(self, end: Fraction) -> None:
        """Write what begins before `end`, in seconds of the finished video."""
        try:
            while True:
                waiting = self._waiting or next(self._packets, None)
                self._waiting = waiting
                if waiting is None or waiting[0] >= end:
                    return
                self._output.mux(waiting[1])
                self._waiting = None
        except Exception as error:  # the video is worth more than its sound
            self.note = f"the motion's sound ends at {float(end):.2f} s: {reason(error)}."
            self._packets.close()

    def close(self) -> None:
        self._packets.close()
        if self._lost and not self.note:
            self.note = f"{self._lost} pieces of the motion's sound could not be decoded and are silent."

    def _timed(
        self, packets: Iterator[Packet[AudioStream]]
    ) -> Generator[tuple[Fraction, Packet[AudioStream]]]:
        last = None
        for packet in packets:
            if packet.pts is None or packet.pts < 0 or (last is not None and packet.pts <= last):
                continue  # before the first frame, or a timestamp that runs backward
            last = packet.dts = packet.pts
            packet.stream = self._stream
            yield packet.pts * packet.time_base, packet

    def _copied(self) -> Iterator[Packet[AudioStream]]:
        part = self._parts[0]
        with closing(self._template):
            for packet in part.packets():
                if _decoded(packet) is None:
                    self._lost += 1
                elif packet.size and packet.pts is not None:
                    packet.pts -= round(part.zero / packet.time_base)
                    yield packet

    def _encoded(self) -> Iterator[Packet[AudioStream]]:
        for samples in self._samples():
            yield from self._stream.encode(samples)
        yield from self._stream.encode(None)

    def _samples(self) -> Iterator[AudioFrame]:
        """Sound of the stream's own rate and layout from second 0 on, without gaps."""
        written = 0
        for index, part in enumerate(self._parts):
            end = self._parts[index + 1].begins if index + 1 < len(self._parts) else float("inf")
            resampler, setup = None, None
            for frame in self._frames(part):
                at = frame.pts / frame.sample_rate
                if at >= end:
                    break
                if (frame.format.name, frame.layout.name, frame.sample_rate) != setup:
                    for samples in resampler.resample(None) if resampler is not None else ():
                        yield self._placed(samples, written)
                        written += samples.samples
                    resampler = None
                while at - written / _SAMPLE_RATE > 1:  # a long silence, a second at a time
                    yield self._placed(self._silence(), written)
                    written += _SAMPLE_RATE
                if resampler is None:
                    setup = (frame.format.name, frame.layout.name, frame.sample_rate)
                    resampler = self._resampler(written)
                for samples in resampler.resample(frame):
                    yield self._placed(samples, written)
                    written += samples.samples
            for samples in resampler.resample(None) if resampler is not None else ():
                yield self._placed(samples, written)
                written += samples.samples

    def _frames(self, part: _Part) -> Iterator[AudioFrame]:
        """What can be decoded, its pts in samples of the finished video."""
        for packet in part.packets():
            frames = _decoded(packet)
            if frames is None:
                self._lost += 1
            for frame in frames or ():
                if frame.pts is None or not frame.time_base or not frame.sample_rate:
                    continue
                at = frame.pts * frame.time_base - part.zero + Fraction(part.begins)
                if at + Fraction(frame.samples, frame.sample_rate) <= 0:
                    continue
                frame.pts, frame.time_base = round(at * frame.sample_rate), Fraction(1, frame.sample_rate)
                yield frame

    def _resampler(self, start: int) -> AudioResampler:
        """Brings sound to the stream's rate and layout, and to its time by silence or a cut."""
        options = {"async": "1", "min_hard_comp": _ALIGNMENT, "first_pts": str(start)}
        return AudioResampler("fltp", self._stream.layout, _SAMPLE_RATE, options=options)

    def _silence(self) -> AudioFrame:
        empty = np.zeros((self._stream.layout.nb_channels, _SAMPLE_RATE), np.float32)
        return AudioFrame.from_ndarray(empty, "fltp", self._stream.layout.name)

    def _placed(self, samples: AudioFrame, start: int) -> AudioFrame:
        samples.sample_rate = _SAMPLE_RATE
        samples.pts, samples.time_base = start, Fraction(1, _SAMPLE_RATE)
        return samples


class _Part:
    """The sound of one driving video. Raises `MotionError` where there is none that can be decoded."""

    def __init__(self, file: SoundFile, begins: float, zero: float) -> None:
        self.source, self.begins, self.zero = Source(file, _CHECKED), begins, Fraction(zero)
        first, seen = None, set()
        self.codec, header, changed = "", None, False
        for index, packet in enumerate(self.packets()):
            if index == 0:
                context = packet.stream.codec_context
                self.codec = context.codec.canonical_name  # decoders have names of their own
                self.set_up = self.codec not in _NEEDS_SETUP or bool(context.extradata)
                header = _HEADERS.get(self.codec)
            if first is None and index < _TRIED:
                first = next(iter(_decoded(packet) or ()), None)
            if first is None and index >= _TRIED:
                break
            changed = changed or packet.has_sidedata("new_extradata")
            if header is not None and packet.size > 8:
                seen.add(header(bytes(packet)))
        if first is None:
            raise MotionError("it cannot be decoded.", field="motion")
        self.steady = len(seen) <= 1 and not changed
        """The whole sound has the form in which it begins."""
        self.mono = first.layout.nb_channels == 1 and self.steady

    def packets(self) -> Iterator[Packet[AudioStream]]:
        """The default sound track, its times continuous."""
        with self.source.open() as container:
            sound = sound_of(container)
            if sound is None:
                raise MotionError("its codec is not known.", field="motion")
            for packet in timed_packets(container, self.source.video(container)):
                if packet.stream_index == sound.index:
                    yield packet


def open_audio(
    audio: Sound, output: OutputContainer, copied: frozenset[str], encoder: str
) -> tuple[AudioTrack | None, str]:
    """The default sound track of a driving video, or of several, and what was lost of it.

    None where there is none that can be used. Raises `MotionError` where there is no file.
    """
    files = [(audio, 0.0)] if isinstance(audio, str | Path | bytes) else list(audio)
    parts, note = [], ""
    for file, begins in files:
        Source(file, _CHECKED)
        try:
            video = VideoReader(file, _CHECKED)
            if video.has_audio:
                parts.append(_Part(file, begins, video.start))
        except (av.FFmpegError, OSError, ValueError) as error:
            note = f"the motion's sound was left out: {reason(error)}."
        except MotionError as error:
            note = f"the motion's sound was left out: {error.message}"
    return AudioTrack(parts, output, copied, encoder) if parts else None, note


def _decoded(packet: Packet[AudioStream]) -> list[AudioFrame] | None:
    """The sound of a packet; None if it cannot be decoded."""
    try:
        return list(packet.decode())
    except (av.FFmpegError, ValueError):
        return None
