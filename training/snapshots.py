"""Checkpoints of a run: all that it needs to go on, written beside and renamed, the last few kept."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import CheckpointError, MimicMotionError, OutputError
from .config import Config, build

STATE = "run.json"
MAY_CHANGE = ("output", "steps", "save_every", "keep", "tensorboard", "validation", "half_weights", "comfyui")
"""What may differ in a resumed run without changing what came before; so may where and by how many processes
clips are prepared."""


def save_snapshot(accelerator: Any, folder: Path, config: Config, step: int) -> None:
    """Write `step-….` with weights, optimizer, moving average, RNG states and the position in the data.

    Raises `OutputError`, and leaves the checkpoints before as they are.
    """
    partial = folder / f".step-{step:07d}.partial"
    try:
        _save(accelerator, folder, partial, config, step)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has all three names
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            f"checkpoint {folder} cannot be written: {error}",
            remedy="Check the free space, then go on with --resume.",
            field="output",
        ) from error


def _save(accelerator: Any, folder: Path, partial: Path, config: Config, step: int) -> None:
    final = folder / f"step-{step:07d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        position = step * config.batch * config.accumulation * accelerator.num_processes
        state = {
            "step": step,
            "position": position,
            "processes": accelerator.num_processes,
            "config": asdict(config),
        }
        (partial / STATE).write_text(json.dumps(state, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in list_snapshots(folder)[: -config.keep]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_snapshot(accelerator: Any, folder: Path, config: Config) -> int:
    """Load the newest checkpoint; returns its step, 0 if there is none. Raises `CheckpointError`."""
    snapshots = list_snapshots(folder)
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


def list_snapshots(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{7,}", p.name))


def check_same(before: dict[str, Any], config: Config) -> None:
    """Raise `CheckpointError` naming what a resumed run must not change.

    What `before` does not tell, because the run began when there was no such key, had its default.
    """
    told = {**before, "validation": asdict(config.validation)}  # which may have been unsound
    now, then = asdict(config), asdict(build(Config, told, ""))
    then["data"].update({name: now["data"][name] for name in ("cache", "workers")})
    changed = [key for key in now if key not in MAY_CHANGE and then[key] != now[key]]
    if changed:
        raise CheckpointError(
            f"the run was started with another {', '.join(changed)}.",
            remedy="Resume with the config that it was started with, or start in another output folder.",
        )
