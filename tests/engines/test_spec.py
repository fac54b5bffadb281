"""What an engine's tensors are, and the arrays that fit them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import EngineError
from mimicmotion_trt.engines import FEATURE_CACHE_NETWORKS, NETWORKS, EngineSpec, TensorSpec, network_specs

ADD = EngineSpec(
    inputs=(TensorSpec("a", "float32", ("rows", 3)), TensorSpec("b", "float32", ("rows", 3))),
    outputs=(TensorSpec("sum", "float16", ("rows", "columns")),),
)


def arrays(rows: int = 2, columns: int = 5, **replaced: np.ndarray) -> tuple[dict, dict]:
    every = {
        "a": np.zeros((rows, 3), np.float32),
        "b": np.zeros((rows, 3), np.float32),
        "sum": np.zeros((rows, columns), np.float16),
        **replaced,
    }
    return {name: every[name] for name in ("a", "b")}, {"sum": every["sum"]}


@given(st.integers(0, 9), st.integers(0, 9))
def test_free_sizes_are_found(rows, columns):
    assert ADD.check(*arrays(rows, columns)) == {"rows": rows, "columns": columns}


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("a", np.zeros((2, 3)), "float64"),
        ("a", np.zeros((2, 3), ">f4"), ">f4"),
        ("a", np.zeros((2, 4), np.float32), r"\[2, 4\]"),
        ("a", np.zeros((2, 3, 1), np.float32), r"\[2, 3, 1\]"),
        ("b", np.zeros((3, 3), np.float32), "'rows': 2"),
        ("b", np.zeros((3, 2), np.float32).T, "b is not contiguous"),
        ("sum", np.zeros((2, 10), np.float16)[:, ::2], "sum is not contiguous"),
        ("sum", np.zeros((2, 5), np.float32), "sum float16"),
        ("sum", np.zeros((1, 5), np.float16), "rows"),
    ],
)
def test_an_array_that_does_not_fit_is_named(name, array, says):
    with pytest.raises(EngineError, match=says):
        ADD.check(*arrays(**{name: array}))


def test_names_must_be_exactly_the_specs():
    inputs, outputs = arrays()
    for given_inputs, given_outputs in (
        ({"a": inputs["a"]}, outputs),
        (inputs | {"c": inputs["a"]}, outputs),
        (inputs, {}),
        (inputs, {"total": outputs["sum"]}),
    ):
        with pytest.raises(EngineError, match="expected tensors"):
            ADD.check(given_inputs, given_outputs)


def test_an_output_that_may_not_be_written_is_refused():
    frozen = np.zeros((2, 5), np.float16)
    frozen.flags.writeable = False
    with pytest.raises(EngineError, match="sum may not be written"):
        ADD.check(*arrays(sum=frozen))
    inputs, outputs = arrays()
    inputs["a"].flags.writeable = False
    assert ADD.check(inputs, outputs)["rows"] == 2


def test_the_five_networks():
    specs = network_specs(pose_channels=320, token_width=1024, image_size=224)
    assert tuple(specs) == NETWORKS
    assert str(specs["unet"].inputs[0]) == "latents float32[rows, frames, 8, latent_height, latent_width]"
    assert [tensor.name for tensor in specs["unet"].inputs] == [
        "latents", "timestep", "embedding", "time_ids", "pose",
    ]  # fmt: skip
    assert specs["image_encoder"].inputs[0].shape == ("batch", 3, 224, 224)
    assert specs["pose_net"].outputs[0].shape[1] == 320
    half = network_specs(pose_channels=320, token_width=1024, image_size=224, dtype="float16")
    wide = {t.name for spec in half.values() for t in (*spec.inputs, *spec.outputs) if t.dtype == "float32"}
    assert wide == {"timestep", "time_ids"}


def test_the_two_networks_that_reuse_deep_features():
    specs = network_specs(pose_channels=320, token_width=1024, image_size=224, cached_channels=640)
    assert tuple(specs) == NETWORKS + FEATURE_CACHE_NETWORKS
    keep, outer = (specs[name] for name in FEATURE_CACHE_NETWORKS)
    assert keep.inputs == specs["unet"].inputs
    assert outer.outputs == specs["unet"].outputs
    assert keep.outputs[1] == outer.inputs[-1]
    assert str(keep.outputs[1]) == "cached_features float32[rows, frames, 640, latent_height, latent_width]"
