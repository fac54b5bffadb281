"""What an unfinished build keeps, and what it clears away."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from mimicmotion_trt.engines import Bundle, Network
from mimicmotion_trt.engines.bundle import describe_file
from mimicmotion_trt.errors import OutputError
from mimicmotion_trt.export.parts import Parts, make_partial


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def parts(output: Path, bundle: Path) -> Iterator[Parts]:
    """The U-Net is finished."""
    made = Parts(output, "key" * 10)
    (made.folder / "unet-1.plan").write_bytes(b"plan")
    made.put("unet", finished(made, bundle))
    yield made
    made.close()


def finished(parts: Parts, bundle: Path) -> Network:
    network = Bundle.load(bundle).manifest.networks["unet"]
    return Network(
        network.spec,
        (describe_file(parts.folder / "unet-1.plan"),),
        network.agreement,
        network.work,
        network.audit,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_no_finished_network_names_is_cleared_away(parts):
    for rest in ("pose_net.onnx", "pose_net.weights", ".pose_net.json", ".pose_net.plan.ab12"):
        (parts.folder / rest).write_bytes(b"half")
    parts.close()
    assert names(parts.folder) == ["unet-1.plan", "unet.json"]
    assert list(parts.finished) == ["unet"]


def test_a_network_whose_files_have_gone_is_not_finished(parts):
    (parts.folder / "unet-1.plan").unlink()
    parts.close()
    assert not parts.folder.exists()
    assert parts.finished == {}


def test_after_a_build_that_was_killed_the_next_one_clears_away(parts, output):
    (parts.folder / "pose_net.onnx").write_bytes(b"half")
    parts._unlock()  # as when the process is killed
    again = Parts(output, "key" * 10)
    assert names(again.folder) == ["unet-1.plan", "unet.json"]
    assert again.get("unet") is not None
    again.close()


def test_where_nothing_is_finished_no_folder_is_left(output):
    parts = Parts(output, "key")
    (parts.folder / "unet.onnx").write_bytes(b"half")
    parts.close()
    assert names(output.parent) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_is_told_what_is_kept(parts, output, error):
    with pytest.raises(error) as caught, parts:
        raise error
    assert caught.value.__notes__ == ["finished and kept: unet; the same command goes on from there"]
    with pytest.raises(error) as caught, Parts(output, "another build"):
        raise error
    assert not hasattr(caught.value, "__notes__")


def test_one_build_at_a_time(parts, output):
    """The second one is refused and takes nothing from the first."""
    (parts.folder / "pose_net.onnx").write_bytes(b"at work")
    with pytest.raises(OutputError, match="another build of this output is running") as caught:
        Parts(output, "key" * 10)
    assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)
    assert names(parts.folder) == ["pose_net.onnx", "unet-1.plan", "unet.json"]
    parts.close()
    Parts(output, "key" * 10).close()


def test_only_folders_that_nobody_holds_are_dropped(parts, output):
    """A finished build drops its own and those of earlier builds, not what another one is at."""
    earlier, other = Parts(output, "earlier"), Parts(output, "other")
    (earlier.folder / "unet.onnx").write_bytes(b"half")
    earlier._unlock()
    (other.folder / "unet.onnx").write_bytes(b"at work")
    parts.clear()
    assert [part.folder.exists() for part in (parts, earlier, other)] == [False, False, True]
    assert names(other.folder) == ["unet.onnx"]
    later = Parts(output, "key" * 10)
    (later.folder / "unet.onnx").write_bytes(b"at work")
    parts.close()  # cleared before: the folder of that name is another's now
    assert names(later.folder) == ["unet.onnx"]
    for part in (later, other):
        part.close()
    assert names(output.parent) == []


def test_a_folder_that_is_deleted_before_it_is_locked(output, monkeypatch):
    """By a build that ends at this very moment."""
    lock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        (output.parent / ".out.parts-key").rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="another build"):
        Parts(output, "key")


@pytest.mark.parametrize("links", [True, False])
def test_a_bundle_takes_the_files_and_the_parts_keep_them(parts, output, monkeypatch, links):
    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    output.mkdir()
    parts.link(output)
    assert (output / "unet-1.plan").read_bytes() == b"plan"
    assert (output / "unet-1.plan").samefile(parts.folder / "unet-1.plan") == links
    assert parts.get("unet") is not None


def test_names_are_no_patterns(tmp_path):
    """What looks like one for other files."""
    kept = tmp_path / ".a.parts-key"
    kept.mkdir()
    parts = Parts(tmp_path / "[ab]", "key")
    assert parts.folder.is_dir()
    parts.clear()
    assert names(tmp_path) == [kept.name]


@pytest.mark.parametrize(
    "damaged", ["[]", "{", "null", '{"spec": []}', '{"spec": {"inputs": [1]}}', '{"files": {}}', "\x00"]
)
def test_a_damaged_note_is_of_no_finished_network(parts, damaged):
    (parts.folder / "unet.json").write_text(damaged)
    assert parts.get("unet") is None


def test_a_value_of_a_wrong_kind_is_damage(parts, bundle):
    raw = asdict(finished(parts, bundle))
    for key in raw:
        (parts.folder / "unet.json").write_text(json.dumps(raw | {key: 7}))
        assert parts.get("unet") is None, key


def test_an_altered_file_is_of_no_finished_network(parts):
    (parts.folder / "unet-1.plan").write_bytes(b"nalp")
    assert parts.get("unet") is None


def test_folders_of_builds_that_were_killed_are_deleted(output):
    """A lock ends with its process; one that is held belongs to a build that runs."""
    first, lock = make_partial(output)
    (first / "unet.onnx").write_bytes(b"half")
    second, other = make_partial(output)
    assert (first.exists(), second.exists()) == (True, True)
    os.close(lock)  # as when the process is killed
    third, last = make_partial(output)
    assert [path.exists() for path in (first, second, third)] == [False, True, True]
    for descriptor in (other, last):
        os.close(descriptor)


def test_the_users_own_folders_are_left_alone(output):
    (mine := output.parent / ".out.original").mkdir()
    _, lock = make_partial(output)
    os.close(lock)
    assert mine.exists()
