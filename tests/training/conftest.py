"""Short runs of the real loop on the golden data's small networks; the tests of this room share the first of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from mimicmotion_trt.training.config import Config
    from mimicmotion_trt.training.loop import Trainer

ROOT = Path(__file__).parents[2]
Lines = list[dict[str, Any]]


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread, above all beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Run:
    """What a run has written; tests that share one do not change its folder."""

    folder: Path
    said: list[str] = field(default_factory=list)
    shown: list[tuple[int, int, str]] = field(default_factory=list)

    def lines(self, name: str = "metrics") -> Lines:
        """The objects of a .jsonl file."""
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]

    def results(self) -> Lines:
        """The lines of its steps without times: what must be the same in every run."""
        return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in self.lines()]

    def weights(self, name: str = "mimicmotion.safetensors") -> dict[str, torch.Tensor]:
        """The final ones."""
        from mimicmotion_trt.training.checkpoints import read_state

        return read_state(self.folder / "final" / name)


@dataclass(frozen=True)
class Runs:
    """Trains with one config, changed here and there."""

    values: dict[str, Any]

    def config(self, **changes: Any) -> Config:
        """The config with some values replaced; tables are merged."""
        from mimicmotion_trt.training.config import build, merge

        return build(merge(self.values, changes))

    def trainer(
        self, folder: Path, *, resume: bool = False, run: Run | None = None, **changes: Any
    ) -> Trainer:
        """A run that has not begun; `run` keeps what it says and shows."""
        from accelerate.state import AcceleratorState

        from mimicmotion_trt.training.loop import Trainer

        AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the first run's precision
        run = run or Run(folder)
        say, show = run.said.append, lambda *step: run.shown.append(step)
        return Trainer(self.config(**changes), folder, resume=resume, say=say, show=show)

    def train(self, folder: Path, stop: int | None = None, *, resume: bool = False, **changes: Any) -> Run:
        """Train up to step `stop`, or to the config's last one."""
        run = Run(folder)
        with one_thread():
            self.trainer(folder, resume=resume, run=run, **changes).run(stop)
        return run


@pytest.fixture(scope="session")
def runs(golden: Path) -> Runs:
    """Runs of few small steps; every clip of them is at hand in a folder that all sessions share."""
    return Runs(
        {
            "output": "unused",
            "base": str(golden / "tiny" / "svd"),
            "recipe": str(ROOT / "training" / "configs" / "tiny-networks.json"),  # allows a random U-Net
            "steps": 40,
            "batch": 2,
            "ema": 0.9,
            "save_every": 2,
            "trackers": [],
            "data": {
                "clips": 4,
                "characters": 4,
                "frames": 3,
                "height": 64,
                "width": 64,
                "canvas": 64,
                "cache": str(ROOT / "build" / "test-clips"),
                "workers": 0,
            },
            "objective": {"skeleton_weight": 2.0},
            "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup": 2},
            "validation": {"every": 0},
        }
    )


@pytest.fixture(scope="session")
def one_step(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The first step of a run without moving average."""
    return runs.train(tmp_path_factory.mktemp("one-step"), 1, ema=None, comfyui=True)


@pytest.fixture(scope="session")
def two_steps(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of a run with moving average, a snapshot and a validation after the second."""
    settings = {"steps": 3, "guidance": [1.5, 1.5], "overlap": 1, "sigma_max": 50.0}
    validation = {"every": 2, "clips": 1, "frames": 4, "settings": settings}
    return runs.train(
        tmp_path_factory.mktemp("two-steps"), 2, validation=validation, trackers=["tensorboard"]
    )


@pytest.fixture(scope="session")
def six_steps(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six steps that nothing interrupts."""
    return runs.train(tmp_path_factory.mktemp("six-steps"), 6)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two videos of 12 frames, 64x64, as `prepare.py` writes them; the first video is held out."""
    from mimicmotion_trt.media.picture import encode_picture
    from mimicmotion_trt.training.data.shards import ShardWriter
    from mimicmotion_trt.training.synthetic import make_clip

    folder = tmp_path_factory.mktemp("recordings")
    writer = ShardWriter(folder, 2)
    for seed, digest in enumerate(("0" * 24, "f" * 24)):
        clip = make_clip(seed, 12, 64, 64, blur=0.0, occlusion=False, style="rich")
        meta = {"video": f"{seed}.mp4", "digest": digest, "fps": 15.0, "size": [64, 64]}
        writer.add(f"{seed}-0", meta, clip.truth, [encode_picture(frame, ".jpg") for frame in clip.frames])
    writer.close()
    return folder
