"""What every room's tests share: the golden data, a real bundle built from it, and an animator on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mimicmotion_trt import Animator

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden folder: `tiny/` holds small networks and three runs of the reference on them."""
    return ROOT / "tests" / "data" / "golden"


@pytest.fixture(scope="session")
def bundle(golden: Path) -> Path:
    """The folder of a bundle of the tiny networks; built once, later runs find it by its build key."""
    from mimicmotion_trt.export.build import build_bundle
    from mimicmotion_trt.export.options import Options

    folder = ROOT / "build" / "test-bundle"
    options = Options(sizes=((64, 128), (128, 64)), segment=16, defaults={"canvas": 512, "steps": 3})
    build_bundle(golden / "tiny" / "svd", golden / "tiny" / "mimicmotion.pth", folder, options)
    return folder


@pytest.fixture(scope="session")
def deep_bundle(golden: Path) -> Path:
    """The same networks built with --deep-cache."""
    from mimicmotion_trt.export.build import build_bundle
    from mimicmotion_trt.export.options import Options

    folder = ROOT / "build" / "test-deep-bundle"
    options = Options(sizes=((64, 128),), segment=16, defaults={"canvas": 512, "steps": 3}, deep_cache=True)
    build_bundle(golden / "tiny" / "svd", golden / "tiny" / "mimicmotion.pth", folder, options)
    return folder


@pytest.fixture(scope="session")
def animator(bundle: Path) -> Iterator[Animator]:
    """One animator for the whole session; its jobs share nothing but the engines."""
    from mimicmotion_trt import Animator

    with Animator.load(bundle, threads=2) as loaded:
        yield loaded
