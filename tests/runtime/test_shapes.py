"""Bundles of plans take only what they were compiled for: the segments and batches of a clip, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, Limits, MotionError, Settings, SettingsError
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
    assert shapes.segment(Settings(segment=segment, overlap=2), frames, TALL) == chosen


def test_what_was_not_compiled_is_refused_with_its_remedy(shapes):
    settings = Settings(segment=8, overlap=2)
    with pytest.raises(MotionError, match="fewer than the 4") as short:
        shapes.segment(settings, 3, TALL)
    assert "--frames 3" in short.value.remedy
    with pytest.raises(SettingsError, match="segments of 6 frames") as other:
        shapes.segment(Settings(segment=6, overlap=2), 100, TALL)
    assert "4 or 8" in other.value.remedy
    assert "--frames 6" in other.value.remedy
    with pytest.raises(SettingsError, match="128x64") as size:
        shapes.segment(settings, 100, WIDE)
    assert "Choose 64x128, or rebuild it with --size 128x64" in size.value.remedy
    with pytest.raises(SettingsError, match="layout") as layout:
        shapes.rows(7, TALL)
    assert 'layout="reference"' in layout.value.remedy
    with pytest.raises(SettingsError, match="decode 16 frames"):
        shapes.check_chunk(16, 100, TALL)
    shapes.check_chunk(16, 5, TALL)


def test_rows_are_the_compiled_ones(shapes):
    assert shapes.rows(8, TALL) == (1, 2, 4)
    wide = EnginePlan("tensorrt 1", "SM89", (Profile({"rows": (2, 3, 4), "frames": (8, 8, 8)}),))
    assert EngineShapes({"unet": wide}).rows(8, TALL) == (2, 3, 4)


def test_graphs_take_anything(opened):
    shapes = EngineShapes.of(opened.manifest)
    assert not shapes.compiled
    assert shapes.segment(Settings(segment=16), 3, WIDE) == 16
    assert shapes.rows(7, WIDE) == ()
    shapes.check_chunk(100, 100, WIDE)


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


@pytest.mark.parametrize("frames", [4, 6, 8, 21])
def test_a_clip_on_plans_is_the_clip_on_graphs(compiled, animator, pose_pictures, frames):
    poses = pose_pictures(frames, 128, 64)
    settings = compiled.settings(steps=2)
    latents = compiled.sample(poses[0], poses, settings)
    same = replace(settings, segment=8 if frames >= 8 else 4)
    np.testing.assert_allclose(latents, animator.sample(poses[0], poses, same), rtol=1e-3, atol=1e-3)
    assert compiled.decode(latents).shape == (frames, 128, 64, 3)


@pytest.mark.parametrize(
    ("frames", "size", "changes", "says"),
    [
        (3, (128, 64), {}, "--frames 3"),
        (9, (64, 128), {}, "--size 128x64"),
        (9, (128, 64), {"segment": 5}, "--frames 5"),
        (17, (128, 64), {"layout": "compact", "overlap": 1}, "reference"),
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
