"""Checkpoints are read strictly: every key and shape is the network's, and nothing but tensors is unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimicmotion_trt import CheckpointError
from mimicmotion_trt.training.checkpoints import (
    assign,
    check_keys,
    empty_pose_net,
    empty_unet,
    load_image_encoder,
    load_model,
    load_vae,
    read_config,
    read_state,
    resolve_base,
)


@pytest.fixture(scope="module")
def base(golden: Path) -> Path:
    return golden / "tiny" / "svd"


@pytest.fixture(scope="module")
def state(golden: Path) -> dict[str, torch.Tensor]:
    return read_state(golden / "tiny" / "mimicmotion.pth")


@pytest.fixture
def own_base(base: Path, tmp_path: Path) -> Path:
    """A copy of the base folder that may be damaged."""
    return Path(shutil.copytree(base, tmp_path / "svd"))


@pytest.fixture(scope="module")
def networks(base: Path) -> dict[str, torch.nn.Module]:
    """The two networks of a checkpoint on the meta device; nothing is put into them where it does not fit."""
    unet = empty_unet(base)
    return {"unet.": unet, "pose_net.": empty_pose_net(unet)}


@pytest.fixture
def refused(networks: dict[str, torch.nn.Module]) -> Callable[[Path], str]:
    """What is said of a checkpoint that is refused."""

    def load(checkpoint: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            assign(networks, read_state(checkpoint), str(checkpoint))
        assert caught.value.field == "checkpoint"
        assert checkpoint.name in caught.value.message
        return str(caught.value)

    return load


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_model_is_whole_and_at_rest(base, golden, state):
    model = load_model(base, golden / "tiny" / "mimicmotion.pth")
    for network in (model.unet, model.pose_net, model.vae, model.image_encoder):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(p.is_meta for p in (*network.parameters(), *network.buffers()))
        assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(model.unet.conv_in.weight, state["unet.conv_in.weight"])
    assert torch.equal(model.pose_net.scale, state["pose_net.scale"])
    assert model.scheduler["sigma_max"] == 700.0
    assert len(model.feature_extractor["image_mean"]) == 3


def test_safetensors_equals_pth(base, golden, state, tmp_path):
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "model.safetensors")
    first = load_model(base, golden / "tiny" / "mimicmotion.pth")
    second = load_model(base, tmp_path / "model.safetensors")
    assert same(first.unet, second.unet)
    assert same(first.pose_net, second.pose_net)


def test_files_of_older_pytorch(state, tmp_path):
    """Before the zip format; such a file cannot be mapped into memory."""
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pth")
    old = read_state(tmp_path / "old.pth")
    assert old.keys() == state.keys()
    assert all(torch.equal(old[key], state[key]) for key in state)


def test_other_precisions(base, golden, state, tmp_path):
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth")
    model = load_model(base, tmp_path / "half.pth")
    assert {p.dtype for p in model.unet.parameters()} == {torch.float32}
    double = load_model(base, golden / "tiny" / "mimicmotion.pth", dtype=torch.float64)
    assert {p.dtype for p in double.vae.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    "key", ["unet.conv_in.weight", "unet.mid_block.resnets.0.time_mixer.mix_factor", "pose_net.scale"]
)
def test_a_missing_key_is_named(refused, state, tmp_path, key):
    torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "less.pth")
    assert f"1 missing ({key})" in refused(tmp_path / "less.pth")


@pytest.mark.parametrize(
    "key", ["unet.surprise", "pose_net.scale2", "scale", "module.unet.conv_in.weight", ""]
)
def test_an_extra_key_is_named(refused, state, tmp_path, key):
    torch.save({**state, key: torch.zeros(1)}, tmp_path / "more.pth")
    assert f"1 extra ({key})" in refused(tmp_path / "more.pth")


def test_a_misshapen_key_is_named_with_both_shapes(refused, state, tmp_path):
    torch.save({**state, "unet.conv_in.bias": torch.zeros(31)}, tmp_path / "other.pth")
    assert "1 misshapen (unet.conv_in.bias is [31], the network's is [32])" in refused(tmp_path / "other.pth")


def test_every_kind_of_difference_is_told_at_once(refused, state, tmp_path):
    wrong = {k: v for k, v in state.items() if not k.startswith("pose_net.conv_layers")}
    wrong |= {"extra": torch.zeros(1), "unet.conv_in.bias": torch.zeros(1, 32)}
    torch.save(wrong, tmp_path / "wrong.pth")
    message = refused(tmp_path / "wrong.pth")
    assert "16 missing" in message
    assert "…" in message  # not all sixteen are listed
    assert "1 extra (extra)" in message
    assert "1 misshapen" in message


class Harm:
    """Pickled, this runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_pickled_code_is_refused_and_not_run(refused, state, tmp_path, form):
    trace, path = tmp_path / "it-ran", tmp_path / "harm.pth"
    harm = Harm(f"touch {trace}")
    if form == "pickle":
        path.write_bytes(pickle.dumps(harm, protocol=2))
    else:
        torch.save({**state, "unet.conv_in.bias": harm}, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(path)
    assert "more than tensors" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        {"state_dict": {"unet.conv_in.bias": torch.zeros(1)}},
        {1: torch.zeros(1)},
        {"epoch": 3},
        torch.zeros(3),
    ],
    ids=["a list", "nested", "numbered", "a number", "a tensor"],
)
def test_what_is_no_flat_table(refused, tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    assert "no flat table of tensors" in refused(tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_damaged_files(refused, golden, state, tmp_path, suffix, keep):
    whole = tmp_path / "whole.safetensors"
    if suffix == "safetensors":
        save_file({key: value.clone() for key, value in state.items()}, whole)
    else:
        whole = golden / "tiny" / "mimicmotion.pth"
    data = whole.read_bytes()
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    message = refused(broken)
    assert broken.name in message
    assert "damaged" in message or "more than tensors" in message


def test_a_model_is_not_loaded_from_a_wrong_checkpoint(base, state, tmp_path):
    torch.save({**state, "surprise": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"more\.pth does not fit the network: 1 extra \(surprise\)"):
        load_model(base, tmp_path / "more.pth")


def test_a_checkpoint_that_is_not_there(refused, tmp_path):
    assert "does not exist" in refused(tmp_path / "nothing.pth")
    assert "does not exist" in refused(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "vae/config.json", "image_encoder/config.json", "scheduler/scheduler_config.json",
     "feature_extractor/preprocessor_config.json", "vae/diffusion_pytorch_model.safetensors",
     "image_encoder/model.safetensors"],
)  # fmt: skip
def test_a_missing_part_of_the_base_is_named(own_base, golden, name):
    (own_base / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        load_model(own_base, golden / "tiny" / "mimicmotion.pth")
    assert name.split("/")[0] in caught.value.message
    assert caught.value.field == "base"


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "\xff"])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        read_config(tmp_path / "config.json")
    assert caught.value.field == "base"


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"block_out_channels": [32]}),
        ("unet", {"block_out_channels": "wide"}),
        ("unet", {"down_block_types": ["Unheard"] * 4}),
        ("unet", {"no_such_option": 1}),
        ("unet", {"num_attention_heads": 0}),
        ("vae", {"down_block_types": ["Unheard"]}),
        ("vae", {"block_out_channels": [33, 33, 33, 33]}),
        ("image_encoder", {"hidden_size": "wide"}),
        ("image_encoder", {"hidden_act": "unheard"}),
        ("image_encoder", {"num_attention_heads": 5}),
    ],
)
def test_a_config_that_builds_no_network(own_base, part, values):
    path = own_base / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    load = {"unet": empty_unet, "vae": load_vae}.get(part, load_image_encoder)
    with pytest.raises(CheckpointError, match=f"{part}/config.json builds no network") as caught:
        load(own_base)
    assert caught.value.field == "base"


