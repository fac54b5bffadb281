"""Tests that need an NVIDIA GPU; each is skipped, with the reason, where there is none.

    python -m pytest tests/gpu -m "gpu and not slow"

They need PyTorch with CUDA and the extra `cuda`, and neither PyAV nor TensorRT: engines are torch bundles of the
golden networks. What a test proves stands in its name, its bound in an assertion. `-k` chooses, `--lf` repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from mimicmotion_trt import Animator
    from mimicmotion_trt.export.options import Options

Sample = Callable[..., np.ndarray[Any, Any]]


@pytest.fixture(scope="session", autouse=True)
def needs_gpu() -> None:
    """Skip everything where PyTorch finds no GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"needs an NVIDIA GPU: PyTorch {torch.__version__} finds none")


@pytest.fixture(scope="session")
def device() -> str:
    """Where engines run."""
    return "cuda"


@pytest.fixture(scope="session")
def torch_bundle_of(build_golden: Callable[[str, Options], Path]) -> Callable[[str], Path]:
    """The golden networks for PyTorch by precision, fp32 or fp16; in fp32 those that reuse features, too."""

    def build(precision: str) -> Path:
        from mimicmotion_trt.export.options import Options

        options = Options(
            backend="torch", precision=precision, sizes=((64, 128), (128, 64)), segment=8, rows=(1, 2, 4),
            defaults={"canvas": 512, "steps": 3}, deep_cache=precision == "fp32",
        )  # fmt: skip
        return build_golden(f"test-gpu-{precision}", options)

    return build


@pytest.fixture(scope="session", params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    """Of the engines."""
    found: str = request.param
    return found


@pytest.fixture(scope="session")
def animator(torch_bundle_of: Callable[[str], Path], precision: str, device: str) -> Iterator[Animator]:
    """On the GPU, its steps in captured graphs."""
    from mimicmotion_trt import Animator

    with Animator.load(torch_bundle_of(precision), device=device) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def full(torch_bundle_of: Callable[[str], Path], device: str) -> Iterator[Animator]:
    """In float32, on the GPU."""
    from mimicmotion_trt import Animator

    with Animator.load(torch_bundle_of("fp32"), device=device) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def on_cpu(torch_bundle_of: Callable[[str], Path]) -> Iterator[Animator]:
    """The same bundle in float32 on the CPU, with the loop of numpy."""
    from mimicmotion_trt import Animator

    with Animator.load(torch_bundle_of("fp32"), device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def sample() -> Sample:
    """Latents of 17 frames of chance; `on_step` and settings may be given."""

    def run(animator: Animator, *, on_step: Any = None, frames: int = 17, **settings: Any) -> Any:
        width, height = settings.get("size", (64, 128))
        chance = np.random.default_rng(0)
        picture = chance.integers(0, 255, (height, width, 3), np.uint8)
        poses = chance.integers(0, 255, (frames, height, width, 3), np.uint8)
        return animator.sample(picture, poses, animator.settings(**settings), on_step=on_step)

    return run


@pytest.fixture(scope="session")
def relative() -> Callable[[Any, Any], float]:
    """|found - expected| / |expected|, Euclidean norms."""
    return lambda found, expected: float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
