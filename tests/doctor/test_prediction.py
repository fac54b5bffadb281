"""Predictions: operations from the plan of segments, memory by its formula, what fits into how much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mimicmotion_trt import Settings
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.denoise.cost import MIMICMOTION, ON_CPU, ModelStats, cost_of, memory_of
from mimicmotion_trt.denoise.schedule import steps_of
from mimicmotion_trt.denoise.shapes import EngineShapes
from mimicmotion_trt.doctor.prediction import best, predict
from mimicmotion_trt.engines import EnginePlan, Profile

FULL = Settings(segment=72, size=(576, 1024))
GB = 10**9


def test_one_segment_of_the_full_size_model():
    """25 steps, both branches, 72 frames with the picture's own: about 1.2e16 operations (14.5 s at 800 T/s)."""
    cost = cost_of(MIMICMOTION, FULL, 71)
    assert (cost.rows, cost.segment_frames, cost.steps) == (2, 72, 25)
    assert cost.denoise == 25 * MIMICMOTION.works["unet"].total(rows=2, frames=72, pixels=72 * 128)
    assert cost.seconds(800e12) == pytest.approx(14.5, rel=0.01)
    assert cost.total == cost.encode + cost.denoise + cost.decode


@pytest.mark.parametrize(
    ("change", "rows", "segment_frames"),
    [
        ({}, 4, 16),  # frames 1..15 and 6..20
        ({"guidance": (1.0, 1.0)}, 2, 16),
        ({"layout": "compact"}, 4, 14),
        ({"segment": 72}, 2, 21),
    ],
)
def test_rows_and_their_frames_are_those_of_the_plan(change, rows, segment_frames):
    settings = Settings(**{"segment": 16, "size": (64, 64), **change})
    cost = cost_of(MIMICMOTION, settings, 20)
    assert (cost.rows, cost.segment_frames) == (rows, segment_frames)


def test_what_options_save_is_predicted():
    """Ten steps of 20 frames in two segments; a limited guidance runs one branch in some of them."""
    settings = Settings(segment=16, size=(64, 64), steps=10)
    both = cost_of(MIMICMOTION, settings, 20).denoise
    one = cost_of(MIMICMOTION, replace(settings, guidance=(1.0, 1.0)), 20).denoise
    limited = replace(settings, guidance_interval=(0.3, 20.0))
    guided = sum(step.guided for step in steps_of(limited))
    assert 0 < guided < 10
    expected = (guided * both + (10 - guided) * one) / 10
    assert cost_of(MIMICMOTION, limited, 20).denoise == pytest.approx(expected)
    shifted = cost_of(MIMICMOTION, replace(settings, layout="shifted"), 60).denoise
    assert shifted < 0.85 * cost_of(MIMICMOTION, settings, 60).denoise


def test_twice_the_steps_cost_twice_the_denoising():
    once, twice = (cost_of(MIMICMOTION, Settings(steps=n, segment=16, size=(64, 64)), 15) for n in (5, 10))
    assert twice.denoise == 2 * once.denoise
    assert (twice.encode, twice.decode) == (once.encode, once.decode)


def test_memory_is_about_what_the_reference_needs():
    """The reference makes long videos of 576x1024 in 16 GB (its README), one row at a time, in fp16."""
    memory = memory_of(MIMICMOTION, FULL, 71, rows=1, gpu=True)
    assert memory.weights == pytest.approx(4.4 * GB, rel=0.01)
    assert 10 * GB < memory.total < 16 * GB
    assert memory.total == memory.weights + memory.activations + memory.state
    assert memory_of(MIMICMOTION, FULL, 530, rows=1, gpu=True).activations == memory.activations


def test_jobs_at_once_lie_side_by_side():
    """U-Net and decoder of different jobs on a GPU; on a CPU a job beside a job."""
    one, other = (memory_of(MIMICMOTION, FULL, 71, 1, jobs, gpu=True) for jobs in (1, 3))
    unet, decoder = 72 * 72 * 128 * 16 * 320 * 2, 8 * 64 * 72 * 128 * 6 * 128 * 2
    assert (one.activations, other.activations) == (max(unet, decoder), unet + decoder)
    assert (other.weights, other.state) == (one.weights, 3 * one.state)
    assert memory_of(MIMICMOTION, FULL, 71, 1, 3).activations == 3 * ON_CPU * one.activations
    found = predict(MIMICMOTION, replace(FULL, segment=16), 15, (1, 2, 4), None, 2, gpu=True)
    assert [choice.rows for choice in found if choice.segment == 16] == [2, 1]  # each has batches of its own


