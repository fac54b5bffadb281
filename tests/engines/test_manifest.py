"""Manifests: what any of them says survives its file, and what is altered in any place is taken or refused."""

from __future__ import annotations

import copy
import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimicmotion_trt import BundleError
from mimicmotion_trt.bundles import load_bundle
from mimicmotion_trt.engines import (
    Accuracy,
    EnginePlan,
    EngineSpec,
    File,
    FlopModel,
    GraphStats,
    ImageStatistics,
    Manifest,
    Network,
    Profile,
)
from mimicmotion_trt.engines import network_specs as specs_of

NAMES = st.text(min_size=1, max_size=12)
NUMBERS = st.floats(0, 1e6)
POSITIVE = st.floats(1e-6, 1e6)
FILES = st.builds(File, NAMES, st.integers(0, 2**40), st.text("0123456789abcdef", min_size=64, max_size=64))


def plans(spec: EngineSpec) -> st.SearchStrategy[EnginePlan | None]:
    """No plan, or one whose profiles give a range for each free dimension."""
    free = {dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)}
    ranges = st.lists(st.integers(1, 999), min_size=3, max_size=3).map(lambda sizes: tuple(sorted(sizes)))
    profiles = st.builds(Profile, st.fixed_dictionaries(dict.fromkeys(sorted(free), ranges)))
    listed = st.lists(profiles, min_size=1, max_size=3).map(tuple)
    return st.none() | st.builds(EnginePlan, NAMES, NAMES, listed, st.booleans(), st.booleans())


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    specs = specs_of(
        pose_channels=draw(st.integers(1, 999)), token_width=draw(st.integers(1, 999)), image_size=8
    )
    agreements = st.builds(Accuracy, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 9), NAMES)
    works = st.builds(FlopModel, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
    audits = st.builds(GraphStats, *[st.integers(0, 9999)] * 9)
    files = st.lists(FILES, min_size=1, max_size=2)
    return Manifest(
        backend=draw(NAMES),
        precision=draw(st.sampled_from(["fp32", "fp16", "fp8"])),
        build=draw(NAMES),
        networks={
            name: Network(
                spec, tuple(draw(files)), draw(agreements), draw(works), draw(audits), draw(plans(spec))
            )
            for name, spec in specs.items()
        },
        sizes=tuple(draw(st.lists(st.tuples(*[st.integers(1, 9999)] * 2), min_size=1, max_size=3))),
        rows=tuple(sorted(draw(st.sets(st.integers(1, 64), min_size=1, max_size=3)))),
        scaling_factor=draw(POSITIVE),
        image=ImageStatistics(8, *draw(st.tuples(*[st.tuples(*[POSITIVE] * 3)] * 2))),
        defaults=draw(st.dictionaries(NAMES, st.integers() | NUMBERS | NAMES, max_size=3)),
        note=draw(st.text()),
        options=shlex.join(draw(st.lists(st.text(), max_size=3))),
        versions=draw(st.dictionaries(NAMES, NAMES, max_size=2)),
    )


@settings(max_examples=20)
@given(manifests())
def test_manifest_round_trip(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.fixture(scope="module")
def text() -> str:
    return (load_bundle("tiny").folder / "manifest.json").read_text()


@settings(max_examples=80)
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


@settings(max_examples=50)
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
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats()
        | st.text(max_size=3)
        | st.just([])
    )
    try:
        manifest = Manifest.from_json(json.dumps(place))
    except BundleError as error:
        assert error.remedy  # noqa: PT017 - any value may be refused
    else:
        assert json.loads(manifest.to_json()) == place
