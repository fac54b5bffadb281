"""What is loaded when: measured in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "diffusers", "transformers", "safetensors", "onnx")
LIBRARIES = (
    "PIL",
    "pydantic",
    "cv2",
    "av",
    "onnxruntime",
    "grpc",
    "google.protobuf",
    "typer",
    "rich",
    "structlog",
)


def loaded_by(code: str) -> set[str]:
    """Modules in `sys.modules` after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_none_of_its_libraries():
    loaded = loaded_by("import mimicmotion_trt")
    assert loaded.isdisjoint((*HEAVY, *LIBRARIES))
    assert "mimicmotion_trt.errors" in loaded


def test_every_public_name_is_there():
    import mimicmotion_trt

    for name in mimicmotion_trt.__all__:
        assert getattr(mimicmotion_trt, name).__name__ == name
    assert set(dir(mimicmotion_trt)) == set(mimicmotion_trt.__all__)
    with pytest.raises(AttributeError, match="Animatr"):
        _ = mimicmotion_trt.Animatr


def test_serving_a_bundle_loads_no_training_framework(bundle: Path):
    root = Path(__file__).parents[2]
    loaded = loaded_by(f"""
import numpy, mimicmotion_trt as mm
animator = mm.Animator.load({str(bundle)!r}, threads=1)
settings = animator.settings(steps=1, size=(64, 64), frames=2)
result = animator.animate({str(root / "demo/person.jpg")!r}, {str(root / "demo/balance.npz")!r}, settings).result()
assert len(result) == 2
""")
    assert "onnxruntime" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_finding_a_bundle_up_to_date_loads_no_training_framework(bundle: Path, golden: Path):
    """So that `make` may ask every time."""
    loaded = loaded_by(f"""
from mimicmotion_trt.export.build import Options, build_bundle
options = Options(sizes=((64, 128), (128, 64)), segment=16, defaults={{"canvas": 512, "steps": 3}})
base, checkpoint = {str(golden / "tiny/svd")!r}, {str(golden / "tiny/mimicmotion.pth")!r}
_, built = build_bundle(base, checkpoint, {str(bundle)!r}, options)
assert not built
""")
    assert loaded.isdisjoint(HEAVY)