def test_half_precision_files_of_the_base_will_do(own_base):
    part = own_base / "vae"
    whole = load_file(part / "diffusion_pytorch_model.safetensors")
    (part / "diffusion_pytorch_model.safetensors").unlink()
    save_file(
        {key: value.half() for key, value in whole.items()}, part / "diffusion_pytorch_model.fp16.safetensors"
    )
    torch.save(whole, part / "diffusion_pytorch_model.bin")
    vae = load_vae(own_base)
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    half = load_file(part / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(vae.state_dict()["quant_conv.weight"], half["quant_conv.weight"].float())


def test_buffers_of_older_releases_are_let_pass(own_base):
    path = own_base / "image_encoder" / "model.safetensors"
    whole = load_file(path)
    save_file({**whole, "vision_model.embeddings.position_ids": torch.arange(50)[None]}, path)
    assert same(load_image_encoder(own_base), load_image_encoder(own_base))
    save_file({**whole, "vision_model.embeddings.other": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 extra \(vision_model\.embeddings\.other\)"):
        load_image_encoder(own_base)


@pytest.mark.parametrize(
    "name", ["./nowhere", "/nowhere", "~/nowhere", "nowhere", "a/b/c", "with space/model", "a/b\0"]
)
def test_a_base_that_is_no_folder_and_no_hub_id(name):
    with pytest.raises(CheckpointError) as caught:
        resolve_base(name)
    assert caught.value.field == "base"
    assert caught.value.remedy


def test_a_file_is_no_base(golden):
    with pytest.raises(CheckpointError, match="no folder"):
        resolve_base(golden / "tiny" / "mimicmotion.pth")


# --- the real sizes, without their memory ----------------------------------------------------------------


@pytest.fixture(scope="module")
def real(golden: Path) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """(what our networks expect, what the real checkpoint holds)"""
    folder = golden / "real-size"
    unet = empty_unet(folder)
    networks = {"unet": unet, "pose_net": empty_pose_net(unet)}
    expected = {
        f"{name}.{key}": value.shape
        for name, net in networks.items()
        for key, value in net.state_dict().items()
    }
    assert sum(p.numel() for p in unet.parameters() if not p.is_meta) < 100  # shapes without memory
    found = json.loads((folder / "checkpoint_keys.json").read_text())
    return expected, {key: torch.Size(shape) for key, shape in found.items()}


def test_all_keys_of_the_real_checkpoint_are_the_networks(real):
    expected, found = real
    assert len(found) == 1447
    check_keys(expected, found, "MimicMotion_1-1.pth")
    assert sum(shape.numel() for key, shape in found.items() if key.startswith("unet.")) == pytest.approx(
        1524.6e6, rel=1e-4
    )


@pytest.mark.parametrize(
    "key", ["unet.conv_in.weight", "unet.conv_norm_out.bias", "pose_net.final_proj.weight"]
)
def test_one_changed_key_of_the_real_checkpoint_is_named(real, key):
    expected, found = real
    renamed = {k if k != key else f"{k}_": shape for k, shape in found.items()}
    with pytest.raises(CheckpointError) as caught:
        check_keys(expected, renamed, "MimicMotion_1-1.pth")
    assert f"1 missing ({key}), 1 extra ({key}_)" in caught.value.message
    with pytest.raises(CheckpointError, match="misshapen") as caught:
        check_keys(expected, {**found, key: torch.Size((7,))}, "MimicMotion_1-1.pth")
    assert f"{key} is [7]" in caught.value.message
