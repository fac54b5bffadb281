"""The last step of a build, two builds at once, and inputs and places that cannot be: what a build of plans keeps.

Exporting and compiling are stand-ins: files of a bundle that is there are the plans.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimicmotion_trt.engines import NETWORKS, Bundle, Manifest
from mimicmotion_trt.errors import BundleError, CheckpointError, ExportError, MimicMotionError, OutputError
from mimicmotion_trt.export import build, key, target
from mimicmotion_trt.export.build import build_bundle
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.parts import Parts

from ..engines.stand_in_tensorrt import HostGpu
from .test_command import assert_explained, call

OPTIONS = Options(backend="tensorrt")
UNREADABLE = Path("/proc/self/mem")
"""A file that answers no read at its beginning, not even to root."""


class Quick:
    """Builds at once; `made` are the networks that it did not find finished."""

    def __init__(self, bundle: Path) -> None:
        self.bundle, self.made = bundle, list[str]()
        self.gpu = HostGpu()
        self.while_building: Callable[[], Any] = lambda: None

    def __call__(self, folder: Path, checkpoint: Path, partial: Path, options: Options, key: str, report: Any,
                 parts: Parts | None, former: None) -> Manifest:  # fmt: skip
        whole = Bundle.load(self.bundle).manifest
        for name in NETWORKS:
            if parts is None or parts.get(name) is None:
                self.made.append(name)
                shutil.copy(self.bundle / f"{name}.onnx", parts.folder if parts else partial)
                if parts:
                    parts.put(name, whole.networks[name])
        self.while_building()
        return replace(whole, build=key, note=options.note)


@pytest.fixture
def quick(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    made = Quick(bundle)
    monkeypatch.setattr(build, "_build", made)
    monkeypatch.setattr(key, "library_version", lambda flavour: "tensorrt 11.4.0.106")
    monkeypatch.setattr(target, "open_gpu", lambda index: made.gpu)
    return made


@pytest.fixture
def run(quick: Quick, tiny: Any, tmp_path: Path) -> Callable[..., bool]:
    """Builds into `out/bundle`; whether anything had to be built."""

    def built(options: Options = OPTIONS) -> bool:
        return build_bundle(tiny.base, tiny.checkpoint, tmp_path / "out" / "bundle", options)[1]

    return built


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the GPU ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [("NVIDIA L40S", "SM89"), ("NVIDIA L4", "SM90")])
def test_on_another_gpu_the_same_command_builds_anew(quick, run, tmp_path, other):
    assert run()
    assert not run()
    quick.made.clear()
    quick.gpu.name, quick.gpu.capability = other
    assert run()
    assert quick.made == list(NETWORKS)
    assert names(tmp_path / "out") == ["bundle"]


def test_networks_that_another_gpu_finished_are_not_gone_on_from(quick, run, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    quick.while_building = interrupt
    for name in ("NVIDIA L4", "NVIDIA L40S"):
        quick.gpu.name = name
        with pytest.raises(KeyboardInterrupt):
            run()
        assert quick.made == list(NETWORKS)
        quick.made.clear()
    assert len(names(tmp_path / "out")) == 2
    quick.while_building = lambda: None
    assert run()
    assert quick.made == []
    assert names(tmp_path / "out") == ["bundle"]


def test_plans_for_given_gpus_do_not_depend_on_the_one_that_is_here(quick, tiny):
    options = Options(backend="tensorrt-rtx", plan=PlanOptions(capabilities=("SM89",)))
    before = [key.build_key(tiny.base, tiny.checkpoint, some) for some in (options, Options(), OPTIONS)]
    quick.gpu.name = "NVIDIA L40S"
    after = [key.build_key(tiny.base, tiny.checkpoint, some) for some in (options, Options(), OPTIONS)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False]


# --- two builds at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime", "torch"])
def test_a_second_build_of_the_same_is_refused_and_the_first_one_ends_well(quick, run, tmp_path, backend):
    told: list[str] = []

    def second() -> None:
        with pytest.raises(OutputError, match="another build of this output is running") as caught:
            run(Options(backend=backend))
        told.append(caught.value.remedy)

    quick.while_building = second
    assert run(Options(backend=backend))
    assert len(told) == 1
    assert quick.made == list(NETWORKS)
    assert names(tmp_path / "out") == ["bundle"]
    Bundle.load(tmp_path / "out" / "bundle")


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_of_graphs_nothing_is_kept(quick, run, tmp_path, backend):
    """They are made in seconds."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    quick.while_building = interrupt
    with pytest.raises(KeyboardInterrupt) as caught:
        run(Options(backend=backend))
    assert not hasattr(caught.value, "__notes__")
    assert names(tmp_path / "out") == []


def test_a_build_with_other_options_leaves_the_first_ones_files_alone(quick, run, tmp_path):
    def second() -> None:
        quick.while_building = lambda: None
        assert run(replace(OPTIONS, note="other"))

    quick.while_building = second
    assert run()
    assert quick.made == [*NETWORKS, *NETWORKS]
    assert Bundle.load(tmp_path / "out" / "bundle").manifest.note == ""
    assert names(tmp_path / "out") == ["bundle"]


