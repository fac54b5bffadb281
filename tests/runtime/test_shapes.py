"""Bundles of plans take only what they were compiled for: the segments and batches of a clip, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import Animator, Limits, MotionError, Settings, SettingsError
from mimicmotion_trt.denoise.segments import cut_segments
from mimicmotion_trt.denoise.shapes import EngineShapes
from mimicmotion_trt.engines import NETWORKS, Bundle, Engine, EnginePlan, Placement, Profile, open_engine
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.tensorrt_build import make_profiles
from mimicmotion_trt.networks import ModelInfo, Networks

TALL, WIDE = (16, 8), (8, 16)


@pytest.fixture(scope="module")
def plans(opened) -> dict[str, EnginePlan]:
    """What a TensorRT bundle for 64x128 would be compiled for: segments of 8 and 4, batches of 1, 2 and 4 rows."""
    options = Options(
        backend="tensorrt", sizes=((64, 128),), segment=8, rows=(1, 2, 4), plan=PlanOptions(frames=(4,))
    )
    networks = opened.manifest.networks
    return {
        name: EnginePlan("tensorrt 11.4.0.106", "SM89", make_profiles(name, network.spec, options))
        for name, network in networks.items()
    }


@pytest.fixture
def shapes(plans) -> EngineShapes:
    return EngineShapes(plans)


@pytest.mark.parametrize(
    ("frames", "segment", "chosen"),
    [(100, 8, 8), (8, 8, 8), (7, 8, 4), (4, 8, 4), (100, 4, 4)],
)
def test_a_short_clip_has_the_longest_segments_that_fit(shapes, frames, segment, chosen):
    assert shapes.fit(Settings(segment=segment, overlap=2), frames, TALL) == (chosen, frames)


@pytest.mark.parametrize(
    ("frames", "overlap", "layout", "segment", "padded"),
    [
        (2, 2, "reference", 4, 4),  # shorter than the shortest
        (3, 2, "compact", 4, 4),
        (3, 7, "shifted", 4, 4),
        (6, 5, "reference", 8, 8),  # 4 would fit, and has no room for an overlap of 5
        (17, 1, "compact", 8, 22),  # 3 segments of 7 would do
        (10, 3, "compact", 8, 13),  # 2 of 7
        (8, 3, "compact", 8, 8),
        (15, 1, "compact", 8, 15),  # 2 of 8
        (17, 1, "reference", 8, 17),
    ],
)
def test_a_clip_of_another_length_is_padded_to_the_next_that_was_compiled(
    shapes, frames, overlap, layout, segment, padded
):
    settings = Settings(segment=8, overlap=overlap, layout=layout)
    assert shapes.fit(settings, frames, TALL) == (segment, padded)
    cut = cut_segments(padded, segment, min(overlap, segment - 1), layout)
    assert cut.shape[1] in (4, 8)
    assert cut.max() == padded - 1


@given(
    frames=st.integers(1, 200), segment=st.sampled_from([4, 8]), overlap=st.integers(1, 7), layout=st.sampled_from(
        ["reference", "compact", "shifted"]
    )
)  # fmt: skip
def test_a_clip_of_any_length_runs(plans, frames, segment, overlap, layout):
    settings = Settings(segment=segment, overlap=min(overlap, segment - 1), layout=layout)
    clip = EngineShapes(plans).fit(settings, frames, TALL)
    cut = cut_segments(clip.frames, clip.segment, settings.overlap, layout)
    assert cut.shape[1] in (4, 8)
    assert set(cut.ravel().tolist()) == set(range(clip.frames))
    assert clip.frames >= frames


def test_what_was_not_compiled_is_refused_with_its_remedy(shapes):
    settings = Settings(segment=8, overlap=2)
    with pytest.raises(SettingsError, match="segments of 6 frames") as other:
        shapes.fit(Settings(segment=6, overlap=2), 100, TALL)
    assert "4 or 8" in other.value.remedy
    assert "--frames 6" in other.value.remedy
    with pytest.raises(SettingsError, match="128x64") as size:
        shapes.fit(settings, 100, WIDE)
    assert "Choose 64x128, or rebuild it with --size 128x64" in size.value.remedy
    with pytest.raises(SettingsError, match="decode 16 frames"):
        shapes.chunk(16, TALL)
    assert shapes.chunk(5, TALL) == 5


def test_rows_are_the_compiled_ones(shapes):
    assert shapes.rows(8, TALL) == (1, 2, 4)
    wide = EnginePlan("tensorrt 1", "SM89", (Profile({"rows": (2, 3, 4), "frames": (8, 8, 8)}),))
    assert EngineShapes({"unet": wide}).rows(8, TALL) == (2, 3, 4)
    whole = EnginePlan("tensorrt 1", "SM89", (Profile({"frames": (3, 3, 3)}), Profile({"frames": (6, 6, 6)})))
    assert [EngineShapes({"vae_decoder": whole}).chunk(frames, TALL) for frames in (1, 3, 4, 6)] == [
        3,
        3,
        6,
        6,
    ]


def test_graphs_take_anything(opened):
    shapes = EngineShapes.of(opened.manifest)
    assert not shapes.compiled
    assert shapes.fit(Settings(segment=16), 3, WIDE) == (16, 3)
    assert shapes.rows(7, WIDE) == ()
    assert shapes.chunk(100, WIDE) == 100


class CheckedEngine:
    """A graph that takes only what a plan was compiled for."""

    gpu = None

    def __init__(self, engine: Engine, plan: EnginePlan) -> None:
        self.engine, self.plan, self.spec, self.close = engine, plan, engine.spec, engine.close
        self.bound = 0

    def bind(self, inputs: Any, outputs: Any) -> Any:
        self.bound += 1
        self.plan.choose(self.spec.check(inputs, outputs))
        return self.engine.bind(inputs, outputs)


@pytest.fixture
def compiled(opened: Bundle, plans) -> Animator:
    """An animator on a bundle of plans; graphs run in their place."""
    model = replace(opened.manifest, defaults=opened.manifest.defaults | {"segment": 8, "overlap": 3})

    def open_network(name: str) -> Any:
        return CheckedEngine(open_engine(opened, name, Placement(threads=2)), plans[name])

    networks = Networks(ModelInfo.of(model), open_network, shapes=EngineShapes(plans))
    return Animator(networks, name="compiled", limits=Limits())


@pytest.mark.parametrize(
    "frames", [6, 13, *(pytest.param(frames, marks=pytest.mark.slow) for frames in (4, 8, 21))]
)
def test_a_clip_on_plans_is_the_clip_on_graphs(compiled, animator, pose_pictures, frames):
    poses = pose_pictures(frames, 128, 64)
    settings = compiled.settings(steps=2)
    latents = compiled.sample(poses[0], poses, settings)
    same = replace(settings, segment=8 if frames >= 8 else 4)
    np.testing.assert_allclose(latents, animator.sample(poses[0], poses, same), rtol=1e-3, atol=1e-3)
    assert compiled.decode(latents).shape == (frames, 128, 64, 3)


@pytest.mark.parametrize(
    ("frames", "changes", "segment", "padded"),
    [(2, {}, 4, 4), (3, {"layout": "compact"}, 4, 4), (10, {"layout": "compact", "overlap": 3}, 8, 13)],
)
def test_a_padded_clip_is_the_padded_clip_on_graphs(
    compiled, animator, pose_pictures, frames, changes, segment, padded
):
    """Padding holds the last pose; its frames are dropped, also from what a step is told."""
    poses, seen = pose_pictures(frames, 128, 64), []
    settings = compiled.settings(steps=2, **changes)
    plan = compiled.sampler.plan(frames, settings, TALL)
    assert (plan.frames, plan.kept) == (padded, frames)
    latents = compiled.sample(poses[0], poses, settings, on_step=lambda index, some: seen.append(len(some)))
    longer = np.concatenate([poses, np.repeat(poses[-1:], padded - frames, axis=0)])
    same = replace(settings, segment=segment)
    expected = animator.sample(poses[0], longer, same)
    np.testing.assert_allclose(latents, expected[:frames], rtol=1e-3, atol=1e-3)
    assert seen == [frames, frames]


def test_an_animation_that_is_padded_has_the_frames_that_were_asked_for(compiled, person, person_pose, dance):
    job = compiled.animate(
        person,
        dance[:2],
        compiled.settings(steps=1, preview=1, decode_chunk=2, size=(64, 128)),
        reference_pose=person_pose,
    )
    events = list(job)
    assert len(job.result()) == 2
    assert max(event.step for event in events if event.stage == "encode") == 3
    assert [event.step for event in events if event.stage == "decode"] == [0, 1, 2]


def test_a_chunk_is_filled_up_to_what_the_decoder_was_compiled_for(opened, plans, animator):
    """A decoder that takes 3 or 5 frames and no other number: the last chunk of 7 frames, and chunks of 4."""
    sizes = tuple(
        Profile({"frames": (n, n, n), "latent_height": (16, 16, 16), "latent_width": (8, 8, 8)})
        for n in (3, 5)
    )
    fixed = plans | {"vae_decoder": replace(plans["vae_decoder"], profiles=sizes)}

    def open_network(name: str) -> Any:
        return CheckedEngine(open_engine(opened, name, Placement(threads=2)), fixed[name])

    networks = Networks(ModelInfo.of(opened.manifest), open_network, shapes=EngineShapes(fixed))
    latents = np.random.default_rng(0).normal(size=(7, 4, *TALL)).astype(np.float32)
    with Animator(networks, name="fixed", limits=Limits()) as strict:
        for chunk, filled in ((3, [0, 1, 2, 3, 4, 5, 6, 6, 6]), (4, [0, 1, 2, 3, 3, 4, 5, 6])):
            found = strict.decode(latents, chunk)
            expected = animator.decode(latents[filled], 3 if chunk == 3 else 5)
            kept = [filled.index(frame) for frame in range(7)]
            assert np.abs(found.astype(int) - expected[kept]).max() <= 1
        with pytest.raises(SettingsError, match="decode 6 frames"):
            strict.decode(latents, 6)


@pytest.mark.parametrize(
    ("frames", "size", "changes", "says"),
    [
        (9, (64, 128), {}, "--size 128x64"),
        (9, (128, 64), {"segment": 5}, "--frames 5"),
        (20, (128, 64), {"decode_chunk": 16}, "decode_chunk=16"),
    ],
)
def test_nothing_runs_before_a_clip_is_refused(compiled, pose_pictures, frames, size, changes, says):
    poses = pose_pictures(frames, *size)
    with pytest.raises((SettingsError, MotionError)) as caught:
        compiled.sample(poses[0], poses, compiled.settings(**changes))
    assert says in caught.value.remedy
    with pytest.raises((SettingsError, MotionError)):
        compiled.stream(poses[0], poses[1:], compiled.settings(**changes, size=(size[1], size[0])))
    assert [compiled.networks[name].bound for name in NETWORKS] == [0] * len(NETWORKS)
