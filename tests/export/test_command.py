"""`python export/build_engines.py`, as it is run from a shell."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mimicmotion_trt.engines import Bundle
from mimicmotion_trt.errors import ExportError
from mimicmotion_trt.export import build_engines
from mimicmotion_trt.export.options import Options, PlanOptions
from mimicmotion_trt.export.output_folder import Workspace

SCRIPT = Path(__file__).parents[2] / "export" / "build_engines.py"
LIKE_THE_BUNDLE = ("--size", "64x128", "--size", "128x64", "--segment", "16",
                   "--default", "canvas=512", "--default", "steps=3")  # fmt: skip


def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own."""
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def call(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(build_engines.app, [str(argument) for argument in arguments])


def assert_explained(code: int, output: str, says: str) -> None:
    assert code == 1
    assert output.startswith("error: ")
    assert says in output
    assert "Traceback" not in output


def test_help_names_every_option():
    done = shell("--help")
    assert done.returncode == 0
    for option in ("--base", "--checkpoint", "--output", "--backend", "--size", "--segment", "--precision",
                   "--batch", "--default", "--note", "--json", "--margin", "--frames", "--level", "--workspace",
                   "--aux-streams", "--capability", "--refit", "--refit-from", "--weight-streaming",
                   "--deep-cache"):  # fmt: skip
        assert f"{option} " in done.stdout


def test_the_last_line_is_json(tiny, bundle):
    done = shell(
        "--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", bundle, *LIKE_THE_BUNDLE, "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["output"] == str(bundle)
    assert told["built"] is False
    assert len(told["build"]) == 64
    assert set(told["rel_l2"]) == {"unet", "pose_net", "vae_encoder", "vae_decoder", "image_encoder"}
    assert all(error < 1e-4 for error in told["rel_l2"].values())


def test_a_bundle_that_is_there_is_left_alone(tiny, bundle):
    done = call("--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", bundle, *LIKE_THE_BUNDLE)
    assert done.exit_code == 0
    assert "nothing to do" in " ".join(done.output.split())


def test_a_shell_sees_an_error_and_no_traceback(tiny, tmp_path):
    done = shell(
        "--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "o", "--size", "64x65"
    )
    assert_explained(done.returncode, done.stderr, "multiples of 64")
    assert done.stdout == ""


def test_a_base_with_another_scheduler(tiny, tmp_path):
    base = Path(shutil.copytree(tiny.base, tmp_path / "svd"))
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    done = call("--base", base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "out", "--json")
    assert_explained(done.exit_code, done.stderr, "scheduler")
    assert "'prediction_type': 'epsilon'" in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["svd"]


def test_a_hub_id_without_a_network(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = "nobody/nothing"
    done = call("--base", base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "out")
    assert_explained(done.exit_code, done.stderr, "'nobody/nothing' could not be downloaded")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "64"], "WIDTHxHEIGHT"),
        (["--size", "64x65"], "multiples of 64"),
        (["--size", "0x64"], "size is 0"),
        (["--batch", "two"], "no list of numbers"),
        (["--batch", "0"], "1 to 64 rows"),
        (["--segment", "1"], "segment is 1"),
        (["--default", "steps"], "NAME=VALUE"),
        (["--default", "step=3"], "unknown setting 'step'"),
        (["--default", "steps=many"], "steps is 'many'"),
        (["--precision", "fp7"], "fp7"),
        (["--capability", "SM89"], "backend"),
        (["--backend", "tensorrt-rtx", "--capability", "gpu"], "gpu"),
        (["--backend", "tensorrt-rtx", "--level", "9"], "9"),
        (["--backend", "abacus"], "abacus"),
        (["--checkpoint", "nothing.pth"], "No such file"),
        (["--base", "./nowhere"], "is no folder"),
    ],
)
def test_wrong_arguments_are_explained(tiny, tmp_path, arguments, says):
    whole = ["--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "out"]
    done = call(*whole, *arguments)
    assert_explained(done.exit_code, done.stderr, says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["--base", "--checkpoint", "--output"])
def test_what_must_be_given(missing):
    whole = {"--base": "a", "--checkpoint": "b", "--output": "c"}
    arguments = [part for pair in whole.items() if pair[0] != missing for part in pair]
    done = call(*arguments)
    assert done.exit_code == 2
    assert missing in done.stderr


@pytest.fixture
def asked(bundle, monkeypatch) -> list[Options]:
    """The options of every build, none of which is made."""
    given: list[Options] = []

    def built(base, checkpoint, output, options, refit_from, report):
        given.append(options)
        return Bundle.load(bundle).manifest, True

    monkeypatch.setattr(build_engines, "build_bundle", built)
    return given


def test_every_flag_of_a_plan_is_an_option(asked, tmp_path):
    done = call(
        "--base", "b", "--checkpoint", "c", "--output", tmp_path, "--backend", "tensorrt-rtx", "--frames", "8,12",
        "--level", "5", "--workspace", "256", "--aux-streams", "2", "--capability", "SM89", "--refit",
        "--weight-streaming", "--deep-cache", "--precision", "fp8", "--margin", "1.5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert asked == [
        Options(
            backend="tensorrt-rtx",
            precision="fp8",
            margin=1.5,
            deep_cache=True,
            plan=PlanOptions(
                level=5, workspace=256, aux_streams=2, capabilities=("SM89",), refit=True,
                weight_streaming=True, frames=(8, 12),
            ),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(backend="torch", precision="fp16", rows=(3,), segment=16, sizes=((64, 128), (128, 64))),
        Options(precision="fp8", margin=2.0, deep_cache=True, note='it\'s "tiny", $HOME; done'),
        Options(defaults={"guidance": [1.0, 2.5], "fusion": "linear", "rescale": False, "sigma_max": 40.0}),
        Options(backend="tensorrt", plan=PlanOptions(level=0, workspace=1, aux_streams=0, frames=(4, 8))),
        Options(
            backend="tensorrt-rtx", plan=PlanOptions(capabilities=("SM86", "SM89"), weight_streaming=True)
        ),
        Options(
            backend="tensorrt-rtx", precision="fp8", plan=PlanOptions(refit=True, capabilities=("SM89",))
        ),
    ],
)
def test_what_a_bundle_says_of_its_options_builds_it_again(asked, tmp_path, options):
    words = shlex.split(options.arguments)
    done = call("--base", "b", "--checkpoint", "c", "--output", tmp_path, *words)
    assert done.exit_code == 0, done.output
    assert asked == [options]


def test_what_training_wrote_beside_a_checkpoint_goes_before_the_usual_options(asked, tmp_path):
    settings = {
        "size": [64, 128],
        "segment": 8,
        "canvas": 256,
        "steps": 2,
        "guidance": [1.0, 1.0],
        "overlap": 3,
    }
    (tmp_path / "bundle.json").write_text(json.dumps(settings))
    whole = ["--base", "b", "--checkpoint", tmp_path / "mimicmotion.pth", "--output", tmp_path / "out"]
    assert call(*whole).exit_code == 0
    flags = ["--size", "128x64", "--size", "64x64", "--segment", "4", "--default", "steps=9"]
    assert call(*whole, *flags).exit_code == 0
    defaults = {"canvas": 256, "steps": 2, "guidance": [1.0, 1.0], "overlap": 3}
    other = Options(sizes=((128, 64), (64, 64)), segment=4, defaults={**defaults, "steps": 9})
    assert asked == [Options(sizes=((64, 128),), segment=8, defaults=defaults), other]
    (tmp_path / "bundle.json").write_text('{"stepz": 2}')
    assert_explained(call(*whole).exit_code, call(*whole).stderr, "bundle.json cannot be used")


def test_an_interruption(tiny, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_engines, "build_bundle", interrupted)
    done = call("--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "out")
    assert done.exit_code == 130
    assert "nothing was written" in done.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ExportError("no memory")])
