"""A job and its result."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import Cancelled, OutputError
from .events import Progress, joined_notes
from .facts import Facts
from .pipeline import Animation
from .validation import described_clip

Picture = NDArray[np.uint8]
SHOWN = 8
"""Frames on the sheet in a notebook."""


class Job:
    """One animation. Iterating it does the work and yields events; `result()` does what is left of it.

    Work is done in the thread that iterates; `cancel()` may come from another.
    """

    def __init__(self, start: Callable[..., Animation]) -> None:
        """`start(cancelled=...)` makes the animation, which asks `cancelled()` as it goes."""
        self._cancel = threading.Event()
        self._error: BaseException | None = None
        self.animation = start(cancelled=self.cancelled)
        """The animation under way: its settings, size, frame rate and poses."""
        self._videos = [Result(self.animation)]

    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Stop before the next batch of rows, frame or chunk; iterating then raises `Cancelled`."""
        self._cancel.set()

    def __repr__(self) -> str:
        clip = self.animation
        return f"<Job: {described_clip(clip.frames, clip.size, clip.fps)}>"

    def __iter__(self) -> Iterator[Progress]:
        if self._error is not None:
            raise self._error
        try:
            for event in self.animation:
                if event.frames is not None:
                    if event.video > len(self._videos):
                        self._videos.append(Result(self.animation))
                        self._videos[0].others.append(self._videos[-1])
                    self._videos[-1].append(event.frames)
                yield event
        except GeneratorExit:
            raise  # the owner stopped looking; what is left can still be done
        except Exception as error:
            self._error = error  # an unfinished result must not pass for a finished one
            raise
        except BaseException:
            self._error = self._interrupted()
            raise

    def result(self, progress: Callable[[Progress], None] | None = None) -> Result:
        """The finished animation; raises what went wrong."""
        try:
            for event in self:
                if progress is not None:
                    progress(event)
        except Exception:
            raise
        except BaseException:
            self._error = self._error or self._interrupted()
            raise
        return self._videos[0]

    @staticmethod
    def _interrupted() -> Cancelled:
        """Ctrl-C came, or the program ends."""
        return Cancelled("the job was interrupted.", remedy="Animate again.")


class Result:
    """Finished frames, kept in a temporary file on disk so that long clips take no memory.

    With several `seeds` this is the first video, and `videos` has all of them.
    """

    def __init__(self, animation: Animation) -> None:
        self.animation = animation
        self.note = animation.note
        """What the bundle says of itself, and once the video was saved, what was lost of the motion's sound and why;
        empty if there is nothing to say."""
        self._spool = tempfile.TemporaryFile(prefix="mimicmotion-")  # noqa: SIM115 - lives as long as the result
        self._count = 0
        self._facts: Facts | None = None
        self.others: list[Result] = []
        """Of several videos of one job, those after the first."""

    @property
    def videos(self) -> list[Result]:
        """This one, and the others of the job: one for each seed, in their order."""
        return [self, *self.others]

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.animation.fps

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.animation.size

    @property
    def facts(self) -> Facts:
        """How it was made: settings in force, bundle, device, people found, frames held. Also in the saved file."""
        return self._facts or self.animation.facts

    @property
    def seconds(self) -> dict[str, float]:
        """By stage: pose, encode, denoise, decode."""
        return self.animation.seconds

    @property
    def held(self) -> int:
        """Frames in which the driving person was not seen: they hold the last pose."""
        return self.facts.held

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        closed = ", closed" * self._spool.closed
        return f"<Result: {described_clip(len(self), self.size, self.fps)}{closed}>"

    def _repr_html_(self) -> str:
        """A player, and a sheet of frames below it."""
        from .media.notebook import picture_html, video_html
        from .media.sheet import contact_sheet, evenly

        if self._spool.closed:
            return f"<p>{escape(repr(self))}</p>"
        if not self._count:
            return f"<p>No frames yet of {self.size[0]}x{self.size[1]}.</p>"
        with tempfile.TemporaryDirectory(prefix="mimicmotion-") as folder:
            video = self.save(Path(folder) / "video.mp4").read_bytes()
        label = described_clip(len(self), self.size, self.fps)
        sheet = contact_sheet([(label, [self.frame(index) for index in evenly(len(self), SHOWN)])])
        return f"{video_html(video, self.size)}<br>{picture_html(sheet, label)}"

    def append(self, frames: Picture) -> None:
        """Add frames uint8 [n,H,W,3]."""
        self._check_open()
        self._facts = self.animation.facts
        self._spool.seek(0, 2)
        self._spool.write(np.ascontiguousarray(frames).data)
        self._count += len(frames)

    def __iter__(self) -> Iterator[Picture]:
        """Frames uint8 [H,W,3], one by one from disk."""
        for index in range(self._count):
            yield self.frame(index)

    def frame(self, index: int) -> Picture:
        """Frame `index`, from 0, as uint8 [H,W,3]; IndexError beyond the last."""
        self._check_open()
        index = range(self._count)[index]
        width, height = self.size
        size = width * height * 3
        self._spool.seek(index * size)
        return np.frombuffer(self._spool.read(size), np.uint8).reshape(height, width, 3)

    def _check_open(self) -> None:
        if self._spool.closed:
            raise OutputError("the result is closed.", remedy="Save it, or take its frames, before close().")

    def frames(self) -> Picture:
        """All frames uint8 [F,H,W,3] in memory."""
        width, height = self.size
        return np.stack(list(self)) if self._count else np.empty((0, height, width, 3), np.uint8)

    def save(self, path: str | Path) -> Path:
        """Write the video with the motion's sound, in the format of the path's ending; whole or not at all.

        .mp4, .mov, .mkv, .webm, .gif, or PNG pictures for a folder (`frames/`) or pattern (`f/%04d.png`). The four
        video formats hold `facts` in their metadata (`comment`, JSON), which `read_facts` reads.
        Sound that cannot be used is left out, which `note` says. Raises `OutputError`.
        """
        from .media.writer import VideoWriter  # needs PyAV; a machine that only samples does without

        comment = self.facts.to_json
        with VideoWriter(
            path, fps=self.fps, size=self.size, audio=self.animation.audio, comment=comment
        ) as writer:
            for frame in self:
                writer.write(frame)
        self.note = joined_notes(self.animation.note, writer.note)
        return Path(path)

    def save_all(self, path: str | Path) -> list[Path]:
        """Save each of `videos`: `out.mp4` becomes out-1.mp4 and so on, `out_%02d.mp4` says where the number goes.

        A single video is saved as `path`. Raises `OutputError`; the videos before the one at fault are saved then.
        """
        from .media.writer import numbered_outputs

        names = numbered_outputs(path, len(self.videos))
        return [video.save(name) for video, name in zip(self.videos, names, strict=True)]

    def close(self) -> None:
        """Delete the frames, those of the other videos too."""
        for video in self.videos:
            video._spool.close()
