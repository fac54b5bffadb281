"""Where a finished bundle goes: it takes the place of a bundle or of nothing, and of nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mimicmotion_trt.engines import Bundle
from mimicmotion_trt.errors import OutputError
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.place import check_place, find_place, put


@pytest.fixture
def place(bundle: Path, tmp_path: Path) -> Path:
    """A folder of its own that holds a whole bundle."""
    return Path(shutil.copytree(bundle, tmp_path / "out" / "bundle"))


@pytest.fixture
def partial(bundle: Path, tmp_path: Path) -> Path:
    """A finished bundle that has no place yet; it has a remark."""
    folder = Path(shutil.copytree(bundle, tmp_path / "out" / ".partial"))
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(raw | {"note": "the new one"}, indent=1))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def older(folder: Path) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(raw | {"format": 1}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "whole": lambda _: None,
    "an engine is cut off": lambda folder: os.truncate(folder / "unet.onnx", 10),
    "an engine has gone": lambda folder: (folder / "unet.onnx").unlink(),
    "the manifest is cut off": lambda folder: os.truncate(folder / "manifest.json", 60),
    "of an older format": older,
    "of plans": lambda folder: (folder / "unet.onnx").rename(folder / "unet-0123456789abcdef.plan"),
    "of PyTorch": lambda folder: (folder / "unet.onnx").rename(folder / "unet.ts"),
    "with large weights": lambda folder: (folder / "unet_caching.weights").touch(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_bundle_is_replaced_whole_or_damaged(place, damage):
    damage(place)
    check_place(place)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a folder named like a network": lambda folder: (folder / "unet").mkdir(),
    "a folder named like an engine": lambda folder: (folder / "unet_shallow.onnx").mkdir(),
    "notes": lambda folder: (folder / "unet-notes.txt").touch(),
    "an engine of another name": lambda folder: (folder / "unet-mine.onnx").touch(),
    "a manifest of something else": lambda folder: (folder / "manifest.json").write_text(
        '{"name": "webapp"}'
    ),
    "an empty manifest": lambda folder: os.truncate(folder / "manifest.json", 0),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("fill", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_a_bundle_alone_is_refused(place, fill):
    fill(place)
    with pytest.raises(OutputError, match="exists and is no bundle") as caught:
        check_place(place)
    assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)


@pytest.mark.parametrize(
    "output",
    ["bundle", "bundle/../bundle", "bundle/sub/../../bundle", "none/../bundle", "./bundle/."],
)
def test_a_path_through_the_place_itself_is_the_place(place, monkeypatch, output):
    monkeypatch.chdir(place.parent)
    assert find_place(output) == place.resolve()
    assert names(place.parent) == ["bundle"]


def test_a_path_through_a_link_is_where_it_leads(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/er")
    assert find_place(tmp_path / "link" / ".." / "bundle") == (tmp_path / "deep" / "bundle").resolve()


@pytest.mark.parametrize("leads_to", ["nothing", "link"])
def test_a_link_that_leads_nowhere_is_refused_before_anything_is_built(micro, tmp_path, leads_to):
    link = tmp_path / "link"
    link.symlink_to(leads_to)
    with pytest.raises(OutputError, match=rf"a link to {leads_to}, where nothing is") as caught:
        build_bundle(micro.base, micro.checkpoint, link)
    assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)
    assert names(tmp_path) == ["link"]


def test_of_a_link_the_bundle_takes_the_place_and_what_it_leads_to_stays(place, partial):
    link = place.parent / "link"
    link.symlink_to("bundle")
    check_place(find_place(link))
    put(partial, find_place(link))
    assert (Bundle.load(link).manifest.note, Bundle.load(place).manifest.note) == ("the new one", "")
    assert names(place.parent) == ["bundle", "link"]


def test_a_link_is_put_back_when_the_last_step_fails(place, partial):
    link = place.parent / "link"
    link.symlink_to("bundle")
    shutil.rmtree(partial)
    with pytest.raises(FileNotFoundError):
        put(partial, link)
    assert link.readlink() == Path("bundle")
    assert names(place.parent) == ["bundle", "link"]