# --- the last step ---------------------------------------------------------------------------------------


def refuse(*_: object) -> None:
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


@pytest.mark.parametrize("before", [True, False], ids=["another bundle is there", "nothing is there"])
@pytest.mark.parametrize("links", [True, False], ids=["hard links", "copies"])
def test_plans_outlive_a_failed_last_step(quick, run, bundle, tmp_path, monkeypatch, before, links):
    output = tmp_path / "out" / "bundle"
    if before:
        shutil.copytree(bundle, output)
    with monkeypatch.context() as patch:
        patch.setattr(build.os, "rename", refuse)
        if not links:
            patch.setattr(build.os, "link", refuse)
        with pytest.raises(OutputError, match="the finished bundle cannot be put at") as caught:
            run()
    assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)
    assert caught.value.__notes__ == [
        f"finished and kept: {', '.join(NETWORKS)}; the same command goes on from there"
    ]
    assert output.exists() == before
    quick.made.clear()
    assert run()
    assert quick.made == []
    Bundle.load(output)
    assert names(tmp_path / "out") == ["bundle"]


def test_plans_outlive_an_interruption_of_the_last_step(quick, run, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build.os, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()
    quick.made.clear()
    assert run()
    assert quick.made == []


def test_a_path_through_the_bundle_itself_loses_nothing(quick, tiny, bundle, tmp_path):
    output = Path(shutil.copytree(bundle, tmp_path / "out" / "bundle"))
    assert build_bundle(tiny.base, tiny.checkpoint, output / "sub" / ".." / ".." / "bundle", OPTIONS)[1]
    assert Bundle.load(output).manifest.networks.keys() == set(NETWORKS)
    assert names(tmp_path / "out") == ["bundle"]


@pytest.mark.parametrize("output", ["/proc", ".", ".."])
def test_what_cannot_be_renamed_is_refused_first(quick, tiny, output):
    with pytest.raises(OutputError, match="cannot take the place of") as caught:
        build_bundle(tiny.base, tiny.checkpoint, output, OPTIONS)
    assert str(Path(output) / "bundle") in caught.value.remedy
    assert quick.made == []


# --- what cannot be read or written ----------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "bundle"])
def test_an_output_whose_name_is_too_long(tiny, tmp_path, below):
    output = tmp_path / ("x" * 300) / below
    done = call("--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", output)
    assert_explained(done.exit_code, done.stderr, "File name too long")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "output", ["x" * 245, "file/bundle"], ids=["the folders beside it", "a file above it"]
)
def test_an_output_beside_which_nothing_can_be_made(tiny, tmp_path, output):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written") as caught:
        build_bundle(tiny.base, tiny.checkpoint, tmp_path / output)
    assert (caught.value.field, bool(caught.value.remedy)) == ("output", True)
    assert names(tmp_path) == ["file"]


def closed(*_: object) -> None:
    """Root may enter any folder and read any file, so the answer of one that is closed is a stand-in."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "closed")


def test_an_output_below_a_folder_that_may_not_be_entered(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_present", closed)
    done = call("--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "out")
    assert_explained(done.exit_code, done.stderr, "Permission denied: 'closed'")
    assert "Check the name, the permissions" in done.stderr


def test_a_checkpoint_that_cannot_be_read(tiny, tmp_path):
    for checkpoint, says in ((UNREADABLE, "Input/output error"), (tmp_path / ("x" * 300), "name too long")):
        assert_told(CheckpointError, "checkpoint", says, tiny.base, checkpoint, tmp_path / "out")
    done = call("--base", tiny.base, "--checkpoint", UNREADABLE, "--output", tmp_path / "out")
    assert_explained(done.exit_code, done.stderr, f"checkpoint {UNREADABLE} cannot be read")


def test_a_base_that_cannot_be_read(tiny, tmp_path):
    base = Path(shutil.copytree(tiny.base, tmp_path / "svd"))
    (base / "vae" / "more.json").symlink_to(UNREADABLE)
    assert_told(
        CheckpointError, "base", f"base {base} cannot be read", base, tiny.checkpoint, tmp_path / "out"
    )
    assert_told(CheckpointError, "base", "name too long", "x" * 300, tiny.checkpoint, tmp_path / "out")


def test_a_former_bundle_that_cannot_be_read(quick, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build.Bundle, "load", closed)
    options = replace(OPTIONS, plan=PlanOptions(refit=True))
    with pytest.raises(BundleError, match="former cannot be read") as caught:
        build_bundle(tiny.base, tiny.checkpoint, tmp_path / "out", options, refit_from=tmp_path / "former")
    assert caught.value.field == "refit_from"


def test_what_a_library_raises_is_an_export_error_still(quick, run):
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    quick.while_building = full
    with pytest.raises(ExportError, match="No space left"):
        run()


def assert_told(
    kind: type[MimicMotionError], field: str, says: str, base: Any, checkpoint: Path, output: Path
) -> None:
    with pytest.raises(kind, match=says) as caught:
        build_bundle(base, checkpoint, output)
    assert (caught.value.field, bool(caught.value.remedy)) == (field, True)
    assert not output.exists()
