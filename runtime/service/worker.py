"""The engine process: loads the animator, then runs jobs, `Limits.jobs` at a time, each in a thread."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import errors
from ..denoise.checkpoint import Checkpoints
from ..denoise.cost import ModelStats
from ..errors import Cancelled, DeviceLost, EngineError, MimicMotionError, OutputError
from ..events import CHUNK_BYTES, Done, Event, Failed, Preview, Started, Video, joined_notes
from ..limits import Limits
from ..settings import Settings, driver_of
from .config import EngineConfig

if TYPE_CHECKING:
    pass

SHOWN = {"video": "auto", "pose_video": "pose-video", "person_video": "video"}
"""What videos show, by the kind of the job's motion, as `Animator.animate` takes it."""
JPEG_QUALITIES = (90, 70, 40)
"""Of previews: the first one that makes a file of at most `CHUNK_BYTES`."""


# ---- what crosses the pipe: small values, never pixels or video ----


@dataclass(frozen=True, slots=True)
class Run:
    """Animate these files and write the video as it is decoded."""

    job: str
    picture: Path
    motion: Path
    motion_kind: Literal["video", "keypoints", "pose_pictures", "pose_video", "person_video"]
    reference_pose: Path | None
    videos: tuple[Path, ...]
    """Where they are written, one for each seed."""
    settings: Settings
    checkpoint_share: float
    """Of the job's time, how much its checkpoints may take."""
    told: tuple[Video, ...] = ()
    """Pieces of the videos that were told in an earlier run: they must come out the same, and are not told again."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a job within a step."""

    job: str


@dataclass(frozen=True, slots=True)
class Suspend:
    """Stop a job after the step that it is in; it will be run again."""

    job: str


@dataclass(frozen=True, slots=True)
class Suspended:
    """A job was stopped and can be run again; nothing more comes from it now."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The animator is loaded and warm."""

    bundle_name: str
    note: str
    build: str
    """What the bytes of a video depend on besides inputs and settings: bundle, version and device."""
    defaults: Settings
    costs: ModelStats | None
    """See `Animator.costs`; of `rows` that are computed at the same time."""
    rows: int


ToEngine = Run | Cancel | Suspend | None
"""None: leave after the running jobs, if any."""
FromEngine = Ready | MimicMotionError | tuple[str, Event | Suspended]
"""An error: there is no animator, and the process ends. A pair: a job's id and what happened to it."""


# ---- the process ----

TO_THE_GROUP = {signal.SIGINT, signal.SIGTERM}
"""Signals that a terminal and an init system send to every process; the server decides what they mean."""


