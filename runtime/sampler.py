"""Makes the plan of a clip, and the denoiser that executes it: on the CPU, or on the GPU that the engines run on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from .cuda.denoiser import CudaDenoiser
from .cuda.shared_program import ProgramCache
from .denoise.loop import CpuDenoiser
from .denoise.noise import latent_noise, spread
from .denoise.plan import Batching, Conditions, DenoisePlan, Denoiser, make_plan, segments_of
from .denoise.schedule import initial_scale
from .denoise.shapes import LatentSize, check_reuse
from .errors import OutOfMemory, SettingsError
from .limits import Limits
from .networks import Networks
from .settings import Settings
from .validation import check_array

Float = NDArray[np.float32]


class Sampler:
    """Plans clips, and makes their denoisers; on a GPU captured programs are kept for the next clip."""

    def __init__(self, networks: Networks, limits: Limits, *, graphs: bool) -> None:
        self._networks = networks
        unet, build = networks["unet"], networks.model.build
        self.programs = None if unet.gpu is None else ProgramCache.open(unet, build, graphs=graphs)
        """The step programs of a GPU; None: the loop runs on the CPU."""
        self._slots = min(limits.jobs, limits.together)  # jobs that may share a program
        two_workers = self.programs is None and networks.workers > 1
        self._executor = ThreadPoolExecutor(1, "denoise") if two_workers else None

    def prepare(self, segment: int | None) -> None:
        """On a GPU, measure now which batch sizes are fastest, so that no job has to wait for that."""
        if segment is None or self.programs is None:
            return
        for width, height in self._networks.model.sizes:
            with suppress(SettingsError, OutOfMemory):  # a job of this size gets the error
                self._batching(segment, (height // 8, width // 8))

    def check(self, frames: int, settings: Settings, latent_size: LatentSize) -> None:
        """Raise `InputError` where the bundle's engines do not take a clip, before any of them runs."""
        check_reuse(self._networks.model.reuses, settings)
        segments_of(settings, frames, latent_size, self._networks.shapes)
        self._networks.check_chunk(settings.decode_chunk, frames, latent_size)

    def plan(self, frames: int, settings: Settings, latent_size: LatentSize) -> DenoisePlan:
        """The plan of a clip of `frames` frames, the reference picture's own included; raises `InputError`."""
        check_reuse(self._networks.model.reuses, settings)

        def batching(segment_frames: int) -> Batching:
            self._networks.check_chunk(settings.decode_chunk, frames, latent_size)
            return self._batching(segment_frames, latent_size)

        return make_plan(settings, frames, latent_size, self._networks.shapes, batching)

    def initial_latents(self, plan: DenoisePlan, settings: Settings, given: Float | None = None) -> Float:
        """Latents [F,4,h,w] at the first sigma, from noise `given` [N or F,4,h,w] or the seed's."""
        if given is None:
            noise = latent_noise(settings.seed, plan.frames, plan.segment, plan.latent_size, settings.noise)
        else:
            noise = spread(check_array(given, (None, 4, *plan.latent_size), "initial_latents"), plan.frames)
        scaled: Float = noise * np.float32(initial_scale(plan.steps[0].sigma))
        return scaled

    def denoiser(self, plan: DenoisePlan, conditions: Conditions, latents: Float) -> Denoiser:
        """What executes a plan, from latents [F,4,h,w] at the first sigma; close it when it is done."""
        unet, shallow = self._networks.unets(caching=plan.caches_features)
        if self.programs is not None:
            return CudaDenoiser(self.programs, plan, conditions, latents, unet, shallow, slots=self._slots)
        return CpuDenoiser(unet, plan, conditions, latents, executor=self._executor, shallow=shallow)

    def close(self) -> None:
        """Give back what the sampler holds besides the engines."""
        if self.programs is not None:
            self.programs.close()
        if self._executor is not None:
            self._executor.shutdown()

    def _batching(self, segment_frames: int, latent_size: LatentSize) -> Batching:
        """How the rows of segments of so many frames are put into calls here."""
        allowed = self._networks.model.rows
        compiled = self._networks.shapes.rows(segment_frames, latent_size)
        if self.programs is not None:
            return Batching(
                self.programs.batch_sizes.choose(compiled or allowed, segment_frames, latent_size)
            )
        return Batching(compiled, allowed[-1], 2 if self._executor else 1)
