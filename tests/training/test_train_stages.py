"""The stages before the main one: the VAE and the stand-in for CLIP, from a recipe of random networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicmotion_trt.errors import CheckpointError, SettingsError
from mimicmotion_trt.training.base import describe_base, make_base, open_base
from mimicmotion_trt.training.checkpoints import load_image_encoder, load_vae, read_config, read_state
from mimicmotion_trt.training.config import Config, VaeConfig, build
from mimicmotion_trt.training.networks import TimeConv, flatten_time_convs, zero_time_taps
from mimicmotion_trt.training.stages.motion import start_networks

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recipe(golden: Path, tmp_path: Path) -> Path:
    """The golden data's configs as a recipe."""
    svd = golden / "tiny" / "svd"
    names = {
        "unet": "config.json",
        "vae": "config.json",
        "image_encoder": "config.json",
        "scheduler": "scheduler_config.json",
        "feature_extractor": "preprocessor_config.json",
    }
    configs = {part: read_config(svd / part / name) for part, name in names.items()}
    configs["vae"] = {key: value for key, value in configs["vae"].items() if not key.startswith("_")}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(configs))
    return path


@pytest.fixture
def train(recipe: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run a stage; returns the lines of metrics.jsonl."""
    values = {
        "output": "unused",
        "recipe": str(recipe),
        "batch": 2,
        "ema": None,
        "tensorboard": False,
        "data": {"clips": 4, "characters": 4, "frames": 3, "height": 64, "width": 64, "workers": 0},
        "optimizer": {"lr": 2e-3},
        "vae": {"frames": 2, "crop": 64},
        "validation": {"every": 5, "clips": 2, "settings": {"steps": 2, "overlap": 1}},
    }

    def run(folder: str, steps: int, **changes: Any) -> list[dict[str, Any]]:
        from accelerate.state import AcceleratorState

        from mimicmotion_trt.training.loop import Trainer

        AcceleratorState._reset_state(reset_partial_state=True)
        config = replace(build(Config, values, ""), steps=steps, **changes)
        Trainer(config, tmp_path / folder, say=lambda _: None).run()
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


def test_the_three_stages_follow_one_another(train, tmp_path):
    vae = train("vae", 10, stage="vae")
    assert vae[-1]["mse"] < vae[0]["mse"]
    colours = train("colours", 5, stage="image_encoder", base=str(tmp_path / "vae" / "final" / "base"))
    assert colours[-1]["loss"] < colours[0]["loss"]
    base = tmp_path / "colours" / "final" / "base"
    motion = train("motion", 1, base=str(base))
    assert len(motion) == 1
    assert not (tmp_path / "motion" / "base-random").exists()

    trained, untrained = load_vae(base), load_vae(tmp_path / "vae" / "base-random")
    assert not torch.equal(trained.encoder.conv_in.weight, untrained.encoder.conv_in.weight)
    assert trained.config["scaling_factor"] != untrained.config["scaling_factor"]
    encoder, before = (load_image_encoder(tmp_path / n / "final" / "base") for n in ("colours", "vae"))
    assert not torch.equal(encoder.visual_projection.weight, before.visual_projection.weight)
    (line,) = (tmp_path / "vae" / "validation.jsonl").read_text().splitlines()[-1:]
    assert 5 < json.loads(line)["psnr"] < 40
    (line,) = (tmp_path / "colours" / "validation.jsonl").read_text().splitlines()[-1:]
    assert 0 < json.loads(line)["colour_error"] < 255


def test_the_decoder_learns_behind_the_unet(train, tmp_path):
    train("vae", 1, stage="vae")
    base = tmp_path / "vae" / "final" / "base"
    train("motion", 1, base=str(base))
    checkpoint = str(tmp_path / "motion" / "final" / "mimicmotion.safetensors")
    vae = VaeConfig(frames=2, crop=64, ssim_weight=0.5, true_latents=0.5)
    lines = train("decoder", 12, stage="decoder", base=str(base), checkpoint=checkpoint, vae=vae)
    assert np.mean([line["loss"] for line in lines[-4:]]) < np.mean([line["loss"] for line in lines[:4]])

    before, after = (load_vae(tmp_path / name / "final" / "base") for name in ("vae", "decoder"))
    for name, value in after.state_dict().items():
        if not name.startswith("decoder."):
            assert torch.equal(value, before.state_dict()[name]), name
    assert not torch.equal(after.decoder.conv_out.weight, before.decoder.conv_out.weight)
    assert after.config["scaling_factor"] == before.config["scaling_factor"]
    assert not list((tmp_path / "decoder" / "final").glob("mimicmotion*"))
    train("again", 1, base=str(tmp_path / "decoder" / "final" / "base"))  # clips of the same latents
    names = [[p.name for p in (tmp_path / run / "cache").glob("motion-*")] for run in ("motion", "again")]
    assert len(names[0]) == 1
    assert names[0] == names[1]
    (line,) = (tmp_path / "decoder" / "validation.jsonl").read_text().splitlines()[-1:]
    assert 5 < json.loads(line)["psnr"] < 40


def test_unet_and_decoder_learn_together_from_pictures(train, tmp_path):
    train("vae", 1, stage="vae")
    base = tmp_path / "vae" / "final" / "base"
    train("motion", 1, base=str(base))
    weights = tmp_path / "motion" / "final" / "mimicmotion.safetensors"
    vae = VaeConfig(frames=2, crop=64, ssim_weight=0.5, true_latents=0.25, first_step=0.5)
    given = {"base": str(base), "checkpoint": str(weights), "vae": vae}
    lines = train("together", 8, stage="together", **given)
    for name in ("loss", "latents"):
        assert np.mean([line[name] for line in lines[-3:]]) < np.mean([line[name] for line in lines[:3]])

    before, after = (read_state(tmp_path / n / "final" / weights.name) for n in ("motion", "together"))
    assert after.keys() == before.keys()
    assert not torch.equal(after["unet.conv_out.weight"], before["unet.conv_out.weight"])
    assert not torch.equal(after["pose_net.final_proj.weight"], before["pose_net.final_proj.weight"])
    old, new = (load_vae(tmp_path / n / "final" / "base").state_dict() for n in ("vae", "together"))
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"decoder"}
    (line,) = (tmp_path / "together" / "validation.jsonl").read_text().splitlines()[-1:]
    assert 5 < json.loads(line)["psnr"] < 40


def test_autocast_leaves_the_loss_of_pictures_alone():
    from mimicmotion_trt.training.objective import picture_loss

    torch.manual_seed(0)
    truth = torch.rand(1, 2, 3, 32, 32) * 2 - 1
    near, settings = truth + 0.1 * torch.randn_like(truth), VaeConfig(ssim_weight=1.0)
    plain, _ = picture_loss(settings, near, truth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = picture_loss(settings, near, truth)
    assert torch.equal(plain, cast)


def test_the_gradient_of_the_pictures_reaches_the_unet(train, tmp_path):
    """With no weight on latents, what is left to move the U-Net comes through the decoder."""
    train("vae", 1, stage="vae")
    base = tmp_path / "vae" / "final" / "base"
    train("motion", 1, base=str(base))
    weights = tmp_path / "motion" / "final" / "mimicmotion.safetensors"
    given = {"stage": "together", "base": str(base), "checkpoint": str(weights)}
    for name, true in (("seen", 0.0), ("hidden", 1.0)):
        train(name, 1, vae=VaeConfig(frames=2, latent_weight=0.0, true_latents=true), **given)
    before, seen, hidden = (
        read_state(tmp_path / name / "final" / weights.name)["unet.conv_out.bias"]
        for name in ("motion", "seen", "hidden")
    )
    assert not torch.equal(seen, before)
    torch.testing.assert_close(hidden, before, rtol=1e-4, atol=0)  # AdamW's decay of weights alone


def test_sharded_weights_do_not_learn_together(train, monkeypatch):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: DistributedType.FSDP))
    with pytest.raises(SettingsError, match=r"together.*sharded") as caught:
        train("together", 1, stage="together", checkpoint="unused")
    assert "ddp.yaml" in str(caught.value)
    with pytest.raises(SettingsError, match="moving average of sharded weights"):
        train("average", 1, ema=0.99)


def test_a_base_that_is_not_there_is_told(recipe, tmp_path):
    config = Config(output="unused", base="runs/nowhere", recipe=str(recipe))
    folder, found = open_base(config, tmp_path)
    assert folder == tmp_path / "base-random"
    assert describe_base(config, found) == f"base runs/nowhere is not there: random networks of {recipe}"
    here = replace(config, base=str(folder))
    assert describe_base(here, open_base(here, tmp_path / "other")[1]) == f"base {folder}"


def test_what_a_run_without_a_step_left_is_made_anew(train, recipe, tmp_path):
    make_base(tmp_path / "run" / "base-random", read_config(recipe), 0)
    train("run", 1, stage="image_encoder", seed=5)
    make_base(tmp_path / "five", read_config(recipe), 5)
    left, wanted = (
        load_image_encoder(tmp_path / n).visual_projection.weight for n in ("run/base-random", "five")
    )
    assert torch.equal(left, wanted)


def test_a_base_without_a_unet_begins_nothing_by_itself(golden, recipe):
    base = golden / "tiny" / "svd"  # a config, no weights
    config = Config(output="unused", base=str(base))
    with pytest.raises(CheckpointError, match="unet holds no weights"):
        start_networks(config, base)
    unet, _ = start_networks(replace(config, recipe=str(recipe)), base)
    assert not unet.conv_out.weight.any()


@pytest.mark.parametrize(
    ("stage", "checkpoint", "left_out"),
    [
        ("motion", None, "unet/*.fp16.safetensors"),
        ("motion", "weights.pth", "unet/*.safetensors"),
        ("vae", None, "unet/*.safetensors"),
    ],
)
def test_the_unet_of_a_hub_id_comes_along_where_it_is_begun_with(
    tmp_path, monkeypatch, stage, checkpoint, left_out
):
    import huggingface_hub

    asked = []

    def download(name, **patterns):
        asked.append((name, patterns["ignore_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config = Config(output="unused", base="owner/name", stage=stage, checkpoint=checkpoint)
    assert open_base(config, tmp_path / "run") == (tmp_path, True)
    assert asked == [("owner/name", [left_out])]


def test_a_recipe_that_lacks_a_part(tmp_path):
    with pytest.raises(CheckpointError, match="lacks scheduler"):
        make_base(tmp_path / "base", {"unet": {}, "vae": {}, "image_encoder": {}, "feature_extractor": {}}, 0)
    assert not (tmp_path / "base").exists()


def test_a_recipe_that_builds_nothing(recipe, tmp_path):
    values = read_config(recipe)
    with pytest.raises(CheckpointError, match=r"builds no network.*widths"):
        make_base(tmp_path / "base", {**values, "vae": {"widths": 3}}, 0)
    assert list(tmp_path.glob("*base*")) == []


def test_colours_are_those_at_the_points():
    from mimicmotion_trt import PoseSequence
    from mimicmotion_trt.training.stages.image_encoder import BODY_POINTS, colours_of

    body = np.full((1, 18, 2), 0.25, np.float32)
    body[0, 10] = (1.5, 0.5)  # a foot beside the picture
    score = np.ones((1, 18), np.float32)
    score[0, 13] = 0.1  # and one that is covered
    pose = PoseSequence(
        body=body,
        body_score=score,
        hands=np.zeros((1, 2, 21, 2), np.float32),
        hands_score=np.zeros((1, 2, 21), np.float32),
        face=np.zeros((1, 68, 2), np.float32),
        face_score=np.zeros((1, 68), np.float32),
        fps=15.0,
        size=(64, 64),
    )
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32] = (255, 51, 0)
    picture[32:, 32:] = (0, 0, 255)
    colours, visible = colours_of(picture, pose)
    np.testing.assert_allclose(colours[0], (1.0, 0.2, 0.0), atol=1e-6)
    np.testing.assert_allclose(colours[-1], (0.0, 0.0, 1.0), atol=1e-6)
    hidden = [points for points, seen in zip(BODY_POINTS, visible, strict=False) if not seen]
    assert hidden == [(12, 13), (10,), (13,)]
    assert visible[len(BODY_POINTS) :].all()


def test_flat_time_convolutions_are_the_same_sums():
    torch.manual_seed(0)
    conv = torch.nn.Sequential(torch.nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)))
    x = torch.randn(2, 4, 5, 3, 2)
    expected, keys = conv(x), list(conv.state_dict())
    flatten_time_convs(conv)
    assert isinstance(conv[0], TimeConv)
    assert list(conv.state_dict()) == keys
    torch.testing.assert_close(conv(x), expected)
    zero_time_taps(conv)
    alone = conv(x[:, :, 1:2])
    torch.testing.assert_close(conv(x)[:, :, 1:2], alone)
