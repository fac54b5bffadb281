"""How much this host takes: larger inputs are refused before they are decoded, older results forgotten."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .errors import LimitError


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds, each a positive whole number."""

    picture_bytes: int = 64 * 2**20
    picture_pixels: int = 100_000_000
    """Checked on the header, before any pixel is decoded."""
    motion_bytes: int = 2 * 2**30
    frame_pixels: int = 8192 * 4352
    """Pixels of one frame of the driving video."""
    frames: int = 20_000
    """Frames of the finished video."""
    output_pixels: int = 2048 * 2048
    """Pixels of one frame of the finished video."""
    reuse_bytes: int = 512 * 2**20
    """The host's memory for what CLIP, VAE and PoseNet said of pictures that may come again; 1 keeps nothing.

    PoseNet's features of 72 frames of 1024x576 are 425 MB in float16.
    """
    jobs: int = 1
    """Jobs that an engine process runs at once. On a GPU one is encoded or decoded while another is denoised."""
    together: int = 1
    """Of these, how many equal ones have their rows denoised together on a GPU; last bits depend on the company."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise LimitError(f"limit {f.name} is {value!r}.", remedy="Give a positive whole number.")


def check_limit(what: str, value: int, limit: int, *, field: str) -> None:
    """Raise `LimitError` naming `what` (for instance "pixels of the picture") if value > limit."""
    if value > limit:
        raise LimitError(
            f"{what}: {value:,} is more than the {limit:,} allowed here.",
            remedy="Send a smaller one, or raise the limit where the animator is loaded.",
            field=field,
        )
