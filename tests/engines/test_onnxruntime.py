"""The ONNX Runtime backend on the bundle's real engines."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mimicmotion_trt import BundleError, EngineError
from mimicmotion_trt.engines import Placement, open_engine
from mimicmotion_trt.engines.onnxruntime_backend import OnnxRuntimeEngine


def call_arrays(frames: int = 2, height: int = 16, width: int = 24, seed: int = 0):
    pose = np.random.default_rng(seed).uniform(-1, 1, (frames, 3, height, width)).astype(np.float32)
    return {"pose": pose}, {"features": np.full((frames, 32, height // 8, width // 8), np.nan, np.float32)}


def test_answers_appear_in_the_bound_array(pose_net):
    inputs, outputs = call_arrays()
    features = outputs["features"]
    pose_net.bind(inputs, outputs)()
    assert np.isfinite(features).all()
    assert features.std() > 0


def test_a_call_reads_its_arrays_anew(pose_net):
    """Nothing is copied: change the input in place, call again."""
    inputs, outputs = call_arrays(seed=1)
    other_inputs, other_outputs = call_arrays(seed=2)
    call = pose_net.bind(inputs, outputs)
    call()
    first = outputs["features"].copy()
    pose_net.bind(other_inputs, other_outputs)()
    inputs["pose"][:] = other_inputs["pose"]
    call()
    np.testing.assert_array_equal(outputs["features"], other_outputs["features"])
    assert not np.array_equal(outputs["features"], first)


def test_views_of_larger_arrays_can_be_bound(pose_net):
    inputs, outputs = call_arrays(frames=4)
    expected = call_arrays(frames=2)[1]
    pose_net.bind({"pose": inputs["pose"][1:3].copy()}, expected)()
    pose_net.bind({"pose": inputs["pose"][1:3]}, {"features": outputs["features"][1:3]})()
    np.testing.assert_array_equal(outputs["features"][1:3], expected["features"])
    assert np.isnan(outputs["features"][[0, 3]]).all()


def test_the_call_keeps_its_arrays_alive(pose_net):
    inputs, outputs = call_arrays()
    features = outputs["features"]
    call = pose_net.bind(inputs, outputs)
    del inputs, outputs
    np.zeros(10**6)
    call()
    assert np.isfinite(features).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64), (2, 24, 16), (5, 8, 40)])
def test_free_sizes_may_differ_from_call_to_call(pose_net, shape):
    inputs, outputs = call_arrays(*shape)
    pose_net.bind(inputs, outputs)()
    alone_in, alone_out = call_arrays(*shape)
    for frame in range(shape[0]):
        out = {"features": alone_out["features"][frame : frame + 1]}
        pose_net.bind({"pose": alone_in["pose"][frame : frame + 1]}, out)()
    np.testing.assert_allclose(outputs["features"], alone_out["features"], atol=1e-6)


def test_two_bindings_of_one_engine_do_not_disturb_each_other(pose_net):
    (in1, out1), (in2, out2) = call_arrays(seed=1), call_arrays(1, 8, 8, seed=2)
    first, second = pose_net.bind(in1, out1), pose_net.bind(in2, out2)
    first()
    before = out1["features"].copy()
    second()
    np.testing.assert_array_equal(out1["features"], before)


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ({"pose": np.zeros((2, 3, 16, 16))}, None, "float64"),
        ({"pose": np.zeros((2, 4, 16, 16), np.float32)}, None, r"\[2, 4, 16, 16\]"),
        ({"pose": np.zeros((2, 3, 16, 32), np.float32)[..., ::2]}, None, "contiguous"),
        ({"poses": np.zeros((2, 3, 16, 16), np.float32)}, None, "pose"),
        ({}, None, "pose"),
        (None, {}, "features"),
        (None, {"features": np.zeros((3, 32, 2, 2), np.float32)}, "features"),
        (None, {"features": np.zeros((2, 32, 2, 2), np.float16)}, "float16"),
    ],
)
def test_arrays_that_do_not_fit(pose_net, inputs, outputs, says):
    good_in, good_out = call_arrays(2, 16, 16)
    with pytest.raises(EngineError, match=says):
        pose_net.bind(good_in if inputs is None else inputs, good_out if outputs is None else outputs)


@pytest.mark.parametrize("cells", [(1, 2), (2, 1), (4, 4)])
def test_an_output_of_a_size_that_the_network_does_not_compute(pose_net, cells):
    """The sizes of inputs and outputs are free each; together they must be what comes out."""
    inputs, _ = call_arrays(2, 16, 16)
    wrong = np.zeros((2, 32, *cells), np.float32)
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        pose_net.bind(inputs, {"features": wrong})()


def test_a_closed_engine_cannot_be_called(opened):
    engine = open_engine(opened, "pose_net", Placement(threads=1))
    call = engine.bind(*call_arrays())
    engine.close()
    with pytest.raises(EngineError):
        call()
    with pytest.raises(EngineError):
        engine.bind(*call_arrays())


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "gpu", ""])
def test_a_device_that_it_does_not_run_on(opened, device):
    with pytest.raises(BundleError) as caught:
        open_engine(opened, "pose_net", Placement(device))
    assert repr(device) in caught.value.message
    assert "cpu" in caught.value.remedy


def test_a_file_that_is_no_engine(tmp_path, opened):
    (tmp_path / "unet.onnx").write_bytes(b"no engine")
    spec = opened.manifest.networks["unet"].spec
    with pytest.raises(BundleError, match=r"unet\.onnx cannot be loaded"):
        OnnxRuntimeEngine(tmp_path / "unet.onnx", spec, 1)


def test_a_backend_that_this_version_does_not_have(opened):
    from dataclasses import replace

    foreign = replace(opened, manifest=replace(opened.manifest, backend="abacus"))
    with pytest.raises(BundleError, match="abacus"):
        open_engine(foreign, "pose_net")


def test_the_memory_of_a_large_call_is_given_back(bundle):
    """ONNX Runtime's arena keeps it for as long as the process lives, unless it is told to shrink."""
    code = """if True:
        import sys
        import numpy, psutil
        from mimicmotion_trt.engines import Bundle, Placement, open_engine
        engine = open_engine(Bundle.load(sys.argv[1]), "pose_net", Placement(threads=1))
        memory = psutil.Process().memory_info
        for side in (64, 1024):
            pose, out = numpy.zeros((4, 3, side, side), "f"), numpy.zeros((4, 32, side // 8, side // 8), "f")
            before = memory().rss
            engine.bind({"pose": pose}, {"features": out})()
        print(memory().rss - before)"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 40 * 2**20, "its peak is 400 MiB higher"
