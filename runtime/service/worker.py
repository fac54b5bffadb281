"""The engine process: loads the animator, then runs jobs, `Limits.jobs` at a time, until its pipe closes.

Each job has a thread. It writes the video into the job's folder as frames are decoded and tells the server where
each piece lies.
"""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from .. import errors
from ..errors import Cancelled, DeviceLost, EngineError, MimicMotionError, MotionError, OutputError
from ..events import Event
from . import messages as m

_QUALITY_STEPS = (90, 70, 40)


def main(connection: Connection[Any, Any], spec: m.EngineSpec) -> None:
    """Entry of the spawned process; returns when told to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):  # these reach the whole group; the server decides
        signal.signal(number, signal.SIG_IGN)
    inbox, turn = _Inbox(connection), threading.Lock()

    def send(message: m.FromEngine) -> None:
        with turn:
            connection.send(message)

    try:
        animator = _load(spec)
        defaults = animator.settings()
    except Exception as error:
        send(m.LoadFailed(_plain(error)))
        return
    send(m.Ready(animator.bundle_name, animator.note, defaults))
    try:
        with ThreadPoolExecutor(spec.limits.jobs, "job") as threads:
            for run in inbox.runs():
                threads.submit(_run, animator, run, inbox, send).add_done_callback(_end_if_failed)
    finally:
        animator.close()


def _load(spec: m.EngineSpec) -> Any:
    module, _, name = spec.factory.partition(":")
    factory = attrgetter(name)(import_module(module))
    return factory(
        spec.bundle, device=spec.device, threads=spec.threads, limits=spec.limits, graphs=spec.graphs
    )


class _Inbox:
    """Reads the pipe in a thread, so that a cancel arrives while a job runs."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._runs: queue.SimpleQueue[m.Run | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        threading.Thread(target=self._read, daemon=True).start()

    def runs(self) -> Iterator[m.Run]:
        while (run := self._runs.get()) is not None:
            yield run

    def cancelled(self, job: str) -> bool:
        return job in self._cancelled

    def forget(self, job: str) -> None:
        self._cancelled.discard(job)

    def _read(self) -> None:
        while True:
            try:
                message: m.ToEngine = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # the server is gone: nobody wants the result, and the device must be freed
            match message:
                case m.Run():
                    self._runs.put(message)
                case m.Cancel(job):
                    self._cancelled.add(job)
                case m.Stop():
                    self._runs.put(None)
                    return


def _run(animator: Any, run: m.Run, inbox: _Inbox, tell: Callable[[m.FromEngine], None]) -> None:
    def send(report: m.Report) -> None:
        tell(m.About(run.job, report))

    try:
        send(_animate(animator, run, lambda: inbox.cancelled(run.job), send))
    except BrokenPipeError:
        raise
    except Exception as error:
        send(m.Failed(_plain(error)))
        if isinstance(error, DeviceLost):  # no job of this process would succeed any more
            raise
    inbox.forget(run.job)


def _end_if_failed(job: Future[None]) -> None:
    """A lost GPU, and what a job's thread could not tell the server, ends the process, which the server sees."""
    if (error := job.exception()) is not None:
        traceback.print_exception(error, file=sys.stderr)
        os._exit(1)


def _animate(
    animator: Any, run: m.Run, cancelled: Callable[[], bool], send: Callable[[m.Report], None]
) -> m.Done:
    began = last = time.monotonic()
    seconds = dict.fromkeys(("pose", "encode", "denoise", "decode", "write"), 0.0)
    if cancelled():
        raise Cancelled("The job was cancelled.")
    clip = animator.stream(
        run.folder / m.PICTURE,
        _motion(run),
        run.settings,
        reference_pose=_reference_pose(run),
        cancelled=cancelled,
    )
    with closing(clip), _VideoFile(run.folder / m.VIDEO, clip, send) as video:
        send(m.Started(clip.frames, float(clip.fps), tuple(clip.size)))
        for event in clip:
            now = time.monotonic()
            seconds[event.stage] += now - last
            last = now
            _report(event, now - began, send)
            if event.frames is not None:
                video.write(event.frames)
                last = time.monotonic()
                seconds["write"] += last - now
        return video.finish(seconds)


