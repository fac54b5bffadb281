"""Where the time of one animation goes, stage by stage; with --compare torch, against the plain PyTorch loop.

    python benchmarks/latency.py --compare torch

Prints a table for people and, last, one line of JSON for machines.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import PERSON, ROOT, AsJson, BundleName, driving_video, keypoints, picture, timed
from rich.console import Console
from rich.table import Table

from mimicmotion_trt.animator import Animator
from mimicmotion_trt.console import explained
from mimicmotion_trt.denoise.noise import latent_noise
from mimicmotion_trt.errors import SettingsError
from mimicmotion_trt.media.writer import VideoWriter
from mimicmotion_trt.pose import draw_poses
from mimicmotion_trt.settings import REFERENCE, Settings, parse_size

MODEL = ROOT / "training" / "models" / "tiny"
SETTLE_SECONDS = 0.3
"""PyTorch's worker threads spin for 0.2 s after their last task; they must not take the other side's cores."""
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Bench:
    """What is timed, and how often."""

    animator: Animator
    settings: Settings
    frames: int
    threads: int
    repeat: int
    warmup: int
    console: Console


def main(
    bundle: BundleName = "tiny",
    frames: Annotated[int, typer.Option(help="Frames of the finished video.")] = 40,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT.")] = "128x192",
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the bundle's own if not given.")] = None,
    segment: Annotated[
        int | None, typer.Option(help="Frames in a segment; the bundle's own if not given.")
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Frames that segments share; the bundle's own.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads, for both sides of a comparison.")] = 2,
    repeat: Annotated[int, typer.Option(help="Timed runs.", min=1)] = 3,
    warmup: Annotated[int, typer.Option(help="Runs before, not counted.", min=0)] = 1,
    grpc: Annotated[bool, typer.Option(help="Time the same job through a server, too.")] = True,
    compare: Annotated[str, typer.Option(help="torch: the plain PyTorch loop on the same weights.")] = "",
    base: Annotated[Path, typer.Option(help="Base folder that the bundle was built from.")] = MODEL / "base",
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint.")] = MODEL / "mimicmotion.safetensors",
    as_json: AsJson = False,
) -> None:
    """Time pose, encode, denoise, decode, media and gRPC; warm-up apart, percentiles over repeats."""
    console = Console(quiet=as_json, markup=False)
    with explained():
        if compare not in ("", "torch"):
            raise SettingsError(f"cannot compare with {compare!r}.", remedy="Choose torch.")
        given = {"steps": steps, "segment": segment, "overlap": overlap}
        chosen: Any = {name: value for name, value in given.items() if value is not None}
        animator = Animator.load(bundle, threads=threads)
        settings = animator.settings(size=parse_size(size), stride=1, **chosen)
        bench = Bench(animator, settings, frames, threads, repeat, warmup, console)
        report: dict[str, Any] = {
            "bundle": bundle, "frames": frames, "size": size, "threads": threads, "steps": settings.steps,
            "segment": settings.segment, "overlap": settings.overlap, "machine": machine(),
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            video = driving_video(Path(folder) / "motion.mp4", frames)
            report["stages"] = time_stages(bench, video)
            if grpc:
                report["grpc"] = time_grpc(bench, bundle, video)
        if compare:
            report["compare"] = compare_torch(bench, base, checkpoint)
            report["speedup_vs_torch"] = report["compare"]["speedup"]
    print(json.dumps(report))


def time_stages(bench: Bench, video: Path) -> dict[str, Any]:
    """Seconds of each stage of video-to-video animation."""
    runs = [run_once(bench, video) for _ in range(bench.warmup + bench.repeat)]
    first = sum(value for stage, value in runs[0].items() if stage != "denoise per step")
    title = f"one animation, {bench.repeat} runs after {bench.warmup}"
    table = Table("stage", "median ms", "p10", "p90", title=title)
    rows = {stage: spread([run[stage] for run in runs[bench.warmup :]]) for stage in runs[0]}
    for stage, row in rows.items():
        table.add_row(stage, *(f"{row[name] * 1e3:.1f}" for name in ("median", "p10", "p90")))
    bench.console.print(table)
    return {"first_run_s": first, **rows}


def run_once(bench: Bench, video: Path) -> dict[str, float]:
    """Animate and write an MP4; the seconds that each stage took."""
    animator, settings = bench.animator, bench.settings
    began = last = time.perf_counter()
    clip = animator.stream(PERSON, video, settings)
    seconds = {"media": time.perf_counter() - began}
    seconds |= dict.fromkeys(("pose", "encode", "denoise", "denoise per step", "decode"), 0.0)
    last = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        VideoWriter(f"{folder}/out.mp4", fps=clip.fps, size=clip.size) as out,
    ):
        for event in clip:
            now = time.perf_counter()
            seconds[event.stage] += now - last
            if event.frames is not None:
                for frame in event.frames:
                    out.write(frame)
            last = time.perf_counter()
            seconds["media"] += last - now
        out.close()
        seconds["media"] += time.perf_counter() - last
    seconds["denoise per step"] = seconds["denoise"] / settings.steps
    seconds["total"] = time.perf_counter() - began
    return seconds


def time_grpc(bench: Bench, bundle: str, video: Path) -> dict[str, Any]:
    """The same job in process and through a server of this machine, in turn."""
    from mimicmotion_trt.service import local_server

    times: Times = defaultdict(list)
    with local_server(bundle, threads=bench.threads) as client, tempfile.TemporaryDirectory() as folder:

        def through_grpc() -> None:
            client.animate(PERSON, video, bench.settings).save(Path(folder) / "grpc.mp4")

        through_grpc()
        for _ in range(bench.repeat):
            times["in process"].append(timed(lambda: run_once(bench, video)))
            times["through gRPC"].append(timed(through_grpc))
    direct, remote = (min(times[name]) for name in ("in process", "through gRPC"))
    bench.console.print(f"in process {direct:.3f} s, through gRPC {remote:.3f} s (fastest of {bench.repeat})")
    return {"in_process_s": direct, "grpc_s": remote, "overhead": remote / direct - 1}


def compare_torch(bench: Bench, base: Path, checkpoint: Path) -> dict[str, Any]:
    """Both loops from the same picture, pose pictures and noise to frames, in turn, in this process."""
    import torch
    from torch_model import TorchLoop

    from mimicmotion_trt.training.checkpoints import load_model

    animator, settings, frames = bench.animator, bench.settings, bench.frames
    assert settings.size is not None
    assert settings.segment is not None
    width, height = settings.size
    torch.set_num_threads(bench.threads)
    loop = TorchLoop(load_model(base, checkpoint), animator.manifest.image)
    reference = picture(settings.size)
    poses = draw_poses(keypoints(frames + 1), height, width, settings.canvas or int(REFERENCE["canvas"]))
    noise = latent_noise(settings.seed, frames + 1, settings.segment, (height // 8, width // 8))
    kept: dict[str, Any] = {}

    def ours() -> None:
        latents = animator.sample(reference, poses, settings, initial_latents=noise)
        kept["ours"] = animator.decode(latents, settings.decode_chunk)

    def theirs() -> None:
        kept["torch"] = loop(reference, poses, settings, noise)

    times: Times = defaultdict(list)
    for run in range(bench.warmup + bench.repeat):
        for name, call in (("torch", theirs), ("ours", ours)):
            time.sleep(SETTLE_SECONDS)
            seconds = timed(call)
            if run >= bench.warmup:
                times[name].append(seconds)
    difference = int(np.abs(kept["ours"].astype(int) - kept["torch"]).max())
    torch_s, ours_s = (spread(times[name]) for name in ("torch", "ours"))
    ratio = torch_s["median"] / ours_s["median"]
    title = f"{frames} frames, {settings.steps} steps, {bench.threads} threads"
    table = Table("loop", "median s", "p10", "p90", title=title)
    for name, row in (("torch", torch_s), ("ours", ours_s)):
        table.add_row(name, *(f"{row[key]:.3f}" for key in ("median", "p10", "p90")))
    bench.console.print(table)
    bench.console.print(
        f"{ratio:.2f}x the plain PyTorch loop; largest difference of a pixel {difference}/255"
    )
    return {"speedup": ratio, "largest_difference": difference, "torch": torch_s, "ours": ours_s}


def spread(values: list[float]) -> dict[str, float]:
    """Median and outer deciles."""
    low, high = np.percentile(values, [10, 90])
    return {"median": statistics.median(values), "p10": float(low), "p90": float(high)}


def machine() -> str:
    """What this ran on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    typer.run(main)
