"""One animation, top to bottom: pose, encode, denoise, decode.

Each stage is a generator: it yields `Progress` and returns its result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .denoise.checkpoint import Checkpoint, Checkpoints
from .denoise.plan import Conditions, DenoisePlan, Denoiser
from .denoise.schedule import Step
from .errors import Cancelled, EngineError, MotionError, counted
from .events import STAGES, Progress, Stage
from .facts import Facts
from .inputs import AnimationInputs
from .networks import Networks, Sampler
from .pose import PoseSequence, iter_pose_pictures
from .pose.draw import Drawing
from .pose.framing import Reference
from .pose.motion import sized_pictures
from .pose.retarget import retarget
from .settings import Settings, driver_of

Float = NDArray[np.float32]
Picture = NDArray[np.uint8]
T = TypeVar("T")
StageRun = Generator[Progress, None, T]
"""A stage under way: yields its progress, returns what it made."""


class Animation:
    """An animation under way. Iterate it once for its events; those of the decode stage carry the frames."""

    def __init__(
        self,
        networks: Networks,
        sampler: Sampler,
        inputs: AnimationInputs,
        facts: Facts,
        cancelled: Callable[[], bool],
        clock: Callable[[], float],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.seeds = facts.settings.each_seed
        """One for each video."""
        self.video = 1
        """Which of them is being made."""
        self.facts = facts.of_seed(self.seeds[0])
        """How that one is made: the settings in force; people and held frames are known after the pose stage."""
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        """That each stage has taken so far, without what the owner did in between."""
        self.fps = inputs.motion.fps
        self.size = inputs.size
        self.frames = inputs.motion.frames
        """Frames of the finished video; an estimate until the pose stage is over, 0 if not known yet."""
        self.audio = inputs.motion.audio
        self.poses: PoseSequence | None = None
        """The poses that are drawn, the reference's own first. None if the motion is pose pictures, or before the
        pose stage ends."""
        self.reference: Reference | None = None
        """The picture as it is animated, the pose in it and the crop that was taken; None before the pose stage."""
        self._networks, self._sampler, self._inputs = networks, sampler, inputs
        self._cancelled, self._clock, self._began = cancelled, clock, clock()
        self._checkpoints = checkpoints
        self._latents: Float | None = None
        self._events = self._timed()

    @property
    def settings(self) -> Settings:
        """The settings in force, all filled in."""
        return self.facts.settings

    @property
    def held(self) -> int:
        """Frames of the motion in which the person was not seen: they hold the last pose, confidence falling."""
        return self.facts.held

    def __iter__(self) -> Iterator[Progress]:
        return self._events

    @property
    def note(self) -> str:
        """What the bundle says of itself."""
        return self._networks.model.note

    def close(self) -> None:
        """Stop the animation and give back what it holds."""
        self._events.close()

    def _timed(self) -> StageRun[None]:
        with contextlib.closing(self._run()) as events:
            last = self._clock()
            for event in events:
                self.seconds[event.stage] += self._clock() - last
                yield event
                last = self._clock()

    def _run(self) -> StageRun[None]:
        try:
            pictures = yield from self._pose()
            width, height = self.size
            plan = self._sampler.plan(self.frames + 1, self.settings, (height // 8, width // 8))
            checkpoint = self._checkpoints.load() if self._checkpoints is not None else None
            done, steps = 0 if checkpoint is None else checkpoint.steps, len(plan.steps)
            conditions, first = None, max(0, done - 1) // steps
            for number in range(first, len(self.seeds)):
                self.video, self.facts = number + 1, self.facts.of_seed(self.seeds[number])
                latents = None if checkpoint is None else checkpoint.latents
                if checkpoint is None or done < self.video * steps:
                    if conditions is None:
                        conditions = yield from self._encode(pictures, plan)
                    elif self.settings.noise_aug > 0:  # the picture's noise is the seed's
                        conditions = replace(self._condition(plan), pose=conditions.pose)
                    latents = yield from self._denoise(plan, conditions, checkpoint)
                assert latents is not None
                self._latents = latents[: plan.kept]
                yield from self._decode(self._latents, self.video * steps)
                checkpoint = None
        except EngineError as error:
            self._networks.raise_if_lost(error)
            raise

    # ---- pose ----

    def _pose(self) -> StageRun[Iterator[Picture]]:
        """Pose pictures uint8 [H,W,3], the reference's own first; drawn one by one as they are asked for."""
        motion, (width, height), canvas = self._inputs.motion, self.size, self.settings.canvas
        assert canvas is not None
        self.reference = self._inputs.reference(self.settings.framing, self.settings.person)
        self.facts = replace(self.facts, people_in_picture=self.reference.people)
        reference, drawing = self.reference.pose, Drawing.of(self.settings)
        if motion.pictures is not None:
            self._stop_if_cancelled()
            yield self._progress("pose", self.frames, self.frames)
            own = iter_pose_pictures(reference, height, width, canvas, drawing)
            return chain(own, sized_pictures(motion, width, height))
        driving = motion.poses
        if driving is None:
            found = self._checkpoints.load_poses() if self._checkpoints is not None else None
            if found is None:
                found = yield from self._estimate()
                if self._checkpoints is not None:
                    self._checkpoints.save_poses(*found)
            driving, people = found
            self.facts = replace(self.facts, people_in_motion=people)
        driving, held = retarget(driving, reference, self.settings, self.size)
        self.facts = replace(self.facts, held=int(held.sum()))
        self.frames = len(driving)
        self.poses = PoseSequence.concat([replace(reference, fps=driving.fps, size=self.size), driving])
        self._stop_if_cancelled()
        yield self._progress("pose", self.frames, self.frames)
        return iter_pose_pictures(self.poses, height, width, canvas, drawing)

    def _estimate(self) -> StageRun[tuple[PoseSequence, int]]:
        """The poses of a driving video, and the most people who were seen in a frame."""
        assert self._inputs.motion.video is not None
        estimator, found = self._inputs.open_estimator(driver_of(self.settings)), []
        for done, frame in enumerate(self._inputs.motion.video(), 1):
            self._stop_if_cancelled()
            found.append(estimator.estimate(frame))
            self.facts = replace(self.facts, held=self.held + (not found[-1].body_score.any()))
            if done != (steps := len(self._inputs.motion.sampling.taken)):  # the last one is told by `_pose`
                yield self._progress("pose", done, steps)
        estimator.check_found("driver" if self.settings.driver else "person")
        if not any(pose.body_score.any() for pose in found):
            raise MotionError(
                f"nobody was found in {counted(len(found), 'frame')} of the motion.",
                remedy="Give a video that shows one person, or keypoints.",
                field="motion",
            )
        return replace(PoseSequence.concat(found), fps=self._inputs.motion.sampling.rate), estimator.people

    # ---- encode ----

    def _encode(self, pictures: Iterator[Picture], plan: DenoisePlan) -> StageRun[Conditions]:
        """Picture and pose pictures through CLIP, the VAE's encoder and PoseNet."""
        conditions = self._condition(plan)
        for done in self._networks.encode_poses(pictures, conditions.pose, self.settings.pose_strength):
            self._stop_if_cancelled()
            yield self._progress("encode", done, plan.kept)
        return conditions

    def _condition(self, plan: DenoisePlan) -> Conditions:
        """What the networks are told of the picture; its `pose` is to be filled."""
        assert self.reference is not None
        return self._networks.condition(self.reference.picture, plan.frames, self.settings)

    # ---- denoise ----

    def _denoise(
        self, plan: DenoisePlan, conditions: Conditions, checkpoint: Checkpoint | None
    ) -> StageRun[Float]:
        """Latents [F,4,h,w] after the last step; the steps before a checkpoint are left out."""
        before = (self.video - 1) * len(plan.steps)
        done_before = checkpoint.steps - before if checkpoint is not None else 0
        latents = (
            checkpoint.latents
            if checkpoint is not None
            else self._sampler.initial_latents(plan, self.settings)
        )
        steps, segments = len(plan.steps), plan.segment_count
        with self._sampler.denoiser(plan, conditions, latents, self.settings.lora) as denoiser:
            for index, step in enumerate(plan.steps[done_before:], done_before):
                for done in denoiser.run(step):
                    self._stop_if_cancelled()
                    if done < segments:
                        yield self._progress("denoise", index, steps, segment=done, segments=segments)
                # A shallow step takes cached features, which no checkpoint holds.
                if self._checkpoints is not None and (index + 1 == steps or plan.steps[index + 1].full):
                    self._checkpoints.offer(before + index + 1, lambda: denoiser.latents)
                rows, preview = max(plan.variant(step).batches), self._preview(denoiser, step, index + 1)
                at = {"segment": segments, "segments": segments}
                yield self._progress("denoise", index + 1, steps, **at, rows=rows, preview=preview)
            return denoiser.latents

    def _preview(self, denoiser: Denoiser, step: Step, done: int) -> Picture | None:
        """The middle frame as the step just made predicts it, after every `settings.preview` steps."""
        every = self.settings.preview
        if not every or done % every:
            return None
        latents = denoiser.denoised(denoiser.plan.kept // 2, step)
        picture: Picture = next(self._networks.decode(latents[None], 1))[0]
        return picture

    # ---- decode ----

    def _decode(self, latents: Float, steps: int) -> Iterator[Progress]:
        """Chunk by chunk; the first frame is the reference picture's own and is dropped."""
        self._stop_if_cancelled()
        yield self._progress("decode", 0, self.frames)  # a chunk may take minutes
        done = -1  # the reference picture's own frame is not counted
        for pictures in self._networks.decode(latents, self.settings.decode_chunk):
            self._stop_if_cancelled()
            if self._checkpoints is not None:
                self._checkpoints.offer(steps, lambda: latents)
            fresh = pictures[1:] if done < 0 else pictures
            done += len(pictures)
            yield self._progress("decode", done, self.frames, frames=fresh)

    def frames_again(self) -> Iterator[Picture]:
        """The finished frames of the video that is being decoded once more, uint8 [n,H,W,3]: for an owner who lost
        them. They are decoded again."""
        assert self._latents is not None
        drop = 1
        for pictures in self._networks.decode(self._latents, self.settings.decode_chunk):
            yield pictures[drop:]
            drop = 0

    def _progress(self, stage: Stage, step: int, steps: int, **more: Any) -> Progress:
        if stage in ("denoise", "decode"):  # counted over all videos
            step, steps = step + (self.video - 1) * steps, steps * len(self.seeds)
        seconds = self._clock() - self._began
        return Progress(stage, step, steps, seconds=seconds, held=self.held, video=self.video, **more)

    def _stop_if_cancelled(self) -> None:
        if self._cancelled():
            raise Cancelled("the job was cancelled.")
