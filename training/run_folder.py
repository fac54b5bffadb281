"""The folder of a run: snapshots of all that it needs to go on, and the files in which it says what it did."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError

from ..errors import CheckpointError, MimicMotionError, OutputError, SettingsError
from ..files import output_errors, write_text
from ..media.picture import write_picture
from .checkpoints import local_base, share_files
from .config import Config, build

Values = Mapping[str, float | int | None]
STATE = "run.json"
LIBRARIES = ("mimicmotion-trt", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")
"""Whose versions a run notes down."""
MAY_CHANGE = (
    "output", "steps", "save_every", "keep", "log_every", "trackers", "validation", "half_weights", "comfyui"
)  # fmt: skip
"""Keys that may differ in a resumed run without changing what came before. So may `data.cache` and `data.workers`."""


def check_inputs(config: Config) -> None:
    """Raise `CheckpointError` or `SettingsError` for what the config names and is not there; writes nothing."""
    if config.base is not None and config.recipe is None:
        local_base(config.base)
    files = {}
    if config.stage in ("motion", "decoder", "together"):
        files["checkpoint"] = config.checkpoint
    if config.stage in ("vae", "together") and config.vae.perceptual_weight:
        files["vae.landmarks"] = config.vae.landmarks
    for name, path in files.items():
        if path is not None and not Path(path).is_file():
            raise CheckpointError(
                f"{name} {path} does not exist.",
                remedy="Check the name; the stage before writes it at its end.",
                field=name,
            )
    if config.data.path is not None and not Path(config.data.path).exists():
        raise SettingsError(
            f"data.path {config.data.path} does not exist.",
            remedy="Check the name; `mimicmotion-trt prepare` writes shards.",
            field="data.path",
        )
    if "wandb" in config.trackers and importlib.util.find_spec("wandb") is None:
        raise SettingsError(
            "tracker wandb is not installed.",
            remedy="`pip install 'mimicmotion-trt[wandb]'`, or leave it out of trackers.",
            field="trackers",
        )


def check_output(output: Path, *, resume: bool) -> None:
    """Raise `OutputError` if the folder holds another run that is not to be resumed."""
    if not resume and ((output / "metrics.jsonl").exists() or list_snapshots(output)):
        raise OutputError(
            f"{output} holds a run already.",
            remedy="Add --resume to go on with it, or choose another --output.",
            field="output",
        )


def write_start(output: Path, config: Config, step: int, machine: str, processes: int) -> None:
    """Write `config.yaml`, and add a line to `starts.jsonl`: after which step, when, by which command and code."""
    values = json.loads(json.dumps(asdict(config)))  # lists for tuples
    write_text(output / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    start = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "revision": code_revision(),
        "machine": machine,
        "processes": processes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    path = output / "starts.jsonl"
    with output_errors(path), path.open("a") as file:
        file.write(json.dumps(start) + "\n")


def code_revision() -> str | None:
    """The git commit of this code, with `-dirty` if files have been changed since; None outside its repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True
        )
        described = [*git, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def list_snapshots(output: Path) -> list[Path]:
    """The complete snapshots `checkpoints/step-…` of a run, oldest first."""
    folders = (output / "checkpoints").glob("step-*")
    return sorted(folder for folder in folders if re.fullmatch(r"step-\d{7,}", folder.name))


def save_snapshot(accelerator: Any, output: Path, config: Config, step: int) -> None:
    """Write weights, optimizer, moving average, states of random numbers and position in the data, then rename.

    The last `config.keep` snapshots are kept. Raises `OutputError`, and leaves those before as they are.
    """
    folder = output / "checkpoints"
    partial = folder / f".step-{step:07d}.partial"
    try:
        _save(accelerator, partial, folder / f"step-{step:07d}", config, step)
        if accelerator.is_main_process:
            for old in list_snapshots(output)[: -config.keep]:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has all three names
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            f"checkpoint {folder} cannot be written: {error}",
            remedy="Check the free space, then go on with --resume.",
            field="output",
        ) from error
    accelerator.wait_for_everyone()


def _save(accelerator: Any, partial: Path, final: Path, config: Config, step: int) -> None:
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        processes = accelerator.num_processes
        state = {
            "step": step,
            "position": step * config.batch * config.accumulation * processes,
            "processes": processes,
            "config": asdict(config),
        }
        (partial / STATE).write_text(json.dumps(state, indent=1))
        share_files(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)


