"""How long the denoising loop and whole videos take on a GPU, against the plain PyTorch loop in the same run.

    python benchmarks/gpu_loop.py [--shape NAME]… [--minutes N] [--results DIR]

Networks have random weights (`torch_model.py`) and run as a torch bundle through the public `Animator`. Without
`--shape` MimicMotion's 16 and 72 frames at 1024x576 are measured, then small networks; `svd-xt` is the work of the
published marks: 25 frames, 25 steps, guidance, 1024x576. A row of the table is one way to make the video:

    plain         the reference's order of work in eager PyTorch: PoseNet and two U-Net calls at every step
    ours          the step program in captured graphs, exactly the same computation
    two jobs      ours, seconds of one of two videos that are made at the same time
    10 steps      ours with 10 steps of align-your-steps, guided between sigma 0.3 and 20
    reuse         the same, and the features of every other step used twice
    …, compiled   the same with networks compiled by torch.compile, which takes minutes (--compile)

`step_s` is one denoising step, `encode_s` what comes before the first, `decode_s` the decoder, `video_s` the whole
video in 25 steps: where the shape times fewer steps, as computed from these. `faster` is the plain loop's `video_s`
over this one's, `rel_l2` how far the latents are from the plain loop's, `tflops` what the U-Net's operations need in
`step_s`, `of_matmul` its share of a large matrix product's, `idle` the share of the captured steps' time in which
the GPU runs nothing (by PyTorch's profiler), `gib` the GPU memory in use. Prints a table, draws a plot beside the
JSON file and, last, prints its line; the file is written after every figure. Runs without a GPU, too: --shape small.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import RESULTS, AsJson, Figures, Part, Record, run_parts, shown, timed
from rich.console import Console
from rich.table import Table
from torch_model import REAL, SMALL, TorchLoop, random_model, write_bundle

from mimicmotion_trt import Animator, Limits, Settings
from mimicmotion_trt.denoise.noise import latent_noise
from mimicmotion_trt.engines import Manifest
from mimicmotion_trt.engines.bundle import MANIFEST
from mimicmotion_trt.training.checkpoints import image_statistics

Latents = np.ndarray[Any, np.dtype[np.float32]]
Frames = np.ndarray[Any, np.dtype[np.uint8]]
STEPS = 25
"""Steps of a whole video."""
MARKS = (
    ("TensorRT, H100 PCIe", 22.6),
    ("TensorRT, A100 SXM", 32.2),
    ("PyTorch, A100 80G", 39.9),
    ("OneDiff Enterprise, A100 80G", 20.4),
    ("the same with DeepCache", 13.6),
)
"""Published seconds of SVD-XT's 25 frames in 25 steps, guided, at 1024x576, decoding included."""
FIGURES = (
    "video_s", "faster", "step_s", "encode_s", "decode_s", "rel_l2", "tflops", "of_matmul", "idle", "gib"
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One segment of frames, and how much of its work is timed."""

    configs: Path
    size: tuple[int, int]
    """(width, height)."""
    frames: int
    timed: int = STEPS
    """Steps that are timed: every step is the same work."""
    guidance: tuple[float, float] = (2.0, 2.0)

    @property
    def exact(self) -> Settings:
        """What the reference computes, with SVD's range of sigmas."""
        return Settings(
            size=self.size, steps=STEPS, segment=self.frames, overlap=min(6, self.frames - 1),
            guidance=self.guidance, sigma_min=0.002, sigma_max=700.0,
        )  # fmt: skip

    @property
    def fast(self) -> Settings:
        """The options that trade quality for speed."""
        return replace(self.exact, steps=10, schedule="align-your-steps", guidance_interval=(0.3, 20.0))

    @cached_property
    def inputs(self) -> tuple[Frames, Frames, Latents]:
        """A picture [H,W,3], pose pictures [F,H,W,3] and unit noise [F,4,h,w] of one seed."""
        (width, height), chance = self.size, np.random.default_rng(0)
        picture = chance.integers(0, 255, (height, width, 3), np.uint8)
        poses = chance.integers(0, 255, (self.frames, height, width, 3), np.uint8)
        return picture, poses, latent_noise(0, self.frames, self.frames, (height // 8, width // 8))


SHAPES = {
    "mimicmotion-16": Shape(REAL, (1024, 576), 16),
    "mimicmotion-72": Shape(REAL, (1024, 576), 72, timed=5),
    "svd-xt": Shape(REAL, (1024, 576), 25, guidance=(1.0, 3.0)),
    "small": Shape(SMALL, (128, 64), 8),
}
DEFAULT = ["mimicmotion-16", "mimicmotion-72", "small"]


def main(
    shape: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SHAPES)}; repeat.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing after so many minutes.", min=0)] = None,
    results: Annotated[Path, typer.Option(help="Folder of the JSON file and the plot.")] = RESULTS,
    work: Annotated[
        Path | None, typer.Option(help="Folder to keep bundles in; else a temporary one.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Time this bundle as ours, whatever its weights: no errors then.")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Networks compiled by torch.compile, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Time the plain loop and ours on one shape after the other."""
    chosen = shape or DEFAULT
    if unknown := sorted(set(chosen) - set(SHAPES)):
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(SHAPES)}")
    console = Console(quiet=as_json, markup=False, highlight=False)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    record = Record.begin(results, "-".join(["gpu-loop", *(shape or ())]), machine, steps=STEPS)
    with tempfile.TemporaryDirectory() as temporary:
        loops = {name: Loops(SHAPES[name], work or Path(temporary), bundle) for name in chosen}
        run_parts(parts_of(loops, compiled=compile), record, console, minutes)
    rows = record.found["rows"]
    for group in rows:
        console.print(table(group, rows[group]))
    if "svd-xt" in chosen:
        console.print("published, seconds: " + ", ".join(f"{who} {seconds}" for who, seconds in MARKS))
    seconds = {
        group: {row: told["video_s"] for row, told in rows[group].items() if "video_s" in told}
        for group in rows
    }
    record.plot(seconds, "seconds of a video", console)
    console.print(str(record.path))
    print(record.line)


def parts_of(loops: dict[str, Loops], *, compiled: bool) -> list[tuple[str, str, Part]]:
    """What is measured, the most valuable first; a profiler stays in the process, so idle time comes last."""
    parts: list[tuple[str, str, Part]] = []
    for name, one in loops.items():
        parts += [(name, "plain", one.plain), (name, "ours", one.ours)]
    parts += [(name, "reuse", one.reuse) for name, one in loops.items() if one.bundle is None]
    for name, one in loops.items() if compiled else ():
        parts.append((name, "ours, compiled", partial(one.ours, compiled=True)))
        parts.append((name, "plain, compiled", partial(one.plain, compiled=True)))
    if torch.cuda.is_available():
        parts += [(name, "idle", one.idle) for name, one in loops.items()]
    return parts


class Loops:
    """The ways to make one shape's video; each gives its networks back before the next."""

    def __init__(self, shape: Shape, work: Path, bundle: Path | None = None) -> None:
        self.shape, self.bundle, self._work = shape, bundle, work
        on_gpu = torch.cuda.is_available()
        self._device, self._dtype = ("cuda", torch.float16) if on_gpu else ("cpu", torch.float32)
        self._plain_seconds: float | None = None
        self._plain_latents: Latents | None = None

    def plain(self, compiled: bool = False) -> Iterator[tuple[str, Figures]]:
        """The reference's order of work."""
        tidy()
        model, exact = random_model(self.shape.configs, self._device), self.shape.exact
        image = image_statistics(model.feature_extractor, model.image_encoder)
        for module in (model.unet, model.pose_net, model.vae, model.image_encoder):
            torch.nn.Module.to(module, self._dtype)
        if compiled:
            model.unet.compile()
            torch.nn.Module.compile(model.vae.get_submodule("decoder"))
        loop, (picture, poses, noise) = TorchLoop(model, image), self.shape.inputs
        figures, latents = self._timed(
            lambda steps: loop.sample(picture, poses, replace(exact, steps=steps), noise),
            lambda latents: loop.decode(latents, exact.decode_chunk),
        )
        if not compiled:
            self._plain_seconds, self._plain_latents = figures["video_s"], latents
        yield "plain, compiled" if compiled else "plain", figures | memory()

    def ours(self, compiled: bool = False) -> Iterator[tuple[str, Figures]]:
        """The same on the product: one video, one with options, then two at a time."""
        more, exact, fast = ", compiled" if compiled else "", self.shape.exact, self.shape.fast
        with self._animator(compiled=compiled) as animator:
            figures, latents = self._timed(
                lambda steps: self._sample(animator, replace(exact, steps=steps)),
                lambda latents: animator.decode(latents, exact.decode_chunk),
            )
            yield f"ours{more}", figures | self._faster(figures["video_s"]) | memory()
            yield f"ours{more}", self._throughput(figures["step_s"]) | self._error(latents)
            self._video(animator, replace(fast, steps=2))
            yield f"10 steps{more}", self._faster(timed(lambda: self._video(animator, fast))) | memory()
            if self.shape.timed == STEPS:
                yield f"two jobs{more}", self._faster(self._two(animator, exact)) | memory()

    def reuse(self) -> Iterator[tuple[str, Figures]]:
        """Ours with options on, and features reused."""
        with self._animator(deep_cache=True) as animator:
            fast = replace(self.shape.fast, reuse_interval=2)
            self._video(animator, replace(fast, steps=3))
            yield "reuse", self._faster(timed(lambda: self._video(animator, fast))) | memory()

    def idle(self) -> Iterator[tuple[str, Figures]]:
        """The share of the captured steps' time in which the GPU runs nothing."""
        os.environ["TEARDOWN_CUPTI"] = "0"  # PyTorch: graphs do not survive its being taken down
        idle_share(lambda: None)  # the profiler has to be there before a graph is captured
        with self._animator() as animator:
            some = replace(self.shape.exact, steps=4)
            self._sample(animator, some)
            yield "ours", {"idle": idle_share(lambda: self._sample(animator, some))}

    @contextmanager
    def _animator(self, *, deep_cache: bool = False, compiled: bool = False) -> Iterator[Animator]:
        """Ours; it keeps nothing of a picture, so that every run encodes it again."""
        tidy()
        os.environ["MIMICMOTION_TORCH"] = "compile" if compiled else "eager"
        with Animator.load(self._folder(deep_cache), limits=Limits(jobs=2, reuse_bytes=1)) as animator:
            yield animator

    def _folder(self, deep_cache: bool = False) -> Path:
        """That of the bundle; written once."""
        return self.bundle or write_bundle(
            self._work / self.shape.configs.name, self.shape.configs, self._device,
            half=self._dtype is torch.float16, size=self.shape.size, segment=self.shape.frames,
            deep_cache=deep_cache,
        )  # fmt: skip

    def _sample(self, animator: Animator, settings: Settings) -> Latents:
        picture, poses, noise = self.shape.inputs
        return animator.sample(picture, poses, settings, initial_latents=noise)

    def _video(self, animator: Animator, settings: Settings) -> Frames:
        return animator.decode(self._sample(animator, settings), settings.decode_chunk)

    def _two(self, animator: Animator, settings: Settings) -> float:
        """Seconds of one of two videos that are made at the same time."""
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda _: self._video(animator, replace(settings, steps=1)), range(2)))
            return timed(lambda: list(threads.map(lambda _: self._video(animator, settings), range(2)))) / 2

    def _timed(
        self, sample: Callable[[int], Latents], decode: Callable[[Latents], Frames]
    ) -> tuple[dict[str, float], Latents]:
        """Figures of one way, and its latents after the timed steps; a first run is not timed."""
        decode(sample(1))
        one = min(timed(lambda: sample(1)) for _ in range(2))
        kept: list[Latents] = []
        many = timed(lambda: kept.append(sample(self.shape.timed)))
        step, decoding = (many - one) / (self.shape.timed - 1), timed(lambda: decode(kept[0]))
        encoding = max(one - step, 0.0)
        video = encoding + STEPS * step + decoding
        return {"video_s": video, "step_s": step, "encode_s": encoding, "decode_s": decoding}, kept[0]

    def _faster(self, video: float) -> dict[str, float]:
        plain = self._plain_seconds
        return {"video_s": video} if plain is None else {"video_s": video, "faster": plain / video}

    def _error(self, latents: Latents) -> dict[str, float]:
        """How far latents are from the plain loop's; of a given bundle, whose weights are others, nothing."""
        expected = self._plain_latents
        if expected is None or self.bundle is not None:
            return {}
        return {"rel_l2": float(np.linalg.norm(latents - expected) / np.linalg.norm(expected))}

    def _throughput(self, step: float) -> dict[str, float]:
        """TFLOP/s of the U-Net's two rows, and their share of a large matrix product's."""
        width, height = self.shape.size
        manifest = Manifest.from_json((self._folder() / MANIFEST).read_text())
        work, ceiling = manifest.networks["unet"].flops, matmul_tflops(self._device)
        tflops = work.total(rows=2, frames=self.shape.frames, pixels=width * height / 64) / step / 1e12
        return {"tflops": tflops, "of_matmul": tflops / ceiling, "matmul_tflops": ceiling}


def tidy() -> None:
    """Give back what nobody uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def memory() -> dict[str, float]:
    """GPU memory that is not free, whoever holds it; nothing on a CPU."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"gib": (total - free) / 2**30}


def matmul_tflops(device: str, side: int = 8192, times: int = 30) -> float:
    """TFLOP/s of products side x side, float16 on a GPU; on a CPU of smaller ones, in float32."""
    side, times = (side, times) if device == "cuda" else (512, 5)
    dtype = torch.float16 if device == "cuda" else torch.float32
    a, b = (torch.randn((side, side), device=device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * side**3 * times / statistics.median([timed(products) for _ in range(4)][1:]) / 1e12


def idle_share(work: Callable[[], Any]) -> float | None:
    """The share of the U-Net's time in which the GPU runs no kernel and no copy; None if the profiler saw none."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    spans = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in seen.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return idle_between(spans, "blend_step")


def idle_between(spans: Iterable[tuple[str, float, float]], mark: str) -> float | None:
    """Of the time from the first end of a kernel named `mark` to the last, what no (name, begin, end) covers.

    None where fewer than two such kernels are.
    """
    ordered = sorted(spans, key=lambda span: span[1])
    ends = [end for name, _, end in ordered if mark in name]
    if len(ends) < 2:
        return None
    reached, covered = ends[0], 0.0
    for _, begin, end in ordered:
        covered += max(0.0, min(end, ends[-1]) - max(begin, reached))
        reached = max(reached, min(end, ends[-1]))
    return 1 - covered / (ends[-1] - ends[0])


def table(group: str, rows: dict[str, dict[str, Any]]) -> Table:
    """What one shape's ways take, for people."""
    made = Table(group, *rows)
    for name in FIGURES:
        if any(name in found for found in rows.values()):
            made.add_row(name, *(shown(found.get(name)) for found in rows.values()))
    return made


if __name__ == "__main__":
    typer.run(main)
