"""Finding a bundle: by folder, by name along MIMICMOTION_BUNDLES, and what is said if there is none."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mimicmotion_trt import Animator, BundleError, SettingsError
from mimicmotion_trt.bundles import SEARCH_VARIABLE, find_bundle, load_bundle, own_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder and no search path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SEARCH_VARIABLE, raising=False)


def test_by_folder(bundle, monkeypatch):
    assert find_bundle(bundle) == bundle
    assert find_bundle(str(bundle)) == bundle
    monkeypatch.chdir(bundle.parent)
    assert find_bundle(bundle.name).resolve() == bundle
    monkeypatch.setenv("HOME", str(bundle.parent))
    assert find_bundle(f"~/{bundle.name}") == bundle


def test_by_name_along_the_search_path(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv(SEARCH_VARIABLE, os.pathsep.join(["", str(tmp_path / "nothing"), str(bundle.parent)]))
    assert find_bundle(bundle.name) == bundle
    assert load_bundle(bundle.name).manifest.backend == "onnxruntime"


def test_the_first_place_wins(bundle, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / bundle.name).symlink_to(bundle)
    monkeypatch.setenv(SEARCH_VARIABLE, os.pathsep.join([str(tmp_path / "mine"), str(bundle.parent)]))
    assert find_bundle(bundle.name) == tmp_path / "mine" / bundle.name


def test_a_path_is_not_looked_up_by_name(bundle, monkeypatch):
    monkeypatch.setenv(SEARCH_VARIABLE, str(bundle.parent.parent))
    with pytest.raises(BundleError):
        find_bundle(f"{bundle.parent.name}/{bundle.name}")


@pytest.mark.parametrize(
    "name", ["no-such-bundle", "no/such/bundle", "", "a\0b", "x" * 5000, "~nobody-of-this-name/bundle"]
)
def test_where_there_is_none(name, tmp_path, monkeypatch):
    monkeypatch.setenv(SEARCH_VARIABLE, "/some/place")
    with pytest.raises(BundleError) as caught:
        Animator.load(name)
    assert caught.value.remedy


def test_what_is_said_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(SEARCH_VARIABLE, "/some/place")
    with pytest.raises(BundleError) as caught:
        find_bundle("no-such-bundle")
    assert "'no-such-bundle'" in caught.value.message
    assert "/some/place" in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "mimicmotion-trt build" in caught.value.remedy
    assert SEARCH_VARIABLE in caught.value.remedy


def test_a_folder_without_a_manifest(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json"):
        find_bundle("empty")


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        ({"device": "gpu"}, "device", "cuda:1"),
        ({"device": 0}, "device", "auto, cpu"),
        ({"limits": {"frames": 3}}, "limits", "Limits("),
        ({"threads": 0}, "threads", "1 or more"),
    ],
)
def test_wrong_arguments_are_told_with_the_choices(bundle, options, field, remedy):
    with pytest.raises(SettingsError) as caught:
        Animator.load(bundle, **options)
    assert caught.value.field == field
    assert remedy in caught.value.remedy


def test_what_is_no_name_is_told():
    with pytest.raises(BundleError, match="bundle is None"):
        find_bundle(None)


def test_a_device_that_the_bundle_is_not_for(bundle):
    with pytest.raises(BundleError, match="cuda"):
        Animator.load(bundle, device="cuda")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sizes": [[0, 0]]}, "size is 0"),
        ({"sizes": [[64, 64], [100, 64]]}, "size is 100"),
        ({"defaults": {}}, "there is no segment"),
        ({"defaults": {"segment": 16, "sharpness": 2}}, "unknown setting 'sharpness'"),
        ({"defaults": {"segment": 16, "steps": "many"}}, "steps is 'many'"),
        ({"defaults": {"segment": 16, "size": [64, 65]}}, "size is 65"),
    ],
)
def test_settings_of_its_own_that_this_version_does_not_know(bundle, tmp_path, changed, says):
    """Found when a bundle is loaded, whatever for, not by the first job."""
    folder = Path(shutil.copytree(bundle, tmp_path / "changed"))
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**raw, **changed}))
    for load in (load_bundle, Animator.load):
        with pytest.raises(BundleError) as caught:
            load(folder)
        assert says in caught.value.message
        assert str(folder) in caught.value.message
        assert "--backend onnxruntime --precision fp32 --size 64x128" in caught.value.remedy


def test_the_size_that_a_bundle_wants(bundle, tmp_path):
    """Its first, unless its defaults name one."""
    assert own_settings(load_bundle(bundle)).size == (64, 128)
    opened = load_bundle(bundle)
    wanting = replace(opened.manifest, defaults={**opened.manifest.defaults, "size": [128, 64]})
    assert own_settings(replace(opened, manifest=wanting)).size == (128, 64)
