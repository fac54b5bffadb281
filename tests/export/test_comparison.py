"""Engines are compared with recorded answers through polygraphy, as its runners."""

from __future__ import annotations

import weakref

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import Comparator, SimpleCompareFunc
from polygraphy.exception import PolygraphyException

from mimicmotion_trt import EngineError, ExportError
from mimicmotion_trt.engines import (
    FEATURE_CACHE_NETWORKS,
    NETWORKS,
    Engine,
    Placement,
    network_specs,
    open_engine,
)
from mimicmotion_trt.export.comparison import Deviation, EngineRunner, compare_answers, make_outputs, measure
from mimicmotion_trt.export.proof import SHAPES, Case, call_arrays, example_inputs

FLOATS = arrays(np.float32, array_shapes(), elements=st.floats(-1e6, 1e6, width=32))


def make_call(network: str, engine: Engine, shape=SHAPES[1], seed: int = 0):
    return call_arrays(Case(example_inputs(network, engine.spec, shape, seed), ()), engine.spec)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_engine_is_one_of_polygraphys_runners(opened, network):
    """Beside polygraphy's own runner of the same file, in polygraphy's own comparison: nothing between them."""
    engine = open_engine(opened, network, Placement(threads=1))
    calls = [make_call(network, engine, shape, seed) for seed, shape in enumerate(SHAPES)]
    session = onnxruntime.InferenceSession(opened.engine_path(network), providers=["CPUExecutionProvider"])
    runners = [OnnxrtRunner(session, name="its own"), EngineRunner(engine, "ours")]
    (result,) = Comparator.compare_accuracy(
        Comparator.run(runners, calls), compare_func=SimpleCompareFunc(atol=1e-4, rtol=1e-4)
    )
    assert result
    found = result["its own", "ours"]
    assert [list(outputs) for outputs in found] == [[t.name for t in engine.spec.outputs]] * len(SHAPES)


def test_every_output_of_every_call_is_measured(pose_net):
    calls = [make_call("pose_net", pose_net, shape) for shape in SHAPES]
    right = [answer(pose_net, call) for call in calls]
    found = compare_answers(pose_net, "onnxruntime", calls, right, 0.0)
    assert all(found)
    assert [one.rel_l2 for one in found] == [0.0] * len(SHAPES)
    right[1]["features"] = right[1]["features"] * np.float32(1.5)
    found = compare_answers(pose_net, "onnxruntime", calls, right, 0.3)
    assert [bool(one) for one in found] == [True, False, True]
    assert found[1].rel_l2 == pytest.approx(1 / 3)
    assert found[1].max_abs == pytest.approx(np.abs(right[1]["features"]).max() / 3)


def test_calls_are_given_up_when_they_are_compared(pose_net):
    """The inputs of a real U-Net are large: never more than two calls of them are held."""
    poses = [make_call("pose_net", pose_net, seed=seed)["pose"] for seed in range(4)]
    right = [answer(pose_net, {"pose": pose}) for pose in poses]
    given: list[weakref.ref[np.ndarray]] = []

    def calls():
        for pose in poses:
            assert [ref() is None for ref in given[:-1]] == [True] * (len(given) - 1 if given else 0)
            call = {"pose": pose.copy()}
            given.append(weakref.ref(call["pose"]))
            yield call
            del call

    assert all(compare_answers(pose_net, "onnxruntime", calls(), right, 0.0))
    assert len(given) == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_no_agreement(pose_net, value, capfd):
    """Nor are two infinities; and nothing of it is printed, where a machine reads the result."""
    call = make_call("pose_net", pose_net)
    wrong = {"features": np.full_like(answer(pose_net, call)["features"], value)}
    assert not any(compare_answers(pose_net, "onnxruntime", [call], [wrong], 1.0))
    with np.errstate(invalid="ignore"):
        assert not measure("features", wrong["features"], wrong["features"], 1.0)
    assert capfd.readouterr() == ("", "")


def test_what_the_engine_says_is_what_is_told(pose_net):
    class Broken:
        spec = pose_net.spec

        def bind(self, inputs, outputs):
            raise EngineError("the library said no")

        def close(self):
            pass

    call = make_call("pose_net", pose_net)
    with pytest.raises(EngineError, match="said no"):
        compare_answers(Broken(), "tensorrt", [call], [answer(pose_net, call)], 1.0)


def test_a_call_of_another_dtype_is_refused(pose_net):
    with (
        EngineRunner(pose_net, "ours") as runner,
        pytest.raises(PolygraphyException, match="unexpected dtype"),
    ):
        runner.infer({"pose": np.zeros((1, 3, 64, 64), np.float64)})


def test_answers_of_another_shape_are_no_agreement(pose_net):
    call = make_call("pose_net", pose_net)
    flat = {"features": answer(pose_net, call)["features"].ravel()}
    with pytest.raises(ExportError, match="features has the shape"):
        compare_answers(pose_net, "onnxruntime", [call], [flat], 1.0)


@given(FLOATS, st.floats(0.001, 1))
def test_a_relative_error_is_relative(expected, share):
    found = measure("x", expected, expected.astype(np.float64) * (1 + share), bound=1.0)
    assert found.norm == pytest.approx(np.linalg.norm(expected.astype(np.float64)), rel=1e-5, abs=1e-9)
    assert found.max_abs == pytest.approx(np.abs(expected).max() * share, rel=1e-4, abs=1e-9)
    if found.norm > 1e-6:
        assert found.rel_l2 == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize(("rel_l2", "near"), [(0.0, True), (0.1, True), (0.2, False), (float("nan"), False)])
def test_what_is_near_enough(rel_l2, near):
    assert bool(Deviation(max_abs=1.0, rel_l2=rel_l2, norm=1.0, bound=0.1)) is near


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))
def test_sizes_of_answers_follow_from_the_call(rows, frames, high, wide):
    specs = network_specs(pose_channels=16, token_width=8, image_size=32, cached_channels=24)
    found = {}
    for name in NETWORKS + FEATURE_CACHE_NETWORKS:
        call = example_inputs(name, specs[name], (rows, frames, high, wide), seed=0)
        inputs = {key: value.numpy() for key, value in call.items()}
        found[name] = make_outputs(specs[name], inputs)
        specs[name].check(inputs, found[name])  # an EngineError if they do not belong together
    assert found["unet_caching"]["cached_features"].shape == (rows, frames, 24, high, wide)
    assert found["pose_net"]["features"].shape == (frames, 16, high, wide)
    assert found["vae_decoder"]["frames_out"].shape == (frames, 3, high * 8, wide * 8)


def answer(engine: Engine, call: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the engine itself says."""
    outputs = make_outputs(engine.spec, call)
    engine.bind(call, outputs)()
    return outputs
