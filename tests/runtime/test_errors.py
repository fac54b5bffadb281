"""The tree of errors."""

from __future__ import annotations

import pickle

import pytest

import mimicmotion_trt as mm

NAMES = [name for name in mm.__all__ if name.endswith("Error")]
KINDS = [getattr(mm, name) for name in (*NAMES, "Cancelled", "DeviceLost", "OutOfMemory")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_one_of_ours_and_crosses_processes(kind):
    error = kind("It broke.", remedy="Mend it.", field="settings.steps")
    assert isinstance(error, mm.MimicMotionError)
    assert str(error) == "It broke. Mend it."
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.remedy, copy.field) == ("It broke.", "Mend it.", "settings.steps")


def test_what_the_caller_is_to_blame_for():
    to_blame = {kind.__name__ for kind in KINDS if issubclass(kind, mm.InputError)}
    assert to_blame == {"InputError", "SettingsError", "PictureError", "MotionError", "LimitError"}


def test_without_a_remedy_the_message_stands_alone():
    assert str(mm.EngineError("It broke.")) == "It broke."
