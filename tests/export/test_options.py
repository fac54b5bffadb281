"""Options that make no sense are refused with a remedy, before anything is read."""

from __future__ import annotations

import pytest

from mimicmotion_trt.engines import network_specs
from mimicmotion_trt.errors import SettingsError
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.tensorrt_build import make_profiles

SPECS = network_specs(pose_channels=320, token_width=1024, image_size=224, dtype="float16")
PLANS = {"backend": "tensorrt", "sizes": ((128, 128),), "segment": 16}


@pytest.mark.parametrize(
    ("values", "field", "remedy"),
    [
        ({"defaults": {"reuse_interval": 2}}, "settings.reuse_interval", "--deep-cache"),
        ({**PLANS, "defaults": {"reuse_interval": 2}}, "settings.reuse_interval", "--deep-cache"),
        ({**PLANS, "defaults": {"size": [64, 64]}}, "settings.size", "--size 64x64"),
        ({"rows": (0,)}, "batch", "--batch 1,2,4"),
        ({"sizes": ()}, "batch", "--size WIDTHxHEIGHT"),
        ({"segment": 1}, "settings.segment", "2 to"),
        ({"precision": "fp16", "keep_fp32": ("decoder",)}, "keep_fp32", "vae_decoder"),
        ({"precision": "fp32", "keep_fp32": ("unet",)}, "keep_fp32", "--precision fp16"),
        ({"precision": "fp8", "keep_fp32": ("unet",)}, "keep_fp32", "--precision fp16"),
    ],
)
def test_what_a_bundle_would_not_run(values, field, remedy):
    with pytest.raises(SettingsError) as caught:
        Options(**values)
    assert caught.value.field == field
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "values",
    [
        {"defaults": {"reuse_interval": 2}, "deep_cache": True},
        {"defaults": {"reuse_interval": 1}},
        {"precision": "fp8", "keep_fp32": ("vae_decoder", "pose_net")},
        {"defaults": {"size": [64, 64]}, "sizes": ((128, 128),)},  # graphs take any size
        {"defaults": {"frames": 2}},  # and any clip
        {**PLANS, "defaults": {"size": [128, 128], "frames": 15}},
        {**PLANS, "defaults": {"frames": 7}, "plan": PlanOptions(frames=(12, 8))},
        {**PLANS, "defaults": {"segment": 8, "frames": 7}},
    ],
)
def test_what_a_bundle_runs(values):
    Options(**values)


@pytest.mark.parametrize(
    ("name", "good", "wrong"),
    [
        ("level", (0, 5), (-1, 6)),
        ("workspace", (1, 2**43 - 1), (0, 2**43, 2**50)),  # its bytes fit into 63 bits
        ("aux_streams", (0, 2**31 - 1), (-1, 2**31, 10**12)),
        ("frames", ((2,), (8, 12)), ((1,), (8, 0))),
    ],
)
def test_what_a_plan_is_told_is_in_range(name, good, wrong):
    for value in good:
        assert getattr(PlanOptions(**{name: value}), name) == value
    for value in wrong:
        with pytest.raises(SettingsError, match=name) as caught:
            PlanOptions(**{name: value})
        assert (caught.value.field, bool(caught.value.remedy)) == (name, True)


def test_the_largest_values_are_ones_that_the_library_takes():
    api = pytest.importorskip("tensorrt_rtx")
    config = api.Builder(api.Logger()).create_builder_config()
    config.max_aux_streams = 2**31 - 1
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, (2**43 - 1) << 20)


def test_what_is_given_twice_counts_once():
    options = Options(
        backend="tensorrt-rtx",
        sizes=((64, 128), (64, 64), (64, 128)),
        segment=8,
        rows=(1, 1),
        plan=PlanOptions(capabilities=("SM89", "SM86", "SM89"), frames=(4, 4)),
    )
    assert options.sizes == ((64, 128), (64, 64))
    assert options.plan.capabilities == ("SM89", "SM86")
    counts = {name: len(make_profiles(name, SPECS[name], options)) for name in ("unet", "pose_net")}
    assert counts == {"unet": 4, "pose_net": 2}


def test_one_capability_given_twice_can_be_refitted():
    plan = PlanOptions(capabilities=("SM89", "SM89"), refit=True)
    assert Options(backend="tensorrt-rtx", plan=plan).plan.capabilities == ("SM89",)
