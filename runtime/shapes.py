"""Which shapes the networks of a bundle take. Graphs take any; plans those that they were compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .engines import EnginePlan, Manifest
from .errors import MotionError, SettingsError
from .settings import Settings

Cells = tuple[int, int]
"""(height, width) in latent cells of 8x8 pixels."""


@dataclass(frozen=True)
class Shapes:
    """The plans of a bundle by network; none for a bundle of graphs."""

    plans: Mapping[str, EnginePlan]

    @classmethod
    def of(cls, manifest: Manifest) -> Shapes:
        """What a manifest says."""
        return cls({name: network.plan for name, network in manifest.networks.items() if network.plan})

    @property
    def compiled(self) -> bool:
        """Whether there are plans."""
        return bool(self.plans)

    def segment(self, settings: Settings, frames: int, cells: Cells) -> int:
        """Frames in each segment of a clip of `frames` frames, the reference picture's own included.

        That is `settings.segment`; of a shorter clip the longest segment that was compiled and fits into it.
        Raises `SettingsError` for a size or segment that was not compiled, `MotionError` for a clip too short.
        """
        assert settings.segment is not None
        if "unet" not in self.plans:
            return settings.segment
        lengths = self.lengths(cells)
        if not lengths:
            width, height = cells[1] * 8, cells[0] * 8
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

    def lengths(self, cells: Cells) -> tuple[int, ...]:
        """The lengths of segments that the U-Net's plan takes at this size, ascending."""
        return self._sizes("unet", "frames", cells)

    def rows(self, slots: int, cells: Cells) -> tuple[int, ...]:
        """The numbers of rows that the U-Net takes with segments of `slots` frames, ascending; () for any.

        Raises `SettingsError` if it takes no such segments.
        """
        if "unet" not in self.plans:
            return ()
        rows = self._sizes("unet", "rows", cells, frames=slots)
        if not rows:
            raise SettingsError(
                f"the layout makes segments of {slots} frames, for which this bundle was not compiled.",
                remedy=f'Choose layout="reference", or rebuild the bundle with --frames {slots}.',
                field="settings.layout",
            )
        return rows

    def check_chunk(self, chunk: int, frames: int, cells: Cells) -> None:
        """Raise `SettingsError` if so many frames cannot be decoded at a time."""
        if "vae_decoder" not in self.plans:
            return
        takes = self._sizes("vae_decoder", "frames", cells)
        if min(chunk, frames) not in takes:
            most = takes[-1] if takes else 0
            raise SettingsError(
                f"this bundle was not compiled to decode {min(chunk, frames)} frames at a time.",
                remedy=f"Choose at most {most}, or rebuild it with --default decode_chunk={chunk}.",
                field="settings.decode_chunk",
            )

    def _sizes(self, network: str, name: str, cells: Cells, **given: int) -> tuple[int, ...]:
        """What a free dimension may be at this size of picture, ascending."""
        wanted = {"latent_height": cells[0], "latent_width": cells[1], **given}
        ranges = [profile.dims[name] for profile in self.plans[network].profiles if profile.fits(wanted)]
        return tuple(sorted({size for low, _, high in ranges for size in range(low, high + 1)}))

    def _pixels(self) -> str:
        sizes = {
            f"{8 * profile.dims['latent_width'][1]}x{8 * profile.dims['latent_height'][1]}": None
            for profile in self.plans["unet"].profiles
        }
        return " or ".join(sizes)


def check_reuse(manifest: Manifest, settings: Settings) -> None:
    """Raise `SettingsError` where a bundle has not the networks that reuse deep features, and settings ask for it."""
    if settings.reuse_interval > 1 and not manifest.reuses:
        raise SettingsError(
            "this bundle has no engines that reuse deep features.",
            remedy="Choose reuse_interval 1, or rebuild it with --deep-cache.",
            field="settings.reuse_interval",
        )


def _any_of(sizes: tuple[int, ...]) -> str:
    return " or ".join(map(str, sizes))
