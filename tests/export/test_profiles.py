"""A plan is compiled for what the runtime will run, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mimicmotion_trt.engines import Bundle, EnginePlan, network_specs
from mimicmotion_trt.errors import ExportError, SettingsError
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.tensorrt_build import check_target, left_out, make_profiles

REAL = network_specs(pose_channels=320, token_width=1024, image_size=224, dtype="float16")["unet"]


def shapes(options: Options) -> list[tuple[int, ...]]:
    """(rows, frames, cells high, cells wide) of each profile of the U-Net."""
    names = ("rows", "frames", "latent_height", "latent_width")
    profiles = make_profiles("unet", REAL, options)
    assert all(profile.dims[name][0] == profile.dims[name][2] for profile in profiles for name in names)
    return [tuple(profile.dims[name][1] for name in names) for profile in profiles]


def test_at_full_size_checkpoint_1_1_runs_one_row_at_a_time():
    """At 2 rows of 72 frames the widest tensor has 1.58 times 2^31 elements."""
    assert shapes(Options(backend="tensorrt")) == [(1, 72, 128, 72), (1, 72, 72, 128)]


def test_short_segments_take_more_rows():
    options = Options(
        backend="tensorrt", sizes=((576, 1024),), segment=72, rows=(4, 1, 2), plan=PlanOptions(frames=(16,))
    )
    assert shapes(options) == [(1, 72, 128, 72), *((rows, 16, 128, 72) for rows in (1, 2, 4))]


def test_where_no_number_of_rows_can_be_run_that_is_said():
    with pytest.raises(SettingsError, match="2 rows of 72 frames of 576x1024") as caught:
        shapes(Options(backend="tensorrt", sizes=((576, 1024),), rows=(4, 2)))
    assert "--batch 1" in caught.value.remedy


@pytest.mark.parametrize(("capability", "runs"), [("SM80", False), ("SM89", True), ("SM90", True)])
def test_float8_is_compiled_for_gpus_that_have_it(fake_tensorrt, capability, runs):
    fake_tensorrt.capability = capability
    check_target(Options(backend="tensorrt"))
    options = Options(backend="tensorrt", precision="fp8")
    if runs:
        check_target(options)
        return
    with pytest.raises(ExportError, match="NVIDIA L4 SM80 cannot multiply in float8") as caught:
        check_target(options)
    assert (caught.value.field, bool(caught.value.remedy)) == ("precision", True)


def test_what_was_left_out_is_told(bundle):
    manifest = Bundle.load(bundle).manifest
    assert left_out(manifest) == []  # graphs take anything
    plan = EnginePlan(
        "tensorrt 11.4", "NVIDIA L4 SM89", make_profiles("unet", REAL, Options(backend="tensorrt"))
    )
    networks = {**manifest.networks, "unet": replace(manifest.networks["unet"], plan=plan)}
    assert left_out(replace(manifest, networks=networks, rows=(1, 2, 4))) == [
        "not compiled for 2 or 4 rows of 72 frames of 1024x576: a tensor would have over 2^31 elements",
        "not compiled for 2 or 4 rows of 72 frames of 576x1024: a tensor would have over 2^31 elements",
    ]
    assert left_out(replace(manifest, networks=networks, rows=(1,))) == []
