"""Decoding on the GPU on this machine: the kernels through g++, a real engine, a stand-in for CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, SettingsError
from mimicmotion_trt.cuda.decoder import CudaDecoder


@pytest.mark.parametrize("host", ["float32"], indirect=True)
@pytest.mark.parametrize(("frames", "chunk"), [(7, 3), (6, 3), (1, 8), (5, 8)])
def test_it_decodes_what_the_cpu_decodes(host, stand_in, bundle, frames, chunk):
    with Animator.load(bundle, threads=1) as animator:
        latents = np.random.default_rng(frames).normal(size=(frames, 4, 8, 16)).astype(np.float32)
        expected = animator.decode(latents, chunk)
        assert animator.networks.decoder is None
        engine = animator.networks["vae_decoder"]
        animator.networks.decoder = CudaDecoder(stand_in(host), engine, animator.manifest.scaling_factor)
        found = animator.decode(latents, chunk)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("host", ["float32"], indirect=True)
def test_a_chunk_comes_down_while_the_next_is_computed(host, stand_in, bundle):
    class Watched(stand_in):
        def fetch(self, array: Any) -> Any:
            self.told.append("fetch")
            values = super().fetch(array)
            return lambda: self.told.append("taken") or values()

    with Animator.load(bundle, threads=1) as animator:
        device = Watched(host)
        decoder = CudaDecoder(device, animator.networks["vae_decoder"], 1.0)
        pictures = list(decoder.decode(np.zeros((5, 4, 8, 16), np.float32), 2))
    assert [len(some) for some in pictures] == [2, 2, 1]
    kinds = [name for name in device.told if name in ("engine", "fetch", "taken")]
    assert kinds == ["engine", "fetch", "engine", "fetch", "taken", "engine", "fetch", "taken", "taken"]


def test_a_job_that_leaves_early_waits_for_the_chunk_that_is_computed(stand_in, bundle, monkeypatch):
    """Nothing that a running chunk uses may go."""

    class Watched(stand_in):
        def launch(self, what: Any, *arrays: Any, stream: Any) -> None:
            pass

        def release_after(self, release: Any) -> None:
            self.told.append("waited")
            release()

    with Animator.load(bundle, threads=1) as animator:
        device = Watched(None)
        coming = CudaDecoder(device, animator.networks["vae_decoder"], 1.0).decode(
            np.zeros((6, 4, 8, 16), np.float32), 2
        )
        next(coming)
        assert "waited" not in device.told
        coming.close()
        assert device.told[-1] == "waited"


def test_a_chunk_of_more_elements_than_32_bits_count_is_refused(stand_in, bundle):
    """SVD's decoder has 256 channels at 1024x576: 14 frames fit, 15 do not."""
    with Animator.load(bundle, threads=1) as animator:
        animator.networks.decoder = CudaDecoder(stand_in(None), animator.networks["vae_decoder"], 1.0)
        latents = np.zeros((15, 4, 72, 128), np.float32)
        with pytest.raises(SettingsError, match=r"15 frames of 1024x576 .* 2\*\*31") as caught:
            animator.decode(latents, 16)
        assert caught.value.remedy == "Decode at most 14 at a time."
        animator.networks.decoder.check_chunk(14, (72, 128))
        with pytest.raises(SettingsError, match="decoder"):
            animator.sampler.plan(30, animator.settings(decode_chunk=15), (72, 128))
        assert animator.sampler.plan(10, animator.settings(decode_chunk=4096), (72, 128)).frames


def test_an_engine_on_the_cpu_needs_no_such_decoder(bundle):
    with Animator.load(bundle, threads=1) as animator:
        assert CudaDecoder.open(animator.networks["vae_decoder"], 1.0) is None
