"""The calls that judge a plan have the shapes that it was compiled for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mimicmotion_trt.engines import Profile, network_specs
from mimicmotion_trt.export import plan_cases
from mimicmotion_trt.export.options import Options
from mimicmotion_trt.export.plan_cases import record_plan_cases, stack, usual_shape
from mimicmotion_trt.export.profiles import make_profiles
from mimicmotion_trt.export.proof import Case

SPECS = network_specs(pose_channels=32, token_width=8, image_size=16, dtype="float16", cached_channels=64)
OPTIONS = Options(backend="tensorrt-rtx", sizes=((64, 128),), segment=4, rows=(1, 2), deep_cache=True)


def denoise(size: tuple[int, int], frames: int, steps: int) -> list[Case]:
    """Two rows for each step, as with guidance; what they hold tells which is which."""
    dims = {"rows": 1, "frames": frames, "latent_height": size[1] // 8, "latent_width": size[0] // 8}

    def tensor(shape: tuple[int | str, ...], value: int) -> torch.Tensor:
        return torch.full([dims[d] if isinstance(d, str) else d for d in shape], float(value))

    return [
        Case(
            {t.name: tensor(t.shape, index) for t in SPECS["unet"].inputs},
            (tensor(SPECS["unet"].outputs[0].shape, index),),
        )
        for index in range(2 * steps)
    ]


def echo(**inputs: torch.Tensor) -> torch.Tensor:
    return torch.ones(1)


@pytest.mark.parametrize("name", list(SPECS))
def test_every_profile_is_called_at_its_usual_shape(name):
    spec, profiles = SPECS[name], make_profiles(name, SPECS[name], OPTIONS)
    cases = record_plan_cases(name, spec, echo, profiles, denoise)
    assert len(cases) == len(profiles)
    usual = [profile.shape(spec.inputs[0].shape, 1) for profile in profiles]
    assert [tuple(case.inputs[spec.inputs[0].name].shape) for case in cases] == usual


def test_rows_are_spread_over_a_denoising():
    assert stack(denoise((64, 64), 2, 4), 4).inputs["timestep"].tolist() == [0, 2, 4, 6]
    assert stack(denoise((64, 64), 2, 1), 3).inputs["timestep"].tolist() == [0, 0, 1]


def test_what_a_cpu_cannot_compute_is_left_out(monkeypatch):
    profiles = make_profiles("unet", SPECS["unet"], OPTIONS)
    assert [usual_shape(profile) for profile in profiles] == [(1, 4, 16, 8), (2, 4, 16, 8)]
    monkeypatch.setattr(plan_cases, "MOST_TOKENS", 600)
    (case,) = record_plan_cases("unet", SPECS["unet"], echo, profiles, denoise)
    assert case.answers[0].shape == (1, 4, 4, 16, 8)


@pytest.mark.parametrize("name", list(SPECS))
def test_a_single_cell_at_the_deepest_level_judges_no_unet(name):
    """Norms there magnify rounding; ONNX Runtime judges the graph at other shapes."""
    options = replace(OPTIONS, sizes=((64, 64),))
    profiles = make_profiles(name, SPECS[name], options)
    cases = record_plan_cases(name, SPECS[name], echo, profiles, denoise)
    assert len(cases) == (0 if name.startswith("unet") else len(profiles))


def test_networks_without_a_dimension_have_one_of_it():
    assert usual_shape(Profile({"batch": (1, 1, 1)})) == (1, 1, 1, 1)
    assert usual_shape(Profile({"frames": (1, 8, 8), "height": (64,) * 3, "width": (128,) * 3})) == (
        1, 8, 8, 16,
    )  # fmt: skip
