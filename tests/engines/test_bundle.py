"""Bundles: every kind of damage is found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mimicmotion_trt import BundleError
from mimicmotion_trt.engines import NETWORKS, Bundle


@pytest.fixture
def broken(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that may be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def refusal(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    assert str(folder) in caught.value.message
    assert "mimicmotion-trt build" in caught.value.remedy
    return caught.value


def edit(folder: Path, change) -> None:
    """Let `change` alter the manifest's values."""
    raw = json.loads((folder / "manifest.json").read_text())
    change(raw)
    (folder / "manifest.json").write_text(json.dumps(raw))


def test_a_whole_bundle_loads(bundle):
    loaded = Bundle.load(bundle)
    assert set(loaded.manifest.networks) == set(NETWORKS)
    assert all(loaded.engine_path(name) == bundle / f"{name}.onnx" for name in NETWORKS)
    assert all(
        network.accuracy.rel_l2 < network.accuracy.bound for network in loaded.manifest.networks.values()
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_one_flipped_bit_of_an_engine_is_found(broken, network, where):
    path = broken / f"{network}.onnx"
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1)) if where >= 0 else -1] ^= 1
    path.write_bytes(data)
    assert f"{network}.onnx" in refusal(broken).message


@pytest.mark.parametrize("network", NETWORKS)
def test_a_missing_short_or_long_engine_is_named(broken, network):
    path = broken / f"{network}.onnx"
    data = path.read_bytes()
    for content in (data[:-1], data + b"\0", b""):
        path.write_bytes(content)
        assert f"{network}.onnx" in refusal(broken).message
    path.unlink()
    assert f"{network}.onnx is missing" in refusal(broken).message
    path.mkdir()
    assert f"{network}.onnx is missing" in refusal(broken).message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"format": 3}', "[" * 100_000, "\x00"])
def test_a_manifest_that_is_none(broken, text):
    (broken / "manifest.json").write_text(text)
    assert "manifest.json" in refusal(broken).message


def test_a_manifest_that_is_not_there_or_not_text(broken):
    (broken / "manifest.json").write_bytes(b"\xff\xfe\xff")
    refusal(broken)
    (broken / "manifest.json").unlink()
    assert "manifest.json" in refusal(broken).message
    assert "is no bundle" in refusal(broken / "nowhere").message


@pytest.mark.parametrize("number", [0, 1, "2", None, 99])
def test_a_manifest_of_another_format(broken, number):
    edit(broken, lambda raw: raw.update(format=number))
    assert str(number) in refusal(broken).message


@pytest.mark.parametrize(
    ("place", "find"),
    [
        ("", lambda raw: raw),
        ("image", lambda raw: raw["image"]),
        ("networks.unet", lambda raw: raw["networks"]["unet"]),
        ("networks.unet.spec", lambda raw: raw["networks"]["unet"]["spec"]),
        ("networks.unet.spec.inputs", lambda raw: raw["networks"]["unet"]["spec"]["inputs"][1]),
        ("networks.unet.files", lambda raw: raw["networks"]["unet"]["files"][0]),
        ("networks.pose_net.agreement", lambda raw: raw["networks"]["pose_net"]["agreement"]),
        ("networks.unet.work", lambda raw: raw["networks"]["unet"]["work"]),
        ("networks.unet.audit", lambda raw: raw["networks"]["unet"]["audit"]),
        ("networks.unet.plan", lambda raw: raw["networks"]["unet"]["plan"]),
        ("networks.unet.plan.profiles", lambda raw: raw["networks"]["unet"]["plan"]["profiles"][0]),
    ],
)
def test_an_unknown_key_is_named_with_its_place(broken, place, find):
    sizes = {name: [1, 2, 3] for name in ("rows", "frames", "latent_height", "latent_width")}
    plan = {"library": "tensorrt 11", "target": "SM89", "profiles": [{"dims": sizes}]}

    def change(raw):
        raw["networks"]["unet"]["plan"] = {**plan, "refittable": False, "streamable": False}
        find(raw).update(flavour="vanilla")

    edit(broken, change)
    assert f"unknown key '{f'{place}.' if place else ''}flavour'" in refusal(broken).message


# What is wrong, by what the refusal has to say of it.
IMPOSSIBLE = {
    "rows are [0]": lambda raw: raw.update(rows=[0]),
    "rows are [-1]": lambda raw: raw.update(rows=[-1]),
    "rows are [4, 1]": lambda raw: raw.update(rows=[4, 1]),
    "rows are []": lambda raw: raw.update(rows=[]),
    "sizes is []": lambda raw: raw.update(sizes=[]),
    "image.size is 0": lambda raw: raw["image"].update(size=0),
    "image.std is [0.0, 0.2, 0.2]": lambda raw: raw["image"].update(std=[0.0, 0.2, 0.2]),
    "image.mean is [inf, 0.0, 0.0]": lambda raw: raw["image"].update(mean=[1e999, 0.0, 0.0]),
    "scaling_factor is 0.0": lambda raw: raw.update(scaling_factor=0.0),
    "scaling_factor is inf": lambda raw: raw.update(scaling_factor=float("1e999")),
    "precision is 'int4', not one of fp32": lambda raw: raw.update(precision="int4"),
    "tensor timestep has the shape [-1]": lambda raw: raw["networks"]["unet"]["spec"]["inputs"][1].update(
        shape=[-1]
    ),
    "inputs of unet are": lambda raw: raw["networks"]["unet"]["spec"]["inputs"].pop(),
    "outputs of pose_net are": lambda raw: raw["networks"]["pose_net"]["spec"]["outputs"][0].update(
        shape=["frames", "channels", "latent_height", "latent_width"]
    ),
    "networks.unet.files.bytes is '3'": lambda raw: raw["networks"]["unet"]["files"][0].update(bytes="3"),
}


