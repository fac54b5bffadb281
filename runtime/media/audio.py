"""The driving video's sound, carried over into the finished video."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from ..limits import Limits
from .reader import Source

_SAMPLE_RATE = 48_000  # both encoders take it
_NEEDS_SETUP = ("aac", "vorbis", "flac", "opus", "alac")  # copied only if the container stated their setup


class AudioTrack:
    """Sound for `output`, counted from the first frame of the source's video.

    Copied as it is where its codec is in `copied`, else encoded by `encoder`. Where the sound is damaged it
    ends, and the video goes on without it.
    """

    def __init__(
        self, source: InputContainer, output: OutputContainer, copied: frozenset[str], encoder: str
    ) -> None:
        self._source, self._output = source, output
        self._input: AudioStream = source.streams.audio[0]
        self._zero = _first_frame(source)
        context = self._input.codec_context
        codec = context.codec.canonical_name  # decoders have names of their own
        copy = codec in copied and (codec not in _NEEDS_SETUP or bool(context.extradata))
        if copy:
            stream: Any = output.add_stream_from_template(self._input)
        else:
            layout = "mono" if context.layout.nb_channels == 1 else "stereo"
            bit_rate = 192_000 if encoder == "aac" else 128_000
            stream = output.add_stream(encoder, rate=_SAMPLE_RATE, layout=layout, bit_rate=bit_rate)
        self._stream: AudioStream = stream
        self._packets = self._timed(self._copied() if copy else self._encoded())
        self._waiting: tuple[Fraction, Packet[AudioStream]] | None = None

    def write_until(self, end: Fraction) -> None:
        """Write what begins before `end`, in seconds of the finished video."""
        while True:
            waiting = self._waiting or next(self._packets, None)
            self._waiting = waiting
            if waiting is None or waiting[0] >= end:
                return
            self._output.mux(waiting[1])
            self._waiting = None

    def close(self) -> None:
        self._packets.close()
        self._source.close()

    def _timed(
        self, packets: Iterator[Packet[AudioStream]]
    ) -> Generator[tuple[Fraction, Packet[AudioStream]]]:
        last = None
        try:
            for packet in packets:
                if packet.pts is None or packet.pts < 0 or (last is not None and packet.pts <= last):
                    continue  # before the first frame, or a timestamp that runs backward
                last = packet.dts = packet.pts
                packet.stream = self._stream
                yield packet.pts * packet.time_base, packet
        except (av.FFmpegError, OSError):
            return

    def _copied(self) -> Iterator[Packet[AudioStream]]:
        for packet in self._source.demux(self._input):
            if packet.size and packet.pts is not None:
                packet.pts -= round(self._zero / packet.time_base)
                yield packet

    def _encoded(self) -> Iterator[Packet[AudioStream]]:
        for frame in self._source.decode(self._input):
            if frame.pts is not None and frame.time_base:
                frame.pts -= round(self._zero / frame.time_base)
                if frame.pts < 0:
                    continue
            yield from self._stream.encode(frame)
        yield from self._stream.encode(None)


def open_audio(
    video: str | Path | bytes, output: OutputContainer, copied: frozenset[str], encoder: str
) -> AudioTrack | None:
    """The first sound track of a driving video; None where it has none that can be used."""
    # The limit was checked when the frames were read.
    container = Source(video, Limits(motion_bytes=2**62)).open()
    try:
        if container.streams.audio and container.streams.audio[0].codec_context is not None:
            return AudioTrack(container, output, copied, encoder)
    except BaseException:
        container.close()
        raise
    container.close()
    return None


def _first_frame(source: InputContainer) -> Fraction:
    for stream in source.streams.video:
        if stream.start_time is not None and stream.time_base:
            return Fraction(stream.start_time * stream.time_base)
    return Fraction(0)
