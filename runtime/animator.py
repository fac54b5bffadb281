"""The public face for embedding: load a bundle, animate pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
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
from .denoise.plan import closing
from .errors import SettingsError
from .inputs import Request, check_pose_pictures, open_inputs
from .job import Job
from .limits import Limits
from .media.picture import fit_picture, read_picture
from .networks import Networks, Sampler
from .pipeline import Animation
from .pose.motion import MotionKind
from .settings import Settings, SettingsDict, make_settings, resolve_settings
from .validation import check_array

Float = NDArray[np.float32]
Picture = NDArray[np.uint8]
OnStep = Callable[[int, Float], None]


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
        self.bundle_name = name
        """The name of the bundle's folder."""
        self.limits, self.threads = limits, threads
        self.sampler = Sampler(self.networks, limits, graphs=graphs)
        self.sampler.prepare(self.settings().segment)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        limits: Limits | None = None,
        graphs: bool = True,
    ) -> Animator:
        """Load a bundle by name or folder onto a device ("auto", "cpu", "cuda", "cuda:1").

        `threads` bounds the CPU threads of one engine call; None takes every core. `graphs`: on a GPU each step
        is one captured CUDA graph. Raises `BundleError`.
        """
        if threads is not None and (type(threads) is not int or threads < 1):
            raise SettingsError(f"threads is {threads!r}.", remedy="Choose 1 or more.", field="threads")
        loaded, limits = load_bundle(bundle), limits or Limits()
        networks = Networks.open(loaded, device=device, threads=threads, limits=limits)
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
        """What an animation's bytes depend on besides inputs and settings: bundle, version and device."""
        devices = {gpu.name for gpu in self.networks.gpus} or {"cpu"}
        return " ".join([self.manifest.build, version("mimicmotion-trt"), *sorted(devices)])

    def settings(self, **overrides: Unpack[SettingsDict]) -> Settings:
        """The bundle's own settings with some replaced; raises `SettingsError`."""
        return make_settings(self.manifest.defaults, overrides)

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
        return resolve_settings(settings, self.manifest.defaults)

    def animate(
        self,
        image: str | Path | bytes | Picture,
        motion: Any,
        settings: Settings | None = None,
        *,
        reference_pose: Any = None,
        estimator: str = "mediapipe",
        motion_kind: MotionKind = "auto",
    ) -> Job:
        """A job that animates the person in `image` by `motion`; iterate it for events, then take `result()`.

        `image`: a path, the bytes of a file, or uint8 [H,W,3] RGB. `motion`: a driving video, a keypoint file
        (.npz, .json) or a folder of pose pictures by path; a file's bytes; a `PoseSequence`; pose pictures
        uint8 [F,H,W,3]; or a list of these in a row. `motion_kind`: `video`, `pose-video` (of skeletons);
        `auto` tells by its first frames. `reference_pose`: the pose of the person in the picture (a one-frame
        `PoseSequence`), found by the estimator if None. Without settings the bundle's own are taken. Raises
        `InputError` for input that cannot be used, here or while the job runs.
        """
        given = {"reference_pose": reference_pose, "estimator": estimator, "motion_kind": motion_kind}
        return Job(partial(self.stream, image, motion, settings, **given))

    def stream(
        self,
        image: str | Path | bytes | Picture,
        motion: Any,
        settings: Settings | None = None,
        *,
        reference_pose: Any = None,
        estimator: str = "mediapipe",
        motion_kind: MotionKind = "auto",
        cancelled: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        checkpoints: Checkpoints | None = None,
    ) -> Animation:
        """The same without anything kept: finished frames come with the events and are then forgotten.

        With `checkpoints`, made for this bundle's `build` and these settings, the animation goes on from the newest
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
            check_memory(self.costs, sized, length, self.rows, self.limits)
        return Animation(self.networks, self.sampler, inputs, settings, cancelled, clock, checkpoints)

    def sample(
        self,
        image: str | Path | bytes | Picture,
        pose_frames: NDArray[np.uint8],
        settings: Settings | None = None,
        *,
        initial_latents: Float | None = None,
        image_noise: Float | None = None,
        on_step: OnStep | None = None,
    ) -> Float:
        """Denoise one clip; returns float32 [F,4,h,w], the reference picture's own frame first.

        `pose_frames`: uint8 [F,H,W,3], H and W multiples of 64, the reference's own pose first; the picture is
        resized and cropped to H x W. `initial_latents`: float32 [N or F,4,h,w] of unit variance, repeated along
        time; None draws the seed's. `image_noise`: float32 [3,H,W], used if settings.noise_aug > 0.
        `on_step(index, latents)` is called after each step with a copy. Raises `InputError`.
        """
        settings = self.resolve(settings)
        poses = check_pose_pictures(pose_frames, settings)
        picture = fit_picture(read_picture(image, self.limits), poses.shape[2], poses.shape[1])
        plan = self.sampler.plan(len(poses), settings, (poses.shape[1] // 8, poses.shape[2] // 8))
        conditions = self.networks.condition(picture, plan.frames, settings, image_noise)
        for _ in self.networks.encode_poses(poses, conditions.pose, settings.pose_strength):
            pass
        latents = self.sampler.initial_latents(plan, settings, initial_latents)
        denoiser = self.sampler.denoiser(plan, conditions, latents)
        with closing(denoiser):
            for index, step in enumerate(plan.steps):
                for _ in denoiser.run(step):
                    pass
                if on_step is not None:
                    on_step(index, denoiser.latents[: plan.kept].copy())
            return denoiser.latents[: plan.kept]

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