def test_finished_networks_are_told_of(tiny, tmp_path, monkeypatch, error):
    def fails(*_, **__):
        error.add_note("finished and kept: unet, pose_net; the same command goes on from there")
        raise error

    monkeypatch.setattr(build_engines, "build_bundle", fails)
    done = call("--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "out")
    assert done.exit_code in (1, 130)
    assert "finished and kept: unet, pose_net; the same command goes on from there" in done.stderr
    assert "nothing was written" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--level", "9"], ["--size", "100x100"], ["--checkpoint", "nothing.pth"]]
)
def test_what_another_command_keeps_is_none_of_this_ones(tiny, tmp_path, bundle, arguments):
    """A build that was interrupted has left a network; this command would not go on from it."""
    with contextlib.suppress(KeyboardInterrupt), Workspace(tmp_path / "out", "another build") as workspace:
        for name, network in Bundle.load(bundle).manifest.networks.items():
            for file in network.files:
                shutil.copy(bundle / file.name, workspace.bundle)
            workspace.keep(name, network)
        raise KeyboardInterrupt
    whole = ["--base", tiny.base, "--checkpoint", tiny.checkpoint, "--output", tmp_path / "out"]
    done = call(*whole, *arguments)
    assert_explained(done.exit_code, done.stderr, "")
    assert "kept" not in done.stderr
    assert workspace.root.exists()


def test_a_report_of_what_was_built(tiny, bundle, tmp_path, monkeypatch):
    asked = []

    def built(base, checkpoint, output, options, refit_from, report):
        asked.append((base, checkpoint, output, options, refit_from))
        report("exporting unet", 1, 6)
        return Bundle.load(bundle).manifest, True

    monkeypatch.setattr(build_engines, "build_bundle", built)
    done = call(
        "--base", "owner/name", "--checkpoint", "c.pth", "--output", tmp_path / "a[fp16]", "--batch", "1,3",
        "--note", "hello", "--default", "fusion=linear", "--default", "guidance=[1,2]", "--refit-from", "former",
    )  # fmt: skip
    assert done.exit_code == 0
    assert "vae_decoder" in done.output
    assert re.search(r"a\[fp16\]\s+built in", done.output)
    ((base, checkpoint, output, options, refit_from),) = asked
    assert (base, checkpoint, output) == ("owner/name", Path("c.pth"), tmp_path / "a[fp16]")
    assert refit_from == Path("former")
    assert (options.rows, options.segment, options.note) == ((1, 3), 72, "hello")
    assert options.sizes == ((576, 1024), (1024, 576))
    assert options.defaults == {"fusion": "linear", "guidance": [1, 2]}
