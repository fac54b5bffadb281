"""What a running animation tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stage = Literal["pose", "encode", "denoise", "decode"]
STAGES: tuple[Stage, ...] = ("pose", "encode", "denoise", "decode")


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One report. `step` of `steps` is done in `stage` (frames in pose and decode, sigmas in denoise)."""

    stage: Stage
    step: int
    steps: int
    """0 where the total is not known yet (a video whose length its container does not state)."""
    segment: int = 0
    """In denoise: segments done of the running step."""
    segments: int = 0
    seconds: float = 0.0
    """Since the job began."""
    preview: NDArray[np.uint8] | None = None
    """uint8 [H,W,3]: the middle frame as the running denoise step sees it finished."""
    frames: NDArray[np.uint8] | None = None
    """uint8 [n,H,W,3] RGB: finished frames, in order; only in decode."""

    def __str__(self) -> str:
        total = str(self.steps) if self.steps else "?"
        inner = f", segment {self.segment}/{self.segments}" if self.segments else ""
        extra = f", {len(self.frames)} frames" if self.frames is not None else ""
        return f"[{self.seconds:7.2f} s] {self.stage} {self.step}/{total}{inner}{extra}"
