"""The state of an animation in a folder, so that another process can go on with it and make the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..events import Progress
from ..files import write_atomic
from ..pose.sequence import SHAPES, PoseSequence
from ..settings import Settings

Float = NDArray[np.float32]
Array = NDArray[Any]

POSES = "poses.npz"
LATENTS = ("latents-a.npz", "latents-b.npz")
"""Written in turn: if the newer one is damaged, the older one is taken."""
SHARE = 0.02
"""Of the time since the start: how much the writing may take."""
FIRST_COST = 0.02
"""Seconds that the first one is expected to take."""


@dataclass(frozen=True)
class Checkpoint:
    """The latents after a denoising step."""

    steps: int
    """Steps done."""
    latents: Float
    """float32 [F,4,h,w]."""


class Checkpoints:
    """The checkpoints of one animation in a folder of its own.

    They hold for one build (bundle, version and device) and one set of settings. Every file ends with its SHA-256;
    one that is damaged is not taken. A file that cannot be written is logged and left out.
    """

    def __init__(
        self,
        folder: Path,
        build: str,
        settings: Settings,
        *,
        share: float = SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.urgent = False
        """Save after the next step, whatever it costs: the animation is about to be stopped."""
        self._folder = folder
        self._about = json.dumps({"build": build, "settings": settings.to_dict()}, sort_keys=True)
        self._share, self._clock, self._began = share, clock, clock()
        self._spent, self._cost = 0.0, FIRST_COST  # seconds for all of them, and for the newest
        self._saved = self._offered = 0  # steps
        self._next = 0  # index into LATENTS

    def load(self) -> Checkpoint | None:
        """The newest one that is whole; None if there is none. Raises `CheckpointError` if it is of another build."""
        found: list[tuple[int, int, dict[str, Array]]] = []
        for index, name in enumerate(LATENTS):
            if (values := self._read(name)) is not None:
                found.append((int(values["steps"]), index, values))
        if not found:
            return None
        steps, index, values = max(found, key=lambda one: one[0])
        if str(values["about"]) != self._about:
            raise CheckpointError(
                f"The job was left after step {steps} under another build or other settings and cannot go on.",
                remedy="Send the job again.",
            )
        self._saved = self._offered = steps
        self._next = 1 - index
        return Checkpoint(steps, values["latents"])

    def load_poses(self) -> tuple[PoseSequence, int] | None:
        """What `save_poses` kept; None if there is nothing for these settings."""
        values = self._read(POSES)
        if values is None or str(values["about"]) != self._about:
            return None
        width, height = values["size"].tolist()
        arrays = {name: values[name] for name in SHAPES}
        poses = PoseSequence(**arrays, fps=float(values["fps"]), size=(width, height))
        return poses, int(values["people"])

    def save_poses(self, poses: PoseSequence, people: int) -> None:
        """Keep the driving poses, and how many people were seen: finding them may take as long as a few steps."""
        arrays = {name: getattr(poses, name) for name in SHAPES}
        self._write(POSES, fps=poses.fps, size=poses.size, people=people, **arrays)

    def offer(self, steps: int, latents: Callable[[], Float]) -> None:
        """Keep `latents()` after so many steps, if there is time for it."""
        self._offered = steps
        if steps == self._saved:
            return
        if not self.urgent and self._spent + self._cost > self._share * (self._clock() - self._began):
            return
        values = latents()  # a GPU finishes its step first: that time is not lost
        began = self._clock()
        if self._write(LATENTS[self._next], steps=steps, latents=values):
            self._saved, self._next = steps, 1 - self._next
        self._cost = self._clock() - began
        self._spent += self._cost

    def holds(self, event: Progress) -> bool:
        """Whether an animation that stops after this event can go on without a lost step."""
        if event.stage == "denoise":
            return event.segment == event.segments and event.step == self._saved
        return event.stage != "decode" or self._offered == self._saved

    # ---- files ----

    def _write(self, name: str, **values: Any) -> bool:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, about=np.array(self._about), **values)
        body = buffer.getvalue()
        try:
            write_atomic(self._folder / name, body + hashlib.sha256(body).digest(), sync=True)
        except OSError as error:
            logging.getLogger(__name__).warning("%s is left out: %s", self._folder / name, error)
            return False
        return True

    def _read(self, name: str) -> dict[str, Array] | None:
        try:
            data = (self._folder / name).read_bytes()
        except OSError:
            return None
        body, digest = data[:-32], data[-32:]
        if hashlib.sha256(body).digest() != digest:
            logging.getLogger(__name__).warning("%s is damaged and not taken", self._folder / name)
            return None
        with np.load(io.BytesIO(body), allow_pickle=False) as values:
            return dict(values)
