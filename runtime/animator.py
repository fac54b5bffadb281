"""The public face for embedding: load a bundle, animate pictures."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import check_latents, check_noise, check_pose_frames
from .bundles import load_bundle
from .clip import Clip, Picture, Source
from .cuda.denoiser import CudaDenoiser, open_programs
from .denoise import Conditions, Denoiser, closed
from .denoisers import Denoisers
from .engines import NETWORKS, Bundle, Engine, Manifest, Placement, open_engine
from .engines.cuda import Gpu
from .errors import EngineError, SettingsError
from .job import Job
from .limits import Limits, check_limit
from .media.picture import fit_picture, read_picture
from .noise import picture_noise
from .reuse import Answers
from .schedule import Step, sigmas_of, steps_of
from .segments import Plan
from .settings import Settings, make_settings, resolve_settings
from .shapes import Cells, Shapes
from .stages import Stages

Float = NDArray[np.float32]
OnStep = Callable[[int, Float], None]


class Latents(np.ndarray[Any, np.dtype[np.float32]]):
    """float32 [F,4,h,w] that remember how they are to be decoded."""

    decode_chunk: int | None = None


class Animator:
    """Animates pictures with one bundle on one device; make it with `Animator.load`.

    Calls may come from several threads; each job takes memory of its own.
    """

    def __init__(
        self, bundle: Bundle, *, device: str, threads: int | None, limits: Limits, graphs: bool = True
    ) -> None:
        self._bundle = bundle
        self.limits = limits
        self.threads = threads
        self._device = device
        self._engines = {name: self._open(name) for name in NETWORKS}
        executor = ThreadPoolExecutor(1, "denoise") if self._two_lanes else None
        programs = open_programs(self._engines["unet"], bundle.manifest.build, graphs=graphs)
        self.denoisers = Denoisers(self._engines, self._open, bundle.manifest, limits, executor, programs)
        if programs is not None:
            for gpu in self._gpus():
                gpu.reclaimable.add(programs)  # idle ones are closed where any engine runs out of memory
            self.denoisers.prepare(self.settings().segment)
        self.stages = Stages(self._engines, bundle.manifest, Answers(limits.reuse_bytes))

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
        return cls(
            load_bundle(bundle), device=device, threads=threads, limits=limits or Limits(), graphs=graphs
        )

    @property
    def _two_lanes(self) -> bool:
        return not Shapes.of(self.manifest).compiled and (self.threads or os.cpu_count() or 1) > 1

    def _engine_threads(self, network: str) -> int | None:
        """The U-Net runs two batches at a time, whose calling threads work too."""
        unet = network.startswith("unet")
        return (self.threads or os.cpu_count() or 1) - self._two_lanes if unet else self.threads

    def _open(self, network: str) -> Engine:
        """One job alone has nothing to run beside its denoising: then all share one stream and scratch memory."""
        unet = network.startswith("unet")
        stream = "denoise" if unet or self.limits.jobs == 1 else "around"
        placement = Placement(self._device, self._engine_threads(network), spin_threads=unet, stream=stream)
        return open_engine(self._bundle, network, placement)

    def _gpus(self) -> Iterable[Gpu]:
        """Those that engines run on; one that several share comes several times."""
        return (engine.gpu for engine in self._engines.values() if engine.gpu is not None)

    @property
    def bundle_name(self) -> str:
        """The name of the bundle's folder."""
        return self._bundle.folder.resolve().name

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def note(self) -> str:
        """The bundle's remark for its users."""
        return self.manifest.note

    def settings(self, **overrides: Any) -> Settings:
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
    ) -> Job:
        """A job that animates the person in `image` by `motion`; iterate it for events, then take `result()`.

        `image`: a path, the bytes of a file, or uint8 [H,W,3] RGB. `motion`: a driving video, a keypoint file
        (.npz, .json) or a folder of pose pictures by path; a file's bytes; a `PoseSequence`; or pose pictures
        uint8 [F,H,W,3]. `reference_pose`: the pose of the person in the picture (a one-frame `PoseSequence`),
        found by the estimator if None. Without settings the bundle's own are taken. Raises `InputError` for
        input that cannot be used, here or while the job runs.
        """
        job = Job()
        job.start(
            self.stream(
                image,
                motion,
                settings,
                reference_pose=reference_pose,
                estimator=estimator,
                cancelled=job.cancelled,
            )
        )
        return job

    def stream(
        self,
        image: str | Path | bytes | Picture,
        motion: Any,
        settings: Settings | None = None,
        *,
        reference_pose: Any = None,
        estimator: str = "mediapipe",
        cancelled: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> Clip:
        """The same without anything kept: finished frames come with the events and are then forgotten."""
        settings = self.resolve(settings)
        source = Source.open(
            image, motion, settings, self.manifest.sizes, self.limits, reference_pose, estimator, self.threads
        )
        check_limit(
            "pixels of the video", math.prod(source.size), self.limits.output_pixels, field="settings.size"
        )
        # How many frames a video has, only reading it will tell: then one segment stands for the rest.
        known = source.motion.video is None
        frames = source.motion.frames + 1 if known else settings.segment or 1
        self.plan(frames, settings, (source.size[1] // 8, source.size[0] // 8))
        return Clip(self, source, settings, cancelled, clock)

    def sample(
        self,
        image: str | Path | bytes | Picture,
        pose_frames: NDArray[np.uint8],
        settings: Settings | None = None,
        *,
        initial_latents: Float | None = None,
        image_noise: Float | None = None,
        on_step: OnStep | None = None,
    ) -> Latents:
        """Denoise one clip; returns float32 [F,4,h,w], the reference picture's own frame first.

        `pose_frames`: uint8 [F,H,W,3], H and W multiples of 64, the reference's own pose first; the picture is
        resized and cropped to H x W. `initial_latents`: float32 [N or F,4,h,w] of unit variance, repeated along
        time; None draws the seed's. `image_noise`: float32 [3,H,W], used if settings.noise_aug > 0.
        `on_step(index, latents)` is called after each step with a copy. Raises `InputError`.
        """
        settings = self.resolve(settings)
        poses = check_pose_frames(pose_frames, settings)
        picture = fit_picture(read_picture(image, self.limits), poses.shape[2], poses.shape[1])
        conditions = self.condition(picture, len(poses), settings, image_noise)
        for _ in self.stages.encode_poses(poses, conditions.pose):
            pass
        denoiser = self.denoiser(conditions, settings, initial_latents)
        with closed(denoiser):
            for index, step in enumerate(self.steps(settings)):
                denoiser.step(step)
                if on_step is not None:
                    on_step(index, denoiser.latents.copy())
            latents = denoiser.latents.view(Latents)
        latents.decode_chunk = settings.decode_chunk
        return latents

    def decode(self, latents: Float, chunk: int | None = None) -> NDArray[np.uint8]:
        """Pictures uint8 [F,H,W,3] of latents [F,4,h,w], decoded `chunk` frames at a time.

        None takes the `decode_chunk` of the settings that the latents were sampled with, or the bundle's.
        """
        if chunk is None:
            chunk = getattr(latents, "decode_chunk", None) or self.settings().decode_chunk
        latents = check_latents(latents)
        if chunk < 1:
            raise SettingsError(
                f"chunk is {chunk}.", remedy="Decode 1 frame or more at a time.", field="chunk"
            )
        self._check_chunk(chunk, len(latents), (latents.shape[2], latents.shape[3]))
        return np.concatenate(list(self.stages.decode(latents, chunk)))

    def condition(
        self, picture: Picture, frames: int, settings: Settings, image_noise: Float | None = None
    ) -> Conditions:
        """Encode a picture uint8 [H,W,3] for a clip of `frames` frames; the pose features are left to be filled.

        Raises `InputError` for a clip that the bundle's engines do not take, before any of them runs.
        """
        height, width = picture.shape[:2]
        self.plan(frames, settings, (height // 8, width // 8))
        noise = None
        if settings.noise_aug > 0:
            noise = picture_noise(settings.seed, height, width) if image_noise is None else image_noise
            noise = check_noise(noise, (3, height, width), "image_noise")
        (features,) = self.manifest.networks["pose_net"].spec.outputs
        channels = features.shape[1]
        assert isinstance(channels, int)
        return Conditions(
            embedding=self.stages.embed_picture(picture),
            image_latents=self.stages.encode_picture(picture, settings.noise_aug, noise),
            pose=np.empty((frames, channels, height // 8, width // 8), features.dtype),
            time_ids=(settings.conditioning_fps - 1, settings.motion_bucket, settings.noise_aug),
        )

    def denoiser(
        self, conditions: Conditions, settings: Settings, initial_latents: Float | None = None
    ) -> Denoiser | CudaDenoiser:
        """The step program of a clip, its latents at the first sigma; close it when it is done."""
        return self.denoisers.make(conditions, settings, initial_latents)

    def plan(self, frames: int, settings: Settings, cells: Cells) -> Plan:
        """The segments [S,N] of a clip of `frames` frames of cells (height, width).

        Raises `InputError` where the bundle's engines do not take them.
        """
        plan = self.denoisers.plan(frames, settings, cells)
        self._check_chunk(settings.decode_chunk, frames, cells)
        return plan

    def _check_chunk(self, chunk: int, frames: int, cells: Cells) -> None:
        """Raise `SettingsError` if so many frames cannot be decoded at a time."""
        self.denoisers.shapes.check_chunk(chunk, frames, cells)
        if self.stages.decoder is not None:
            self.stages.decoder.check_chunk(chunk, frames, cells)

    def sigmas(self, settings: Settings) -> NDArray[np.float32]:
        """The schedule [steps+1] of resolved settings."""
        return sigmas_of(settings)

    def steps(self, settings: Settings) -> Iterable[Step]:
        """The Euler steps of resolved settings, and what each runs."""
        return steps_of(settings)

    def raise_if_lost(self, error: EngineError) -> None:
        """Raise `DeviceLost` if a GPU of the engines is lost, which an engine's error does not always say."""
        for gpu in self._gpus():
            gpu.raise_if_lost(error)

    def close(self) -> None:
        """Give all memory back, on a GPU graphs and programs as well; the animator is of no use afterwards."""
        if self.denoisers.programs is not None:
            self.denoisers.programs.close()
        self.stages.close()
        for engine in self._engines.values():
            engine.close()
        if self.denoisers.executor is not None:
            self.denoisers.executor.shutdown()

    def __enter__(self) -> Animator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
