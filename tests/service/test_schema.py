"""The schema, its stubs, and the values that travel in it."""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as checking
from hypothesis import strategies as st

from mimicmotion_trt import errors, settings
from mimicmotion_trt.service import status, wire
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2 as pb
from mimicmotion_trt.settings import Settings

ROOT = Path(__file__).parents[2]
SCHEMA = pb.AnimationSettings.DESCRIPTOR
CLASSES = [
    kind
    for module in (errors, status)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.MimicMotionError)
    and kind.__module__ == module.__name__
]


def test_buf_finds_nothing_to_complain_about():
    buf = Path(sys.executable).parent / "buf"
    if not buf.exists():
        pytest.skip("buf is not installed (pip install buf-bin)")
    done = subprocess.run([buf, "lint", "."], cwd=ROOT / "proto", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_committed_stubs_are_fresh():
    command = [sys.executable, ROOT / "proto" / "generate.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_setting_has_its_field_and_every_field_its_setting():
    assert sorted(field.name for field in SCHEMA.fields) == sorted(f.name for f in fields(Settings))
    unset = [field.name for field in SCHEMA.fields if not (field.has_presence or field.is_repeated)]
    assert not unset, "unset must differ from zero; of several, none is unset"


@pytest.mark.parametrize("name", ["layout", "fusion", "noise", "schedule", "framing", "face"])
def test_enums_have_the_choices_of_the_settings(name):
    choices = get_args(getattr(settings, name.capitalize()))
    values = SCHEMA.fields_by_name[name].enum_type.values_by_name
    assert set(values) == {
        f"{name}_{choice}".upper().replace("-", "_") for choice in ("unspecified", *choices)
    }


@given(
    st.builds(
        Settings,
        steps=st.integers(1, 1000),
        guidance=st.tuples(st.floats(0, 100), st.floats(1.5, 100)),
        guidance_interval=st.none() | st.tuples(st.floats(0, 1), st.floats(2, 1e4)),
        schedule=st.sampled_from(get_args(settings.Schedule)),
        segment=st.none() | st.integers(7, 4096),
        seed=st.integers(0, 2**64 - 1),
        layout=st.sampled_from(get_args(settings.Layout)),
        fusion=st.sampled_from(get_args(settings.Fusion)),
        noise=st.sampled_from(get_args(settings.Noise)),
        noise_aug=st.floats(0, 10),
        sigma_min=st.none() | st.floats(1e-6, 0.1),
        sigma_max=st.none() | st.floats(1, 1e4),
        size=st.none()
        | st.tuples(st.integers(1, 128), st.integers(1, 128)).map(lambda s: (s[0] * 64, s[1] * 64)),
        frames=st.none() | st.integers(1, 1_000_000),
        rescale=st.booleans(),
        framing=st.sampled_from(get_args(settings.Framing)),
        person=st.none() | st.sampled_from(["left", "3", "0.1,0.2,0.3,0.9"]),
        preview=st.integers(0, 1000),
        seeds=st.none() | st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5, unique=True),
        pose_strength=st.floats(0, 4),
        pose_start=st.floats(0, 0.4),
        pose_end=st.floats(0.5, 1),
        image_strength=st.floats(0, 4),
        draw=st.sets(st.sampled_from(settings.PARTS), min_size=1),
        face=st.sampled_from(("driver", "none")),
        smooth=st.none() | st.floats(0.01, 100),
        hold=st.none() | st.floats(0, 3600),
        confidence_floor=st.floats(0, 1),
        confidence_gain=st.floats(0.1, 10),
        fps=st.none() | st.floats(0.01, 1000),
        start=st.floats(0, 10),
        end=st.none() | st.floats(11, 1e6),
        lora=st.sampled_from([None, ("style",), ("style:0.5", "other:-2.0")]),
    )
)
@checking(suppress_health_check=[HealthCheck.too_slow])
def test_settings_come_back_exactly(value):
    sent = pb.AnimationSettings.FromString(wire.settings_to_wire(value).SerializeToString())
    assert wire.settings_from_wire(sent) == value


def test_unset_fields_take_the_bundles_defaults():
    defaults = Settings(steps=7, segment=24, canvas=512)
    sent = wire.settings_to_wire({"steps": 3})
    assert wire.resolve(defaults, wire.overrides_from_wire(sent)) == Settings(steps=3, segment=24, canvas=512)


def test_an_enum_value_of_a_newer_schema_is_a_settings_error():
    with pytest.raises(errors.SettingsError) as caught:
        wire.overrides_from_wire(pb.AnimationSettings(fusion=99))  # type: ignore[arg-type]
    assert caught.value.field == "settings.fusion"
    with pytest.raises(errors.SettingsError, match="enum value 99"):
        wire.overrides_from_wire(pb.AnimationSettings(draw=[pb.DRAW_BODY, 99]))  # type: ignore[list-item]


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_survive_the_wire_and_the_pipe(kind):
    error = kind("Something is off.", remedy="Put it right.", field="settings.steps")
    for copy in (status.from_status(status.to_status(error)), pickle.loads(pickle.dumps(error))):
        assert type(copy) is kind
        assert (copy.message, copy.remedy, copy.field) == (error.message, error.remedy, error.field)


@pytest.mark.parametrize("text", ["m", "%", "\n", "ü", "話", "🕺", "\ud800"])
def test_a_status_fits_into_8_kib_of_metadata_whatever_the_error_says(text):
    error = status.Busy(text * 100_000, remedy=text * 100_000, field=text * 100_000)
    sent = status.to_status(error)
    percent_encoded = sum(1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3 for byte in sent.message.encode())
    assert percent_encoded + len(base64.b64encode(sent.SerializeToString())) + 500 < 8192
    assert status.from_status(sent).message[:100] == text.replace("\ud800", "?") * 100


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/tmp/mimicmotion-a1/0f3e/picture is no picture.", "picture is no picture."),
        (
            "[Errno 2] No such file: '/srv/my bundles/tiny/unet.onnx'",
            "[Errno 2] No such file: 'my bundles/tiny/unet.onnx'",
        ),
        ("~/secret/motion.mp4: no video", "motion.mp4: no video"),
        ("Choose a format such as image/png, 16/9 or https://example.org/a/b.", None),
        ("a / b is not c/d.", None),
    ],
)
def test_clients_are_told_no_folders_of_the_server(said, told):
    assert status.from_status(status.to_status(errors.EngineError(said))).message == (told or said)
