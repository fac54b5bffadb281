"""Encodings are kept by content within a memory limit, and change no byte of what comes out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import Animator, Limits
from mimicmotion_trt.engines import call_sizes, network_specs
from mimicmotion_trt.networks import POSE_CHUNK, EncodingCache, digest_of


def ones(count: int) -> Any:
    return lambda: np.ones(count, np.uint8)


def never() -> Any:
    raise AssertionError("this entry is known")


def test_an_entry_is_computed_once():
    cache = EncodingCache(100)
    first = cache.get_or_compute(ones(10), "what", np.arange(3), 0.5)
    assert cache.get_or_compute(never, "what", np.arange(3), 0.5) is first
    assert cache.hits == 1
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 2


@pytest.mark.parametrize(
    "other",
    [
        ("that", np.arange(3), 0.5),
        ("what", np.arange(4), 0.5),
        ("what", np.arange(3)[None], 0.5),
        ("what", np.arange(3, dtype=np.int32), 0.5),
        ("what", np.arange(3), 0.25),
        ("what", np.arange(3)),
    ],
)
def test_another_key_has_another_digest(other):
    assert digest_of(*other) != digest_of("what", np.arange(3), 0.5)


def test_it_is_the_content_that_counts_not_how_it_lies_in_memory():
    values = np.arange(12).reshape(3, 4)
    assert digest_of(values.T) == digest_of(np.ascontiguousarray(values.T))


@given(most=st.integers(1, 60), asked=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=40))
def test_memory_is_never_more_than_the_limit(most, asked):
    cache, sizes = EncodingCache(most), dict[int, int]()
    for name, size in asked:
        size = sizes.setdefault(name, size)
        assert len(cache.get_or_compute(ones(size), str(name))) == size
        assert cache.size <= most


def test_the_one_unused_for_longest_goes():
    cache = EncodingCache(20)
    for name in ("a", "b", "a", "c"):  # b has to go
        cache.get_or_compute(ones(10), name)
    cache.get_or_compute(never, "a")
    cache.get_or_compute(never, "c")
    with pytest.raises(AssertionError):
        cache.get_or_compute(never, "b")


def test_what_is_larger_than_the_limit_is_not_kept():
    cache = EncodingCache(20)
    cache.get_or_compute(ones(10), "a")
    cache.get_or_compute(ones(21), "b")
    cache.get_or_compute(never, "a")
    assert cache.size == 10


def test_the_usual_limit_holds_a_clip_of_the_real_model():
    """The picture's own frame and 72 of 1024x576 in float16; the zeros are never touched, so they take no memory."""
    sizes = call_sizes(POSE_CHUNK, (72, 128))
    specs = network_specs(pose_channels=320, token_width=1024, image_size=224, dtype="float16")
    cache = EncodingCache(Limits().reuse_bytes)
    networks = ["image_encoder", "vae_encoder", *["pose_net"] * -(-73 // POSE_CHUNK)]

    def answer(network: str) -> Any:
        (tensor,) = specs[network].outputs
        return np.zeros(tensor.sized(sizes), tensor.dtype)

    for number, network in enumerate(networks):
        cache.get_or_compute(partial(answer, network), network, number)
    assert cache.size > 425e6
    for number, network in enumerate(networks):
        cache.get_or_compute(never, network, number)


@pytest.fixture
def job(animator) -> Any:
    """Arguments of `sample` that have two chunks of poses."""
    chance, (width, height) = np.random.default_rng(0), animator.manifest.sizes[0]
    picture = chance.integers(0, 255, (height, width, 3), np.uint8)
    poses = chance.integers(0, 255, (11, height, width, 3), np.uint8)
    return picture, poses, animator.settings(steps=1, segment=8, overlap=2, seed=5)


def test_a_second_job_asks_no_network_but_the_unet_and_gets_the_same_bytes(bundle, job):
    with Animator.load(bundle, threads=2) as animator:
        first = animator.sample(*job)
        cache = animator.networks.cache
        assert cache.hits == 0
        second = animator.sample(*job)
        assert cache.hits == 4  # CLIP, VAE, two chunks of poses
        assert second.tobytes() == first.tobytes()
    with Animator.load(bundle, threads=2, limits=Limits(reuse_bytes=1)) as without:
        assert without.sample(*job).tobytes() == first.tobytes()
        assert without.sample(*job).tobytes() == first.tobytes()
        assert without.networks.cache.size == 0


def test_another_picture_or_noise_is_asked_for(bundle, job):
    picture, poses, settings = job
    with Animator.load(bundle, threads=2) as animator:
        animator.sample(picture, poses, settings)
        cache = animator.networks.cache
        animator.sample(255 - picture, poses, settings)
        assert cache.hits == 2  # the poses are the same
        noisy = animator.settings(steps=1, segment=8, overlap=2, seed=5, noise_aug=settings.noise_aug + 0.1)
        animator.sample(picture, poses, noisy)
        assert cache.hits == 5  # all but the VAE


def test_of_a_clip_that_is_too_long_no_poses_are_kept(bundle, job):
    picture, poses, settings = job
    with Animator.load(bundle, threads=2, limits=Limits(reuse_bytes=50_000)) as animator:
        for _ in range(2):
            animator.sample(picture, poses, settings)
        assert animator.networks.cache.hits == 2


@pytest.mark.parametrize("reuse_bytes", [1, 2**25])
def test_posenet_is_bound_once_for_chunks_of_a_size(bundle, monkeypatch, reuse_bytes):
    """Whether its features are kept or not, each chunk has its own."""
    with Animator.load(bundle, threads=1, limits=Limits(reuse_bytes=reuse_bytes)) as animator:
        engine, bound = animator.networks["pose_net"], []

        def bind(inputs: Any, outputs: Any) -> Any:
            bound.append(len(inputs["pose"]))
            return type(engine).bind(engine, inputs, outputs)

        monkeypatch.setattr(engine, "bind", bind)
        poses = np.random.default_rng(0).integers(0, 255, (19, 64, 128, 3), np.uint8)
        (features,) = animator.networks["pose_net"].spec.outputs
        out = np.empty((19, features.shape[1], 8, 16), features.dtype)
        assert list(animator.networks.encode_poses(poses, out)) == [8, 16, 19]
        assert bound == [8, 3]
        for frame in (0, 8, 18):
            alone = np.empty_like(out[:1])
            list(animator.networks.encode_poses(poses[frame : frame + 1], alone))
            np.testing.assert_allclose(out[frame], alone[0], atol=1e-6)
