"""The U-Net in two parts for the reuse of deep features: what a bundle built with --deep-cache holds besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator
from mimicmotion_trt.engines import (
    FEATURE_CACHE_NETWORKS,
    NETWORKS,
    Array,
    Bundle,
    Engine,
    Placement,
    open_engine,
)
from mimicmotion_trt.export import verify
from mimicmotion_trt.export.options import Options


@pytest.fixture
def deep(deep_bundle: Path) -> Bundle:
    """The golden networks: 32 channels in the U-Net's first and second level."""
    return Bundle.load(deep_bundle)


def arrays(engine: Engine, seed: int = 0) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs of two rows of three frames, and room for the answers."""
    inputs = verify.example_inputs("unet", engine.spec, (2, 3, 8, 16), seed)
    given = {name: value.numpy() for name, value in inputs.items()}
    return given, verify.make_outputs(engine.spec, given)


def test_two_networks_more_each_proven(deep: Bundle) -> None:
    networks = deep.manifest.networks
    assert tuple(networks) == NETWORKS + FEATURE_CACHE_NETWORKS
    assert networks["unet_caching"].spec.outputs[1].shape == (
        "rows",
        "frames",
        32,
        "latent_height",
        "latent_width",
    )
    assert all(networks[name].accuracy.rel_l2 < 1e-5 for name in FEATURE_CACHE_NETWORKS)
    whole, outer = (
        networks[name].flops.total(rows=1, frames=4, pixels=128) for name in FEATURE_CACHE_NETWORKS
    )
    assert whole == networks["unet"].flops.total(rows=1, frames=4, pixels=128)
    assert outer < whole
    sizes = {
        name: sum(file.bytes for file in networks[name].files) for name in ("unet", *FEATURE_CACHE_NETWORKS)
    }
    assert sizes["unet_shallow"] < sizes["unet"]


def test_the_outer_part_of_a_fresh_feature_is_the_whole(deep: Bundle) -> None:
    unet, keep, outer = (
        open_engine(deep, name, Placement(threads=1)) for name in ("unet", *FEATURE_CACHE_NETWORKS)
    )
    inputs, answers = arrays(unet)
    _, kept = arrays(keep)
    unet.bind(inputs, answers)()
    keep.bind(inputs, kept)()
    again = {"prediction": np.zeros_like(answers["prediction"])}
    outer.bind({**inputs, "cached_features": kept["cached_features"]}, again)()
    np.testing.assert_allclose(kept["prediction"], answers["prediction"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(again["prediction"], answers["prediction"], rtol=0, atol=1e-5)


def test_the_first_level_of_a_stale_feature_still_sees_the_latents(deep: Bundle) -> None:
    keep, outer = (open_engine(deep, name, Placement(threads=1)) for name in FEATURE_CACHE_NETWORKS)
    (inputs, kept), (others, _) = arrays(keep), arrays(keep, seed=1)
    keep.bind(inputs, kept)()
    answer = {"prediction": np.zeros_like(kept["prediction"])}
    outer.bind({**others, "cached_features": kept["cached_features"]}, answer)()
    assert not np.allclose(answer["prediction"], kept["prediction"], atol=1e-2)


def test_a_bundle_without_one_of_the_two_is_damaged(deep: Bundle, tmp_path: Path) -> None:
    from mimicmotion_trt.engines import Manifest
    from mimicmotion_trt.errors import BundleError

    text = deep.manifest.to_json()
    assert Manifest.from_json(text) == deep.manifest
    with pytest.raises(BundleError, match="networks are"):
        Manifest.from_json(text.replace('"unet_shallow"', '"unet_other"'))


@pytest.mark.slow
def test_pytorch_reuses_them_as_onnx_runtime_does(build_golden: Any, deep_bundle: Path) -> None:
    options = Options(backend="torch", sizes=((64, 128),), segment=16, deep_cache=True)
    torch_bundle = build_golden("test-deep-bundle-torch", options)
    chance = np.random.default_rng(0)
    picture = chance.integers(0, 255, (128, 64, 3), np.uint8)
    poses = chance.integers(0, 255, (5, 128, 64, 3), np.uint8)
    latents = []
    for folder in (deep_bundle, torch_bundle):
        with Animator.load(folder, device="cpu", threads=1) as animator:
            settings = animator.settings(steps=3, segment=4, overlap=1, reuse_interval=2)
            latents.append(animator.sample(picture, poses, settings))
    np.testing.assert_allclose(latents[1], latents[0], rtol=0, atol=1e-4 * np.abs(latents[0]).max())
