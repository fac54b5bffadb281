"""The networks of a bundle on one device: what they encode, what executes a plan on the U-Net, what they decode."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from .cuda.decoder import CudaDecoder
from .cuda.denoiser import CudaDenoiser
from .cuda.shared_program import ProgramCache
from .denoise.kernels import check_finite, clip_pixels, to_pictures, to_signed
from .denoise.loop import CpuDenoiser
from .denoise.noise import latent_noise, picture_noise, spread
from .denoise.plan import Batching, Conditions, DenoisePlan, Denoiser, closing, make_plan, slices
from .denoise.schedule import initial_scale
from .denoise.shapes import EngineShapes, LatentSize, check_reuse
from .engines import (
    NETWORKS,
    Bundle,
    Call,
    Engine,
    ImageStatistics,
    Manifest,
    Placement,
    call_sizes,
    open_engine,
)
from .engines.cuda import Gpu
from .errors import EngineError, OutOfMemory, SettingsError
from .limits import Limits
from .lora import NO_LORAS, Choice, Loras, Unets
from .settings import Settings
from .validation import check_array

Array = NDArray[Any]
Float = NDArray[np.float32]
Picture = NDArray[np.uint8]

POSE_CHUNK = 8
"""Pose pictures that PoseNet takes at once."""
ANY_SHAPE = EngineShapes({})
"""For engines that take any shape."""


@dataclass(frozen=True)
class ModelInfo:
    """What the pipeline needs to know of a model besides its engines, as in a bundle's manifest."""

    sizes: tuple[tuple[int, int], ...]
    """(width, height) of the videos that it makes."""
    scaling_factor: float
    """What latents are divided by before they are decoded."""
    image: ImageStatistics
    """CLIP's input size and normalisation."""
    defaults: Mapping[str, Any]
    """The model's default settings."""
    rows: tuple[int, ...] = (1,)
    """How many rows a call of the U-Net may have, ascending."""
    reuses: bool = False
    """Whether it has the networks that reuse cached features."""
    build: str = ""
    """A hash of all that the engines were made from."""
    note: str = ""
    """A note for its users."""

    @classmethod
    def of(cls, manifest: Manifest) -> ModelInfo:
        """What a bundle's manifest says."""
        return cls(**{one.name: getattr(manifest, one.name) for one in fields(cls)})


