"""The benchmark of the real size, on networks of two levels: weights are drawn, a bundle is built and reported on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import real_size
import safetensors.torch
from torch_model import save_model

from mimicmotion_trt.engines import NETWORKS, Bundle
from mimicmotion_trt.export import verify
from mimicmotion_trt.training.checkpoints import load_model


@pytest.mark.slow
def test_the_command_draws_builds_and_reports(configs, tmp_path, capsys, monkeypatch):
    def draw_here(command: list[str], check: bool) -> None:
        """Not in a process of its own, which is for the peak memory: it would load the libraries once more."""
        assert command[:3] == [sys.executable, real_size.__file__, "draw"]
        save_model(*map(Path, command[3:]))

    monkeypatch.setattr(real_size.subprocess, "run", draw_here)
    monkeypatch.setattr(verify, "SHAPES", verify.SHAPES[:1])
    real_size.main(
        backend="onnxruntime", precision="fp16", size="64x64", segment=2, batch=1, work=tmp_path / "work",
        configs=configs, as_json=True,
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert (told["backend"], told["sizes"], told["segment"], told["rows"]) == (
        "onnxruntime", [[64, 64]], 2, [1],
    )  # fmt: skip
    assert list(told["networks"]) == list(NETWORKS)
    for name, network in told["networks"].items():
        assert 0 < network["rel_l2"] < 5e-3, name
        assert network["megabytes"] > 0, name
        assert f"exporting {name}" in told["stages"]
        assert {f"comparing {name}{how} with PyTorch" for how in (" in float16", "")} <= set(told["stages"])
    assert told["seconds"] >= max(stage["seconds"] for stage in told["stages"].values()) - 0.1
    assert told["peak_gib"] >= max(stage["peak_gib"] for stage in told["stages"].values()) > 0
    assert Bundle.load(tmp_path / "work" / "bundle").manifest.precision == "fp16"
    assert not list((tmp_path / "work").glob(".*"))


def test_a_draw_that_was_interrupted_is_made_again(configs, tmp_path, monkeypatch):
    """What it leaves is not taken for a checkpoint."""
    real, work = safetensors.torch.save_file, tmp_path / "work"

    def half(state: dict[str, Any], path: Path) -> None:
        if "mimicmotion" not in path.name:
            return real(state, path)
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            save_model(work, configs)
    assert not (work / "mimicmotion.safetensors").exists()
    (work / "svd" / "scheduler" / "scheduler_config.json").unlink()
    save_model(work, configs)
    load_model(work / "svd", work / "mimicmotion.safetensors")
    assert sorted(path.name for path in work.iterdir()) == ["mimicmotion.safetensors", "svd"]


def test_a_row_for_each_network():
    stages = {
        "exporting unet": {"seconds": 77.4},
        "comparing unet in float16 with PyTorch": {"seconds": 20.0},
        "comparing unet with PyTorch": {"seconds": 5.0},
        "comparing unet_caching with PyTorch": {"seconds": 100.0},
        "compiling unet": {"seconds": 55.0},
        "exporting pose_net": {"seconds": 2.0},
    }
    networks = {
        "unet": {"megabytes": 2970.0, "rel_l2": 1.3e-3},
        "pose_net": {"megabytes": 4.0, "rel_l2": 2e-4},
    }
    made = real_size.table({"stages": stages, "networks": networks})
    rows = zip(*(column.cells for column in made.columns), strict=True)
    assert list(rows) == [
        ("unet", "77", "25", "55", "2970", "1.3e-03"),
        ("pose_net", "2", "-", "-", "4", "2.0e-04"),
    ]
