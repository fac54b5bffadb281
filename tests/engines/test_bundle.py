"""Bundles: what the manifest says survives its file, and every kind of damage is found and named."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimicmotion_trt import BundleError
from mimicmotion_trt.engines import (
    NETWORKS,
    Agreement,
    Audit,
    Bundle,
    EngineSpec,
    File,
    ImageStatistics,
    Manifest,
    Network,
    Plan,
    Profile,
    Work,
)
from mimicmotion_trt.engines import network_specs as specs_of

NAMES = st.text(min_size=1, max_size=12)
NUMBERS = st.floats(0, 1e6)
FILES = st.builds(File, NAMES, st.integers(0, 2**40), st.text("0123456789abcdef", min_size=64, max_size=64))


def plans(spec: EngineSpec) -> st.SearchStrategy[Plan | None]:
    """No plan, or one whose profiles give a range for each free dimension."""
    free = {dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)}
    ranges = st.lists(st.integers(1, 999), min_size=3, max_size=3).map(lambda sizes: tuple(sorted(sizes)))
    profiles = st.builds(Profile, st.fixed_dictionaries(dict.fromkeys(sorted(free), ranges)))
    listed = st.lists(profiles, min_size=1, max_size=3).map(tuple)
    return st.none() | st.builds(Plan, NAMES, NAMES, listed, st.booleans(), st.booleans())


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    specs = specs_of(
        pose_channels=draw(st.integers(1, 999)), token_width=draw(st.integers(1, 999)), image_size=8
    )
    agreements = st.builds(Agreement, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 9), NAMES)
    works = st.builds(Work, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
    audits = st.builds(Audit, *[st.integers(0, 9999)] * 9)
    files = st.lists(FILES, min_size=1, max_size=2)
    return Manifest(
        backend=draw(NAMES),
        precision=draw(NAMES),
        build=draw(NAMES),
        networks={
            name: Network(
                spec, tuple(draw(files)), draw(agreements), draw(works), draw(audits), draw(plans(spec))
            )
            for name, spec in specs.items()
        },
        sizes=tuple(draw(st.lists(st.tuples(*[st.integers(1, 9999)] * 2), min_size=1, max_size=3))),
        rows=tuple(draw(st.lists(st.integers(1, 64), min_size=1, max_size=3))),
        scaling_factor=draw(NUMBERS),
        image=ImageStatistics(8, *draw(st.tuples(*[st.tuples(*[NUMBERS] * 3)] * 2))),
        defaults=draw(st.dictionaries(NAMES, st.integers() | NUMBERS | NAMES, max_size=3)),
        note=draw(st.text()),
        options=draw(st.text()),
        versions=draw(st.dictionaries(NAMES, NAMES, max_size=2)),
    )


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(manifests())
def test_manifest_round_trip(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.fixture
def broken(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that may be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def refusal(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    assert str(folder) in caught.value.message
    assert "build_engines.py" in caught.value.remedy
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
        network.agreement.rel_l2 < network.agreement.bound for network in loaded.manifest.networks.values()
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


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"format": 2}', "[" * 100_000, "\x00"])
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


def test_an_unknown_key_is_named(broken):
    edit(broken, lambda raw: raw.update(flavour="vanilla"))
    assert "flavour" in refusal(broken).message


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


@pytest.fixture(scope="module")
def text(bundle: Path) -> str:
    return (bundle / "manifest.json").read_text()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_flipped_bits_of_a_manifest_never_raise_anything_else(text, data):
    """A flip inside a text or a digit may pass here; then its value is still of the right kind."""
    damaged = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 6))
    try:
        manifest = Manifest.from_json(damaged.decode())
    except BundleError as error:
        refused = error.message
    else:
        refused = ""
        assert Manifest.from_json(manifest.to_json()) == manifest
    assert refused == "" or "manifest.json" in refused or "format" in refused


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place_is_taken_or_refused(text, data):
    raw = json.loads(text)
    place = copy.deepcopy(raw)
    node, parents = place, []
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        parents.append((node, key))
        node = node[key]
    parent, key = data.draw(st.sampled_from(parents))
    parent[key] = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([])
    )
    try:
        manifest = Manifest.from_json(json.dumps(place))
    except BundleError as error:
        assert error.remedy  # noqa: PT017 - any value may be refused
    else:
        assert json.loads(manifest.to_json()) == place


def test_a_bundle_from_before_options_and_judges_were_told(bundle):
    manifest = Bundle.load(bundle).manifest
    raw = json.loads(manifest.to_json())
    del raw["options"]
    for network in raw["networks"].values():
        del network["agreement"]["judge"]
    older = Manifest.from_json(json.dumps(raw))
    assert older == replace(manifest, options="")
    assert older.command.endswith("--output DIR --backend onnxruntime …")


def test_a_damaged_file_is_answered_with_the_bundles_own_command(bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    (folder / "unet.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"unet\.onnx is not the file") as caught:
        Bundle.load(folder)
    assert "--backend onnxruntime --precision fp32 --size 64x128" in caught.value.remedy
