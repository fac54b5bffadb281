"""An animator with the real one's contract whose picture is a JSON script of what to do.

`frames`, `steps`, `size` and `fps` shape the clip; `pause` seconds pass in each step; `noise` makes frames that
do not compress; `fail` raises that error of errors.py in `stage` ("stream" for at once); `crash` ends the process
there instead. The bundle is a JSON script as well: `pause` before loading ends, `fail`, `crash`, `build`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mimicmotion_trt import errors
from mimicmotion_trt.denoise.checkpoint import Checkpoints
from mimicmotion_trt.events import STAGES, Progress, Stage
from mimicmotion_trt.facts import Facts
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.service.config import EngineConfig
from mimicmotion_trt.settings import Settings


def load(config: EngineConfig) -> StandIn:
    does = json.loads(str(config.bundle))
    time.sleep(does.get("pause", 0))
    _misbehave(does, "load")
    return StandIn(config)


class StandIn:
    bundle_name = "stand-in"
    costs, rows = None, 1

    def __init__(self, config: EngineConfig) -> None:
        self.build = json.loads(str(config.bundle)).get("build", "stand-in")
        self.limits = config.limits
        self.note = f"graphs {config.graphs}, threads {config.threads}"

    def build_for(self, settings: Settings) -> str:
        return self.build

    def settings(self, **overrides: Any) -> Settings:
        return Settings(**{"segment": 8, "overlap": 3, "steps": 4, "canvas": 256, **overrides})

    def stream(
        self,
        image: Path,
        motion: Any,
        settings: Settings,
        *,
        reference_pose: PoseSequence | None = None,
        motion_kind: str = "auto",
        cancelled: Callable[[], bool] = lambda: False,
        checkpoints: Checkpoints | None = None,
    ) -> Clip:
        does = json.loads(image.read_bytes())
        _misbehave(does, "stream")
        expected = does.get("motion", type(motion).__name__)
        assert type(motion).__name__ == expected, f"{type(motion).__name__} is not {expected}"
        assert motion_kind == does.get("motion_kind", "auto"), motion_kind
        assert (reference_pose is not None) == does.get("reference_pose", False)
        facts = Facts(settings, self.bundle_name, self.build, "0", "cpu")
        return Clip(does, facts, cancelled, checkpoints)

    def close(self) -> None:
        pass


class Clip:
    audio = None

    def __init__(
        self,
        does: dict[str, Any],
        facts: Facts,
        cancelled: Callable[[], bool],
        checkpoints: Checkpoints | None,
    ) -> None:
        settings = facts.settings
        self.frames: int = min(does.get("frames", 6), settings.frames or 10**9)
        self.fps = does.get("fps", 12.5)
        self.size = settings.size or tuple(does.get("size", (64, 128)))
        self._does = does
        self.seeds, self.video = facts.settings.each_seed, 1
        self.facts, self.seconds = facts.of_seed(self.seeds[0]), dict.fromkeys(STAGES, 0.0)
        self._settings = settings
        self._cancelled = cancelled
        self._checkpoints = checkpoints
        self._checkpoint = None if checkpoints is None else checkpoints.load()

    def __iter__(self) -> Iterator[Progress]:
        for stage in STAGES[:2]:
            yield from self._run(stage)
        steps, checkpoint = self._settings.steps, self._checkpoint
        first = max(0, checkpoint.steps - 1) // steps if checkpoint is not None else 0
        for number in range(first, len(self.seeds)):
            self.video, self.facts = number + 1, self.facts.of_seed(self.seeds[number])
            self._latents, done = np.full(3, self.seeds[number] % 1000, np.float32), 0
            if checkpoint is not None and number == first:
                self._latents, done = checkpoint.latents, checkpoint.steps - number * steps
            yield from self._run("denoise", done)
            self._random = np.random.default_rng(self._latents.astype(np.uint32))
            yield from self._run("decode")

    def _run(self, stage: Stage, start: int = 0) -> Iterator[Progress]:
        _misbehave(self._does, stage)
        steps = {"denoise": self._settings.steps, "encode": 1}.get(stage, self.frames)
        stride = self._settings.decode_chunk if stage == "decode" else 1
        for step in range(start, steps, stride):
            if self._cancelled():
                raise errors.Cancelled("The job was cancelled.")
            began = time.monotonic()
            time.sleep(self._does.get("pause", 0.0))
            if stage == "denoise":
                self._latents = np.float32(0.5) * self._latents + np.float32(100 * step)
            if stage in ("denoise", "decode") and self._checkpoints is not None:
                done = step + 1 if stage == "denoise" else self._settings.steps
                before = (self.video - 1) * self._settings.steps
                self._checkpoints.offer(before + done, lambda: self._latents)
            self.seconds[stage] += time.monotonic() - began
            yield self._event(stage, min(step + stride, steps), steps, min(stride, steps - step))

    def close(self) -> None:
        pass

    def _event(self, stage: Stage, step: int, steps: int, count: int) -> Progress:
        width, height = self.size
        frames = preview = None
        if stage == "decode":
            frames = np.full((count, height, width, 3), (step + int(self._latents.sum())) % 256, np.uint8)
            if self._does.get("noise"):
                frames = self._random.integers(0, 256, frames.shape, np.uint8)
        every = self._settings.preview
        if stage == "denoise" and every and step % every == 0:
            preview = np.full((height, width, 3), step % 256, np.uint8)
        if stage in ("denoise", "decode"):
            step, steps = step + (self.video - 1) * steps, steps * len(self.seeds)
        return Progress(stage, step, steps, video=self.video, frames=frames, preview=preview)


def _misbehave(does: dict[str, Any], stage: str) -> None:
    if does.get("stage", "stream" if stage != "load" else "load") != stage:
        return
    if does.get("crash"):
        os._exit(3)
    if "fail" in does:
        kind = getattr(errors, does["fail"], None) or __builtins__[does["fail"]]  # type: ignore[index]
        if issubclass(kind, errors.MimicMotionError):
            raise kind(
                "It went wrong." + "!" * does.get("long", 0), remedy="Do better.", field="settings.steps"
            )
        raise kind("unexpected")
