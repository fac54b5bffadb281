"""A bundle takes the place of a bundle or of nothing, and what an unfinished build keeps is its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mimicmotion_trt.engines import Bundle, Manifest, Network
from mimicmotion_trt.engines.bundle import describe_file
from mimicmotion_trt.errors import OutputError
from mimicmotion_trt.export.output_folder import Workspace, check_output, find_present

KEY = "key" * 10


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


@pytest.fixture
def place(bundle: Path, output: Path) -> Path:
    """An output that holds a whole bundle."""
    return Path(shutil.copytree(bundle, output))


@pytest.fixture
def manifest(opened: Bundle) -> Manifest:
    """That of a finished bundle, with a remark."""
    return replace(opened.manifest, note="the new one")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(workspace: Workspace, bundle: Path) -> None:
    """Write the files of a whole bundle."""
    for path in set(bundle.iterdir()) - {bundle / "manifest.json"}:
        shutil.copy(path, workspace.bundle)


def finish_unet(workspace: Workspace, opened: Bundle) -> Network:
    """The U-Net is finished."""
    (workspace.bundle / "unet-1.plan").write_bytes(b"plan")
    file = describe_file(workspace.bundle / "unet-1.plan")
    network = replace(opened.manifest.networks["unet"], files=(file,), for_lora=())
    workspace.keep("unet", network)
    return network


def interrupt(output: Path, opened: Bundle, key: str = KEY) -> Workspace:
    """A build that was interrupted when the U-Net was finished and PoseNet begun."""
    with contextlib.suppress(KeyboardInterrupt), Workspace(output, key) as workspace:
        finish_unet(workspace, opened)
        for rest in ("pose_net.onnx", "pose_net.weights"):
            (workspace.bundle / rest).write_bytes(b"half")
        raise KeyboardInterrupt
    return workspace


def fail(output: Path, error: type[BaseException], key: str = KEY) -> None:
    """A build that ends before anything new is finished."""
    with Workspace(output, key) as workspace:
        (workspace.bundle / "pose_net.onnx").write_bytes(b"half")
        raise error


# --- what an unfinished build keeps ----------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_finished_networks_are_kept_and_told_of(output, opened, error):
    kept = interrupt(output, opened)
    assert names(kept.bundle) == ["unet-1.plan"]
    with pytest.raises(error) as caught:
        fail(output, error)
    assert caught.value.__notes__ == ["finished and kept: unet; the same command goes on from there"]
    assert names(kept.bundle) == ["unet-1.plan"]
    with Workspace(output, KEY) as again:
        assert again.finished == kept.finished
    assert names(output.parent) == []


def test_another_build_does_not_go_on_from_them(output, opened):
    kept = interrupt(output, opened)
    with Workspace(output, "another build") as other:
        assert other.finished == {}
    with pytest.raises(ValueError) as caught:
        fail(output, ValueError, "another build")
    assert not hasattr(caught.value, "__notes__")
    assert names(output.parent) == [kept.root.name]


def test_where_nothing_is_finished_nothing_is_left(output):
    with pytest.raises(KeyboardInterrupt):
        fail(output, KeyboardInterrupt)
    assert names(output.parent) == []


def test_what_was_timed_is_kept_before_any_network_is_finished(output):
    with contextlib.suppress(KeyboardInterrupt), Workspace(output, KEY) as workspace:
        workspace.timings.write_bytes(b"timed")
        raise KeyboardInterrupt
    with Workspace(output, KEY) as again:
        assert again.timings.read_bytes() == b"timed"
    assert names(output.parent) == []


def test_after_a_build_that_was_killed_the_next_one_clears_away(output, opened):
    kept = interrupt(output, opened)
    (kept.bundle / "pose_net.onnx").write_bytes(b"half")
    with Workspace(output, KEY) as again:
        assert names(again.bundle) == ["unet-1.plan"]
        assert list(again.finished) == ["unet"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file has gone": lambda root: (root / "bundle" / "unet-1.plan").unlink(),
    "a file was altered": lambda root: (root / "bundle" / "unet-1.plan").write_bytes(b"nalp"),
    **{
        f"the note is {text}": lambda root, text=text: (root / "finished.json").write_text(text)
        for text in ("[]", "{", "null", '{"unet": []}', '{"unet": {"spec": {"inputs": [1]}}}', "\x00")
    },
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_not_finished(output, opened, damage):
    damage(interrupt(output, opened).root)
    with Workspace(output, KEY) as again:
        assert again.finished == {}
        assert names(again.bundle) == []


def test_a_value_of_a_wrong_kind_is_damage(output, opened):
    kept = interrupt(output, opened)
    notes = kept.root / "finished.json"
    raw = json.loads(notes.read_text())
    for key in raw["unet"]:
        notes.write_text(json.dumps({"unet": raw["unet"] | {key: 7}}))
        (kept.bundle / "unet-1.plan").write_bytes(b"plan")
        with Workspace(output, KEY) as again:
            assert again.finished == {}, key
        kept.bundle.mkdir(parents=True)


# --- two builds at once ----------------------------------------------------------------------------------


def test_one_build_at_a_time(output, opened):
    """The second one is refused and takes nothing from the first."""
    with Workspace(output, KEY) as first:
        finish_unet(first, opened)
        (first.bundle / "pose_net.onnx").write_bytes(b"at work")
        with pytest.raises(OutputError, match="another run is at work") as caught:
            fail(output, ValueError)
        assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)
        assert names(first.bundle) == ["pose_net.onnx", "unet-1.plan"]
    with Workspace(output, KEY):
        pass


def test_a_finished_build_drops_what_earlier_ones_left_but_not_what_others_are_at(
    output, opened, bundle, manifest
):
    earlier = interrupt(output, opened, "an earlier build")
    mine = output.parent / ".bundle.original"
    mine.mkdir()
    with Workspace(output, "another build") as other, Workspace(output, KEY) as workspace:
        (other.bundle / "unet.onnx").write_bytes(b"at work")
        fill(workspace, bundle)
        workspace.publish(manifest)
        assert not earlier.root.exists()
        assert names(other.bundle) == ["unet.onnx"]
    assert names(output.parent) == [".bundle.original", "bundle"]


def test_names_are_no_patterns(tmp_path, bundle, manifest):
    """What looks like one for other folders."""
    kept = tmp_path / ".a.build-key"
    kept.mkdir()
    with Workspace(tmp_path / "[ab]", KEY) as workspace:
        fill(workspace, bundle)
        workspace.publish(manifest)
    assert names(tmp_path) == [kept.name, "[ab]"]


# --- the last step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False], ids=["another bundle is there", "nothing is there"])
def test_the_finished_bundle_is_put_in_place(output, bundle, manifest, before):
    if before:
        shutil.copytree(bundle, output)
    with Workspace(output, KEY) as workspace:
        fill(workspace, bundle)
        workspace.publish(manifest)
    assert Bundle.load(output).manifest == manifest
    assert names(output.parent) == ["bundle"]
    assert output.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(18, "Invalid cross-device link")])
def test_what_was_there_is_put_back_when_the_last_step_fails(place, opened, manifest, monkeypatch, error):
    """The old bundle is out of the way, the new one not in place."""
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if source.name == "bundle" and target == place:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with contextlib.suppress(KeyboardInterrupt, OSError), Workspace(place, KEY) as workspace:
        finish_unet(workspace, opened)
        workspace.publish(manifest)
    assert Bundle.load(place).manifest == opened.manifest
    assert names(workspace.bundle) == ["unet-1.plan"]


def test_what_was_there_is_put_back_after_a_build_that_was_killed_in_the_last_step(place, opened):
    workspace = interrupt(place, opened)
    os.rename(place, workspace.root / "former")
    with Workspace(place, KEY):
        assert Bundle.load(place).manifest == opened.manifest


def test_of_a_link_the_bundle_takes_the_place_and_what_it_leads_to_stays(place, bundle, manifest):
    link = place.parent / "link"
    link.symlink_to("bundle")
    check_output(link)
    with Workspace(link, KEY) as workspace:
        fill(workspace, bundle)
        workspace.publish(manifest)
    assert (Bundle.load(link).manifest.note, Bundle.load(place).manifest.note) == ("the new one", "")
    assert names(place.parent) == ["bundle", "link"]


# --- what may be replaced --------------------------------------------------------------------------------


def older(folder: Path) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(raw | {"format": 1}))


DAMAGED: dict[str, Callable[[Path], object]] = {
    "whole": lambda _: None,
    "an engine is cut off": lambda folder: os.truncate(folder / "unet.onnx", 10),
    "an engine has gone": lambda folder: (folder / "unet.onnx").unlink(),
    "the manifest is cut off": lambda folder: os.truncate(folder / "manifest.json", 60),
    "of an older format": older,
    "of plans": lambda folder: (folder / "unet.onnx").rename(folder / "unet-0123456789abcdef.plan"),
    "of PyTorch": lambda folder: (folder / "unet.onnx").rename(folder / "unet.ts"),
    "with large weights": lambda folder: (folder / "unet_caching.weights").touch(),
    "of a version with other networks": lambda folder: (folder / "unet_keep.onnx").touch(),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_bundle_is_replaced_whole_or_damaged(place, damage):
    damage(place)
    check_output(place)


def test_a_damaged_bundle_is_none(place, opened):
    assert find_present(place, opened.manifest.build) == opened.manifest
    assert find_present(place, "another build") is None
    os.truncate(place / "unet.onnx", 10)
    assert find_present(place, opened.manifest.build) is None


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a folder named like a network": lambda folder: (folder / "unet").mkdir(),
    "a folder named like an engine": lambda folder: (folder / "unet_shallow.onnx").mkdir(),
    "notes": lambda folder: (folder / "unet-notes.txt").touch(),
    "an engine of another name": lambda folder: (folder / "unet-mine.onnx").touch(),
    "a manifest of something else": lambda folder: (folder / "manifest.json").write_text('{"name": "app"}'),
    "an empty manifest": lambda folder: os.truncate(folder / "manifest.json", 0),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("fill", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_a_bundle_alone_is_refused(place, fill):
    fill(place)
    with pytest.raises(OutputError, match="exists and is no bundle") as caught:
        check_output(place)
    assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)
