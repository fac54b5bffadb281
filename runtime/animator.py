"""The public face for embedding: load a bundle, animate pictures."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from .bundles import load_bundle
from .denoise.checkpoint import Checkpoints
from .denoise.cost import ModelStats, check_memory
from .errors import MotionError, SettingsError
from .facts import Facts
from .inputs import Request, check_pose_pictures, nearest_size, open_inputs, read_reference, reference_picture
from .job import Job
from .limits import Limits
from .lora import Loras
from .media.picture import PictureLike, fit_picture
from .networks import Networks, Sampler
from .pipeline import Animation
from .pose import PoseSequence, draw_poses, estimate_poses
from .pose.draw import LINE_WIDTH, Drawing, drawn_width
from .pose.estimate import FRAMES_RATE
from .pose.framing import Reference
from .pose.motion import MotionKind, MotionLike, are_pictures, open_motion
from .pose.retarget import retarget
from .pose.sampling import sample
from .settings import Settings, SettingsDict, driver_of, make_settings, resolve_settings
from .validation import ArrayLike, check_array, check_device, described, plain_array

Float = NDArray[np.float32]
Picture = NDArray[np.uint8]
OnStep = Callable[[int, Float], None]
MEASURABLE, THIN = 1.5, 0.65
"""Pixels from which the width of lines can be told; share of the width of the model's lines under which pose pictures
are thought to be a mistake."""


class Animator:
    """Animates pictures with one bundle on one device; make it with `Animator.load`.

    Calls may come from several threads; each job takes memory of its own.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        name: str,
        limits: Limits,
        threads: int | None = None,
        graphs: bool = True,
        costs: ModelStats | None = None,
    ) -> None:
        self.costs = costs
        """What the networks cost on a CPU; None on a GPU and where it is not known: memory is not checked then."""
        self.networks = networks
        self.manifest = networks.model
        """What the bundle says of itself."""
        self.defaults = {**networks.model.defaults, "lora": networks.loras.usual or None}
        """Settings in force where none are given."""
        self.bundle_name = name
        """The name of the bundle's folder."""
        self.limits, self.threads = limits, threads
        self.sampler = Sampler(self.networks, limits, graphs=graphs)
        self.sampler.prepare(self.settings().segment)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{width}x{height}" for width, height in self.manifest.sizes)
        device = ", ".join(sorted(gpu.name for gpu in self.networks.gpus)) or "cpu"
        return f"<Animator of {self.bundle_name} on {device}: {sizes}, {self.settings().segment} frames a segment>"

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        limits: Limits | None = None,
        graphs: bool = True,
        lora: str | Path | Sequence[str | Path | tuple[str | Path, float]] = (),
        loras: Mapping[str, str | Path] | None = None,
    ) -> Animator:
        """Load a bundle by name or folder onto a device ("auto", "cpu", "cuda", "cuda:1").

        `threads` bounds the CPU threads of one engine call; None takes every core. `graphs`: on a GPU each step
        is one captured CUDA graph. `lora`: LoRA files, or files and strengths, that are in force unless settings say
        other ones; `loras`: files by the names by which `Settings.lora` chooses them. Raises `BundleError`, and
        `CheckpointError` for a LoRA that does not fit.
        """
        if threads is not None and (type(threads) is not int or threads < 1):
            raise SettingsError(f"threads is {threads!r}.", remedy="Choose 1 or more.", field="threads")
        check_device(device, SettingsError)
        if not isinstance(limits, Limits | None):
            raise SettingsError(
                f"limits are {described(limits)}.", remedy="Give Limits(frames=...).", field="limits"
            )
        loaded, limits = load_bundle(bundle), limits or Limits()
        known = Loras.open(loaded, loras or {}, lora)
        networks = Networks.open(loaded, device=device, threads=threads, limits=limits, loras=known)
        name = loaded.folder.resolve().name
        costs = ModelStats.of(loaded.manifest) if networks["unet"].gpu is None else None
        return cls(networks, name=name, limits=limits, threads=threads, graphs=graphs, costs=costs)

    @property
    def rows(self) -> int:
        """Rows that the U-Net computes at the same time on a CPU."""
        return self.manifest.rows[-1] * self.networks.workers

    @property
    def note(self) -> str:
        """The bundle's remark for its users."""
        return self.manifest.note

    @property
    def build(self) -> str:
        """What an animation's frames depend on besides inputs and settings: bundle, version and device."""
        return self.build_for(self.settings())

    def facts(self, settings: Settings) -> Facts:
        """How this animator makes a video with these settings, as far as is known before it does."""
        device = " ".join(sorted({gpu.name for gpu in self.networks.gpus})) or "cpu"
        build = " ".join([self.manifest.build, *self.networks.loras.fingerprints(settings.lora or ())])
        return Facts(settings, self.bundle_name, build, version("mimicmotion-trt"), device)

    def build_for(self, settings: Settings) -> str:
        """`build` with the contents of the LoRAs that settings choose. Raises `SettingsError`."""
        facts = self.facts(self.resolve(settings))
        return f"{facts.build} {facts.version} {facts.device}"

    def settings(self, **overrides: Unpack[SettingsDict]) -> Settings:
        """The bundle's own settings with some replaced; raises `SettingsError`."""
        return make_settings(self.defaults, overrides)

    def resolve(self, settings: Settings | None) -> Settings:
        """Settings in which segment, sigmas and canvas are filled in from the bundle; size may stay None."""
        if settings is None:
            return self.settings()
        if not isinstance(settings, Settings):
            raise SettingsError(
                f"settings are a {type(settings).__name__}.",
                remedy="Give Settings, for instance animator.settings(steps=25).",
                field="settings",
            )
        resolved = resolve_settings(settings, self.defaults)
        self.networks.loras.check(resolved.lora or ())
        return resolved

    def animate(
        self,
        image: PictureLike,
        motion: MotionLike,
        settings: Settings | None = None,
        *,
        reference_pose: PoseSequence | None = None,
        estimator: str = "mediapipe",
        motion_kind: MotionKind = "auto",
    ) -> Job:
        """A job that animates the person in `image` by `motion`; iterate it for events, then take `result()`.

        `image`: a path, the bytes of a file, a picture of Pillow, or uint8 [H,W,3] RGB. Arrays are numpy's or
        PyTorch's on the CPU. `motion`: a driving video, a keypoint file (.npz, .json) or a folder of pose pictures
        by path; a file's bytes; a `PoseSequence`; pose pictures uint8 [F,H,W,3]; or a list of these in a row.
        `motion_kind`: `video`, `pose-video` (of skeletons); `auto` tells by its first frames. `reference_pose`: the
        pose of the person in the picture (a one-frame `PoseSequence`), found by the estimator if None. Without
        settings the bundle's own are taken. Raises `InputError` for input that cannot be used, here or while the
        job runs.
        """
        given: Any = {"reference_pose": reference_pose, "estimator": estimator, "motion_kind": motion_kind}
        return Job(partial(self.stream, image, motion, settings, **given))

    def stream(
        self,
        image: PictureLike,
        motion: MotionLike,
        settings: Settings | None = None,
        *,
        reference_pose: PoseSequence | None = None,
        estimator: str = "mediapipe",
        motion_kind: MotionKind = "auto",
        cancelled: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        checkpoints: Checkpoints | None = None,
    ) -> Animation:
        """The same without anything kept: finished frames come with the events and are then forgotten.

        With `checkpoints`, made for `build_for(settings)` and these settings, the animation goes on from the newest
        one and keeps new ones as it runs. Its frames are those of an animation that was never stopped.
        """
        settings = self.resolve(settings)
        request = Request(image, motion, reference_pose, estimator, motion_kind)
        inputs = open_inputs(request, settings, self.limits, self.manifest.sizes, self.threads)
        width, height = inputs.size
        # Only reading a video tells how many frames it has; until then one segment stands for all.
        known = inputs.motion.video is None
        frames = inputs.motion.frames + 1 if known else settings.segment or 1
        self.sampler.check(frames, settings, (height // 8, width // 8))
        if self.costs is not None:
            sized, length = replace(settings, size=inputs.size), inputs.motion.frames or frames
            loads = self.networks.unets.to_load(settings.lora or ())
            check_memory(self.costs, sized, length, self.rows, self.limits, loads=loads)
        facts = self.facts(replace(settings, size=inputs.size))
        return Animation(self.networks, self.sampler, inputs, facts, cancelled, clock, checkpoints)

    # ---- the steps of an animation by hand ----

    def reference(
        self,
        image: PictureLike,
        settings: Settings | None = None,
        *,
        reference_pose: PoseSequence | None = None,
        estimator: str = "mediapipe",
    ) -> Reference:
        """The picture as `animate` takes it, uint8 [H,W,3] of the video's size, and the pose of the person in it."""
        request = Request(image, None, reference_pose, estimator)
        settings = self.resolve(settings)
        return read_reference(request, settings, self.limits, self.manifest.sizes, self.threads)

    def estimate_poses(
        self,
        motion: str | Path | bytes | ArrayLike,
        settings: Settings | None = None,
        *,
        estimator: str = "mediapipe",
    ) -> PoseSequence:
        """The poses of a driving video as `animate` finds them: of the frames and the driver that settings say.

        `motion`: a video (path or bytes), or its frames uint8 [F,H,W,3], 30 a second. Raises `MotionError`.
        """
        settings = self.resolve(settings)
        more: Any = {"threads": self.threads, "person": driver_of(settings)}
        if isinstance(motion, str | Path | bytes):
            opened = open_motion(motion, settings, self.limits, "video")
            if opened.video is None:
                raise MotionError(
                    "the motion is no video.", remedy="Load keypoints with PoseSequence.load.", field="motion"
                )
            return replace(estimate_poses(opened.video(), estimator, **more), fps=opened.sampling.rate)
        frames = plain_array(motion, MotionError, "motion")
        if not are_pictures(frames):
            return estimate_poses(frames, estimator, **more)  # one picture; of all else it says what is wrong
        sampling = sample(len(frames), FRAMES_RATE, settings, self.limits)
        found = estimate_poses((frames[index] for index in sampling.taken), estimator, **more)
        return replace(found, fps=sampling.rate)

    def rescale(
        self, motion: PoseSequence, reference: Reference, settings: Settings | None = None
    ) -> PoseSequence:
        """A motion as `animate` draws it: smoothed and fitted to the person in the reference as settings say, frames
        without a person filled."""
        height, width = reference.picture.shape[:2]
        return retarget(motion, reference.pose, self.resolve(settings), (width, height))[0]

    def draw_poses(self, *poses: PoseSequence, settings: Settings | None = None) -> Picture:
        """Pose pictures uint8 [F,H,W,3] of one sequence after another, on the canvas that the model wants.

        They have the settings' size, or that of the bundle's nearest in shape to the first sequence.
        """
        settings = self.resolve(settings)
        if not poses or settings.canvas is None:
            raise MotionError("there are no poses.", remedy="Give a PoseSequence.", field="motion")
        width, height = settings.size or nearest_size(poses[0].size, self.manifest.sizes)
        drawing = Drawing.of(settings)
        return np.concatenate([draw_poses(each, height, width, settings.canvas, drawing) for each in poses])

    def sample(
        self,
        image: PictureLike,
        pose_frames: ArrayLike,
        settings: Settings | None = None,
        *,
        initial_latents: Float | None = None,
        image_noise: Float | None = None,
        on_step: OnStep | None = None,
    ) -> Float:
        """Denoise one clip; returns float32 [F,4,h,w], the reference picture's own frame first.

        `pose_frames`: uint8 [F,H,W,3], H and W multiples of 64, the reference's own pose first; the picture is
        resized and cropped to H x W. `draw_poses` makes them; a warning says where their lines are far thinner than
        the model's. `initial_latents`: float32 [N or F,4,h,w] of unit variance, repeated along
        time; None draws the seed's. `image_noise`: float32 [3,H,W], used if settings.noise_aug > 0.
        `on_step(index, latents)` is called after each step with a copy. Raises `InputError`.
        """
        settings = self.resolve(settings)
        poses = check_pose_pictures(pose_frames, settings)
        self._warn_of_thin_lines(poses, settings)
        picture = fit_picture(reference_picture(image, settings, self.limits), poses.shape[2], poses.shape[1])
        plan = self.sampler.plan(len(poses), settings, (poses.shape[1] // 8, poses.shape[2] // 8))
        conditions = self.networks.condition(picture, plan.frames, settings, image_noise)
        for _ in self.networks.encode_poses(poses, conditions.pose, settings.pose_strength):
            pass
        latents = self.sampler.initial_latents(plan, settings, initial_latents)
        with self.sampler.denoiser(plan, conditions, latents, settings.lora) as denoiser:
            for index, step in enumerate(plan.steps):
                for _ in denoiser.run(step):
                    pass
                if on_step is not None:
                    on_step(index, denoiser.latents[: plan.kept].copy())
            return denoiser.latents[: plan.kept]

    @staticmethod
    def _warn_of_thin_lines(poses: Picture, settings: Settings) -> None:
        """A picture that was drawn on a larger canvas than the model's makes another video, without an error."""
        assert settings.canvas is not None
        wanted = LINE_WIDTH * min(poses.shape[1:3]) / settings.canvas
        found = drawn_width(poses[0])
        if wanted >= MEASURABLE and 0 < found < THIN * wanted:
            warnings.warn(
                f"The lines of the pose pictures are about {found:.1f} pixels wide, this model's {wanted:.1f}. "
                f"Draw them with animator.draw_poses, or with canvas={settings.canvas}.",
                stacklevel=3,
            )

    def decode(self, latents: Float, chunk: int | None = None) -> Picture:
        """Pictures uint8 [F,H,W,3] of latents [F,4,h,w], decoded `chunk` frames at a time.

        The chunk decides on pixels: give the `decode_chunk` of the settings that the latents were sampled with. None
        takes that of the bundle's own settings. Raises `SettingsError`.
        """
        chunk = self.settings().decode_chunk if chunk is None else chunk
        latents = check_array(latents, (None, 4, None, None), "latents")
        if chunk < 1:
            raise SettingsError(
                f"chunk is {chunk}.", remedy="Decode 1 frame or more at a time.", field="chunk"
            )
        self.networks.check_chunk(chunk, len(latents), (latents.shape[2], latents.shape[3]))
        return np.concatenate(list(self.networks.decode(latents, chunk)))

    def close(self) -> None:
        """Give all memory back, on a GPU graphs and programs as well; the animator is of no use afterwards."""
        self.sampler.close()
        self.networks.close()

    def __enter__(self) -> Animator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
