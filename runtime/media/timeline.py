"""When the frames of a recording are shown: packets' times without breaks, the usual rate, the grid of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from statistics import fmean
from typing import Any, TypeVar

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .source import Source, is_broadcast, sound_of

T = TypeVar("T")
_FALLBACK_RATE = 25.0  # a single frame, or a stream without timestamps
_USUAL = 0.4
"""Share of the frames that a distance has to have to be the usual one; with two such, the shorter counts."""
_NEAR = 0.02  # a stated rate this near to the usual one is the rate
_HELD = ("gif", "apng", "mov", "matroska")  # demuxers that tell how long the last frame is shown
_STATED = ("matroska", "avi", "flv", "asf")  # demuxers whose headers state how long the file is
_SOUGHT = ("mov", "matroska")  # demuxers whose index leads to a key frame, and that number its packets alike
_CLOSED = ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores")
"""Codecs of which what is shown from a key frame on does not depend on what came before it."""
_WHOLE = 0.25
"""What may be missing of the last frame's time for it to count."""
_JITTER = Fraction(1, 100)
"""Seconds that the times of a broadcast may run backward without a break."""
_LONGER = Fraction(1)
"""Seconds by which sound may end after the picture of its part."""
_LOOK_AHEAD = 256
"""Packets of sound that wait for the picture's break after their own."""


# ---- packets ----


def timed_packets(
    container: InputContainer, video: VideoStream, joint: Joint | None = None
) -> Iterator[Packet[Any]]:
    """The packets of the video and of the default sound, their times continuous over breaks.

    Recordings that were joined, or a recorder that restarts, begin to count anew: what follows a break continues
    where the picture ended, sound included. Packets that hold nothing (dropped frames) are left out; those that
    flush the decoders come last.
    """
    sound = sound_of(container)
    joint = joint or Joint(video, is_broadcast(container))
    for packet in container.demux([video, sound] if sound is not None else [video]):
        if packet.size or (packet.pts is None and packet.dts is None):
            yield from joint.pass_on(packet)