def _motion(run: m.Run) -> Any:
    path = run.folder / m.MOTION
    if run.motion_kind == "video":
        return path
    if run.motion_kind == "keypoints":
        return _pose_sequence(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise MotionError(
            f"The pose pictures are not a .npy file: {error}.",
            remedy="Send uint8 [frames, height, width, 3] as numpy.save writes it.",
            field="motion",
        ) from None


def _reference_pose(run: m.Run) -> Any:
    return _pose_sequence(run.folder / m.REFERENCE_POSE) if run.has_reference_pose else None


def _pose_sequence(path: Path) -> Any:
    from ..pose import PoseSequence

    return PoseSequence.load(path.read_bytes())


def _report(event: Event, elapsed: float, send: Callable[[m.Report], None]) -> None:
    send(m.Progress(event.stage, event.step, event.steps, event.segment, event.segments, elapsed))
    if event.preview is not None:
        send(m.Preview(_jpeg(event.preview), event.step, event.steps))


def _jpeg(picture: Any) -> bytes:
    """A JPEG file of at most one chunk."""
    import cv2

    data = b""
    for quality in _QUALITY_STEPS:
        _, coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        data = coded.tobytes()
        if len(data) <= m.CHUNK_BYTES:
            return data
    return _jpeg(np.ascontiguousarray(picture[::2, ::2]))


class _VideoFile:
    """The job's MP4 on its way to disk: every piece is written, summed, flushed and then reported."""

    def __init__(self, path: Path, clip: Any, send: Callable[[m.Report], None]) -> None:
        self._path = path
        self._clip = clip
        self._send = send
        self._file = path.open("wb")
        self._mp4: Any = None
        self._size = (0, 0)
        self._digest = hashlib.sha256()
        self._offset = 0
        self._frames = 0

    def __enter__(self) -> _VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, frames: Any) -> None:
        """uint8 [n,H,W,3] RGB."""
        if self._mp4 is None:
            from ..media import FragmentedMp4

            self._size = (frames.shape[2], frames.shape[1])
            self._mp4 = FragmentedMp4(self._clip.fps, self._size, audio=self._clip.audio)
        self._frames += len(frames)
        self._put(self._mp4.write(frames))

    def finish(self, seconds: dict[str, float]) -> m.Done:
        if self._mp4 is None:
            raise EngineError("The engine ended without a frame.")
        began = time.monotonic()
        self._put(self._mp4.close())
        seconds["write"] += time.monotonic() - began
        return m.Done(
            frames=self._frames,
            fps=float(self._clip.fps),
            size=self._size,
            bytes=self._offset,
            sha256=self._digest.hexdigest(),
            seconds=seconds,
        )

    def _put(self, data: bytes) -> None:
        for at in range(0, len(data), m.CHUNK_BYTES):
            piece = data[at : at + m.CHUNK_BYTES]
            try:
                self._file.write(piece)
                self._file.flush()
            except OSError as error:
                raise OutputError(
                    f"The video cannot be spooled: {error}.", remedy="Free space on the server's disk."
                ) from error
            self._digest.update(piece)
            self._send(m.Video(self._offset, len(piece), zlib.crc32(piece)))
            self._offset += len(piece)


def _plain(error: Exception) -> MimicMotionError:
    """As one of this package's classes, which every process can unpickle; a crash is explained on stderr."""
    if isinstance(error, MimicMotionError):
        kind: type[MimicMotionError] = next(
            kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__
        )
        return kind(error.message, remedy=error.remedy, field=error.field)
    traceback.print_exception(error, file=sys.stderr)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return EngineError(f"The engine failed: {text}.", remedy="The server's log has the details.")
