"""The denoising loops that `gpu_check.py` compares: plain PyTorch in the reference's order of work, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from gpu_networks import Clip, Scale
from gpu_place import ModuleEngine, Place, Run
from torch import Tensor, nn

from mimicmotion_trt.cuda.decoder import CudaDecoder
from mimicmotion_trt.cuda.denoiser import make_batches, make_layout
from mimicmotion_trt.cuda.program import StepProgram
from mimicmotion_trt.denoise import Denoiser, guidance_ramp, make_rows
from mimicmotion_trt.engines import Engine
from mimicmotion_trt.engines.cuda_device import Replay
from mimicmotion_trt.engines.torch_backend import exact_floats
from mimicmotion_trt.kernels import to_pictures
from mimicmotion_trt.schedule import PLAIN, Step, steps_of
from mimicmotion_trt.segments import fusion_weights, plan_segments
from mimicmotion_trt.settings import Settings

Given = ParamSpec("Given")
Answer = TypeVar("Answer")
CHUNK = 8
"""Frames that are decoded together."""
Latents = np.ndarray[Any, np.dtype[np.float32]]
Pictures = np.ndarray[Any, np.dtype[np.uint8]]


def exactly(work: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Without gradients, and with float32 products in float32, as the product's engines compute them."""

    @wraps(work)
    def run(*given: Given.args, **named: Given.kwargs) -> Answer:
        with torch.inference_mode(), exact_floats():
            return work(*given, **named)

    return run


class Plain:
    """One segment, guided: at every step PoseNet, then the U-Net once without and once with the conditions.

    With `hoisted`, PoseNet runs once for the clip; with `folded`, `unet` is an engine's module.
    """

    def __init__(
        self, place: Place, scale: Scale, unet: Run, pose_net: Run, clip: Clip,
        *, hoisted: bool = False, folded: bool = False,
    ) -> None:  # fmt: skip
        self._unet, self._pose_net, self._scale, self._clip = unet, pose_net, scale, clip
        self._hoisted, self._folded, self._device = hoisted, folded, place.torch
        given = clip.conditions
        self._image, self._embedding, self._poses = (
            torch.from_numpy(array).to(self._device, scale.dtype)
            for array in (given.image_latents, given.embedding[None], clip.poses)
        )
        self._ids = torch.tensor([given.time_ids], device=self._device)
        self._features: Tensor | None = None

    @exactly
    def start(self) -> None:
        """Begin the clip anew."""
        self._latents = torch.from_numpy(self._clip.noise).to(self._device)
        self._features = self._pose_net(self._poses)[None] if self._hoisted else None

    @exactly
    def step(self, step: Step) -> None:
        """Bring the latents to the next sigma."""
        scaled = (self._latents * step.scale).to(self._scale.dtype)
        answers = []
        for keep in (0.0, 1.0):
            pose = self._features
            if pose is None and (keep or self._folded):
                pose = self._pose_net(self._poses)[None]
            image = (self._image * keep).expand(len(scaled), -1, -1, -1)
            answers.append(self._predict(torch.cat([scaled, image], dim=1)[None], step, keep, pose))
        v = answers[0] + 2.0 * (answers[1] - answers[0])
        self._latents = self._latents * step.keep + v * step.push

    def _predict(self, inputs: Tensor, step: Step, keep: float, pose: Tensor | None) -> Tensor:
        moment, embedding = torch.tensor([step.timestep], device=self._device), self._embedding * keep
        if self._folded:
            assert pose is not None
            return self._unet(inputs, moment, embedding, self._ids, pose * keep)[0].float()
        return self._unet(inputs, moment, embedding, self._ids, pose if keep else None)[0][0].float()

    def latents(self) -> Latents:
        """float32 [F,4,h,w]."""
        found: Latents = self._latents.cpu().numpy()
        return found

    @exactly
    def decode(self, vae: Any) -> Pictures:
        """uint8 [F,H,W,3] by the published decoder."""
        parts = [
            vae.decode(part.to(self._scale.dtype) / vae.config.scaling_factor, num_frames=len(part)).sample
            for part in torch.split(self._latents, CHUNK)
        ]
        pictures = (torch.cat(parts).float() * 0.5 + 0.5).clamp(0, 1) * 255
        found: Pictures = pictures.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return found


