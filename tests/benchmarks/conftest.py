"""What the tests of the benchmarks share: configs of small networks, and the stand-in for a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ..cuda.conftest import host, stand_in  # noqa: F401 - the kernels' benchmark runs on the same stand-in for CUDA

NARROW = {
    "unet": {
        "block_out_channels": [32, 64],
        "num_attention_heads": [1, 2],
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    },
    "image_encoder": {"num_hidden_layers": 1, "patch_size": 112},
}
"""What the golden networks' configs are changed to."""


@pytest.fixture(scope="session")
def configs(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the real size's: configs without weights, of networks of two levels."""
    ignore = shutil.ignore_patterns("*.safetensors")
    folder = tmp_path_factory.mktemp("narrow") / "configs"
    shutil.copytree(golden / "tiny" / "svd", folder, ignore=ignore)
    for part, changes in NARROW.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder
