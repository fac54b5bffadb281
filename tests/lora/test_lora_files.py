"""What is read of a LoRA file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mimicmotion_trt import Settings
from mimicmotion_trt.engines.weight_table import LayerWeight, Place, make_changes, read_table, write_table
from mimicmotion_trt.errors import BundleError, CheckpointError, SettingsError
from mimicmotion_trt.lora import LoraFile

TABLE = {
    "down.0.to_q": LayerWeight((6, 4), (Place("q", transposed=True),)),
    "down.0.ff": LayerWeight((6, 4), (Place("value", rows=(0, 3)), Place("gate", rows=(3, 6)))),
    "time.conv": LayerWeight((4, 2, 3, 1, 1), (Place("conv", scale=0.5),)),
    "attn2.to_q": LayerWeight((6, 4)),
    "idle": LayerWeight((6, 4), fixed=True),
}
RANDOM = np.random.default_rng(0)


def factors(layer: str, rank: int = 2) -> tuple[np.ndarray, np.ndarray]:
    outputs, *inputs = TABLE[layer].shape
    down, up = RANDOM.normal(size=(rank, *inputs)), RANDOM.normal(size=(outputs, rank))
    return down.astype(np.float32), up.astype(np.float32)


def written(path: Path, keys: dict[str, np.ndarray], **metadata: object) -> Path:
    said = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    save_file({key: np.asarray(value) for key, value in keys.items()}, path, said)
    return path


def pair(layer: str, name: str = "unet.{}.lora_{}.weight", sides: str = "AB") -> dict[str, np.ndarray]:
    return {name.format(layer, side): part for side, part in zip(sides, factors(layer), strict=True)}


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("unet.down.0.to_q.lora_A.weight", "unet.down.0.to_q.lora_B.weight"),
        ("down.0.to_q.lora_A.weight", "down.0.to_q.lora_B.weight"),
        ("base_model.model.down.0.to_q.lora_A.weight", "base_model.model.down.0.to_q.lora_B.weight"),
        ("unet.down.0.to_q.lora.down.weight", "unet.down.0.to_q.lora.up.weight"),
        ("lora_unet_down_0_to_q.lora_down.weight", "lora_unet_down_0_to_q.lora_up.weight"),
        (
            "base_model.model.down.0.to_q.lora_A.mine.weight",
            "base_model.model.down.0.to_q.lora_B.mine.weight",
        ),
        ("unet.down.0.to_q.lora_layer.down.weight", "unet.down.0.to_q.lora_layer.up.weight"),
        ("down.0.to_q.lora_linear_layer.down.weight", "down.0.to_q.lora_linear_layer.up.weight"),
        ("down.0.processor.to_q_lora.down.weight", "down.0.processor.to_q_lora.up.weight"),
    ],
)
def test_a_layer_is_found_by_every_naming(tmp_path, down, up):
    a, b = factors("down.0.to_q")
    file = LoraFile.read(written(tmp_path / "x.safetensors", {down: a, up: b}), TABLE)
    np.testing.assert_allclose(file.layers["down.0.to_q"].delta(0.5), 0.5 * (b @ a), rtol=1e-4)


def test_alpha_comes_from_the_keys_or_from_diffusers_metadata_or_is_the_rank(tmp_path):
    keys = pair("down.0.to_q") | pair("down.0.ff")
    scales = {}
    for name, more, metadata in (
        ("none", {}, {}),
        ("keys", {"unet.down.0.to_q.alpha": np.float32(8.0)}, {"unet.lora_alpha": 3}),
        ("pattern", {}, {"unet.lora_alpha": 3, "unet.alpha_pattern": {"to_q": 1}}),
    ):
        file = LoraFile.read(written(tmp_path / name, keys | more, **metadata), TABLE)
        scales[name] = [file.layers[layer].scale for layer in ("down.0.to_q", "down.0.ff")]
    assert scales == {"none": [1.0, 1.0], "keys": [4.0, 1.5], "pattern": [0.5, 1.5]}


def test_half_precision_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    a, b = (torch.from_numpy(part).bfloat16() for part in factors("down.0.to_q"))
    save_torch({"unet.down.0.to_q.lora_A.weight": a, "unet.down.0.to_q.lora_B.weight": b}, tmp_path / "x")
    read = LoraFile.read(tmp_path / "x", TABLE).layers["down.0.to_q"]
    assert np.array_equal(read.down, a.float().numpy())
    assert np.array_equal(read.up, b.float().numpy())


def test_each_tensor_of_an_engine_gets_its_part(tmp_path):
    a, b = factors("down.0.ff")
    (c, d), (e, f) = factors("time.conv"), factors("down.0.to_q")
    keys = {"unet.down.0.ff.lora_A.weight": a, "unet.down.0.ff.lora_B.weight": b}
    keys |= {"unet.time.conv.lora_A.weight": c[..., 0], "unet.time.conv.lora_B.weight": d[..., None, None]}
    keys |= {"unet.down.0.to_q.lora_A.weight": e, "unet.down.0.to_q.lora_B.weight": f} | pair("attn2.to_q")
    file = LoraFile.read(written(tmp_path / "x", keys), TABLE)
    added = {path: lambda layer=layer: layer.delta(1.0) for path, layer in file.layers.items()}
    changes = {name: delta() for name, delta in make_changes(TABLE, added)}
    assert set(changes) == {"value", "gate", "conv", "q"}
    np.testing.assert_allclose(np.concatenate([changes["value"], changes["gate"]]), b @ a, rtol=1e-4)
    np.testing.assert_allclose(changes["conv"], 0.5 * (d @ c.reshape(2, -1)), rtol=1e-4)
    np.testing.assert_allclose(changes["q"], (f @ e).T, rtol=1e-4)


BAD = [
    ({"lora_te_text.lora_down.weight": np.ones((2, 4), np.float32)}, "none of this U-Net: lora_te_text"),
    ({f"unet.x{i}.lora_A.weight": np.ones(1, np.float32) for i in range(7)}, "x4.lora_A.weight and 2 more"),
    ({"unet.down.0.to_q.lora_mid.weight": np.ones((2, 2), np.float32)}, "lora_mid"),
    ({"unet.down.0.to_q.lora_A.weight": np.ones((2, 4), np.float32)}, "only a part of down.0.to_q: down"),
    (pair("down.0.to_q") | {"unet.down.0.to_q.lora_A.weight": np.ones((2, 5), np.float32)}, r"\[2, 5\]"),
    (pair("down.0.to_q") | {"unet.down.0.to_q.lora_A.weight": np.ones((3, 4), np.float32)}, r"\[3, 4\]"),
    (pair("down.0.to_q") | {"unet.down.0.to_q.lora_B.weight": np.full((6, 2), np.nan)}, "not finite"),
    (pair("down.0.to_q") | {"unet.down.0.to_q.lora_B.weight": np.ones((6, 2), np.int32)}, "I32"),
    (pair("down.0.to_q") | {"unet.down.0.to_q.alpha": np.float32(np.inf)}, "not finite"),
    ({}, "holds nothing"),
]


@pytest.mark.parametrize(("keys", "told"), BAD)
def test_what_is_no_lora_of_the_network_is_refused(tmp_path, keys, told):
    with pytest.raises(CheckpointError, match=told):
        LoraFile.read(written(tmp_path / "x.safetensors", keys), TABLE)


def test_a_file_that_is_cut_off_is_named_so(tmp_path):
    path = written(tmp_path / "x.safetensors", pair("down.0.to_q"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="truncated"):
        LoraFile.read(path, TABLE)


def test_a_file_that_is_no_safetensors_or_not_there_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    with pytest.raises(CheckpointError, match=r"x\.safetensors is no \.safetensors file"):
        LoraFile.read(tmp_path / "x.safetensors", TABLE)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        LoraFile.read(tmp_path / "gone", TABLE)


@pytest.mark.parametrize(
    "metadata", [{"unet.use_dora": True}, {"unet.lora_alpha": "much"}, {"alpha_pattern": 3}]
)
def test_metadata_that_are_not_understood_are_refused(tmp_path, metadata):
    with pytest.raises(CheckpointError, match=r"not read|not understood"):
        LoraFile.read(written(tmp_path / "x", pair("down.0.to_q"), **metadata), TABLE)


def test_a_layer_that_a_bundle_left_out_cannot_be_changed():
    with pytest.raises(BundleError, match="idle cannot be changed"):
        list(make_changes(TABLE, {"idle": lambda: np.ones((6, 4))}))


def test_a_table_is_read_as_it_was_written(tmp_path):
    assert read_table(write_table(tmp_path / "unet.layers.json", TABLE)) == TABLE
    (tmp_path / "unet.layers.json").write_text("[]")
    with pytest.raises(BundleError, match=r"unet\.layers\.json cannot be read"):
        read_table(tmp_path / "unet.layers.json")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("style", ("style",)),
        (["style:0.80", "b:1"], ("style:0.8", "b")),
        (("c:\\x.safetensors:-2",), ("c:\\x.safetensors:-2.0",)),
        ([], ()),
        (None, None),
    ],
)
def test_a_choice_has_one_form(given, taken):
    assert Settings(lora=given).lora == taken
    assert Settings.from_dict(json.loads(json.dumps(Settings(lora=given).to_dict()))).lora == taken


@pytest.mark.parametrize("given", [3, [""], ["a", "a:0.5"], ["a:11"], ["a:nan"], [("a", 1.0)]])
def test_a_choice_that_is_none_is_refused(given):
    with pytest.raises(SettingsError, match="lora"):
        Settings(lora=given)
