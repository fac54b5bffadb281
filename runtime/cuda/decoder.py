"""The VAE's decoder on a GPU, between two kernels: latents go up, finished pictures come down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..denoise.kernels import not_finite
from ..denoise.plan import slices
from ..denoise.shapes import LatentSize
from ..engines import Engine
from ..engines.cuda_device import CudaDevice
from ..errors import SettingsError, counted
from . import launches
from .batch_sizes import MOST_ELEMENTS
from .launches import open_device

Float = NDArray[np.float32]
Picture = NDArray[np.uint8]

DECODER_CHANNELS = 256
"""Channels of SVD's decoder at the full size, before the last block."""


class CudaDecoder:
    """Decodes chunk after chunk on a stream of its own, so that other jobs are denoised meanwhile.

    A chunk's pictures come down while the next chunk is computed.
    """

    def __init__(self, device: CudaDevice, engine: Engine, scaling_factor: float) -> None:
        self._device, self._engine, self._factor = device, engine, scaling_factor

    @classmethod
    def open(cls, engine: Engine, scaling_factor: float) -> CudaDecoder | None:
        """The decoder on the GPU on which an engine runs; None if it runs on a CPU.

        Raises `KernelError` if the kernels do not compile or load there.
        """
        if engine.gpu is None:
            return None
        return cls(open_device(engine.gpu, engine.spec.dtypes["latents"]), engine, scaling_factor)

    def check_chunk(self, frames: int, latent_size: LatentSize) -> None:
        """Raise `SettingsError` if so many frames at a time make a tensor that 32 bits do not count."""
        most = MOST_ELEMENTS // (DECODER_CHANNELS * 64 * latent_size[0] * latent_size[1])
        if frames > most:
            raise SettingsError(
                f"{counted(frames, 'frame')} of {8 * latent_size[1]}x{8 * latent_size[0]} at a time have tensors "
                "of 2**31 elements in the decoder, more than a GPU's kernels count.",
                remedy=f"Decode at most {most} at a time." if most else "Choose fewer pixels.",
                field="settings.decode_chunk",
            )

    def decode(self, latents: Float, chunk: int) -> Iterator[Picture]:
        """uint8 [n,H,W,3] of each chunk of latents [F,4,h,w]; each array is the caller's to keep.

        Raises `EngineError` if the decoder's answer is not finite.
        """
        frames, _, height, width = latents.shape
        size, device, dtypes = min(chunk, frames), self._device, self._engine.spec.dtypes
        arrays = {
            "latents": device.empty((size, 4, height, width), np.float32),
            "scaled": device.empty((size, 4, height, width), dtypes["latents"]),
            "planes": device.empty((size, 3, 8 * height, 8 * width), dtypes["frames_out"]),
        }
        # Two, as one comes down while the other is drawn.
        pictures = [device.empty((size, 8 * height, 8 * width, 3), np.uint8) for _ in range(2)]
        broken = device.empty((1,), np.int32)
        device.upload(np.zeros(1, np.int32), broken)
        works: dict[int, Callable[[Any, Any], None]] = {}
        coming: Callable[[], Picture] | None = None
        try:
            for number, part in enumerate(slices(frames, size)):
                count = part.stop - part.start
                own = {name: device.part(array, 0, count) for name, array in arrays.items()}
                own["broken"] = broken
                if count not in works:
                    works[count] = self._work(own, count, height * width)
                device.upload(np.ascontiguousarray(latents[part], np.float32), own["latents"])
                drawn = device.part(pictures[number % 2], 0, count)
                device.enqueue(partial(works[count], drawn))
                following = self._coming(drawn, broken, part)
                if coming is not None:
                    yield coming()
                coming = following
            if coming is not None:
                yield coming()
        finally:
            device.release_after(works.clear)  # a job that was cancelled leaves while its chunk is computed

    def _coming(self, drawn: Any, broken: Any, part: slice) -> Callable[[], Picture]:
        """Start to copy a chunk's pictures to the host. The result raises `EngineError` if planes are not finite."""
        found, pictures = self._device.read(broken), self._device.fetch(drawn)

        def values() -> Picture:
            if found().any():
                when = f"in frames {part.start} to {part.stop - 1}"
                raise not_finite("vae_decoder", when, self._engine.spec.dtypes["frames_out"])
            return pictures()

        return values

    def close(self) -> None:
        """Give back what the device holds; no call may follow."""
        self._device.close()

    def _work(self, own: dict[str, Any], count: int, pixels: int) -> Callable[[Any, Any], None]:
        """Scale and decode a chunk's arrays, and make bytes of them in an array that is given, on a stream."""
        device, dtype = self._device, self._engine.spec.dtypes["frames_out"]
        call = self._engine.bind({"latents": own["scaled"]}, {"frames_out": own["planes"]})
        before = launches.decoder_input(count, pixels, self._factor)
        after = launches.to_pictures(count, 64 * pixels, dtype)

        def work(pictures: Any, stream: Any) -> None:
            device.launch(before, own["latents"], own["scaled"], stream=stream)
            device.call(call, stream)
            device.launch(after, own["planes"], own["broken"], pictures, stream=stream)

        return work
