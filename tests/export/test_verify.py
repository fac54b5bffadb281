"""Engines are compared with recorded answers through polygraphy, on inputs of the kind that they will see."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
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
    Profile,
    TensorSpec,
    call_sizes,
    network_specs,
    open_engine,
)
from mimicmotion_trt.export import verify
from mimicmotion_trt.export.network_build import model_defaults
from mimicmotion_trt.export.options import Options
from mimicmotion_trt.export.tensorrt_build import make_profiles
from mimicmotion_trt.export.verify import (
    LEAST_LATENTS,
    MOST_FRAMES,
    MOST_LATENTS,
    SHAPES,
    Case,
    EngineRunner,
    call_arrays,
    clip_shape,
    compare_outputs,
    example_inputs,
    make_outputs,
    measure,
    record_plan_cases,
    record_trajectory,
    stack,
    usual_shape,
)
from mimicmotion_trt.training.checkpoints import Model, image_statistics, load_model

FLOATS = arrays(np.float32, array_shapes(), elements=st.floats(-1e6, 1e6, width=32))


def make_call(network: str, engine: Engine, shape=SHAPES[1], seed: int = 0):
    return call_arrays(Case(example_inputs(network, engine.spec, shape, seed), ()), engine.spec)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_engine_is_one_of_polygraphys_runners(opened, network):
    """Beside polygraphy's own runner of the same file, in polygraphy's own comparison: nothing between them."""
    engine = open_engine(opened, network, Placement(threads=1))
    calls = [make_call(network, engine, shape, seed) for seed, shape in enumerate(SHAPES[:2])]
    session = onnxruntime.InferenceSession(opened.engine_path(network), providers=["CPUExecutionProvider"])
    runners = [OnnxrtRunner(session, name="its own"), EngineRunner(engine, "ours")]
    (result,) = Comparator.compare_accuracy(
        Comparator.run(runners, calls), compare_func=SimpleCompareFunc(atol=1e-4, rtol=1e-4)
    )
    assert result
    found = result["its own", "ours"]
    assert [list(outputs) for outputs in found] == [[t.name for t in engine.spec.outputs]] * 2


def test_every_output_of_every_call_is_measured(pose_net):
    calls = [make_call("pose_net", pose_net, shape) for shape in SHAPES]
    right = [answer(pose_net, call) for call in calls]
    found = compare_outputs(pose_net, "onnxruntime", calls, right)
    assert [one.rel_l2 for one in found] == [0.0] * len(SHAPES)
    right[1]["features"] = right[1]["features"] * np.float32(1.5)
    found = compare_outputs(pose_net, "onnxruntime", calls, right)
    assert [one.rel_l2 for one in found] == pytest.approx([0, 1 / 3, 0])
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

    assert len(compare_outputs(pose_net, "onnxruntime", calls(), right)) == len(given) == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_no_agreement(pose_net, value, capfd):
    """Nor are two infinities; and nothing of it is printed, where a machine reads the result."""
    call = make_call("pose_net", pose_net)
    wrong = {"features": np.full_like(answer(pose_net, call)["features"], value)}
    (found,) = compare_outputs(pose_net, "onnxruntime", [call], [wrong])
    assert not found.rel_l2 <= 1.0
    with np.errstate(invalid="ignore"):
        assert not measure("features", wrong["features"], wrong["features"]).rel_l2 <= 1.0
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
        compare_outputs(Broken(), "tensorrt", [call], [answer(pose_net, call)])


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
        compare_outputs(pose_net, "onnxruntime", [call], [flat])


@given(FLOATS, st.floats(0.001, 1))
def test_a_relative_error_is_relative(expected, share):
    found = measure("x", expected, expected.astype(np.float64) * (1 + share))
    assert found.norm == pytest.approx(np.linalg.norm(expected.astype(np.float64)), rel=1e-5, abs=1e-9)
    assert found.max_abs == pytest.approx(np.abs(expected).max() * share, rel=1e-4, abs=1e-9)
    if found.norm > 1e-6:
        assert found.rel_l2 == pytest.approx(share, rel=1e-4)


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


SPECS = network_specs(pose_channels=32, token_width=8, image_size=16, dtype="float16", cached_channels=64)
PLANS = Options(backend="tensorrt-rtx", sizes=((64, 128),), segment=4, rows=(1, 2), deep_cache=True)


def denoise(size: tuple[int, int], frames: int, steps: int) -> list[Case]:
    """Two rows for each step, as with guidance; what they hold tells which is which."""
    sizes = call_sizes(frames, (size[1] // 8, size[0] // 8))
    inputs, (output,) = SPECS["unet"].inputs, SPECS["unet"].outputs

    def filled(tensor: TensorSpec, value: int) -> torch.Tensor:
        return torch.full(tensor.sized(sizes), float(value))

    return [
        Case({tensor.name: filled(tensor, index) for tensor in inputs}, (filled(output, index),))
        for index in range(2 * steps)
    ]


def echo(**inputs: torch.Tensor) -> torch.Tensor:
    return torch.ones(1)


@pytest.mark.parametrize("name", list(SPECS))
def test_every_profile_is_called_at_its_usual_shape(name):
    spec, profiles = SPECS[name], make_profiles(name, SPECS[name], PLANS)
    cases = record_plan_cases(name, spec, echo, profiles, denoise)
    assert len(cases) == len(profiles)
    usual = [spec.inputs[0].sized(profile.sizes(1)) for profile in profiles]
    assert [tuple(case.inputs[spec.inputs[0].name].shape) for case in cases] == usual


def test_rows_are_spread_over_a_denoising():
    assert stack(denoise((64, 64), 2, 4), 4).inputs["timestep"].tolist() == [0, 2, 4, 6]
    assert stack(denoise((64, 64), 2, 1), 3).inputs["timestep"].tolist() == [0, 0, 1]


def test_what_a_cpu_cannot_compute_is_left_out(monkeypatch):
    profiles = make_profiles("unet", SPECS["unet"], PLANS)
    assert [usual_shape(profile) for profile in profiles] == [(1, 4, 16, 8), (2, 4, 16, 8)]
    monkeypatch.setattr(verify, "MOST_TOKENS", 600)
    (case,) = record_plan_cases("unet", SPECS["unet"], echo, profiles, denoise)
    assert case.outputs[0].shape == (1, 4, 4, 16, 8)


@pytest.mark.parametrize("name", list(SPECS))
def test_a_single_cell_at_the_deepest_level_judges_no_unet(name):
    """Norms there magnify rounding; ONNX Runtime judges the graph at other shapes."""
    options = replace(PLANS, sizes=((64, 64),))
    profiles = make_profiles(name, SPECS[name], options)
    cases = record_plan_cases(name, SPECS[name], echo, profiles, denoise)
    assert len(cases) == (0 if name.startswith("unet") else len(profiles))


def test_networks_without_a_dimension_have_one_of_it():
    assert usual_shape(Profile({"batch": (1, 1, 1)})) == (1, 1, 1, 1)
    assert usual_shape(Profile({"frames": (1, 8, 8), "height": (64,) * 3, "width": (128,) * 3})) == (
        1, 8, 8, 16,
    )  # fmt: skip


OPTIONS = Options(
    segment=4,
    sizes=((64, 64),),
    defaults={
        "canvas": 256, "sigma_min": 0.1, "sigma_max": 40.0, "guidance": [1.0, 1.0], "noise_aug": 0.5,
        "motion_bucket": 90,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def model(micro) -> Model:
    return load_model(micro.base, micro.checkpoint)


def record(model: Model, options: Options, **how: int) -> list[Case]:
    image = image_statistics(model.feature_extractor, model.image_encoder)
    frames = options.model_defaults["segment"]
    return record_trajectory(model, image, model_defaults(model, options), options.sizes[0], frames, **how)


def test_sigmas_guidance_and_conditions_are_the_bundles(model):
    cases = record(model, OPTIONS, steps=3)
    assert len(cases) == 3  # guidance of 1: the conditional branch alone
    sigmas = [math.exp(4 * case.inputs["timestep"].item()) for case in cases]
    assert sigmas[0] == pytest.approx(40, rel=1e-5)
    assert sigmas[-1] == pytest.approx(0.1, rel=1e-5)
    for case in cases:
        assert case.inputs["latents"].shape == (1, 4, 8, 8, 8)
        assert case.inputs["time_ids"].tolist() == [[6.0, 90.0, 0.5]]
        assert case.inputs["pose"].abs().sum() > 0
        again = model.unet(*case.inputs.values())[0]
        torch.testing.assert_close(again, case.outputs[0])


def test_with_guidance_there_are_both_branches(model):
    cases = record(model, Options(segment=3, sizes=((64, 64),), defaults={"canvas": 256}), steps=2)
    assert len(cases) == 4
    empty = [not case.inputs["embedding"].any() for case in cases]
    assert sorted(empty) == [False, False, True, True]
    assert 4 * cases[0].inputs["timestep"].item() == pytest.approx(math.log(model.scheduler["sigma_max"]))


def test_other_seeds_are_other_people(model):
    def first(**how: int) -> Any:
        return record(model, OPTIONS, steps=1, **how)[0].inputs

    one, same, other = first(seed=1), first(seed=1), first(seed=2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(not torch.equal(one[name], other[name]) for name in ("latents", "embedding", "pose"))


def test_the_shape_is_the_bundles_as_far_as_a_cpu_computes_it():
    assert clip_shape(6_300_000, (128, 192), 8) == ((128, 192), 8)
    assert clip_shape(1_524_000_000, (576, 1024), 72) == ((64, 128), 4)
    assert clip_shape(1_524_000_000, (1024, 576), 2) == ((128, 64), 2)


def test_a_shape_of_few_cells_gives_way_to_a_larger_one():
    """Norms over one or two cells at the deepest level would judge rounding, not the engine."""
    assert clip_shape(6_300_000, (64, 64), 8) == ((128, 128), 8)
    assert clip_shape(6_300_000, (64, 128), 3) == ((128, 192), 3)
    assert clip_shape(6_300_000, (64, 192), 3) == ((64, 256), 3)
    assert clip_shape(6_300_000, (128, 128), 3) == ((128, 128), 3)
    assert clip_shape(1_524_000_000, (64, 64), 8) == ((64, 128), 4)  # a wide network: two will do


@given(
    st.integers(10**5, 10**10), st.integers(1, 32), st.integers(1, 32), st.integers(2, 200)
)  # fmt: skip
def test_no_shape_is_larger_than_asked_or_allowed(weights, wide, high, segment):
    (width, height), frames = clip_shape(weights, (64 * wide, 64 * high), segment)
    assert width % 64 == height % 64 == 0
    assert 64 <= width <= 64 * max(wide, 4)
    assert 64 <= height <= 64 * max(high, 4)
    assert width * height // 64 <= MOST_LATENTS
    assert width * height // 64 >= (LEAST_LATENTS if weights < 7 * 10**8 else 128)
    assert 2 <= frames <= min(MOST_FRAMES, segment)
