"""Settings: every range, every kind of wrong value, and the way through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from decimal import Decimal
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimicmotion_trt import InputError, Settings, SettingsDict, SettingsError
from mimicmotion_trt.settings import driver_of

WHOLE = {
    "steps": (1, 1000),
    "segment": (2, 4096),
    "overlap": (1, 4095),
    "seed": (0, 2**64 - 1),
    "motion_bucket": (0, 1023),
    "conditioning_fps": (1, 120),
    "canvas": (16, 8192),
    "stride": (1, 10_000),
    "frames": (1, 1_000_000),
    "decode_chunk": (1, 4096),
    "preview": (0, 1000),
    "reuse_interval": (1, 1000),
}
REAL = {
    "noise_aug": (0.0, 10.0),
    "sigma_min": (1e-6, 1e4),
    "sigma_max": (1e-6, 1e4),
    "pose_strength": (0.0, 4.0),
    "image_strength": (0.0, 4.0),
    "smooth": (0.01, 100.0),
    "hold": (0.0, 3600.0),
    "confidence_floor": (0.0, 1.0),
    "confidence_gain": (0.1, 10.0),
    "fps": (0.01, 1000.0),
    "start": (0.0, 1e6),
}
CHOICES = {
    "layout": ("reference", "compact", "shifted"),
    "fusion": ("triangular", "linear"),
    "noise": ("repeat", "independent"),
    "schedule": ("karras", "align-your-steps"),
    "framing": ("person", "centre", "pad"),
    "face": ("driver", "reference", "none"),
}
OPTIONAL = {
    *("segment", "sigma_min", "sigma_max", "size", "canvas", "stride", "frames", "person", "driver"),
    *("smooth", "hold", "fps", "end", "lora"),
}


def make(name: str, value: Any) -> Settings:
    """Settings with one field set, and room made for it where two fields belong together."""
    room = {"segment": {"overlap": 1}}
    return Settings(**{**room.get(name, {}), name: value})


def refused(**values: Any) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    return caught.value


def test_the_keyword_arguments_for_type_checkers_are_the_fields():
    """A new field of `Settings` belongs into `SettingsDict`, too, with its type or a wider one."""
    fields_there, keywords = get_type_hints(Settings), get_type_hints(SettingsDict)
    assert list(keywords) == list(fields_there)
    for name, kind in fields_there.items():
        wanted, taken = set(get_args(kind)) or {kind}, set(get_args(keywords[name])) or {keywords[name]}
        assert wanted <= taken or kind in taken, f"{name}: {keywords[name]} does not take {kind}"


def test_every_field_is_looked_at_here():
    covered = {
        *WHOLE,
        *REAL,
        *CHOICES,
        "guidance",
        "guidance_interval",
        "size",
        "rescale",
        "person",
        "driver",
        "lora",  # test_lora_files
        "pose_start",  # these two: test_strengths
        "pose_end",
        "draw",
        "seeds",  # test_seeds
        "background",  # test_background
        "end",
    }
    assert covered == {f.name for f in fields(Settings)}


@pytest.mark.parametrize("name", ["person", "driver"])
@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("largest", "largest"),
        (" Left ", "left"),
        (2, "2"),
        ("12", "12"),
        ((0.1, 0, 0.5, 1), "0.1,0,0.5,1"),
        ("10, 20, 300, 400", "10,20,300,400"),
        (None, None),
    ],
)
def test_a_person_is_a_word_a_number_or_a_box(name, given, plain):
    assert getattr(Settings(**{name: given}), name) == plain
    assert Settings.from_dict(Settings(**{name: given}).to_dict()) == Settings(**{name: given})


@pytest.mark.parametrize("name", ["person", "driver"])
@pytest.mark.parametrize(
    "given",
    [
        "",
        "tallest",
        0,
        -1,
        True,
        1.5,
        "1.5",
        (0, 0, 1),
        (0.5, 0, 0.1, 1),
        "nan,0,1,1",
        "0,0,inf,1",
        [],
        "9" * 12,
    ],
)
def test_no_other_person_is_taken(name, given):
    error = refused(**{name: given})
    assert error.field == f"settings.{name}"
    assert "left" in error.remedy


def test_a_word_for_the_person_is_one_for_the_driver_too():
    assert driver_of(Settings(person="left")) == "left"
    assert driver_of(Settings(person="left", driver="2")) == "2"
    assert driver_of(Settings(person="2")) is None
    assert driver_of(Settings()) is None


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("hands,body", ("body", "hands")),
        ("face", ("face",)),
        (["face", "face", "body"], ("body", "face")),
        ({"hands"}, ("hands",)),
    ],
)
def test_parts_that_are_drawn_are_names_in_any_form(given, plain):
    assert Settings(draw=given).draw == plain
    assert Settings.from_dict(json.loads(json.dumps(Settings(draw=given).to_dict()))).draw == plain


@pytest.mark.parametrize("given", ["", (), "feet", ["body", 3], 5, None, [[]], "body;face"])
def test_no_other_parts_are_drawn(given):
    error = refused(draw=given)
    assert error.field == "settings.draw"
    assert "hands" in error.remedy


def test_a_part_of_the_motion_ends_after_it_begins():
    assert Settings(start=1, end=2.5).end == 2.5
    for wrong in ({"start": 2, "end": 2}, {"end": 0}, {"end": -1}, {"end": 1e7}, {"end": "3"}):
        assert refused(**wrong).field == "settings.end"


def test_the_references_face_is_drawn_or_not_asked_for():
    assert refused(face="reference", draw="body,hands").field == "settings.face"
    assert Settings(face="none", draw="body").face == "none"


@pytest.mark.parametrize(("name", "bounds"), [*WHOLE.items(), *REAL.items()])
def test_both_ends_of_a_range_are_in_it(name, bounds):
    for value in bounds:
        assert getattr(make(name, value), name) == value


@pytest.mark.parametrize(("name", "bounds"), WHOLE.items())
def test_beyond_the_range_of_a_whole_number(name, bounds):
    for value in (bounds[0] - 1, bounds[1] + 1, -(10**30), 10**30):
        error = refused(**{name: value})
        assert error.field == f"settings.{name}"
        assert str(value) in error.message
        assert f"{bounds[0]} to {bounds[1]}" in error.remedy


@pytest.mark.parametrize(("name", "bounds"), REAL.items())
def test_beyond_the_range_of_a_number(name, bounds):
    low, high = bounds
    for value in (math.nextafter(low, -1), math.nextafter(high, 1e9), math.nan, math.inf, -math.inf, 10**400):
        assert refused(**{name: value}).field == f"settings.{name}"


@pytest.mark.parametrize("name", [*WHOLE, *REAL])
@pytest.mark.parametrize("value", ["3", b"3", True, np.True_, [3], (), {}, object(), 3j, math.nan, np.nan])
def test_what_is_no_number(name, value):
    error = refused(**{name: value})
    assert error.field == f"settings.{name}"
    assert error.remedy


@pytest.mark.parametrize("name", WHOLE)
def test_a_fraction_is_no_whole_number(name):
    assert refused(**{name: 3.5}).field == f"settings.{name}"
    assert refused(**{name: Decimal("3.5")}).field == f"settings.{name}"


@pytest.mark.parametrize("name", [*WHOLE, *REAL])
def test_none_is_for_what_the_bundle_or_the_motion_decides(name):
    if name in OPTIONAL:
        assert getattr(Settings(**{name: None}), name) is None
    else:
        assert refused(**{name: None}).field == f"settings.{name}"


def test_numbers_of_numpy_become_plain_ones():
    settings = Settings(
        steps=np.int64(9),
        seed=np.uint64(2**64 - 1),
        noise_aug=np.float32(0.5),
        size=(np.int32(64), np.uint16(128)),
        guidance=(np.float32(1.5), np.int8(3)),
        overlap=4.0,
    )
    assert settings == Settings(
        steps=9, seed=2**64 - 1, noise_aug=0.5, size=(64, 128), guidance=(1.5, 3.0), overlap=4
    )
    values = [settings.steps, settings.seed, settings.noise_aug, *settings.size, *settings.guidance]
    assert [type(value) for value in values] == [int, int, float, int, int, float, float]
    json.dumps(settings.to_dict())


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), (2, 2), [2, 2.0], np.array([2.0, 2.0])]
)
def test_guidance_is_a_pair_or_one_number(value):
    assert Settings(guidance=value).guidance == (2.0, 2.0)


@pytest.mark.parametrize(
    "value",
    [None, "2", "23", ("2", "3"), True, (True, 2), (1,), (1, 2, 3), (), (1, None), {}, {"a": 1, "b": 2},
     (math.nan, 1), (1, math.inf), (-0.1, 1), (1, 100.1), 10**400, 3j],
)  # fmt: skip
def test_wrong_guidance(value):
    assert refused(guidance=value).field == "settings.guidance"


def test_a_guidance_interval():
    assert Settings().guidance_interval is None
    assert Settings(guidance_interval=[0, np.float32(20)]).guidance_interval == (0.0, 20.0)


@pytest.mark.parametrize(
    "value",
    [20, "ab", (1,), (1, 2, 3), (2, 1), (2, 2), (-1, 2), (1, 1e5), (math.nan, 1), (0, math.inf), (None, 1)],
)
def test_wrong_guidance_intervals(value):
    error = refused(guidance_interval=value)
    assert error.field == "settings.guidance_interval"
    assert error.remedy


def test_an_interval_of_no_guidance_is_told_what_to_change():
    error = refused(guidance=1, guidance_interval=(0.3, 20))
    assert error.field == "settings.guidance_interval"
    assert "another guidance" in error.remedy


def test_features_cannot_be_reused_where_segments_shift():
    error = refused(reuse_interval=2, layout="shifted")
    assert error.field == "settings.reuse_interval"
    assert "compact" in error.remedy
    assert Settings(reuse_interval=1, layout="shifted").reuse_interval == 1


@pytest.mark.parametrize("value", [(64, 64), [64, 128], (8192, 64), np.array([576, 1024]), (64.0, 128.0)])
def test_sizes(value):
    assert Settings(size=value).size == tuple(int(side) for side in value)


@pytest.mark.parametrize(
    "value",
    [64, "64x128", ("64", "128"), (64,), (64, 64, 64), (0, 64), (-64, 64), (64, 8256), (64.5, 64), (True, 64),
     (math.nan, 64), (64, None), (10**30, 64)],
)  # fmt: skip
def test_wrong_sizes(value):
    assert refused(size=value).field == "settings.size"


@pytest.mark.parametrize(("side", "nearest"), [(65, 64), (100, 128), (1000, 1024), (570, 576), (8191, 8192)])
def test_a_side_that_is_no_multiple_of_64_is_told_its_neighbour(side, nearest):
    error = refused(size=(64, side))
    assert str(side) in error.message
    assert str(nearest) in error.remedy


@pytest.mark.parametrize(("name", "choices"), CHOICES.items())
def test_choices(name, choices):
    for choice in choices:
        assert getattr(Settings(**{name: choice}), name) == choice
    for value in ("", "Linear", None, 0, [], np.array(["linear", "repeat"])):
        error = refused(**{name: value})
        assert error.field == f"settings.{name}"
        assert all(choice in error.remedy for choice in choices)


@pytest.mark.parametrize("value", [0, 1, None, "true", np.array([True, False])])
def test_rescale_is_yes_or_no(value):
    assert refused(rescale=value).field == "settings.rescale"


@pytest.mark.parametrize(("segment", "overlap"), [(2, 2), (6, 6), (6, 7), (16, 4095)])
def test_the_overlap_is_smaller_than_the_segment(segment, overlap):
    error = refused(segment=segment, overlap=overlap)
    assert error.field == "settings.overlap"
    assert str(segment) in error.message
    assert Settings(segment=segment, overlap=segment - 1).overlap == segment - 1


def test_sigmas_in_the_wrong_order():
    assert refused(sigma_min=2.0, sigma_max=2.0).field == "settings.sigma_min"
    assert Settings(sigma_min=1.0, sigma_max=2.0).sigma_max == 2.0


def test_an_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(SettingsError) as caught:
        Settings.from_dict({"step": 3})
    assert caught.value.field == "settings.step"
    assert "steps" in caught.value.remedy
    assert isinstance(caught.value, InputError)


def test_settings_cannot_be_changed_but_copied():
    settings = Settings()
    with pytest.raises(FrozenInstanceError):
        settings.steps = 3
    assert replace(settings, steps=3).steps == 3
    with pytest.raises(SettingsError):
        replace(settings, steps=0)


optional = lambda strategy: st.none() | strategy  # noqa: E731
some_settings = st.builds(
    Settings,
    steps=st.integers(1, 1000),
    guidance=st.tuples(st.floats(0, 100), st.floats(0, 100)),
    segment=optional(st.integers(100, 4096)),
    overlap=st.integers(1, 99),
    layout=st.sampled_from(CHOICES["layout"]),
    fusion=st.sampled_from(CHOICES["fusion"]),
    noise=st.sampled_from(CHOICES["noise"]),
    schedule=st.sampled_from(CHOICES["schedule"]),
    seed=st.integers(0, 2**64 - 1),
    noise_aug=st.floats(0, 10),
    sigma_min=optional(st.floats(1e-6, 0.9)),
    sigma_max=optional(st.floats(1, 1e4)),
    size=optional(st.tuples(*[st.integers(1, 128).map(lambda n: n * 64)] * 2)),
    canvas=optional(st.integers(16, 8192)),
    rescale=st.booleans(),
    draw=st.sets(st.sampled_from(("body", "hands", "face")), min_size=1),
    hold=optional(st.floats(0, 3600)),
)


@given(some_settings)
def test_round_trip_through_json(settings):
    assert Settings.from_dict(settings.to_dict()) == settings
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_a_guidance_interval_comes_back_through_json():
    settings = Settings(guidance_interval=(0.3, 20.0))
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


anything = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())
)


@given(st.sampled_from([f.name for f in fields(Settings)]), anything)
def test_any_value_is_taken_or_refused_by_name(name, value):
    try:
        settings = Settings(**{name: value})
    except SettingsError as refusal:
        settings, field = Settings(), refusal.field
    else:
        field = f"settings.{name}"
    assert field in (f"settings.{name}", "settings.overlap")  # a short segment contradicts the overlap
    assert Settings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize("chosen", [{}, {"steps": 2, "seed": 3}, {"size": (64, 128), "draw": ("face",)}])
def test_settings_show_what_differs_from_the_defaults(chosen: dict[str, Any]) -> None:
    settings = Settings(**chosen)
    assert repr(settings) == f"Settings({', '.join(f'{name}={value!r}' for name, value in chosen.items())})"
    assert eval(repr(settings)) == settings
