"""One animation under way: from its inputs to its frames, as a stream of events."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .denoise import Conditions, Denoiser, closed
from .errors import Cancelled, EngineError, MotionError, PictureError
from .events import Progress, Stage
from .limits import Limits
from .media.picture import fit_picture, read_picture
from .motion import Motion, estimate, open_motion, sized_pictures
from .pose import PoseSequence, iter_pose_pictures, open_estimator, rescale_to_reference
from .schedule import Step
from .settings import Settings

if TYPE_CHECKING:
    from .animator import Animator
    from .cuda.denoiser import CudaDenoiser

Picture = NDArray[np.uint8]
T = TypeVar("T")
Work = Generator[Progress, None, T]
"""A stage: yields its events, returns what it made."""


@dataclass(frozen=True)
class Source:
    """Checked inputs of one animation."""

    picture: Picture
    """The reference picture as it came, uint8 [H,W,3]."""
    size: tuple[int, int]
    """(width, height) of the video."""
    motion: Motion
    reference_pose: PoseSequence | None
    """Of the picture as it came; None: to be estimated."""
    estimator: str
    threads: int | None

    @classmethod
    def open(
        cls,
        image: Any,
        motion: Any,
        settings: Settings,
        sizes: tuple[tuple[int, int], ...],
        limits: Limits,
        reference_pose: PoseSequence | None,
        estimator: str,
        threads: int | None,
    ) -> Source:
        """Read the picture and the motion's header; raises `InputError`."""
        picture = read_picture(image, limits)
        if reference_pose is not None and not (
            isinstance(reference_pose, PoseSequence) and len(reference_pose) == 1
        ):
            kind = type(reference_pose).__name__
            raise MotionError(
                f"the reference pose is {kind}{' of several frames' if kind == 'PoseSequence' else ''}.",
                remedy="Give a PoseSequence of one frame, or None.",
                field="reference_pose",
            )
        size = settings.size or nearest_size((picture.shape[1], picture.shape[0]), sizes)
        return cls(picture, size, open_motion(motion, settings, limits), reference_pose, estimator, threads)

    def reference(self) -> PoseSequence:
        """The pose of the person in the picture, in fractions of the crop that is animated; one frame."""
        pose = self.reference_pose or self._find()
        return cropped_pose(pose, (self.picture.shape[1], self.picture.shape[0]), self.size)

    def _find(self) -> PoseSequence:
        # The whole picture, not the crop: an estimator finds people by what is around them, too.
        pose = open_estimator(self.estimator, threads=self.threads).estimate(self.picture)
        if not pose.body_score.any():
            raise PictureError(
                "nobody was found in the reference picture.",
                remedy="Give a picture that shows one person, or the person's pose as reference_pose.",
                field="image",
            )
        return pose


