"""Which shapes the engines of a bundle take: graphs take any, compiled engines those of their profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..engines import EnginePlan, Manifest
from ..errors import SettingsError, counted
from ..settings import Settings
from .segments import compact_windows

LatentSize = tuple[int, int]
"""(height, width) of latents: an eighth of the picture's."""


class ClipShape(NamedTuple):
    """How a clip is run."""

    segment: int
    """Frames by which it is cut, the reference picture's own included."""
    frames: int
    """Frames of the clip with those that were added at its end; they hold the last pose and are dropped."""


@dataclass(frozen=True)
class EngineShapes:
    """What each compiled network of a bundle was compiled for; empty for a bundle of graphs."""

    compiled: Mapping[str, EnginePlan]

    @classmethod
    def of(cls, manifest: Manifest) -> EngineShapes:
        """What a manifest says."""
        return cls({name: network.plan for name, network in manifest.networks.items() if network.plan})

    def fit(self, settings: Settings, frames: int, latent_size: LatentSize) -> ClipShape:
        """How a clip of `frames` frames, the reference picture's own included, is run.

        Graphs run it as it is. Plans run it in the longest segments that were compiled and fit into it; where none
        does, or the layout makes segments of another length, in the next longer ones that were compiled, with
        frames added at its end. Raises `SettingsError` for a size or segment that was not compiled.
        """
        assert settings.segment is not None
        if "unet" not in self.compiled:
            return ClipShape(settings.segment, frames)
        lengths, overlap = self.segment_lengths(latent_size), settings.overlap
        if not lengths:
            width, height = latent_size[1] * 8, latent_size[0] * 8
            raise SettingsError(
                f"this bundle was not compiled for {width}x{height}.",
                remedy=f"Choose {self._pixels()}, or rebuild it with --size {width}x{height}.",
                field="settings.size",
            )
        if settings.segment not in lengths:
            raise SettingsError(
                f"this bundle was not compiled for segments of {settings.segment} frames.",
                remedy=f"Choose {_any_of(lengths)}, or rebuild it with --frames {settings.segment}.",
                field="settings.segment",
            )
        usable = [length for length in lengths if overlap < length <= settings.segment]
        fitting = [length for length in usable if length <= frames]
        if not fitting:  # one segment, whatever the overlap is
            shortest = next(length for length in lengths if length >= frames)
            return ClipShape(shortest, shortest)
        if settings.layout != "compact" or frames <= fitting[-1]:
            return ClipShape(fitting[-1], frames)
        windows, driven = compact_windows(frames, fitting[-1], overlap)
        segment = next(length for length in usable if length > driven)
        if segment == driven + 1:
            return ClipShape(fitting[-1], frames)
        return ClipShape(segment, 1 + windows * (segment - 1) - (windows - 1) * (overlap - 1))

    def segment_lengths(self, latent_size: LatentSize) -> tuple[int, ...]:
        """The lengths of segments that a compiled U-Net takes at this size, ascending."""
        return self._sizes("unet", "frames", latent_size)

    def rows(self, segment_frames: int, latent_size: LatentSize) -> tuple[int, ...]:
        """How many rows a call of the U-Net may have with segments of so many frames, ascending; () for any."""
        if "unet" not in self.compiled:
            return ()
        return self._sizes("unet", "rows", latent_size, frames=segment_frames)

    def chunk(self, frames: int, latent_size: LatentSize) -> int:
        """Frames of the call that decodes so many: the next larger number that was compiled.

        Raises `SettingsError` if none is.
        """
        if "vae_decoder" not in self.compiled:
            return frames
        sizes = self._sizes("vae_decoder", "frames", latent_size)
        if not sizes or frames > sizes[-1]:
            raise SettingsError(
                f"this bundle was not compiled to decode {counted(frames, 'frame')} at a time.",
                remedy=f"Choose at most {sizes[-1] if sizes else 0}, or rebuild it with "
                f"--default decode_chunk={frames}.",
                field="settings.decode_chunk",
            )
        return next(size for size in sizes if size >= frames)

    def _sizes(self, network: str, name: str, latent_size: LatentSize, **given: int) -> tuple[int, ...]:
        """What a free dimension may be at this size, ascending."""
        wanted = {"latent_height": latent_size[0], "latent_width": latent_size[1], **given}
        profiles = self.compiled[network].profiles
        ranges = [profile.dims[name] for profile in profiles if profile.fits(wanted)]
        return tuple(sorted({size for low, _, high in ranges for size in range(low, high + 1)}))

    def _pixels(self) -> str:
        sizes = {
            f"{8 * profile.dims['latent_width'][1]}x{8 * profile.dims['latent_height'][1]}": None
            for profile in self.compiled["unet"].profiles
        }
        return " or ".join(sizes)


def check_reuse(reuses: bool, settings: Settings) -> None:
    """Raise `SettingsError` if settings reuse cached features and the bundle has no networks for that."""
    if settings.reuse_interval > 1 and not reuses:
        raise SettingsError(
            "this bundle has no engines that reuse cached features.",
            remedy="Choose reuse_interval 1, or rebuild it with --deep-cache.",
            field="settings.reuse_interval",
        )


def _any_of(sizes: tuple[int, ...]) -> str:
    return " or ".join(map(str, sizes))
