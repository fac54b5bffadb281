"""The networks around the denoising loop: picture and poses in, pictures out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conditioning import clip_pixels, to_signed
from .cuda.decoder import open_decoder
from .denoise import batches
from .engines import Call, Engine, Manifest
from .kernels import to_pictures
from .reuse import Answers

Float = NDArray[np.float32]
Picture = NDArray[np.uint8]

POSE_CHUNK = 8
"""Pose pictures that PoseNet takes at once."""


class Stages:
    """Encoding and decoding with one bundle's engines; what they say of a picture is kept, in case it comes again."""

    def __init__(self, engines: Mapping[str, Engine], manifest: Manifest, answers: Answers) -> None:
        self._engines = engines
        self._manifest = manifest
        self.answers = answers
        self.decoder = open_decoder(engines["vae_decoder"], manifest.scaling_factor)
        """Decodes on a GPU; None on a CPU."""

    def embed_picture(self, picture: Picture) -> Float:
        """CLIP's token [1,D] of a picture uint8 [H,W,3]."""

        def embed() -> Float:
            pixels = clip_pixels(to_signed(picture), self._manifest.image)
            token: Float = self._run("image_encoder", {"pixels": pixels})[0]
            return token

        return self.answers.ask(embed, "image_encoder", picture)

    def encode_picture(self, picture: Picture, noise_aug: float, noise: Float | None) -> Float:
        """The mode of the VAE's posterior [4,h,w] of the picture plus noise_aug * noise [3,H,W]; not scaled."""

        def encode() -> Float:
            image = to_signed(picture)
            if noise is not None:
                image += np.float32(noise_aug) * noise
            latents: Float = self._run("vae_encoder", {"image": image[None]})[0]
            return latents

        added = () if noise is None else (noise_aug, noise)
        return self.answers.ask(encode, "vae_encoder", picture, *added)

    def encode_poses(self, pictures: Iterable[Picture], out: NDArray[Any]) -> Iterator[int]:
        """PoseNet's features into out [F,C,h,w], as pose pictures uint8 [H,W,3] come; yields frames done.

        `out` is of the engine's dtype.
        """
        frames, _, high, wide = out.shape
        engine = self._engines["pose_net"]
        chunk = np.empty((min(POSE_CHUNK, frames), 3, high * 8, wide * 8), engine.spec.dtypes["pose"])
        features = np.empty((len(chunk), *out.shape[1:]), out.dtype)
        calls: dict[int, Call] = {}
        waiting = iter(pictures)
        keep = out.nbytes <= self.answers.most_bytes  # of a longer clip nothing would be left
        for part in batches(frames, len(chunk)):
            drawn = list(itertools.islice(waiting, part.stop - part.start))

            def encode(drawn: list[Picture] = drawn) -> NDArray[Any]:
                count = len(drawn)
                if count not in calls:
                    calls[count] = engine.bind({"pose": chunk[:count]}, {"features": features[:count]})
                for index, picture in enumerate(drawn):
                    chunk[index] = to_signed(picture)
                calls[count]()
                return features[:count].copy() if keep else features[:count]

            out[part] = self.answers.ask(encode, "pose_net", *drawn) if keep else encode()
            yield part.stop

    def decode(self, latents: Float, chunk: int) -> Iterator[Picture]:
        """uint8 [n,H,W,3] of each chunk of latents [F,4,h,w]; each array is the caller's to keep."""
        if self.decoder is not None:
            yield from self.decoder.decode(latents, chunk)
            return
        frames, _, high, wide = latents.shape
        size = min(chunk, frames)
        dtypes = self._engines["vae_decoder"].spec.dtypes
        scaled = np.empty((size, 4, high, wide), dtypes["latents"])
        planes = np.empty((size, 3, high * 8, wide * 8), dtypes["frames_out"])
        calls: dict[int, Call] = {}
        for part in batches(frames, size):
            count = part.stop - part.start
            if count not in calls:
                calls[count] = self._engines["vae_decoder"].bind(
                    {"latents": scaled[:count]}, {"frames_out": planes[:count]}
                )
            np.divide(latents[part], np.float32(self._manifest.scaling_factor), out=scaled[:count])
            calls[count]()
            pictures = np.empty((count, high * 8, wide * 8, 3), np.uint8)
            to_pictures(planes[:count], pictures)
            yield pictures

    def close(self) -> None:
        """Give back what the stages hold besides the engines."""
        if self.decoder is not None:
            self.decoder.close()

    def _run(self, name: str, inputs: dict[str, Float]) -> Float:
        """The answer as float32, whatever the engine's dtypes are."""
        engine = self._engines[name]
        dtypes = engine.spec.dtypes
        (spec,) = engine.spec.outputs
        sizes: dict[str, int] = {"batch": 1}
        if name == "vae_encoder":
            _, _, height, width = inputs["image"].shape
            sizes |= {"latent_height": height // 8, "latent_width": width // 8}
        given = {key: array.astype(dtypes[key], copy=False) for key, array in inputs.items()}
        output = np.empty([sizes[d] if isinstance(d, str) else d for d in spec.shape], dtypes[spec.name])
        engine.bind(given, {spec.name: output})()
        return output.astype(np.float32, copy=False)
