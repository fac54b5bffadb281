"""An engine that answers NaN is an error that names it; never a black video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mimicmotion_trt import Animator, EngineError
from mimicmotion_trt.denoise.kernels import check_finite, not_finite


@pytest.mark.parametrize(
    ("network", "when"),
    [
        ("image_encoder", "for the reference picture"),
        ("vae_encoder", "for the reference picture"),
        ("pose_net", "for the pose pictures"),
        ("vae_decoder", "in frames 0 to 1"),
    ],
)
def test_the_network_that_answers_nan_is_named(overflowing_bundle, person, person_pose, dance, network, when):
    with Animator.load(overflowing_bundle(network), threads=1) as animator:
        settings = animator.settings(steps=2, frames=3, decode_chunk=2, guidance=(1.0, 1.0))
        job = animator.animate(person, dance, settings, reference_pose=person_pose)
        with pytest.raises(EngineError, match=f"the network {network} answered with NaN .* {when}"):
            job.result()


def test_the_step_is_named_and_the_next_job_runs(overflowing_bundle, person, person_pose, dance):
    with Animator.load(overflowing_bundle("unet"), threads=2) as animator:
        settings = animator.settings(steps=2, frames=3, guidance=(1.0, 1.0))
        bad = animator.animate(
            person, dance, replace(settings, motion_bucket=1010), reference_pose=person_pose
        )
        with pytest.raises(
            EngineError, match=r"the network unet answered with NaN .* in step 1 of 2"
        ) as caught:
            bad.result()
        assert caught.value.remedy.startswith("Check the weights")  # it is in float32 already
        assert len(animator.animate(person, dance, settings, reference_pose=person_pose).result()) == 3


def test_a_network_in_float16_is_to_be_kept_in_float32():
    half, single = (np.array([1, np.inf], dtype) for dtype in (np.float16, np.float32))
    with pytest.raises(EngineError, match="build the bundle again with --keep-fp32 vae_decoder"):
        check_finite(half, "vae_decoder", "in frames 0 to 7")
    with pytest.raises(EngineError, match="in float32 already"):
        check_finite(single, "vae_decoder", "in frames 0 to 7")
    check_finite(half[:1], "vae_decoder", "in frames 0 to 7")
    assert "--keep-fp32 unet." in not_finite("unet_shallow", "in step 1 of 2", half.dtype).remedy
