"""The step program of each clip: segments, noise and batches, on the CPU or on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from .arrays import check_noise, check_overlap
from .cuda.denoiser import CudaDenoiser, ProgramCache, make_batches, make_layout
from .denoise import Conditions, Denoiser, guidance_ramp, make_rows
from .engines import FEATURE_CACHE_NETWORKS, Engine, Manifest
from .errors import OutOfMemory, SettingsError
from .limits import Limits
from .noise import latent_noise, spread
from .schedule import Kind, initial_scale, sigmas_of, steps_of
from .segments import Plan, fusion_weights, plan_segments
from .settings import Settings
from .shapes import Cells, Shapes, check_reuse

Float = NDArray[np.float32]


class Denoisers:
    """Makes denoisers of one bundle's U-Net; on a GPU captured programs are kept for the next clip."""

    def __init__(
        self,
        engines: dict[str, Engine],
        load: Callable[[str], Engine],
        manifest: Manifest,
        limits: Limits,
        executor: ThreadPoolExecutor | None,
        programs: ProgramCache | None,
    ) -> None:
        self._engines, self._load, self._loading = engines, load, threading.Lock()
        self._manifest, self._limits = manifest, limits
        self.shapes = Shapes.of(manifest)
        """What the engines take."""
        self.executor = executor
        """Runs every second batch on a CPU; None: one batch at a time."""
        self.programs = programs
        """Of a GPU; None: the loop runs on the CPU."""

    def prepare(self, segment: int | None) -> None:
        """Have batches timed on a GPU before a job waits for that."""
        if segment is None:
            return
        for width, height in self._manifest.sizes:
            with suppress(SettingsError, OutOfMemory):  # told to a job that asks for this size
                self._buckets(segment, (height // 8, width // 8))

    def plan(self, frames: int, settings: Settings, cells: Cells, shift: float = 0.0) -> Plan:
        """The segments [S,N] of a clip of `frames` frames of cells (height, width) in a step of that `shift`.

        Raises `InputError` where the bundle's engines do not take them.
        """
        check_reuse(self._manifest, settings)
        segment = self.shapes.segment(settings, frames, cells)
        check_overlap(settings, segment)
        plan = plan_segments(frames, segment, settings.overlap, settings.layout, shift)
        self.shapes.rows(plan.shape[1], cells)
        return plan

    def make(
        self, conditions: Conditions, settings: Settings, initial_latents: Float | None
    ) -> Denoiser | CudaDenoiser:
        """The step program of a clip, its latents at the first sigma; close it when it is done."""
        noise = self._noise(conditions, settings, initial_latents)
        if self.programs is not None:
            return self._on_gpu(self.programs, conditions, settings, noise)
        kinds = dict.fromkeys(step.kind for step in steps_of(settings))
        rows, *others = (make_rows(*self._blend(conditions, settings, kind)) for kind in kinds)
        unet, outer = self._unets(settings)
        denoiser = Denoiser(
            unet,
            conditions,
            rows,
            self._manifest.rows[-1],
            self.executor,
            self.shapes.rows(len(rows[0].frames), conditions.cells),
            others=dict(zip(list(kinds)[1:], others, strict=True)),
            outer=outer,
        )
        denoiser.latents[...] = noise
        return denoiser

    def _on_gpu(
        self, programs: ProgramCache, conditions: Conditions, settings: Settings, noise: Float
    ) -> CudaDenoiser:
        frames, cells = len(conditions.pose), conditions.cells
        kinds = dict.fromkeys(step.kind for step in steps_of(settings))
        blends = [self._blend(conditions, settings, kind) for kind in kinds]
        sizes = self._buckets(blends[0][0].shape[1], cells)  # segments of all kinds are equally long
        rows = {
            kind: make_batches(*blend, sizes, guided=kind[1])
            for kind, blend in zip(kinds, blends, strict=True)
        }
        unet, outer = self._unets(settings)
        together = min(self._limits.jobs, self._limits.together)
        layout = make_layout(rows, frames, cells, sizes, together, deep=outer is not None)
        ramp = guidance_ramp(settings.guidance, frames)
        return CudaDenoiser(programs, layout, list(rows), conditions, ramp, noise, unet, outer)

    def _unets(self, settings: Settings) -> tuple[Engine, Engine | None]:
        """The U-Net, and its first level alone where settings reuse features; that pair is loaded when needed."""
        if settings.reuse_interval == 1:
            return self._engines["unet"], None
        with self._loading:
            for name in FEATURE_CACHE_NETWORKS:
                if name not in self._engines:
                    self._engines[name] = self._load(name)
        keep, outer = (self._engines[name] for name in FEATURE_CACHE_NETWORKS)
        return keep, outer

    def _buckets(self, slots: int, cells: Cells) -> tuple[int, ...]:
        """The numbers of rows in a batch on a GPU."""
        rows = self.shapes.rows(slots, cells) or self._manifest.rows
        buckets = None if self.programs is None else self.programs.buckets
        return rows if buckets is None else buckets.sizes(rows, slots, cells)

    def _noise(self, conditions: Conditions, settings: Settings, initial_latents: Float | None) -> Float:
        """Latents [F,4,h,w] at the first sigma."""
        frames, cells = len(conditions.pose), conditions.cells
        if initial_latents is None:
            segment = self.shapes.segment(settings, frames, cells)
            noise = latent_noise(settings.seed, frames, segment, cells, settings.noise)
        else:
            noise = spread(check_noise(initial_latents, (None, 4, *cells), "initial_latents"), frames)
        scaled: Float = noise * np.float32(initial_scale(sigmas_of(settings)))
        return scaled

    def _blend(self, conditions: Conditions, settings: Settings, kind: Kind) -> tuple[Plan, Float, Float]:
        """Segments [S,N], their fusion weights [S,N] and the guidance [F] of a kind of steps."""
        shift, guided = kind
        frames = len(conditions.pose)
        plan = self.plan(frames, settings, conditions.cells, shift)
        ramp = guidance_ramp(settings.guidance if guided else (1.0, 1.0), frames)
        return plan, fusion_weights(plan, settings.fusion), ramp
