"""The stages, in the order of a model from nothing: each goes on from what the ones before it have written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicmotion_trt.errors import CheckpointError, SettingsError
from mimicmotion_trt.training.checkpoints import (
    describe_base,
    load_image_encoder,
    load_vae,
    make_base,
    open_base,
    read_config,
    replace_part,
)
from mimicmotion_trt.training.config import Config, VaeConfig
from mimicmotion_trt.training.landmarks import load_landmark_net
from mimicmotion_trt.training.networks import (
    TimeConv,
    ends_in_zeros,
    flatten_time_convs,
    lean_blocks,
    zero_time_taps,
)
from mimicmotion_trt.training.objective import picture_loss
from mimicmotion_trt.training.stages.image_encoder import BODY_POINTS, colours_of
from mimicmotion_trt.training.stages.motion import start_networks
from mimicmotion_trt.training.stages.vae import shrink_latents


@pytest.fixture(scope="module")
def recipe(golden, tmp_path_factory) -> Path:
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
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    path.write_text(json.dumps(configs))
    return path


@pytest.fixture(scope="module")
def train(runs, recipe, tmp_path_factory):
    """Runs a stage; all of them share one cache of clips."""
    common = {
        "recipe": str(recipe),
        "base": None,
        "ema": None,
        "data": {"cache": str(tmp_path_factory.mktemp("cache"))},
        "optimizer": {"lr": 2e-3, "schedule": "constant", "warmup": 0},
        "objective": {"skeleton_weight": 1.0},
        "vae": {"frames": 2, "crop": 64},
        "validation": {"every": 5, "clips": 1, "frames": 4, "settings": {"steps": 2, "overlap": 1}},
    }

    def run(folder: Path, steps: int, **changes: Any):
        from mimicmotion_trt.training.config import merge

        return runs.train(folder, steps, **merge(common, changes))

    return run


@pytest.fixture(scope="module")
def vae(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("vae"), 10, stage="vae")


@pytest.fixture(scope="module")
def colours(train, vae, tmp_path_factory):
    return train(tmp_path_factory.mktemp("colours"), 5, stage="image_encoder", base=base_of(vae))


@pytest.fixture(scope="module")
def motion(train, colours, tmp_path_factory):
    return train(tmp_path_factory.mktemp("motion"), 1, base=base_of(colours))


@pytest.fixture(scope="module")
def trained(colours, motion) -> dict[str, str]:
    """What the late stages go on from."""
    return {"base": base_of(colours), "checkpoint": str(motion.folder / "final" / "mimicmotion.safetensors")}


def base_of(run: Any) -> str:
    return str(run.folder / "final" / "base")


def falls(run: Any, name: str, last: int) -> bool:
    """Whether a loss is smaller in the last steps than in the first ones, as many of them."""
    values = [line[name] for line in run.lines()]
    return bool(np.mean(values[-last:]) < np.mean(values[:last]))


def test_the_vae_learns(vae):
    assert falls(vae, "mse", 1)
    trained, untrained = load_vae(Path(base_of(vae))), load_vae(vae.folder / "base-random")
    assert not torch.equal(trained.encoder.conv_in.weight, untrained.encoder.conv_in.weight)
    assert trained.config["scaling_factor"] != untrained.config["scaling_factor"]
    assert 5 < vae.lines("validation")[-1]["psnr"] < 40


@torch.inference_mode()
def test_shrunk_latents_give_the_same_pictures(vae):
    network = load_vae(Path(base_of(vae)))
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    before = network.encode(pictures).latent_dist
    made = network.decode(before.mode(), num_frames=2).sample
    shrink_latents(network, 13.3)  # the nearest power of two is 16
    after = network.encode(pictures).latent_dist
    assert torch.equal(after.mode() * 16, before.mode())
    torch.testing.assert_close(after.std * 16, before.std)
    assert torch.equal(network.decode(after.mode(), num_frames=2).sample, made)


@pytest.fixture(scope="module")
def landmarks(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("landmarks"), 10, stage="landmarks", vae={"frames": 1, "crop": None})


def test_landmarks_are_learned(landmarks):
    assert falls(landmarks, "loss", 2)
    assert 0 <= landmarks.lines("validation")[-1]["found"] <= 1
    load_landmark_net(landmarks.folder / "final" / "landmarks.safetensors")


def picture_terms(landmarks) -> dict[str, Any]:
    """A perceptual term, and a discriminator from the second of 40 steps."""
    return {
        "perceptual_weight": 0.5,
        "landmarks": str(landmarks.folder / "final" / "landmarks.safetensors"),
        "adversarial_weight": 0.4,
        "adversarial_start": 0.025,
    }


def every_term(landmarks) -> dict[str, Any]:
    """A lean VAE with Muon and all terms."""
    terms = picture_terms(landmarks)
    vae = {"frames": 1, "crop": None, "focus": 0.5, "lean": True, "latent_noise": 0.1, **terms}
    optimizer = {"name": "muon", "weight_decay": 0.0, "clip_norm": None}
    return {
        "stage": "vae",
        "vae": vae,
        "optimizer": optimizer,
        "validation": {"every": 0},
        "save_every": 1,
    }


def test_a_lean_vae_with_every_term_goes_on_bit_for_bit(train, landmarks, tmp_path):
    changes = every_term(landmarks)
    whole = train(tmp_path / "whole", 4, **changes)
    train(tmp_path / "parts", 2, **changes)
    parts = train(tmp_path / "parts", 4, resume=True, **changes)
    assert parts.results() == whole.results()
    first, *_, last = whole.results()
    assert first["discriminator"] is None
    assert last["discriminator"] < 2.5
    assert last["perceptual"] > 0
    trained, other = (load_vae(Path(base_of(run))) for run in (whole, parts))
    for key, value in trained.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    for block in lean_blocks(trained):
        assert ends_in_zeros(getattr(block, "temporal_res_block", block))
    assert not ends_in_zeros(trained.decoder.up_blocks[0].resnets[0].spatial_res_block)


def test_the_image_encoder_learns_colours(vae, colours):
    assert falls(colours, "loss", 1)
    after, before = (load_image_encoder(Path(base_of(run))) for run in (colours, vae))
    assert not torch.equal(after.visual_projection.weight, before.visual_projection.weight)
    assert 0 < colours.lines("validation")[-1]["colour_error"] < 255


def test_the_motion_stage_begins_with_their_base(motion):
    assert len(motion.lines()) == 1
    assert not (motion.folder / "base-random").exists()


@pytest.mark.slow
def test_the_decoder_learns_behind_the_unet(train, trained, tmp_path):
    settings = {"ssim_weight": 0.5, "true_latents": 0.5}
    decoder = train(tmp_path / "decoder", 12, stage="decoder", vae=settings, **trained)
    assert falls(decoder, "loss", 4)
    before, after = (load_vae(Path(base)) for base in (trained["base"], base_of(decoder)))
    for name, value in after.state_dict().items():
        if not name.startswith("decoder."):
            assert torch.equal(value, before.state_dict()[name]), name
    assert not torch.equal(after.decoder.conv_out.weight, before.decoder.conv_out.weight)
    assert after.config["scaling_factor"] == before.config["scaling_factor"]
    assert not list((decoder.folder / "final").glob("mimicmotion*"))
    assert 5 < decoder.lines("validation")[-1]["psnr"] < 40


def test_another_decoder_leaves_stored_clips_valid(runs, trained, tmp_path):
    base, changed = Path(trained["base"]), tmp_path / "changed"
    vae = load_vae(base)
    vae.decoder.conv_out.bias.data += 1
    replace_part(base, changed, "vae", vae)
    for number, folder in enumerate((base, changed)):
        trainer = runs.trainer(
            tmp_path / f"{number}", base=str(folder), data={"cache": str(tmp_path / "cache")}
        )
        trainer.stage.prepare([0], lambda *_: None)
    assert len(list((tmp_path / "cache").glob("motion-*"))) == 1


def test_unet_and_decoder_learn_together_from_pictures(train, trained, motion, landmarks, tmp_path):
    """The discriminator sees pairs of neighbouring frames."""
    settings = {"ssim_weight": 0.5, "true_latents": 0.25, "first_step": 0.5, "focus": 0.5}
    settings |= {**picture_terms(landmarks), "adversarial_frames": 2}
    together = train(tmp_path, 8, stage="together", vae=settings, **trained)
    assert together.results()[-1]["discriminator"] < 2.5
    assert falls(together, "loss", 3)
    assert falls(together, "latents", 3)
    before, after = motion.weights(), together.weights()
    assert after.keys() == before.keys()
    assert not torch.equal(after["unet.conv_out.weight"], before["unet.conv_out.weight"])
    assert not torch.equal(after["pose_net.final_proj.weight"], before["pose_net.final_proj.weight"])
    old, new = (load_vae(Path(base)).state_dict() for base in (trained["base"], base_of(together)))
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"decoder"}
    assert 5 < together.lines("validation")[-1]["psnr"] < 40


def test_the_gradient_of_the_pictures_reaches_the_unet(train, trained, motion, tmp_path):
    """With no weight on latents, what is left to move the U-Net comes through the decoder."""
    before = motion.weights()["unet.conv_out.bias"]
    after = {}
    for true in (0.0, 1.0):
        settings = {"latent_weight": 0.0, "true_latents": true}
        run = train(tmp_path / f"{true}", 1, stage="together", vae=settings, **trained)
        after[true] = run.weights()["unet.conv_out.bias"]
    assert not torch.equal(after[0.0], before)
    torch.testing.assert_close(after[1.0], before, rtol=1e-4, atol=0)  # AdamW's decay of weights alone


def test_autocast_leaves_the_loss_of_pictures_alone():
    torch.manual_seed(0)
    truth = torch.rand(1, 2, 3, 32, 32) * 2 - 1
    near, settings = truth + 0.1 * torch.randn_like(truth), VaeConfig(ssim_weight=1.0)
    plain, _ = picture_loss(settings, near, truth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = picture_loss(settings, near, truth)
    assert torch.equal(plain, cast)


def test_sharded_weights_do_not_learn_together(train, tmp_path, monkeypatch):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: DistributedType.FSDP))
    with pytest.raises(SettingsError, match=r"together.*sharded") as caught:
        train(tmp_path / "together", 1, stage="together", checkpoint=__file__)  # is not read
    assert "--multi_gpu" in str(caught.value)
    with pytest.raises(SettingsError, match="moving average of sharded weights"):
        train(tmp_path / "average", 1, ema=0.99)


def test_a_base_that_is_not_there_is_told(recipe, tmp_path):
    config = Config(output="unused", base="runs/nowhere", recipe=str(recipe))
    folder, found = open_base(config, tmp_path)
    assert folder == tmp_path / "base-random"
    assert describe_base(config, found) == f"base runs/nowhere is not there: random networks of {recipe}"
    here = replace(config, base=str(folder))
    assert describe_base(here, open_base(here, tmp_path / "other")[1]) == f"base {folder}"


def test_what_a_run_without_a_step_left_is_made_anew(train, recipe, tmp_path):
    make_base(tmp_path / "run" / "base-random", read_config(recipe), 0)
    train(tmp_path / "run", 1, stage="image_encoder", seed=5)
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