class Clip:
    """An animation under way; iterate it once for its events, of which the last carry the frames."""

    def __init__(
        self,
        animator: Animator,
        source: Source,
        settings: Settings,
        cancelled: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = replace(settings, size=source.size)
        """The settings in force, all filled in."""
        self.fps = source.motion.fps
        self.size = source.size
        self.frames = source.motion.frames
        """Frames of the finished video; an estimate until the pose stage is over, 0 if there is none."""
        self.audio = source.motion.audio
        self.poses: PoseSequence | None = None
        """The poses that are drawn, the reference's own first; None for pose pictures or before they are known."""
        self._animator, self._source = animator, source
        self._cancelled, self._clock, self._began = cancelled, clock, clock()
        self._events = self._run()

    def __iter__(self) -> Iterator[Progress]:
        return self._events

    def close(self) -> None:
        """Leave the animation where it is and give back what it holds."""
        self._events.close()
        self._source.motion.close()

    def _run(self) -> Work[None]:
        try:
            pictures = yield from self._pose()
            conditions = yield from self._encode(pictures)
            latents = yield from self._denoise(conditions)
            yield from self._decode(latents)
        except EngineError as error:
            self._animator.raise_if_lost(error)
            raise
        finally:
            self._source.motion.close()

    def _pose(self) -> Work[Iterator[Picture]]:
        """The pose pictures, the reference's own first."""
        motion, (width, height) = self._source.motion, self.size
        reference = self._source.reference()
        canvas = self.settings.canvas or 2160
        if motion.pictures is not None:
            self._check()
            yield self._event("pose", self.frames, self.frames)
            own = iter_pose_pictures(reference, height, width, canvas)
            return chain(own, sized_pictures(motion.pictures(), width, height))
        driving = motion.poses
        if driving is None:
            driving = yield from self._estimate(motion)
        if self.settings.rescale:
            driving = rescale_to_reference(driving, reference, height, width)
        self.frames = len(driving)
        self.poses = PoseSequence.concat(
            [replace(reference, fps=driving.fps, size=self.size), replace(driving, size=self.size)]
        )
        self._check()
        yield self._event("pose", self.frames, self.frames)
        return iter_pose_pictures(self.poses, height, width, canvas)

    def _estimate(self, motion: Motion) -> Work[PoseSequence]:
        """The driving poses."""
        found = []
        for done, pose in estimate(motion, self._source.estimator, self._source.threads, self._check):
            found.append(pose)
            yield self._event("pose", done, max(self.frames, done) if self.frames else 0)
        if not any(pose.body_score.any() for pose in found):
            raise MotionError(
                f"nobody was found in {len(found)} frames of the motion.",
                remedy="Give a video that shows one person, or keypoints.",
                field="motion",
            )
        return replace(PoseSequence.concat(found), fps=motion.fps)

    def _encode(self, pictures: Iterator[Picture]) -> Work[Conditions]:
        picture = fit_picture(self._source.picture, *self.size)
        frames = self.frames + 1
        conditions = self._animator.condition(picture, frames, self.settings)
        for done in self._animator.stages.encode_poses(pictures, conditions.pose):
            self._check()
            yield self._event("encode", done, frames)
        return conditions

    def _denoise(self, conditions: Conditions) -> Work[NDArray[np.float32]]:
        denoiser = self._animator.denoiser(conditions, self.settings)
        segments = denoiser.segments
        steps = list(self._animator.steps(self.settings))
        with closed(denoiser):
            for index, step in enumerate(steps):
                for done in denoiser.run(step):
                    self._check()
                    if done < segments:
                        yield self._event("denoise", index, len(steps), segment=done, segments=segments)
                preview = self._preview(denoiser, step, index + 1)
                yield self._event(
                    "denoise", index + 1, len(steps), segment=segments, segments=segments, preview=preview
                )
            return denoiser.latents

    def _preview(self, denoiser: Denoiser | CudaDenoiser, step: Step, done: int) -> Picture | None:
        every = self.settings.preview
        if not every or done % every:
            return None
        latents = denoiser.finished(denoiser.frames // 2, step)
        picture: Picture = next(self._animator.stages.decode(latents[None], 1))[0]
        return picture

    def _decode(self, latents: NDArray[np.float32]) -> Iterator[Progress]:
        done = -1  # the first frame is the reference picture's own
        for pictures in self._animator.stages.decode(latents, self.settings.decode_chunk):
            self._check()
            fresh = pictures[1:] if done < 0 else pictures
            done += len(pictures)
            yield self._event("decode", done, self.frames, frames=fresh)

    def _event(self, stage: Stage, step: int, steps: int, **more: Any) -> Progress:
        return Progress(stage, step, steps, seconds=self._clock() - self._began, **more)

    def _check(self) -> None:
        if self._cancelled():
            raise Cancelled("the job was cancelled.")


def nearest_size(picture: tuple[int, int], sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The (width, height) of `sizes` nearest in shape to the picture's; of equally near ones the widest."""
    shape = np.log(picture[0] / picture[1])
    return min(sizes, key=lambda size: (round(abs(float(np.log(size[0] / size[1]) - shape)), 6), -size[0]))


def cropped_pose(pose: PoseSequence, picture: tuple[int, int], size: tuple[int, int]) -> PoseSequence:
    """A pose in fractions of a whole picture (width, height), in fractions of its centred crop shaped as `size`."""
    scale = min(picture[0] / size[0], picture[1] / size[1])
    box = np.array(size) * scale / picture  # the crop's sides in fractions of the picture's
    moved = {
        name: ((getattr(pose, name) - (1 - box) / 2) / box).astype(np.float32)
        for name in ("body", "hands", "face")
    }
    return replace(pose, **moved, size=size)