class Ours:
    """The product's step program on an engine, or on the CPU its denoiser, with the steps that `settings` ask for.

    With `outer`, the U-Net's first level alone, `unet` also answers its deep features.
    """

    def __init__(
        self, place: Place, scale: Scale, unet: Engine, clip: Clip, settings: Settings, sizes: tuple[int, ...],
        *, graphs: bool, outer: Engine | None = None,
    ) -> None:  # fmt: skip
        self.steps, self._place, self._clip = steps_of(settings), place, clip
        self._kinds = list(dict.fromkeys((PLAIN, *(step.kind for step in self.steps))))
        self._ramp = guidance_ramp(settings.guidance, clip.frames)
        assert settings.segment is not None
        plan = plan_segments(clip.frames, settings.segment, settings.overlap, settings.layout)
        weights = fusion_weights(plan, settings.fusion)
        ramps = {kind: self._ramp if kind[1] else np.ones_like(self._ramp) for kind in self._kinds}
        self._program: StepProgram | None = None
        if place.device is None:
            rows = {kind: make_rows(plan, weights, ramp) for kind, ramp in ramps.items()}
            plain, most = rows.pop(PLAIN), max(sizes)
            self._on_cpu = partial(Denoiser, unet, rows=plain, most_rows=most, others=rows, outer=outer)
            return
        batched = {
            kind: make_batches(plan, weights, ramp, sizes, guided=kind[1]) for kind, ramp in ramps.items()
        }
        layout = make_layout(batched, clip.frames, scale.cells, sizes, 1, deep=outer is not None)
        place.wait()  # what PyTorch still does to the weights is on another stream
        self._program = StepProgram(place.device, unet, layout, graphs=graphs, outer=outer)

    def start(self, pose: Any) -> None:
        """Begin the clip anew, with PoseNet's features [F,C,h,w]."""
        conditions = replace(self._clip.conditions, pose=pose)
        if self._program is None:
            self._denoiser = self._on_cpu(conditions=conditions)
            self._denoiser.latents[...] = self._clip.noise
        else:
            self._program.start(conditions, self._ramp, self._clip.noise)

    def step(self, step: Step) -> None:
        """Bring the latents to the next sigma."""
        if self._program is None:
            self._denoiser.step(step)
        else:
            self._program.step(step, self._kinds.index(step.kind))

    def latents(self) -> Latents:
        """float32 [F,4,h,w]."""
        if self._program is None:
            return self._denoiser.latents.copy()
        return self._program.read(self._program.latents)

    def unet_alone(self, graphs: bool) -> Replay | None:
        """The U-Net's calls of a guided step and nothing else, recorded as the step is; None on the CPU."""
        device, program = self._place.device, self._program
        if device is None or program is None:
            return None
        calls = list(program.calls)

        def networks(stream: Any) -> None:
            for call in calls:
                device.call(call, stream)

        return device.record(networks, graphs=graphs)

    def close(self) -> None:
        """Give graphs and memory back."""
        self._place.wait()
        if self._program is not None:
            self._program.close()


class Decoding:
    """The decoder's engine between the product's two kernels; where there is none, PyTorch on the CPU."""

    def __init__(self, place: Place, scale: Scale, run: Run) -> None:
        self._place, self._run = place, run
        self.used_gib: list[float] = []
        """GPU memory in use when each chunk was there, the decoder's own arrays and all; empty on the CPU."""
        self._factor = float(scale.config("vae").get("scaling_factor", 0.18215))
        self._decoder: CudaDecoder | None = None
        if place.decoding is not None:
            engine = ModuleEngine(run, scale.specs()["vae_decoder"], place, place.decoding_gpu)
            self._decoder = CudaDecoder(place.decoding, engine, self._factor)

    def __call__(self, latents: Latents) -> Pictures:
        """uint8 [F,H,W,3] of latents [F,4,h,w]."""
        chunks = self._decoder.decode(latents, CHUNK) if self._decoder else self._by_torch(latents)
        pictures = []
        for chunk in chunks:
            pictures.append(chunk)
            used = self._place.used_gib()
            self.used_gib += [] if used is None else [used]
        return np.concatenate(pictures)

    def _by_torch(self, latents: Latents) -> Iterator[Pictures]:
        for start in range(0, len(latents), CHUNK):
            with torch.inference_mode():
                part = torch.from_numpy(latents[start : start + CHUNK] / np.float32(self._factor))
                planes = self._run(part.to(self._place.torch)).float().cpu().numpy()
            pictures = np.empty((len(planes), *planes.shape[2:], 3), np.uint8)
            to_pictures(planes, pictures)
            yield pictures


def animate(
    loop: Ours, steps: list[Step], features: Callable[[], Any], decoding: Decoding, jobs: int
) -> list[Pictures]:
    """Pictures of as many jobs, one denoised after the other, each decoded while the next is denoised."""
    with ThreadPoolExecutor(1) as decoder:
        coming = []
        for _ in range(jobs):
            loop.start(features())
            for step in steps:
                loop.step(step)
            coming.append(decoder.submit(decoding, loop.latents()))
        return [one.result() for one in coming]


@exactly
def features_of(pose_net: nn.Module, poses: Tensor) -> Any:
    """PoseNet's features [F,C,h,w] of pose pictures [F,3,H,W] on its device, brought to the host."""
    return pose_net(poses).cpu().numpy()