class Networks:
    """The engines of a model on one device. Calls may come from several threads."""

    def __init__(
        self,
        model: Manifest | ModelInfo,
        open_network: Callable[..., Engine],
        *,
        shapes: EngineShapes = ANY_SHAPE,
        workers: int = 1,
        cache_bytes: int = 1,
        loras: Loras = NO_LORAS,
        lora_choices: int = 1,
        unet_bytes: int = 0,
    ) -> None:
        """`open_network(name)` opens an engine with the usual LoRAs, `open_network(name, choice)` one with others.

        `shapes` are those that compiled engines take.
        """
        self.model, self.shapes = model, shapes
        self.workers = workers
        """Calls of the U-Net that run at the same time on a CPU."""
        self.cache = EncodingCache(cache_bytes)
        """What was encoded, in case it comes again."""
        self.decoder: CudaDecoder | None = None
        """Decodes on a GPU; None on a CPU."""
        self._open, self._opening = open_network, threading.Lock()
        self._engines: dict[str, Engine] = {}
        self.loras = loras
        """What jobs may choose from."""
        self.unets = Unets(self.__getitem__, open_network, loras.usual, most=lora_choices, size=unet_bytes)
        try:
            self._engines.update((name, open_network(name)) for name in NETWORKS)
        except BaseException:
            self.close()
            raise
        self.decoder = CudaDecoder.open(self._engines["vae_decoder"], model.scaling_factor)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        device: str,
        threads: int | None,
        limits: Limits,
        loras: Loras = NO_LORAS,
    ) -> Networks:
        """Open a bundle's networks. On a GPU they run in parallel only if several jobs may run."""
        shapes, cores = EngineShapes.of(bundle.manifest), threads or os.cpu_count() or 1
        workers = 2 if not shapes.compiled and cores > 1 else 1

        def open_network(network: str, choice: Choice = loras.usual) -> Engine:
            unet = network.startswith("unet")
            # ONNX Runtime adds the calling thread, and two calls of the U-Net run at a time.
            own = cores - 1 if unet and workers > 1 else threads
            stream = "denoise" if unet or limits.jobs == 1 else "around"
            placement = Placement(device=device, threads=own, spin_threads=unet, stream=stream)
            return open_engine(bundle, network, placement, deltas=loras.deltas(network, choice))

        return cls(
            ModelInfo.of(bundle.manifest),
            open_network,
            shapes=shapes,
            workers=workers,
            cache_bytes=limits.reuse_bytes,
            loras=loras,
            lora_choices=limits.lora_choices,
            unet_bytes=sum(file.bytes for file in bundle.manifest.networks["unet"].files),
        )

    def __getitem__(self, network: str) -> Engine:
        """An engine by its network's name; those of the feature cache are opened when first asked for."""
        with self._opening:
            if network not in self._engines:
                self._engines[network] = self._open(network)
            return self._engines[network]

    @property
    def gpus(self) -> list[Gpu]:
        """The GPUs that engines run on; one that several engines share comes once for each."""
        return [engine.gpu for engine in list(self._engines.values()) if engine.gpu is not None]

    def raise_if_lost(self, error: EngineError) -> None:
        """Raise `DeviceLost` if a GPU is lost: the error of an engine does not always say so."""
        for gpu in self.gpus:
            gpu.raise_if_lost(error)

    # ---- before the loop ----

    def condition(
        self, picture: Picture, frames: int, settings: Settings, image_noise: Float | None = None
    ) -> Conditions:
        """Encode a picture uint8 [H,W,3] for a clip of `frames` frames; `encode_poses` fills its `pose`.

        `image_noise` float32 [3,H,W] is used if settings.noise_aug > 0; None draws the seed's.
        """
        height, width = picture.shape[:2]
        noise = None
        if settings.noise_aug > 0:
            noise = picture_noise(settings.seed, height, width) if image_noise is None else image_noise
            noise = check_array(noise, (3, height, width), "image_noise")
        (features,) = self._engines["pose_net"].spec.outputs
        channels = features.shape[1]
        assert isinstance(channels, int)
        dtype = self._engines["unet"].spec.dtypes["pose"]  # of two networks one may be kept in float32
        return Conditions(
            embedding=self.embed_picture(picture) * np.float32(settings.image_strength),
            image_latents=self.encode_picture(picture, settings.noise_aug, noise),
            pose=np.empty((frames, channels, height // 8, width // 8), dtype),
            time_ids=(settings.conditioning_fps - 1, settings.motion_bucket, settings.noise_aug),
        )

    def embed_picture(self, picture: Picture) -> Float:
        """CLIP's token [1,D] of a picture uint8 [H,W,3]."""

        def embed() -> Float:
            pixels = clip_pixels(to_signed(picture), self.model.image)
            token: Float = self._run("image_encoder", {"pixels": pixels})[0]
            return token

        return self.cache.get_or_compute(embed, "image_encoder", picture)

    def encode_picture(self, picture: Picture, noise_aug: float, noise: Float | None) -> Float:
        """The mode of the VAE's posterior [4,h,w] of the picture plus noise_aug * noise [3,H,W]; not scaled."""

        def encode() -> Float:
            image = to_signed(picture)
            if noise is not None:
                image += np.float32(noise_aug) * noise
            latents: Float = self._run("vae_encoder", {"image": image[None]})[0]
            return latents

        added = () if noise is None else (noise_aug, noise)
        return self.cache.get_or_compute(encode, "vae_encoder", picture, *added)

    def encode_poses(self, pictures: Iterable[Picture], out: Array, strength: float = 1.0) -> Iterator[int]:
        """PoseNet's features times `strength` into out [F,C,h,w], as pose pictures uint8 [H,W,3] come; yields
        frames done.

        Where there are fewer pictures than F, the last one's features are repeated. The cache keeps them as PoseNet
        gave them, for jobs of any strength; they are multiplied in float32.
        """
        frames, _, height, width = out.shape
        engine = self._engines["pose_net"]
        chunk = np.empty((min(POSE_CHUNK, frames), 3, height * 8, width * 8), engine.spec.dtypes["pose"])
        features = np.empty((len(chunk), *out.shape[1:]), engine.spec.dtypes["features"])
        calls: dict[int, Call] = {}
        waiting = iter(pictures)
        # A longer clip would push its own first chunks out of the cache.
        keep = out.nbytes <= self.cache.most_bytes
        for part in slices(frames, len(chunk)):
            drawn = list(itertools.islice(waiting, part.stop - part.start))
            if not drawn:
                out[part.start :] = out[part.start - 1]
                return

            def encode(drawn: list[Picture] = drawn) -> Array:
                count = len(drawn)
                if count not in calls:
                    calls[count] = engine.bind({"pose": chunk[:count]}, {"features": features[:count]})
                for index, picture in enumerate(drawn):
                    chunk[index] = to_signed(picture)
                calls[count]()
                return features[:count].copy() if keep else features[:count]

            found = self.cache.get_or_compute(encode, "pose_net", *drawn) if keep else encode()
            if strength != 1:
                found = np.multiply(found, np.float32(strength), dtype=np.float32)
            stop = part.start + len(drawn)
            out[part.start : stop], out[stop : part.stop] = found, found[-1]
            yield stop

    # ---- after the loop ----

    def check_chunk(self, chunk: int, frames: int, latent_size: LatentSize) -> None:
        """Raise `SettingsError` if so many frames cannot be decoded at a time."""
        count = self.shapes.chunk(min(chunk, frames), latent_size)
        if self.decoder is not None:
            self.decoder.check_chunk(count, latent_size)

    def decode(self, latents: Float, chunk: int) -> Iterator[Picture]:
        """uint8 [n,H,W,3] of each chunk of latents [F,4,h,w]; each array is the caller's to keep.

        A chunk that a compiled decoder does not take is filled up with its last frame. Raises `EngineError` if the
        decoder's answer is not finite.
        """
        counts = [part.stop - part.start for part in slices(len(latents), chunk)]
        sizes = [self.shapes.chunk(count, (latents.shape[2], latents.shape[3])) for count in counts]
        if sizes != counts:
            parts = (
                np.minimum(np.arange(size), count - 1) for count, size in zip(counts, sizes, strict=True)
            )
            latents = latents[np.concatenate([chunk * k + part for k, part in enumerate(parts)])]
        for count, pictures in zip(counts, self._decode_chunks(latents, sizes[0]), strict=True):
            yield pictures[:count]

    def _decode_chunks(self, latents: Float, chunk: int) -> Iterator[Picture]:
        if self.decoder is not None:
            yield from self.decoder.decode(latents, chunk)
            return
        frames, _, height, width = latents.shape
        size, engine = min(chunk, frames), self._engines["vae_decoder"]
        scaled = np.empty((size, 4, height, width), engine.spec.dtypes["latents"])
        planes = np.empty((size, 3, height * 8, width * 8), engine.spec.dtypes["frames_out"])
        calls: dict[int, Call] = {}
        for part in slices(frames, size):
            count = part.stop - part.start
            if count not in calls:
                calls[count] = engine.bind({"latents": scaled[:count]}, {"frames_out": planes[:count]})
            np.divide(latents[part], np.float32(self.model.scaling_factor), out=scaled[:count])
            calls[count]()
            check_finite(planes[:count], "vae_decoder", f"in frames {part.start} to {part.stop - 1}")
            pictures = np.empty((count, height * 8, width * 8, 3), np.uint8)
            to_pictures(planes[:count], pictures)
            yield pictures

    def close(self) -> None:
        """Give everything back; no call may follow."""
        if self.decoder is not None:
            self.decoder.close()
        self.unets.close()
        for engine in self._engines.values():
            engine.close()

    def _run(self, name: str, inputs: dict[str, Float]) -> Float:
        """One call on one picture; its output as float32, whatever the engine's dtypes are.

        Raises `EngineError` if it is not finite.
        """
        engine = self._engines[name]
        (spec,) = engine.spec.outputs
        *_, height, width = next(iter(inputs.values())).shape
        given = {key: array.astype(engine.spec.dtypes[key], copy=False) for key, array in inputs.items()}
        output = np.empty(spec.sized(call_sizes(1, (height // 8, width // 8))), spec.dtype)
        engine.bind(given, {spec.name: output})()
        check_finite(output, name, "for the reference picture")
        return output.astype(np.float32, copy=False)


class Sampler:
    """Plans clips, and makes their denoisers; on a GPU captured programs are kept for the next clip."""

    def __init__(self, networks: Networks, limits: Limits, *, graphs: bool) -> None:
        self._networks = networks
        unet, build = networks["unet"], networks.model.build
        self.programs = None if unet.gpu is None else ProgramCache.open(unet, build, graphs=graphs)
        """The step programs of a GPU; None: the loop runs on the CPU."""
        if self.programs is not None and unet.gpu is not None:
            networks.unets.on_close = self.programs.forget
            unet.gpu.reclaimable.add(networks.unets)
        self._slots = min(limits.jobs, limits.together)  # jobs that may share a program
        two_workers = self.programs is None and networks.workers > 1
        self._executor = ThreadPoolExecutor(1, "denoise") if two_workers else None

    def prepare(self, segment: int | None) -> None:
        """On a GPU, measure now which batch sizes are fastest, so that no job has to wait for that."""
        if segment is None or self.programs is None:
            return
        for width, height in self._networks.model.sizes:
            with suppress(SettingsError, OutOfMemory):  # a job of this size gets the error
                self._batching(segment, (height // 8, width // 8))

    def check(self, frames: int, settings: Settings, latent_size: LatentSize) -> None:
        """Raise `InputError` where the bundle's engines do not take a clip, before any of them runs."""
        check_reuse(self._networks.model.reuses, settings)
        self._networks.shapes.fit(settings, frames, latent_size)
        self._networks.check_chunk(settings.decode_chunk, frames, latent_size)

    def plan(self, frames: int, settings: Settings, latent_size: LatentSize) -> DenoisePlan:
        """The plan of a clip of `frames` frames, the reference picture's own included; raises `InputError`."""
        check_reuse(self._networks.model.reuses, settings)

        def batching(segment_frames: int) -> Batching:
            self._networks.check_chunk(settings.decode_chunk, frames, latent_size)
            return self._batching(segment_frames, latent_size)

        return make_plan(settings, frames, latent_size, self._networks.shapes, batching)

    def initial_latents(self, plan: DenoisePlan, settings: Settings, given: Float | None = None) -> Float:
        """Latents [F,4,h,w] at the first sigma, from noise `given` [N or F,4,h,w] or the seed's."""
        if given is None:
            noise = latent_noise(settings.seed, plan.frames, plan.segment, plan.latent_size, settings.noise)
        else:
            noise = spread(check_array(given, (None, 4, *plan.latent_size), "initial_latents"), plan.frames)
        scaled: Float = noise * np.float32(initial_scale(plan.steps[0].sigma))
        return scaled

    @contextmanager
    def denoiser(
        self, plan: DenoisePlan, conditions: Conditions, latents: Float, lora: Choice | None = None
    ) -> Iterator[Denoiser]:
        """What executes a plan, from latents [F,4,h,w] at the first sigma, with these LoRAs (None: the usual)."""
        choice = self._networks.loras.usual if lora is None else lora
        with self._networks.unets.lend(choice, caching=plan.caches_features) as (unet, shallow):
            made: Denoiser
            if self.programs is not None:
                slots = self._slots
                made = CudaDenoiser(self.programs, plan, conditions, latents, unet, shallow, slots=slots)
            else:
                made = CpuDenoiser(unet, plan, conditions, latents, executor=self._executor, shallow=shallow)
            with closing(made):
                yield made

    def close(self) -> None:
        """Give back what the sampler holds besides the engines."""
        if self.programs is not None:
            self.programs.close()
        if self._executor is not None:
            self._executor.shutdown()

    def _batching(self, segment_frames: int, latent_size: LatentSize) -> Batching:
        """How the rows of segments of so many frames are put into calls here."""
        allowed = self._networks.model.rows
        compiled = self._networks.shapes.rows(segment_frames, latent_size)
        if self.programs is not None:
            return Batching(
                self.programs.batch_sizes.choose(compiled or allowed, segment_frames, latent_size)
            )
        return Batching(compiled, allowed[-1], 2 if self._executor else 1)


class EncodingCache:
    """What networks gave for pictures, found by the content of the pictures; the least recently used goes first.

    Calls may come from several threads.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        """All entries together are never larger."""
        self.hits = 0
        """How often an entry was found."""
        self._entries: LRUCache[bytes, Array] = LRUCache(most_bytes, getsizeof=lambda array: array.nbytes)
        self._lock = threading.Lock()

    def get_or_compute(self, compute: Callable[[], Array], *key: Array | str | float) -> Array:
        """The entry of a key, computed if there is none. It cannot be written to.

        The key is everything that the value depends on, and the network's name.
        """
        digest = digest_of(*key)
        with self._lock:
            if (found := self._entries.get(digest)) is not None:
                self.hits += 1
                return found
        value = compute()
        if value.nbytes <= self.most_bytes:
            value.flags.writeable = False
            with self._lock:
                self._entries[digest] = value
        return value

    @property
    def size(self) -> int:
        """Bytes that the entries take."""
        return int(self._entries.currsize)


def digest_of(*parts: Array | str | float) -> bytes:
    """A digest of 32 bytes that equal parts share, and no others."""
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.dtype.str, part.shape)).encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
    return digest.digest()
