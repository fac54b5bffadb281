"""What the tests of poses share: golden data, a picture of a person, sequences to order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicmotion_trt.pose import PoseEstimator, PoseSequence, open_estimator

_ROOT = Path(__file__).parents[2]
Golden = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="session")
def golden() -> Golden:
    with np.load(_ROOT / "tests/data/pose/pose.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def person_path() -> Path:
    return _ROOT / "demo" / "person.jpg"


@pytest.fixture(scope="session")
def person(person_path: Path) -> np.ndarray[Any, Any]:
    """uint8 [512,512,3] RGB: head and shoulders, facing the camera."""
    import cv2

    return np.ascontiguousarray(cv2.imread(str(person_path))[..., ::-1])


@pytest.fixture(scope="session")
def demo_motion(person_path: Path) -> PoseSequence:
    """The keypoints that come with the demo: 50 frames of a man keeping his balance."""
    return PoseSequence.load(person_path.with_name("balance.npz"))


@pytest.fixture(scope="session")
def networks() -> PoseEstimator:
    return open_estimator("mediapipe", threads=2)


@pytest.fixture
def estimator(networks: PoseEstimator) -> PoseEstimator:
    """The default estimator at the beginning of a clip."""
    networks.reset()
    return networks


@pytest.fixture(scope="session")
def make_sequence() -> Callable[..., PoseSequence]:
    """A sequence with random keypoints inside the picture; any field can be given instead."""

    def make(frames: int = 3, seed: int = 0, **fields: Any) -> PoseSequence:
        random = np.random.default_rng(seed)
        values: dict[str, Any] = {
            "body": random.uniform(0.1, 0.9, (frames, 18, 2)),
            "body_score": random.uniform(0.4, 1, (frames, 18)),
            "hands": random.uniform(0.1, 0.9, (frames, 2, 21, 2)),
            "hands_score": random.uniform(0, 1, (frames, 2, 21)),
            "face": random.uniform(0.1, 0.9, (frames, 68, 2)),
            "face_score": random.uniform(0, 1, (frames, 68)),
            "fps": 30.0,
            "size": (64, 128),
        }
        return PoseSequence(**(values | fields))

    return make