@pytest.mark.parametrize("says", IMPOSSIBLE)
def test_values_that_nothing_could_run_on_are_named(broken, says):
    """1e999 is infinite once it is read; the manifest writes it as a number."""
    edit(broken, IMPOSSIBLE[says])
    path = broken / "manifest.json"
    path.write_text(path.read_text().replace("Infinity", "1e999"))
    assert says in refusal(broken).message


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_file_name_that_no_system_takes(broken, name):
    edit(broken, lambda raw: raw["networks"]["unet"]["files"][0].update(name=name))
    assert name[:100] in (message := refusal(broken).message)
    assert len(message) < 500


@pytest.mark.parametrize(
    "name", ["../unet.onnx", "/etc/passwd", "a/../../unet.onnx", "sub/unet.onnx", "..", "."]
)
def test_a_file_that_leaves_the_folder(broken, name):
    """Even where such a file exists with the right bytes."""
    shutil.copy(broken / "unet.onnx", broken.parent / "unet.onnx")
    edit(broken, lambda raw: raw["networks"]["unet"]["files"][0].update(name=name))
    error = refusal(broken)
    assert name in error.message or "missing" in error.message


# Each alters one value so that it is of a wrong kind or contradicts what the runtime relies on.
ALTERED = {
    "network missing": lambda raw: raw["networks"].pop("unet"),
    "network unknown": lambda raw: raw["networks"].update(extra=raw["networks"]["unet"]),
    "networks a list": lambda raw: raw.update(networks=[]),
    "no file": lambda raw: raw["networks"]["unet"].update(files=[]),
    "file name a number": lambda raw: raw["networks"]["unet"]["files"][0].update(name=3),
    "bytes a text": lambda raw: raw["networks"]["unet"]["files"][0].update(bytes="3"),
    "file key unknown": lambda raw: raw["networks"]["unet"]["files"][0].update(mode=7),
    "hash missing": lambda raw: raw["networks"]["unet"]["files"][0].pop("sha256"),
    "dtype unknown": lambda raw: raw["networks"]["unet"]["spec"]["inputs"][0].update(dtype="float33"),
    "shape a text": lambda raw: raw["networks"]["unet"]["spec"]["inputs"][0].update(shape="ab"),
    "dim a fraction": lambda raw: raw["networks"]["unet"]["spec"]["inputs"][0].update(shape=[1.5]),
    "spec key unknown": lambda raw: raw["networks"]["unet"]["spec"].update(more=[]),
    "agreement a text": lambda raw: raw["networks"]["unet"]["agreement"].update(bound="small"),
    "work missing": lambda raw: raw["networks"]["unet"].pop("work"),
    "work of less": lambda raw: raw["networks"]["unet"]["work"].pop("linear"),
    "work key unknown": lambda raw: raw["networks"]["unet"]["work"].update(more=1),
    "work negative": lambda raw: raw["networks"]["unet"]["work"].update(linear=-1),
    "count negative": lambda raw: raw["networks"]["unet"]["audit"].update(casts=-1),
    "work a text": lambda raw: raw["networks"]["unet"]["work"].update(linear="3"),
    "sizes empty": lambda raw: raw.update(sizes=[]),
    "sizes of three": lambda raw: raw.update(sizes=[[64, 64, 64]]),
    "rows empty": lambda raw: raw.update(rows=[]),
    "rows a text": lambda raw: raw.update(rows="12"),
    "rows fractions": lambda raw: raw.update(rows=[1.5]),
    "scaling a text": lambda raw: raw.update(scaling_factor="0.18"),
    "scaling nan": lambda raw: raw.update(scaling_factor=float("nan")),
    "mean of two": lambda raw: raw["image"].update(mean=[0.1, 0.2]),
    "image key unknown": lambda raw: raw["image"].update(colour="red"),
    "defaults a list": lambda raw: raw.update(defaults=[]),
    "versions numbers": lambda raw: raw.update(versions={"torch": 3}),
    "note a number": lambda raw: raw.update(note=3),
    "backend none": lambda raw: raw.update(backend=None),
    "key missing": lambda raw: raw.pop("image"),
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_a_manifest_that_no_build_wrote(broken, change):
    edit(broken, change)
    assert "manifest.json" in refusal(broken).message


def test_a_bundle_of_an_older_format_has_to_be_rebuilt(broken):
    """Its networks and free dimensions had other names."""
    edit(broken, lambda raw: raw.update(format=2))
    assert "format 2, and this version reads 3" in refusal(broken).message


def test_a_damaged_file_is_answered_with_the_bundles_own_command(bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    (folder / "unet.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"unet\.onnx is not the file") as caught:
        Bundle.load(folder)
    assert "--backend onnxruntime --precision fp32 --size 64x128" in caught.value.remedy
