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
_FORMAT = "dblp"  # no decoder gives it: PyAV hands on what has the wanted form already, whatever its time
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
_PRIMING = 0.07
"""Seconds that sound may begin before the picture and still be copied: codecs need some to start."""
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
        self._output, self._parts = output, parts
        self._lost = self._written = 0
        self._primed = "frag" not in output.options.get("movflags", "")
        """What a decoder throws away at first lies before 0; a fragmented MP4 cannot say so and is made without."""
        copy = len(parts) == 1 and parts[0].codec in copied and parts[0].copyable and not parts[0].begins
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
            if packet.pts is None or (last is not None and packet.pts <= last):
                continue  # a time that runs backward
            if packet.pts < 0 and not self._primed:
                continue
            last = packet.dts = packet.pts
            packet.stream = self._stream
            yield packet.pts * packet.time_base, packet

    def _copied(self) -> Iterator[Packet[AudioStream]]:
        part, decoder = self._parts[0], _Decoder()
        with closing(self._template):
            for packet in part.packets():
                lost = decoder.decode(packet) is None
                self._lost += lost
                if not lost and packet.size and packet.pts is not None:
                    packet.pts -= round(part.zero / packet.time_base)
                    yield packet

    def _encoded(self) -> Iterator[Packet[AudioStream]]:
        for samples in self._samples():
            yield from self._stream.encode(samples)
        yield from self._stream.encode(None)

    def _samples(self) -> Iterator[AudioFrame]:
        """Sound of the stream's own rate and layout from second 0 on, without gaps."""
        for samples in self._aligned():
            samples.sample_rate = _SAMPLE_RATE
            samples.pts, samples.time_base = self._written, Fraction(1, _SAMPLE_RATE)
            self._written += samples.samples
            yield samples

    def _aligned(self) -> Iterator[AudioFrame]:
        """The parts' sound in a row, each piece at its time; `_written` says how far it is."""
        ends = [*(part.begins for part in self._parts[1:]), float("inf")]
        for part, end in zip(self._parts, ends, strict=True):
            resampler: AudioResampler | None = None
            setup = ("", "", 0)
            for at, frame in self._frames(part):
                if at >= end:
                    break
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                paused = at - self._done() > 1
                if resampler is not None and (paused or form != setup):
                    yield from resampler.resample(None)
                    resampler = None
                while at - self._done() > 1:  # a long silence, a second at a time
                    yield self._silence()
                if resampler is None:
                    frame = _cut(frame, round((self._done() - at) * frame.sample_rate))
                    resampler, setup = self._resampler(), form
                yield from resampler.resample(frame)
            if resampler is not None:
                yield from resampler.resample(None)

    def _frames(self, part: _Part) -> Iterator[tuple[Fraction, AudioFrame]]:
        """What can be decoded, with its seconds in the finished video, in which its pts is, too."""
        decoder = _Decoder()
        for packet in part.packets():
            frames = decoder.decode(packet)
            self._lost += frames is None
            for frame in frames or ():
                if frame.pts is None or not frame.time_base or not frame.sample_rate:
                    continue
                at = frame.pts * frame.time_base - part.zero + Fraction(part.begins)
                if at + Fraction(frame.samples, frame.sample_rate) > 0:
                    frame.pts, frame.time_base = round(at * frame.sample_rate), Fraction(1, frame.sample_rate)
                    yield at, frame

    def _done(self) -> Fraction:
        return Fraction(self._written, _SAMPLE_RATE)

    def _resampler(self) -> AudioResampler:
        """Brings sound to the stream's rate and layout, and to its time by silence or a cut."""
        options = {"async": "1", "min_hard_comp": _ALIGNMENT, "first_pts": str(self._written)}
        return AudioResampler(_FORMAT, self._stream.layout, _SAMPLE_RATE, options=options)

    def _silence(self) -> AudioFrame:
        empty = np.zeros((self._stream.layout.nb_channels, _SAMPLE_RATE), np.float64)
        return AudioFrame.from_ndarray(empty, _FORMAT, self._stream.layout.name)


class _Part:
    """The sound of one driving video. Raises `MotionError` where there is none that can be decoded."""

    def __init__(self, file: SoundFile, begins: float, zero: float) -> None:
        self.source, self.begins, self.zero = Source(file, _CHECKED), begins, Fraction(zero)
        first, seen, begins_at, decoder = None, set(), Fraction(0), _Decoder()
        self.codec, header, changed = "", None, False
        for index, packet in enumerate(self.packets()):
            if index == 0:
                begins_at = (packet.pts or 0) * packet.time_base
                context = packet.stream.codec_context
                self.codec = context.codec.canonical_name  # decoders have names of their own
                self.set_up = self.codec not in _NEEDS_SETUP or bool(context.extradata)
                header = _HEADERS.get(self.codec)
            if first is None and index < _TRIED:
                first = next(iter(decoder.decode(packet) or ()), None)
            if first is None and index >= _TRIED:
                break
            changed = changed or packet.has_sidedata("new_extradata")
            if header is not None and packet.size > 8:
                seen.add(header(bytes(packet)))
        if first is None:
            raise MotionError("it cannot be decoded.", field="motion")
        self.steady = len(seen) <= 1 and not changed
        """The whole sound has the form in which it begins."""
        self.copyable = self.steady and self.set_up and begins_at - self.zero > -_PRIMING
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

    None where there is none that can be used: a finished video is worth more than its sound.
    """
    files = [(audio, 0.0)] if isinstance(audio, str | Path | bytes) else list(audio)
    parts, note = [], ""
    for file, begins in files:
        try:
            video = VideoReader(file, _CHECKED)
            if video.has_audio:
                parts.append(_Part(file, begins, video.start))
        except Exception as error:
            note = f"the motion's sound was left out: {reason(error)}."
    return AudioTrack(parts, output, copied, encoder) if parts else None, note


def _cut(frame: AudioFrame, samples: int) -> AudioFrame:
    """Without its first samples, if that number is positive."""
    if samples <= 0:
        return frame
    samples = min(samples, frame.samples - 1)
    channels = 1 if frame.format.is_planar else frame.layout.nb_channels
    values: Any = np.ascontiguousarray(frame.to_ndarray()[:, samples * channels :])
    rest = AudioFrame.from_ndarray(values, frame.format.name, frame.layout.name)
    rest.sample_rate, rest.time_base = frame.sample_rate, frame.time_base
    rest.pts = (frame.pts or 0) + samples
    return rest


class _Decoder:
    """Decodes the packets of a track, also those that are of another codec than the track began with."""

    def __init__(self) -> None:
        self._others: dict[str, Any] = {}

    def decode(self, packet: Packet[AudioStream]) -> list[AudioFrame] | None:
        """The sound of a packet; None if it cannot be decoded."""
        try:
            return list(packet.decode())
        except (av.FFmpegError, ValueError):
            codec = _codec_by_head(bytes(packet))
        if codec is None:
            return None
        try:
            if codec not in self._others:
                self._others[codec] = av.CodecContext.create(codec, "r")
            return list(self._others[codec].decode(packet))
        except (av.FFmpegError, ValueError):
            return None


def _codec_by_head(data: bytes) -> str | None:
    """The codec of a packet that says it itself, as in transport streams; None for others."""
    if data[:2] == b"\x0b\x77" and len(data) > 5:
        return "eac3" if data[5] >> 3 > 10 else "ac3"
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return ("aac", "mp3", "mp2", None)[data[1] >> 1 & 3]
    return None
