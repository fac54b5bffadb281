"""Which shapes the engines of a bundle take: graphs take any, compiled engines those of their profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..engines import EnginePlan, Manifest
from ..errors import MotionError, SettingsError
from ..settings import Settings

LatentSize = tuple[int, int]
"""(height, width) of latents: an eighth of the picture's."""


@dataclass(frozen=True)
class EngineShapes:
    """What each compiled network of a bundle was compiled for; empty for a bundle of graphs."""

    compiled: Mapping[str, EnginePlan]

    @classmethod
    def of(cls, manifest: Manifest) -> EngineShapes:
        """What a manifest says."""
        return cls({name: network.plan for name, network in manifest.networks.items() if network.plan})

    def segment(self, settings: Settings, frames: int, latent_size: LatentSize) -> int:
        """Frames in each segment of a clip of `frames` frames, the reference picture's own included.

        That is `settings.segment`; of a shorter clip the longest segment that was compiled and fits into it.
        Raises `SettingsError` for a size or segment that was not compiled, `MotionError` for a clip too short.
        """
        assert settings.segment is not None
        if "unet" not in self.compiled:
            return settings.segment
        lengths = self.segment_lengths(latent_size)
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
        fitting = [length for length in lengths if length <= min(frames, settings.segment)]
        if not fitting:
            raise MotionError(
                f"{frames - 1} frames of motion and the reference picture's own are fewer than the {lengths[0]} "
                "of the shortest segment that this bundle was compiled for.",
                remedy=f"Give a longer motion, or rebuild the bundle with --frames {frames}.",
                field="motion",
            )
        return fitting[-1]

    def segment_lengths(self, latent_size: LatentSize) -> tuple[int, ...]:
        """The lengths of segments that a compiled U-Net takes at this size, ascending."""
        return self._sizes("unet", "frames", latent_size)

    def rows(self, segment_frames: int, latent_size: LatentSize) -> tuple[int, ...]:
        """How many rows a call of the U-Net may have with segments of so many frames, ascending; () for any.

        Raises `SettingsError` if it takes no such segments.
        """
        if "unet" not in self.compiled:
            return ()
        rows = self._sizes("unet", "rows", latent_size, frames=segment_frames)
        if not rows:
            raise SettingsError(
                f"the layout makes segments of {segment_frames} frames, for which this bundle was not compiled.",
                remedy=f'Choose layout="reference", or rebuild the bundle with --frames {segment_frames}.',
                field="settings.layout",
            )
        return rows

    def check_chunk(self, chunk: int, frames: int, latent_size: LatentSize) -> None:
        """Raise `SettingsError` if so many frames cannot be decoded at a time."""
        if "vae_decoder" not in self.compiled:
            return
        sizes = self._sizes("vae_decoder", "frames", latent_size)
        if min(chunk, frames) not in sizes:
            most = sizes[-1] if sizes else 0
            raise SettingsError(
                f"this bundle was not compiled to decode {min(chunk, frames)} frames at a time.",
                remedy=f"Choose at most {most}, or rebuild it with --default decode_chunk={chunk}.",
                field="settings.decode_chunk",
            )

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