@contextmanager
def deaf() -> Iterator[None]:
    """A process that is started in here does not hear `TO_THE_GROUP` before `main` ignores them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # to start it later would unblock the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_THE_GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(connection: Connection[Any, Any], config: EngineConfig) -> None:
    """Entry of the spawned process; returns when the server says so."""
    for number in TO_THE_GROUP:
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    inbox, lock = _Inbox(connection), threading.Lock()

    def send(message: FromEngine) -> None:
        with lock:
            connection.send(message)

    try:
        animator = config.load(config)
        defaults = animator.settings()
    except Exception as error:
        send(_plain(error))
        return
    send(Ready(animator.bundle_name, animator.note, animator.build, defaults, animator.costs, animator.rows))
    try:
        with ThreadPoolExecutor(config.limits.jobs, "job") as threads:
            for run in iter(inbox.runs.get, None):
                threads.submit(_run, animator, run, inbox, send).add_done_callback(_end_if_failed)
    finally:
        animator.close()


def _die_with_parent() -> None:
    """Linux kills this process when the server dies, even one that hangs; elsewhere `_Inbox` notices."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _Inbox:
    """Reads the pipe in a thread, so that a cancel arrives while a job runs."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self.runs: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        """Jobs in their order; None after the last one."""
        self.cancelled: set[str] = set()
        """Ids of jobs that are to stop."""
        self.suspended: set[str] = set()
        """Ids of jobs that are to stop after a step."""
        self._connection = connection
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                message: ToEngine = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # the server is gone: nobody wants the result, and the device must be freed
            if isinstance(message, Cancel):
                self.cancelled.add(message.job)
                continue
            if isinstance(message, Suspend):
                self.suspended.add(message.job)
                continue
            self.runs.put(message)
            if message is None:
                return


def _run(animator: Any, run: Run, inbox: _Inbox, send: Callable[[FromEngine], None]) -> None:
    def report(event: Event | Suspended) -> None:
        send((run.job, event))

    try:
        report(_animate(animator, run, inbox, report))
    except BrokenPipeError:
        raise
    except Exception as error:
        report(Failed(_plain(error)))
        if isinstance(error, DeviceLost):  # no job of this process would succeed any more
            raise
    inbox.cancelled.discard(run.job)
    inbox.suspended.discard(run.job)


def _end_if_failed(job: Future[None]) -> None:
    """End the process, which the server notices, for a lost GPU and for an error that could not be reported."""
    if (error := job.exception()) is not None:
        traceback.print_exception(error, file=sys.stderr)
        os._exit(1)


def _animate(animator: Any, run: Run, inbox: _Inbox, report: Callable[[Event], None]) -> Done | Suspended:
    from .spool import Spool

    def cancelled() -> bool:
        return run.job in inbox.cancelled

    began = time.monotonic()
    if cancelled():
        raise Cancelled("The job was cancelled.")
    _check_files(run)
    build = animator.build_for(run.settings)
    checkpoints = Checkpoints(run.videos[0].parent, build, run.settings, share=run.checkpoint_share)
    clip = animator.stream(
        run.picture,
        _motion(run, animator.limits),
        run.settings,
        reference_pose=_poses(run.reference_pose, animator.limits)
        if run.reference_pose is not None
        else None,
        motion_kind=SHOWN.get(run.motion_kind, "auto"),
        cancelled=cancelled,
        checkpoints=checkpoints,
    )
    with closing(clip), closing(Spool(run.videos, clip, run.told, report)) as videos:
        report(Started(clip.frames, float(clip.fps), tuple(clip.size)))
        for event in clip:
            report(replace(event, seconds=time.monotonic() - began, preview=None, frames=None))
            if event.preview is not None:
                report(Preview(_jpeg(event.preview), event.step, event.steps))
            if event.frames is not None:
                videos.write(event.video, event.frames)
            checkpoints.urgent = run.job in inbox.suspended
            if checkpoints.urgent and checkpoints.holds(event):
                return Suspended()
        done = videos.done()
        return replace(done, note=joined_notes(animator.note, done.note))


def _check_files(run: Run) -> None:
    for file in (run.picture, run.motion, run.reference_pose):
        if file is not None and not file.exists():
            raise OutputError(
                f"The job's upload is gone from the server's disk ({file.name}).",
                remedy="Send the job again; let no cleaner remove files of the server's folder.",
            )


def _motion(run: Run, limits: Limits) -> Any:
    if run.motion_kind in SHOWN:
        return run.motion
    if run.motion_kind == "keypoints":
        return _poses(run.motion, limits, driver_of(run.settings))
    from ..pose.motion import map_pictures

    pictures = map_pictures(run.motion)
    return run.motion if pictures.dtype.kind == "f" else pictures  # COCO-WholeBody's points


def _poses(path: Path, limits: Limits, person: str | None = None) -> Any:
    from ..pose import PoseSequence

    return PoseSequence.load(path, limits, person)


def _jpeg(picture: Any) -> bytes:
    """A JPEG file of at most one chunk."""
    import cv2

    for quality in JPEG_QUALITIES:
        _, coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        if len(coded) <= CHUNK_BYTES:
            return coded.tobytes()
    return _jpeg(np.ascontiguousarray(picture[::2, ::2]))


def _plain(error: Exception) -> MimicMotionError:
    """The error as a class of errors.py, which every process can unpickle; others are printed to stderr."""
    if isinstance(error, MimicMotionError):
        kind: type[MimicMotionError]
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return kind(error.message, remedy=error.remedy, field=error.field)
    traceback.print_exception(error, file=sys.stderr)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return EngineError(f"The engine failed: {text}.", remedy="The server's log has the details.")