def load_snapshot(accelerator: Any, output: Path, config: Config) -> int:
    """Load the newest snapshot; returns its step, 0 if there is none. Raises `CheckpointError`."""
    snapshots = list_snapshots(output)
    if not snapshots:
        return 0
    newest = snapshots[-1]
    try:
        state = json.loads((newest / STATE).read_text())
        check_same(state["config"], config)
        if state["processes"] != accelerator.num_processes:
            raise CheckpointError(
                f"the run had {state['processes']} processes, now there are {accelerator.num_processes}.",
                remedy="Resume on as many devices: the order of the clips depends on it.",
            )
        accelerator.load_state(str(newest))
    except MimicMotionError:
        raise
    except Exception as error:  # the libraries raise many kinds on damaged files, some of their own
        raise CheckpointError(
            f"{newest} cannot be loaded: {error}", remedy="Delete it to resume from the one before."
        ) from error
    return int(state["step"])


def snapshot_config(output: Path) -> dict[str, Any]:
    """The config in a run's newest snapshot as plain values; empty if there is none."""
    snapshots = list_snapshots(output)
    config: dict[str, Any] = json.loads((snapshots[-1] / STATE).read_text())["config"] if snapshots else {}
    return config


def check_same(before: dict[str, Any], config: Config) -> None:
    """Raise `CheckpointError` naming what a resumed run must not change.

    Keys that `before` lacks, because the run began when they did not exist, had their defaults.
    """
    before = {**before, "validation": asdict(config.validation)}  # the one before may not fit today's checks
    before.pop("tensorboard", None)  # before `trackers`
    # All people looked so when runs did not say it, and frames were enlarged without a limit.
    before["data"] = {"style": "rich", "max_enlarge": config.data.max_enlarge, **before["data"]}
    now, then = asdict(config), asdict(build(before))
    then["data"].update({name: now["data"][name] for name in ("cache", "workers")})
    changed = [key for key in now if key not in MAY_CHANGE and then[key] != now[key]]
    if changed:
        raise CheckpointError(
            f"the run was started with another {', '.join(changed)}.",
            remedy="Resume with the config that it was started with, or start in another output folder.",
        )


class Journal:
    """`metrics.jsonl`, `validation.jsonl`, `validation/` and `skipped.json` of a run's folder, and its trackers."""

    def __init__(self, output: Path, begin: int, trackers: Sequence[str]) -> None:
        """Lines of steps after `begin` are dropped: those steps will be made again."""
        self._output = output
        for name in ("metrics.jsonl", "validation.jsonl"):
            cut_lines(output / name, begin)
        with output_errors(output / "metrics.jsonl"):
            self._steps = (output / "metrics.jsonl").open("a")
        self._trackers = [open_tracker(name, output, begin) for name in trackers]

    def step(self, step: int, values: Values) -> None:
        """One line of `metrics.jsonl`, on disk when this returns; what is not finite becomes null."""
        with output_errors(self._output / "metrics.jsonl"):
            self._steps.write(_line(step, values))
            self._steps.flush()
        self._plot("train", step, values)

    def validation(self, step: int, values: Values, sheet: NDArray[np.uint8]) -> None:
        """One line of `validation.jsonl`, and the contact sheet as `validation/step-….png`."""
        sheets, lines = self._output / "validation", self._output / "validation.jsonl"
        with output_errors(sheets):
            sheets.mkdir(exist_ok=True)
        write_picture(sheets / f"step-{step:07d}.png", sheet)
        with output_errors(lines), lines.open("a") as file:
            file.write(_line(step, values))
        self._plot("validation", step, values)
        for tracker in self._trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation/sheet": sheet[None]}, step, **layout)

    def skipped(self, reasons: Mapping[str, int]) -> None:
        """`skipped.json`: reason -> how many clips were left out."""
        write_text(self._output / "skipped.json", f"{json.dumps(dict(sorted(reasons.items())), indent=1)}\n")

    def close(self) -> None:
        """Close the files."""
        self._steps.close()
        for tracker in self._trackers:
            tracker.finish()

    def _plot(self, group: str, step: int, values: Values) -> None:
        known = {f"{group}/{name}": value for name, value in values.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(known, step)


def open_tracker(name: str, output: Path, begin: int) -> Any:
    """One of accelerate's trackers that writes into a run's folder; steps after `begin` will come again."""
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    with output_errors(output / name):
        if name == "tensorboard":
            tracker = TensorBoardTracker("tensorboard", output, purge_step=begin + 1)
        else:
            project = os.environ.get("WANDB_PROJECT", "mimicmotion-trt")
            tracker = WandBTracker(project, name=output.resolve().name, dir=str(output))
        tracker.start()
    return tracker


def _line(step: int, values: Values) -> str:
    finite = {
        name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
    }
    return json.dumps({"step": step, **finite}) + "\n"


def cut_lines(path: Path, last: int) -> None:
    """Keep the complete lines of steps up to `last`; a line that a kill cut off is dropped, too."""
    if not path.exists():
        return
    kept = []
    with output_errors(path):
        lines = path.read_text().splitlines()
    for line in lines:
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))