class Joint:
    """Moves what follows a break of the time to where the picture ended."""

    def __init__(self, video: VideoStream, broadcast: bool) -> None:
        self._video = video.index
        # A broadcast may lose seconds; in other containers a long pause is what was recorded.
        self._back, self._ahead = (_JITTER, Fraction(10)) if broadcast else (Fraction(1), Fraction(10**9))
        self._offset = Fraction(0)
        """Of what follows the last break."""
        self._used: dict[int, Fraction] = {}
        """By stream, the offset of its last packet: a packet of the part before may come late."""
        self._due: dict[int, Fraction] = {}
        """By stream, when its next packet begins at the earliest."""
        self._end = Fraction(0)
        """Of the picture so far."""
        self._waiting: list[Packet[Any]] = []

    @property
    def unbroken(self) -> bool:
        """No packet was moved so far."""
        return not self._offset

    def pass_on(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        if packet.dts is None:
            if not packet.size:
                yield from self._release()
            yield self._moved(packet, self._offset)
            return
        sound = packet.stream_index != self._video
        if sound and self._waiting:
            self._waiting.append(packet)
        elif (offset := self._fitting(packet)) is not None:
            yield self._moved(packet, offset)
        elif sound:
            self._waiting.append(packet)
        else:
            start = _seconds(packet, packet.dts if packet.pts is None else packet.pts)
            self._offset = self._end - start
            yield self._moved(packet, self._offset)
            yield from self._release()
        if len(self._waiting) > _LOOK_AHEAD:  # the picture has no break there
            yield from self._release()

    def _fitting(self, packet: Packet[Any]) -> Fraction | None:
        """The offset with which the packet follows what came before it; None if it does not."""
        due = self._due.get(packet.stream_index)
        if due is None or packet.dts is None:
            return self._offset
        begins, used = _seconds(packet, packet.dts) - due, self._used[packet.stream_index]
        offset = min((used, self._offset), key=lambda one: abs(begins + one))
        # Sound of the part before may be longer than its picture, where that has had its break already.
        back = self._back if offset == used else max(self._back, _LONGER)
        return offset if -back <= begins + offset <= self._ahead else None

    def _release(self) -> Iterator[Packet[Any]]:
        for packet in self._waiting:
            offset = self._fitting(packet)
            yield self._moved(packet, self._offset if offset is None else offset)
        self._waiting.clear()

    def _moved(self, packet: Packet[Any], offset: Fraction) -> Packet[Any]:
        ticks = round(offset / packet.time_base) if offset else 0
        length = _seconds(packet, packet.duration or 0)
        if packet.dts is not None:
            packet.dts += ticks
            # A frame may follow sooner than the stated length says, but not before the one that precedes it.
            least = 0 if packet.stream_index == self._video else length
            self._due[packet.stream_index] = _seconds(packet, packet.dts) + least
            self._used[packet.stream_index] = offset
        if packet.pts is not None:
            packet.pts += ticks
            if packet.stream_index == self._video:
                self._end = max(self._end, _seconds(packet, packet.pts) + length)
        return packet


def _seconds(packet: Packet[Any], ticks: int) -> Fraction:
    return Fraction(ticks * packet.time_base)


# ---- a file ----


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a video's packets say before any is decoded."""

    rate: float
    """Frames per second: the stated rate, or the usual one where that is not true."""
    end: float
    """When the last frame ends, in seconds of the container's clock."""
    frames: int
    """Packets that hold a frame."""
    stamped: bool
    """They have times."""
    keyed: bool
    """There is a key frame, so what comes before the first one cannot be decoded."""
    truncated: bool
    entries: tuple[tuple[float, int], ...]
    """Where decoding may begin and give the same frames: key frames' (seconds of the container's clock, the same in
    the stream's units), rising. Empty where container or codec do not promise that, or where times are not plain."""

    def count(self, start: float) -> int:
        """Frames on the grid if the first one that can be decoded is shown at `start`."""
        return max(1, int((self.end - start) * self.rate + _WHOLE)) if self.stamped else self.frames


def read_timeline(source: Source, container: InputContainer, video: VideoStream) -> Timeline:
    """Read all packets: quick, and more reliable than many headers."""
    times: list[int] = []
    keys: list[tuple[float, int]] = []
    joint = Joint(video, is_broadcast(container))
    unstamped, keyed, held, latest, failed = 0, False, 0, Fraction(0), False
    try:
        for packet in timed_packets(container, video, joint):
            at = packet.dts if packet.pts is None else packet.pts
            if packet.size and at is not None:
                latest = max(latest, _seconds(packet, at + (packet.duration or 0)))
            if packet.stream_index != video.index or not packet.size or packet.is_discard:
                continue
            keyed = keyed or packet.is_keyframe
            if at is None:
                unstamped += 1
                continue
            if not times or at > max(times[-1], times[0]):
                held = packet.duration or 0
            if packet.is_keyframe:
                keys.append((float(_seconds(packet, at)), at))
            times.append(at)
    except (av.FFmpegError, OSError):
        failed = True
    stamped = len(times) > unstamped
    unit = float(video.time_base or 1)
    ordered = sorted(set(times))
    rate = _rate(video, [unit * (b - a) for a, b in pairwise(ordered)], stamped)
    last = 1 / rate
    if held * unit > 1.5 * last and container.format.name.startswith(_HELD):
        last = held * unit
    end = (ordered[-1] * unit if ordered else 0.0) + last
    stated = _stated_end(container, video)
    truncated = failed or _truncated(source, container, video, float(stated - latest) > max(0.15, 3 / rate))
    if truncated:
        end = max(end, float(stated))
    plain = joint.unbroken and not unstamped and len(ordered) == len(times) and keys == sorted(keys)
    sought = container.format.name.startswith(_SOUGHT) and video.codec.canonical_name in _CLOSED
    entries = tuple(keys) if plain and sought else ()
    return Timeline(rate, float(end), len(times) + unstamped, stamped, keyed, truncated, entries)


def _truncated(source: Source, container: InputContainer, video: VideoStream, ends_early: bool) -> bool:
    """Whether the file's own index or header tells of more than there is."""
    name = container.format.name
    if name.startswith("mov"):
        return any(entry.size and entry.pos + entry.size > source.bytes for entry in video.index_entries)
    return name.startswith(_STATED) and len(container.streams) <= 2 and ends_early


def _stated_end(container: InputContainer, video: VideoStream) -> Fraction:
    """When the file ends by its header, in seconds of its clock; 0 where it does not say."""
    start = Fraction(container.start_time or 0, av.time_base)
    if video.duration and video.time_base:
        return Fraction(((video.start_time or 0) + video.duration) * video.time_base)
    length = Fraction(container.duration or 0, av.time_base)
    return length if container.format.name.startswith("matroska") else start + length


def _rate(video: VideoStream, steps: list[float], stamped: bool) -> float:
    """Frames per second from the distances of the frames in seconds.

    The usual distance counts, so that neither a pause nor a frame that is held slows the rest down.
    """
    stated = float(video.average_rate or video.guessed_rate or 0)
    if not stamped or not steps:
        return stated if stated > 0 else _FALLBACK_RATE
    usual = 1 / usual_rate(steps)
    guesses = (float(video.guessed_rate or 0), float(round(1 / usual)))
    nearest = min(guesses, key=lambda nominal: abs(nominal * usual - 1))
    for nominal, near in ((stated, _NEAR / 10), (nearest, _NEAR), (stated, _NEAR)):
        if abs(nominal * usual - 1) < near:
            return nominal
    return 1 / usual


def usual_rate(steps: list[float]) -> float:
    """Frames per second of the usual one of the distances between frames, in seconds."""
    pairs = [(a + b) / 2 for a, b in pairwise(steps)] or steps  # 3:2 pulldown alternates
    usual = sorted(pairs)[int(_USUAL * len(pairs))]
    return 1 / fmean(pair for pair in pairs if 0.75 * usual <= pair <= 1.25 * usual)


# ---- frames ----


class Clock:
    """Seconds of each frame from the first; a missing or backward time counts as one period on."""

    def __init__(self, period: float, start: float | None = None) -> None:
        self._period = period
        self.start = start
        """Of the first frame, in the container's clock."""
        self._last = -period

    def read(self, stamp: float | None) -> float:
        at = self._last + self._period
        if stamp is not None:
            self.start = stamp - at if self.start is None else self.start
            if stamp - self.start > self._last:
                at = stamp - self.start
        self._last = at
        return at


def on_grid(
    frames: Iterable[tuple[float, T]], rate: float, count: int, begin: int = 0
) -> Iterator[tuple[int, T]]:
    """(grid index, frame) of frames with their seconds from the first, from index `begin` on.

    At k / rate the frame of the nearest time is shown if it is at most half a period away, else the one that is still
    on the screen, the last one until there are `count`; so a frame may be left out or repeated. The first of
    `frames` is shown at `begin` / rate or before.
    """
    waiting: T | None = None
    index, at = begin, 0.0
    for entry in chain(frames, (None,)):
        before, at = at, at if entry is None else entry[0]
        end = (count - 0.5) / rate if entry is None else max((before + at) / 2, at - 0.5 / rate)
        while waiting is not None and index / rate < end and index < count:
            yield index, waiting
            index += 1
        waiting = None if entry is None else entry[1]
