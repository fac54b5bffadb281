"""Plans, conditions and program caches for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mimicmotion_trt import Settings
from mimicmotion_trt.cuda.program import StepProgram
from mimicmotion_trt.cuda.shared_program import ProgramCache
from mimicmotion_trt.denoise.plan import Batching, Conditions, DenoisePlan, make_plan
from mimicmotion_trt.denoise.shapes import EngineShapes, LatentSize
from mimicmotion_trt.engines import Engine

LATENT_SIZE = (8, 16)


def plan_of(
    frames: int, *, sizes: Sequence[int] = (1,), latent_size: LatentSize = LATENT_SIZE, **chosen: Any
) -> DenoisePlan:
    """A plan in batches of `sizes` rows; segments of 4 frames that overlap by 2, no guidance, 3 steps."""
    plain = {"segment": 4, "overlap": 2, "guidance": (1.0, 1.0), "steps": 3}
    settings = Settings(**{**plain, "sigma_min": 0.05, "sigma_max": 10.0, **chosen})
    return make_plan(settings, frames, latent_size, EngineShapes({}), lambda _: Batching(tuple(sizes)))


def conditions_of(unet: Engine, frames: int, seed: int) -> Conditions:
    """Random conditions of the U-Net's widths."""
    chance = np.random.default_rng(seed)
    shapes = {tensor.name: tensor.shape for tensor in unet.spec.inputs}

    def drawn(*shape: Any) -> Any:
        return chance.normal(size=shape).astype(np.float32)

    return Conditions(
        embedding=drawn(1, shapes["embedding"][2]),
        image_latents=drawn(4, *LATENT_SIZE),
        pose=drawn(frames, shapes["pose"][2], *LATENT_SIZE) * np.float32(0.1),
        time_ids=(6.0 + seed, 127.0, 0.02 * seed),
    )


def noise_of(frames: int, seed: int, scale: float = 10.0) -> Any:
    """float32 [F,4,h,w]."""
    return (np.random.default_rng(seed).normal(size=(frames, 4, *LATENT_SIZE)) * scale).astype(np.float32)


class EveryBatchPays:
    """In place of `BatchSizes`: nothing is timed."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def choose(self, rows: Sequence[int], segment_frames: int, latent_size: LatentSize) -> tuple[int, ...]:
        return tuple(rows)


def programs_on(device: Any, *, graphs: bool = True, most: int = 4) -> ProgramCache:
    """A cache of programs on a device."""

    def make(plan: DenoisePlan, slots: int, unet: Engine, shallow: Engine | None) -> StepProgram:
        return StepProgram(device, unet, plan, slots=slots, graphs=graphs, shallow=shallow)

    batch_sizes: Any = EveryBatchPays(device)
    return ProgramCache(make, batch_sizes, most)
