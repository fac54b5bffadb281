"""What the tests of the export share: small models of other shapes in SVD's layout."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mimicmotion_trt.engines.tensorrt_library import Library
from mimicmotion_trt.export import build, tensorrt_build

CROSS, PLAIN = "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"


@dataclass(frozen=True)
class Source:
    """What a bundle is built from."""

    base: Path
    checkpoint: Path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(golden: Path) -> Source:
    """The golden networks."""
    return Source(golden / "tiny" / "svd", golden / "tiny" / "mimicmotion.pth")


@pytest.fixture(scope="session")
def make_source(tiny: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Source]:
    """Random networks of a given shape, saved as SVD and MimicMotion are."""

    def make(
        *,
        widths: tuple[int, ...],
        heads: tuple[int, ...],
        layers: int = 1,
        token: int = 32,
        vae_layers: int = 1,
    ) -> Source:
        from diffusers import AutoencoderKLTemporalDecoder

        from mimicmotion_trt.training.networks import PoseNet, UNet

        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("source")
        base = Path(shutil.copytree(tiny.base, folder / "svd"))
        levels = len(widths)
        unet = UNet(
            block_out_channels=widths,
            num_attention_heads=heads,
            layers_per_block=layers,
            cross_attention_dim=token,
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            down_block_types=(CROSS,) * (levels - 1) + (PLAIN,),
            up_block_types=(PLAIN_UP,) + (CROSS_UP,) * (levels - 1),
        )
        pose_net = PoseNet(widths[0])
        torch.nn.init.normal_(pose_net.final_proj.weight, std=0.1)
        for name, values in (*unet.named_parameters(), *pose_net.named_parameters()):
            if "mix_factor" in name:
                values.data.normal_()
            elif name.endswith(("norm.bias", "norm.weight")):
                values.data += 0.1 * torch.randn_like(values)
        if token != 32:
            write_encoder(base, token)
        if vae_layers != 1:
            vae = AutoencoderKLTemporalDecoder(
                down_block_types=("DownEncoderBlock2D",) * 4,
                block_out_channels=(32, 32, 64, 64),
                layers_per_block=vae_layers,
            )
            vae.save_pretrained(base / "vae")
        config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
        (base / "unet" / "config.json").write_text(json.dumps(config))
        state = {f"unet.{key}": value for key, value in unet.state_dict().items()}
        state |= {f"pose_net.{key}": value for key, value in pose_net.state_dict().items()}
        torch.save(state, folder / "mimicmotion.pth")
        return Source(base, folder / "mimicmotion.pth")

    return make


def write_encoder(base: Path, token: int) -> None:
    """A CLIP whose picture tokens are `token` wide."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3, patch_size=56,
        image_size=112, projection_dim=token,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(base / "image_encoder")


@pytest.fixture(scope="session")
def micro(make_source: Callable[..., Source]) -> Source:
    """Two levels in the U-Net: quick to export, for tests of what is around the networks."""
    return make_source(widths=(32, 64), heads=(1, 2))


@pytest.fixture
def state_of() -> Callable[[Source], dict[str, Any]]:
    """The tensors of a checkpoint."""
    return lambda source: torch.load(source.checkpoint, weights_only=True)


@dataclass
class Gpu:
    """Of a GPU what a build asks."""

    name: str = "NVIDIA L4"
    capability: str = "SM89"


class Api:
    """Of TensorRT what a build asks before it compiles."""

    __version__ = "11.4.0.106"


@pytest.fixture
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """TensorRT is installed, and there is this GPU."""
    library = Library("tensorrt", Api(), None, deque())
    gpu = Gpu()
    monkeypatch.setattr(build, "open_library", lambda flavour: library)
    monkeypatch.setattr(tensorrt_build, "open_gpu", lambda index: gpu)
    return gpu
