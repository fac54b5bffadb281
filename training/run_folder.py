"""The folder of a run: snapshots of all that it needs to go on, and the files in which it says what it did."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from ..errors import CheckpointError, MimicMotionError, OutputError
from ..files import output_errors, write_text
from ..media.picture import write_picture
from .config import Config, build

Values = Mapping[str, float | int | None]
STATE = "run.json"
MAY_CHANGE = ("output", "steps", "save_every", "keep", "tensorboard", "validation", "half_weights", "comfyui")
"""Keys that may differ in a resumed run without changing what came before. So may `data.cache` and `data.workers`."""


def check_output(output: Path, *, resume: bool) -> None:
    """Make the folder of a run; raise `OutputError` if it holds another run that is not to be resumed."""
    if not resume and ((output / "metrics.jsonl").exists() or list_snapshots(output)):
        raise OutputError(
            f"{output} holds a run already.",
            remedy="Add --resume to go on with it, or choose another --output.",
            field="output",
        )
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)


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
    before["data"] = {"style": "rich", **before["data"]}  # all people looked so when runs did not say it
    now, then = asdict(config), asdict(build(before))
    then["data"].update({name: now["data"][name] for name in ("cache", "workers")})
    changed = [key for key in now if key not in MAY_CHANGE and then[key] != now[key]]
    if changed:
        raise CheckpointError(
            f"the run was started with another {', '.join(changed)}.",
            remedy="Resume with the config that it was started with, or start in another output folder.",
        )


class Journal:
    """`metrics.jsonl`, `validation.jsonl`, `validation/`, `skipped.json` and `tensorboard/` of a run's folder."""

    def __init__(self, output: Path, begin: int, *, tensorboard: bool) -> None:
        """Lines of steps after `begin` are dropped: those steps will be made again."""
        self._output = output
        self._board: Any = None
        for name in ("metrics.jsonl", "validation.jsonl"):
            cut_lines(output / name, begin)
        with output_errors(output / "metrics.jsonl"):
            self._steps = (output / "metrics.jsonl").open("a")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with output_errors(output / "tensorboard"):
                self._board = SummaryWriter(str(output / "tensorboard"), purge_step=begin + 1)

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
        if self._board is not None:
            self._board.add_image("validation/sheet", sheet, step, dataformats="HWC")

    def skipped(self, reasons: Mapping[str, int]) -> None:
        """`skipped.json`: reason -> how many clips were left out."""
        write_text(self._output / "skipped.json", f"{json.dumps(dict(sorted(reasons.items())), indent=1)}\n")

    def close(self) -> None:
        """Close the files."""
        self._steps.close()
        if self._board is not None:
            self._board.close()

    def _plot(self, group: str, step: int, values: Values) -> None:
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(f"{group}/{name}", value, step)


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
