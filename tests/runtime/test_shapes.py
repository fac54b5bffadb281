"""Bundles of plans take only what they were compiled for: the segments and batches of a clip, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt import Animator, MotionError, Settings, SettingsError
from mimicmotion_trt.denoise.shapes import EngineShapes
from mimicmotion_trt.denoisers import Denoisers
from mimicmotion_trt.engines import EnginePlan, Profile
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.profiles import make_profiles

TALL, WIDE = (16, 8), (8, 16)


@pytest.fixture(scope="module")
def plans(animator) -> dict[str, EnginePlan]:
    """What a TensorRT bundle for 64x128 would be compiled for: segments of 8 and 4, batches of 1, 2 and 4 rows."""
    options = Options(
        backend="tensorrt", sizes=((64, 128),), segment=8, rows=(1, 2, 4), plan=PlanOptions(frames=(4,))
    )
    networks = animator.manifest.networks
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


def test_graphs_take_anything(animator):
    shapes = EngineShapes.of(animator.manifest)
    assert not shapes.compiled
    assert shapes.segment(Settings(segment=16), 3, WIDE) == 16
    assert shapes.rows(7, WIDE) == ()
    shapes.check_chunk(100, 100, WIDE)


@pytest.fixture
def compiled(bundle, plans, monkeypatch) -> Animator:
    """An animator whose bundle has plans; the graphs run, but see to it that they are asked for nothing else."""
    animator = Animator.load(bundle, threads=2)
    manifest = animator.manifest
    networks = {name: replace(network, plan=plans[name]) for name, network in manifest.networks.items()}
    defaults = manifest.defaults | {"segment": 8, "overlap": 3}
    animator._bundle = replace(
        animator._bundle, manifest=replace(manifest, networks=networks, defaults=defaults)
    )
    animator.denoisers = Denoisers(
        animator._engines, animator._open, animator.manifest, animator.limits, None, None
    )
    for name, engine in animator._engines.items():
        bind, plan = engine.bind, plans[name]

        def checked(
            inputs: Any, outputs: Any, bind: Any = bind, plan: EnginePlan = plan, spec: Any = engine.spec
        ) -> Any:
            plan.choose(spec.check(inputs, outputs))
            return bind(inputs, outputs)

        monkeypatch.setattr(engine, "bind", checked)
    return animator


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
def test_nothing_runs_before_a_clip_is_refused(
    compiled, monkeypatch, pose_pictures, frames, size, changes, says
):
    for engine in compiled._engines.values():
        monkeypatch.setattr(engine, "bind", lambda *_: pytest.fail("an engine ran"))
    poses = pose_pictures(frames, *size)
    with pytest.raises((SettingsError, MotionError)) as caught:
        compiled.sample(poses[0], poses, compiled.settings(**changes))
    assert says in caught.value.remedy
    with pytest.raises((SettingsError, MotionError)):
        compiled.stream(poses[0], poses[1:], compiled.settings(**changes, size=(size[1], size[0])))