def test_the_best_that_fits_keeps_the_models_own_segment():
    assert best(predict(MIMICMOTION, FULL, 300, (1, 2, 4), None)).segment == 72
    some = best(predict(MIMICMOTION, FULL, 300, (1, 2, 4), 80 * GB))
    assert (some.segment, some.rows) == (72, 1)  # 72 frames in two rows: over 2^31 elements
    assert best(predict(MIMICMOTION, FULL, 300, (1, 2, 4), 4 * GB)) is None
    found = predict(MIMICMOTION, FULL, 300, (1, 2, 4), 4 * GB)
    assert {choice.why for choice in found} == {"more memory than is free", "a tensor of over 2^31 elements"}


def test_smaller_chunks_are_tried_where_the_usual_one_does_not_fit():
    """72 frames in 72x128 latent pixels: 8 at a time take more than the U-Net, 4 less; 12.54 and 12.09 GB in all."""
    assert {choice.decode_chunk for choice in predict(MIMICMOTION, FULL, 71, (1,), 13 * GB, gpu=True)} == {8}
    found = predict(MIMICMOTION, FULL, 71, (1,), 12_300_000_000, gpu=True)
    assert [(choice.decode_chunk, choice.fits) for choice in found if choice.segment == 72] == [
        (8, False), (4, True),
    ]  # fmt: skip
    assert best(predict(MIMICMOTION, FULL, 71, (1,), 6_900_000_000, gpu=True)).decode_chunk == 2
    short = predict(MIMICMOTION, FULL, 2, (1,), 5 * GB, gpu=True)
    assert {choice.decode_chunk for choice in short} == {8}  # 3 frames, nothing fits
    large = replace(FULL, size=(2048, 2048), segment=2, overlap=1)  # a GPU's kernels count 2^31 elements
    chunks = [
        best(predict(MIMICMOTION, large, 15, (1,), None, gpu=gpu)).decode_chunk for gpu in (True, False)
    ]
    assert chunks == [1, 8]


def test_plans_are_decoded_in_chunks_that_they_take():
    size = {"latent_height": (128, 128, 128), "latent_width": (72, 72, 72)}
    profiles = {
        "unet": {"rows": (1, 1, 1), "frames": (72, 72, 72), **size},
        "vae_decoder": {"frames": (3, 8, 8), **size},
    }
    shapes = EngineShapes({name: EnginePlan("", "", (Profile(dims),)) for name, dims in profiles.items()})
    found = predict(MIMICMOTION, FULL, 71, (1,), 12_300_000_000, gpu=True, shapes=shapes)
    assert [choice.decode_chunk for choice in found] == [8, 4]
    dear = replace(MIMICMOTION, width=16)  # so that the decoder alone counts
    assert best(predict(dear, FULL, 71, (1,), 7_000_000_000, gpu=True)).decode_chunk == 2
    assert best(predict(dear, FULL, 71, (1,), 7_000_000_000, gpu=True, shapes=shapes)) is None


def test_weights_that_may_stay_on_the_host_are_not_counted_on_a_gpu():
    streaming = replace(MIMICMOTION, streamable=MIMICMOTION.weights)
    memory, usual = (memory_of(model, FULL, 71, 1, gpu=True) for model in (streaming, MIMICMOTION))
    assert (memory.weights, memory.streamed, usual.streamed) == (0, usual.weights, 0)
    assert memory.total == usual.total - usual.weights
    assert memory_of(streaming, FULL, 71, 1) == memory_of(MIMICMOTION, FULL, 71, 1)
    assert best(predict(MIMICMOTION, FULL, 71, (1,), 9 * GB, gpu=True)).segment < 72
    assert best(predict(streaming, FULL, 71, (1,), 9 * GB, gpu=True)).segment == 72


def test_no_more_rows_than_there_are():
    found = predict(MIMICMOTION, Settings(segment=8, size=(64, 64), overlap=2), 7, (1, 2, 4), None)
    assert [choice.rows for choice in found] == [2, 1]


def test_a_bundle_says_what_its_networks_are(bundle):
    manifest = load_bundle(bundle).manifest
    model = ModelStats.of(manifest)
    assert (model.width, model.value_bytes) == (32, 4)
    assert model.works["unet"] == manifest.networks["unet"].flops
    assert 3e6 < model.weights < 5e6
