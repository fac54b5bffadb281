"""One segment, guided, in 25 steps: the plain PyTorch loop, then ours with one optimisation after the other.

Each part adds its figures as soon as it has them: `NAME_s` are seconds of 25 steps (a few are timed, since every
step is the same work), `NAME_rel_l2` how far the latents are from the plain loop's after these few, `NAME_used_gib`
the GPU memory in use then, `NAME_unet_tflops` what the U-Net alone computes a second (operations as exported),
`NAME_outside_unet` the share of a step that is not the U-Net. `gaps_idle` is the share of our fastest captured step
in which the GPU runs nothing. `video_NAME_s` are seconds of a whole video, for each job: from pose pictures to
pictures, in all steps; `video_NAME_used_gib` is the most GPU memory in use meanwhile. A part makes its own networks,
of the same weights, and leaves no memory behind.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_golden import relative_error
from gpu_loops import Decoding, Latents, Ours, Plain, animate, features_of
from gpu_networks import STEPS, Clip, Networks, Scale, random_clip
from gpu_place import Figures, ModuleEngine, Part, Place, Run, idle_share, matmul_tflops, seconds_of, tidied

from mimicmotion_trt.cuda.batch_sizes import MOST_ELEMENTS, WIDEST
from mimicmotion_trt.denoise.schedule import Step, steps_of
from mimicmotion_trt.engines import Engine
from mimicmotion_trt.export.networks import KeepingUNetEngine, OuterUNetEngine
from mimicmotion_trt.settings import Settings

ALTERNATIONS = 5
PLAIN_VIDEOS: dict[tuple[Scale, int, torch.device], Figures] = {}
"""Those that this process has timed: they take minutes, and several stages are held against them."""


class RealLoops:
    """The parts of a loop stage."""

    def __init__(self, place: Place, scale: Scale, frames: int) -> None:
        self.place, self._scale, self._frames = place, scale, frames
        self._networks = Networks(scale, place.torch)
        overlap = min(6, frames - 1)
        self.exact = Settings(steps=STEPS, guidance=(2.0, 2.0), segment=frames, overlap=overlap)
        self.fast = Settings(
            steps=10, guidance=(2.0, 2.0), segment=frames, overlap=overlap,
            schedule="align-your-steps", guidance_interval=(0.3, 20.0),
        )  # fmt: skip
        self._steps = steps_of(self.exact)
        self._known: Latents | None = None
        self._clip_made: Clip | None = None

    def parts(self) -> Mapping[str, Part]:
        """In the order in which optimisations are added; those that compile come last."""
        parts: dict[str, Callable[[], Iterator[Figures]]] = {
            "plain": lambda: self._plain("plain"),
            "hoisted": lambda: self._plain("hoisted", hoisted=True),
            "fold": lambda: self._plain("fold", hoisted=True, folded=True),
            "program": lambda: self._ours("program", graphs=False),
            "graph": lambda: self._ours("graph", graphs=True),
            "plain-video": self.plain_video,
        }
        if 2 * self._elements <= MOST_ELEMENTS:
            parts["rows-2"] = lambda: self._ours("rows_2", graphs=True, sizes=(2,))
        if self._scale.compiles:
            parts["plain-compiled"] = lambda: self._plain("plain_compiled", compiled=True)
        parts |= {"ours-video": self._video, "reuse-video": self._reuse_video}
        if self._scale.work is not None:
            parts = {"matmul": self.matmul, **parts}
        return tidied(self.place, parts)

    @property
    def _elements(self) -> int:
        """Of the widest tensor of one row."""
        (pose,) = (tensor for tensor in self._scale.specs()["unet"].inputs if tensor.name == "pose")
        high, wide = self._scale.cells
        return self._frames * high * wide * int(pose.shape[2]) * WIDEST

    def matmul(self) -> Iterator[Figures]:
        """The ceiling that the U-Net's TFLOP/s are held against, measured beside it."""
        yield {"matmul_tflops": matmul_tflops(self.place)}

    def _plain(
        self, name: str, *, hoisted: bool = False, folded: bool = False, compiled: bool = False
    ) -> Iterator[Figures]:
        loop = self._plain_loop(hoisted=hoisted, folded=folded, compiled=compiled)
        loop.start()
        self._several(loop)
        latents = loop.latents()
        if name == "plain":
            self._known = latents
        seconds = seconds_of(lambda: self._several(loop), self.place.wait) / self._scale.timed
        yield self._told(name, seconds, latents)

    def _plain_loop(self, *, hoisted: bool = False, folded: bool = False, compiled: bool = False) -> Plain:
        networks = self._networks
        unet: Run = networks.folded() if folded else networks.unet()
        run = torch.compile(unet) if compiled else unet
        return Plain(
            self.place, self._scale, run, networks.pose_net(), self._clip(), hoisted=hoisted, folded=folded
        )

    def _several(self, loop: Any) -> None:
        for step in self._steps[: self._scale.timed]:
            loop.step(step)

    def _ours(self, name: str, *, graphs: bool, sizes: tuple[int, ...] = (1,)) -> Iterator[Figures]:
        engine = self.engine(self._networks.folded())
        loop = Ours(self.place, self._scale, engine, self._clip(), self.exact, sizes, graphs=graphs)
        with closing(loop):
            yield from self.steps_of(loop, name, graphs=graphs)

    def engine(self, run: Run, network: str = "unet") -> ModuleEngine:
        """A module as the engine of a network."""
        return ModuleEngine(run, self._scale.specs()[network], self.place, self.place.gpu)

    def steps_of(self, loop: Ours, name: str, *, graphs: bool) -> Iterator[Figures]:
        """What a step of ours takes, and how much of it is not the U-Net."""
        wait, timed = self.place.wait, self._scale.timed
        loop.start(self._features())
        self._several(loop)
        latents, alone = loop.latents(), loop.unet_alone(graphs)
        if alone is None:
            seconds = seconds_of(lambda: self._several(loop), wait) / timed
            yield self._told(name, seconds, latents)
            return
        whole, unet = alternating(lambda: self._several(loop), lambda: repeat(alone, timed), wait)
        alone.close()
        yield self._told(name, whole / timed, latents)
        yield {f"{name}_unet_ms": unet / timed * 1e3, f"{name}_outside_unet": 1 - unet / whole}
        if self._scale.work is not None:
            high, wide = self._scale.cells
            flops = self._scale.work.flops(rows=2, frames=self._frames, cells=high * wide)
            yield {f"{name}_unet_tflops": flops * timed / unet / 1e12}

    def plain_video(self) -> Iterator[Figures]:
        """PoseNet at every step, all steps, and the published decoder; once in a process."""
        key = (self._scale, self._frames, self.place.torch)
        if key not in PLAIN_VIDEOS:
            PLAIN_VIDEOS[key] = self._plain_video()
        yield PLAIN_VIDEOS[key]

    def _plain_video(self) -> Figures:
        loop, vae = self._plain_loop(), self._networks.vae()

        def run(steps: list[Step]) -> Any:
            loop.start()
            for step in steps:
                loop.step(step)
            return loop.decode(vae)

        run(self._steps[:1])
        self.place.wait()
        began = time.perf_counter()
        run(self._steps)
        figures = {"video_plain_s": time.perf_counter() - began}
        return figures | self._used("video_plain")

    def _video(self) -> Iterator[Figures]:
        steps = "compiled" if self._scale.compiles else ""
        yield from self.videos(self.engine(self._compiled(self._networks.folded())), steps)

    def videos(self, engine: Engine, steps: str = "") -> Iterator[Figures]:
        """PoseNet once, all steps, the decoder on its own stream; the same for two jobs, and with options on.

        Before these the steps alone, under the name `steps` if there is one.
        """
        film = self._film()
        with closing(self._loop(engine, self.exact)) as loop:
            if steps:
                yield from self.steps_of(loop, steps, graphs=True)
            yield film(loop, "ours", 1)
            yield film(loop, "overlapped", 2)
        with closing(self._loop(engine, self.fast)) as loop:
            yield film(loop, "options", 2)

    def _reuse_video(self) -> Iterator[Figures]:
        """With options on, and the deep features of every other step used twice."""
        whole, outer = (
            self.engine(self._compiled(self._networks.folded(form)), name)
            for name, form in (("unet_caching", KeepingUNetEngine), ("unet_shallow", OuterUNetEngine))
        )
        film = self._film()
        with closing(self._loop(whole, replace(self.fast, reuse_interval=2), outer)) as loop:
            yield film(loop, "reuse", 2)

    def _film(self) -> Callable[[Ours, str, int], Figures]:
        """What makes videos with a loop, and tells the seconds of one and the memory that they took."""
        decoding = Decoding(self.place, self._scale, self._compiled(self._networks.decoder()))
        pose_net, poses = self._networks.pose_net(), self._poses()

        def film(loop: Ours, name: str, jobs: int) -> Figures:
            def run(steps: list[Step]) -> None:
                animate(loop, steps, lambda: features_of(pose_net, poses), decoding, jobs)
                self.place.wait()

            decoding.used_gib.clear()
            run(loop.steps[:1])
            began = time.perf_counter()
            run(loop.steps)
            figures: Figures = {f"video_{name}_s": (time.perf_counter() - began) / jobs}
            used = decoding.used_gib
            return figures | ({f"video_{name}_used_gib": max(used)} if used else {})

        return film

    def _loop(self, engine: Engine, settings: Settings, outer: Engine | None = None) -> Ours:
        """Ours, captured, a row at a time."""
        return Ours(self.place, self._scale, engine, self._clip(), settings, (1,), graphs=True, outer=outer)

    def _compiled(self, module: Run) -> Run:
        return torch.compile(module) if self._scale.compiles else module

    def own_gaps(self) -> Iterator[Figures]:
        """`gaps` of our fastest step on PyTorch."""
        yield from self.gaps(self.engine(self._compiled(self._networks.folded())))

    def gaps(self, engine: Engine) -> Iterator[Figures]:
        """How much of a captured step the GPU is idle. A profiler stays attached: nothing may be timed afterwards."""
        wait = self.place.wait
        idle_share(lambda: None, wait)  # it has to be there before a graph is captured
        with closing(self._loop(engine, self.exact)) as loop:
            loop.start(self._features())
            idle = idle_share(lambda: self._several(loop), wait)
        if idle is None:
            raise RuntimeError("PyTorch's profiler saw no kernels")
        yield {"gaps_idle": idle}

    def _told(self, name: str, seconds: float, latents: Latents) -> Figures:
        figures = {f"{name}_s": seconds * STEPS} | self._used(name)  # before the plain loop takes memory, too
        return figures | {f"{name}_rel_l2": relative_error(latents, self._reference())}

    def _used(self, name: str) -> Figures:
        used = self.place.used_gib()
        return {} if used is None else {f"{name}_used_gib": used}

    def _reference(self) -> Latents:
        """The plain loop's latents after the timed steps."""
        if self._known is None:
            loop = self._plain_loop()
            loop.start()
            self._several(loop)
            self._known = loop.latents()
        return self._known

    def _features(self) -> Any:
        return features_of(self._networks.pose_net(), self._poses())

    def _poses(self) -> torch.Tensor:
        return torch.from_numpy(self._clip().poses).to(self.place.torch, self._scale.dtype)

    def _clip(self) -> Clip:
        if self._clip_made is None:
            self._clip_made = random_clip(self._scale, self._frames)
        return self._clip_made


def repeat(work: Callable[[], Any], times: int) -> None:
    """So many times."""
    for _ in range(times):
        work()


def alternating(
    one: Callable[[], Any], other: Callable[[], Any], wait: Callable[[], None]
) -> tuple[float, float]:
    """Seconds of two works in turns, the medians: what drifts hits both."""
    pairs = [
        (seconds_of(one, wait, series=1), seconds_of(other, wait, series=1)) for _ in range(ALTERNATIONS)
    ]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def decode_parts(place: Place, scale: Scale, frames: int = 8) -> Mapping[str, Part]:
    """Seconds a frame of the VAE decoder as its engine computes it, eager and compiled."""

    def timed(name: str, compiled: bool) -> Iterator[Figures]:
        decoder: Run = Networks(scale, place.torch).decoder()
        run = torch.compile(decoder) if compiled else decoder
        latents = torch.randn((frames, 4, *scale.cells), device=place.torch).to(scale.dtype)
        with torch.inference_mode():
            yield {f"{name}_s_a_frame": seconds_of(lambda: run(latents), place.wait) / frames}

    names = {"eager": False} | ({"compiled": True} if scale.compiles else {})
    return tidied(place, {name: partial(timed, name, on) for name, on in names.items()})
